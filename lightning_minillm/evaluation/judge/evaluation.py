"""A language model as judge of responses: scores against the reference, or wins over a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.rows import iterate_rows
from lightning_minillm.evaluation.base import Evaluation, Findings, Record, join_sets
from lightning_minillm.evaluation.judge.answers import Answers
from lightning_minillm.evaluation.judge.client import ChatClient
from lightning_minillm.evaluation.judge.prompts import ask_for_scores, ask_for_verdict
from lightning_minillm.evaluation.judge.rows import MEASURES, Mode, judge_row, summarise_rows
from lightning_minillm.evaluation.prompt_sets import PromptItems, PromptSets
from lightning_minillm.evaluation.responses import describe_responses
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import sampler_for


class JudgeEvaluation(PromptItems, Evaluation):
    """Samples a response to every prompt and lets a chat model judge it.

    Responses are sampled on all ranks; the first rank asks the judge once all of them exist. Answers are kept in the
    client's file, so that a run stopped by hand or by a limit resumes without asking anything twice.

    Args:
        prompts: the data sets, and how the student responds to them. Responses of all seeds count together.
        client: asks the judge.
        mode: ``score``: scores from 1 to 10 of the response and of the first reference, and the ratio of their sums
            over all rows in percent; ``pairwise``: wins, ties and losses against the baseline's responses.
        baseline: for ``pairwise``, files with its responses (JSON Lines with ``prompt`` and ``response``, as written by
            ``minillm-evaluate``) by the name of the data set, or one file if there is one data set.
        swap_order: show every pair in both orders. The scores are averaged; a win or loss counts only if both orders
            agree, otherwise the row is a tie. ``False`` halves the requests but keeps the judge's position bias.

    Raises:
        ValueError: the mode is unknown, or ``pairwise`` has no baseline.

    Source: MiniLLM (arXiv 2306.08543), section 3.1, "GPT-4 feedback"; the swap: Zheng et al. (arXiv 2306.05685).
    """

    name = "judge"
    slow_findings = True

    def __init__(
        self,
        prompts: PromptSets,
        client: ChatClient,
        *,
        mode: Mode = "score",
        baseline: Mapping[str, str] | str | None = None,
        swap_order: bool = True,
    ) -> None:
        if mode not in ("score", "pairwise"):
            raise ValueError(f"mode must be score or pairwise, got {mode!r}")
        super().__init__(prompts)
        self.measures = join_sets(dict.fromkeys(prompts.names, MEASURES[mode]))
        self.client = client
        self.mode = mode
        self.baseline = _by_data_set(baseline, prompts.names) if mode == "pairwise" else {}
        self.swap_order = swap_order
        self.opponents: dict[str, dict[str, str]] = {}
        self._refused: Mapping[str, str] = {}

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the judge can be reached, and read the data and the baseline's responses.

        Raises:
            ValueError: the judge cannot be reached; data is missing, is empty or lacks a field; or the baseline has no
                response to a prompt.
        """
        self.client.check()
        super().prepare(tokenizer)
        for name, file in self.baseline.items():
            self.opponents[name] = _read_responses(file)
            self._check_opponent(name)

    def _check_opponent(self, name: str) -> None:
        data = self.prompts.data[name]
        prompts = data.evaluation_batch(range(len(data))).prompt_texts
        missing = [prompt for prompt in prompts if prompt not in self.opponents[name]]
        if missing:
            raise ValueError(
                f"the baseline's file {self.baseline[name]!r} has no response to {len(missing)} of the {len(prompts)}"
                f" prompts of data set {name!r}, such as {missing[0][:80]!r}: evaluate the baseline on the same data"
            )

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Sample a batch of responses."""
        seed, name, rows = self.prompts.find(items)
        batch = self.prompts.data[name].evaluation_batch(rows).to(pair.device)
        rollouts = sampler_for(pair, self.prompts.sampling).sample(batch.prompts, seed=seed)
        described = describe_responses(pair, batch, rollouts)
        return [{"item": item, "data_set": name, **row} for item, row in zip(items, described, strict=True)]

    def findings(self, records: Sequence[Record]) -> Findings:
        """Ask the judge about all responses, and summarise its answers.

        Raises:
            JudgeError: the judge stopped answering; responses and answers are kept.
        """
        answers = self._ask([question for record in records for question in self._questions(record)])
        self._refused = answers.refusals
        return super().findings(records)

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Summarise the answers."""
        rows = [
            judge_row(self.mode, ["" if each in self._refused else self.client.known(each) for each in questions])
            for questions in map(self._questions, records)
        ]
        return Findings({key: [value] for key, value in summarise_rows(rows).items()})

    def _questions(self, record: Record) -> list[str]:
        """Return the questions about a row: with the response shown first, then, if orders are swapped, second."""
        ask, other = ask_for_scores, record["references"][0]
        if self.mode == "pairwise":
            ask, other = ask_for_verdict, self.opponents[record["data_set"]][record["prompt"]]
        pair = (record["response"], other)
        orders = [pair, pair[::-1]] if self.swap_order else [pair]
        return [ask(record["prompt"], *order) for order in orders]

    def _ask(self, questions: Sequence[str]) -> Answers:
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("asking the judge", total=len(set(questions)))
            answers = self.client.ask(questions, on_answer=lambda: progress.advance(task))
            progress.update(task, completed=len(set(questions)))
        if answers.stopped is not None:
            rank_zero_warn(
                f"the judge was asked nothing more after {answers.num_requests} requests and {answers.num_tokens}"
                f" tokens: {answers.stopped} is reached, and {sum(text is None for text in answers.texts)} of"
                f" {len(questions)} questions are open. Raise it and repeat the command to resume"
            )
        if answers.refusals:
            example = next(iter(answers.refusals.values()))
            rank_zero_warn(f"the judge refused {len(answers.refusals)} questions, e.g. with {example}")
        return answers

    def texts(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Return the responses of each data set with their judgements."""
        files: dict[str, list[Record]] = {}
        for record in records:
            row = judge_row(self.mode, [self.client.known(question) for question in self._questions(record)])
            said: Record = {"judged": row.state == "judged"}
            said |= {"score": row.scores[0], "reference_score": row.scores[1]} if row.scores else {}
            said |= {"outcome": row.outcome} if row.outcome else {}
            kept = {key: value for key, value in record.items() if key not in ("item", "data_set")}
            files.setdefault(self.file_name(record, "judge"), []).append(kept | said)
        return files


def _by_data_set(baseline: Mapping[str, str] | str | None, names: Sequence[str]) -> dict[str, str]:
    """Return the baseline's file of each data set."""
    if isinstance(baseline, str) and len(names) == 1:
        return dict.fromkeys(names, baseline)
    files = dict(baseline) if isinstance(baseline, Mapping) else {}
    missing = [name for name in names if not files.get(name)]
    if missing:
        example = "FILE" if len(names) == 1 else f"{{{', '.join(f'{name}: FILE' for name in names)}}}"
        raise ValueError(
            f"pairwise judging needs the baseline's responses to {', '.join(missing)}: evaluation.judge.baseline="
            f"{example}, as written to responses/ by evaluation=[responses]"
        )
    return {name: files[name] for name in names}


def _read_responses(file: str) -> dict[str, str]:
    """Return responses by their prompts, the first response to each."""
    found: dict[str, str] = {}
    try:
        for where, row in iterate_rows(file):
            if not isinstance(row.get("prompt"), str) or not isinstance(row.get("response"), str):
                raise ValueError(f"{where}: a baseline's row needs prompt and response; it has {', '.join(row)}")
            found.setdefault(row["prompt"], row["response"])
    except FileNotFoundError as error:
        raise ValueError(f"the baseline's responses: {error}") from error
    return found
