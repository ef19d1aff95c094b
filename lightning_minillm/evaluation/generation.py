"""Responses that are kept as instruction records: the training data of SeqKD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.records import RESPONSE_IDS
from lightning_minillm.evaluation.base import Evaluation, Findings, Measure, Record
from lightning_minillm.evaluation.prompt_sets import PromptItems, PromptSets
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import are_finished, decode_responses, sampler_for

MARKED = "output_with_special_tokens"
"""In records, the text with its special tokens, if it has any; either text can be written without sampling again."""


class GenerationEvaluation(PromptItems, Evaluation):
    """Samples one or more responses to every prompt and keeps them.

    The rows of :meth:`texts` have ``instruction``, ``input``, ``output``, ``task``, ``exact``, ``row`` and ``sample``
    (the number of the response to its prompt), ``tokens``, and ``finished`` (whether the response ended by itself). The
    rows of conversations have ``messages``, ending with the response, and ``tools`` if there are any, instead of
    ``instruction``, ``input`` and ``output``.

    Args:
        prompts: the data set, with one seed.
        num_samples: responses per prompt; at least 1.
        keep_unfinished: also keep responses that reach ``max_new_tokens`` or, except in conversations, are empty.
        keep_special_tokens: write special tokens, such as marks of thoughts, tool calls or infilling, in the text, all
            but the one that ends the response; and ``output_ids``, the ids of the response with its end, which training
            on the file then takes.

    Raises:
        ValueError: ``num_samples`` is below 1, or there are several seeds or data sets.
    """

    name = "generation"
    measures_of_set: ClassVar = {
        "responses": Measure("responses", 0),
        "unfinished": Measure("unfinished responses", 0),
        "mean_length": Measure("response tokens", 1),
        "with_special_tokens": Measure("responses with special tokens", 0),
    }

    def __init__(
        self,
        prompts: PromptSets,
        *,
        num_samples: int = 1,
        keep_unfinished: bool = False,
        keep_special_tokens: bool = False,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if len(prompts.seeds) > 1 or len(prompts.names) > 1:
            raise ValueError(
                f"responses are generated with one seed for one data set, got seeds {list(prompts.seeds)} and data sets"
                f" {', '.join(prompts.names)}: use num_samples for several responses per prompt"
            )
        super().__init__(prompts)
        self.num_samples = num_samples
        self.keep_unfinished = keep_unfinished
        self.keep_special_tokens = keep_special_tokens

    @property
    def num_responses(self) -> int:
        """Number of responses that are sampled."""
        return self.num_samples * self.prompts.num_rows

    def batches(self) -> list[list[int]]:
        """Return the batches of each sample, in the order of the prompts: rounding depends on the rows of a batch."""
        count, size = self.prompts.num_rows, self.prompts.batch_size
        return [
            list(range(sample * count + start, sample * count + min(start + size, count)))
            for sample in range(self.num_samples)
            for start in range(0, count, size)
        ]

    def identity(self) -> dict[str, Any]:
        """Return what determines the responses: not the batch size, which a resumed run may lower."""
        return {key: value for key, value in super().identity().items() if key != "batch_size"}

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Sample a batch of responses."""
        sample = items[0] // self.prompts.num_rows
        seed, name, rows = self.prompts.find([item - sample * self.prompts.num_rows for item in items])
        data = self.prompts.data[name]
        sampler = sampler_for(pair, self.prompts.sampling)
        rollouts = sampler.sample(data.prompt_batch(rows).to(pair.device), seed=seed, phase=sample)
        lengths, finished = rollouts.lengths.tolist(), are_finished(pair, self.prompts.sampling, rollouts)
        texts = decode_responses(pair.tokenizer, rollouts)
        marked = [
            _with_special_tokens(pair.tokenizer, ids[: length - ended].tolist())
            for ids, length, ended in zip(rollouts.response_ids, lengths, finished, strict=True)
        ]
        talks = [data.records[row].conversation for row in rows]
        return [
            {
                "item": items[place],
                "instruction": data.records[row].instruction,
                "input": data.records[row].input,
                "output": texts[place],
                "task": data.records[row].task,
                "exact": data.records[row].exact,
                "row": row,
                "sample": sample,
                "tokens": lengths[place],
                "finished": finished[place],
                RESPONSE_IDS: rollouts.response_ids[place, : lengths[place]].tolist(),
                **({} if marked[place] is None else {MARKED: marked[place]}),
                **({} if talk is None else {"messages": talk.messages()[:-1], "tools": list(talk.tools)}),
            }
            for place, (row, talk) in enumerate(zip(rows, talks, strict=True))
        ]

    def findings(self, records: Sequence[Record]) -> Findings:
        """Count responses, and average the length of those that are kept.

        Raises:
            ValueError: no response is kept.
        """
        kept = self._kept(records)
        with_special_tokens = sum(MARKED in record for record in records)
        if not kept:
            unfinished = sum(not record["finished"] for record in records)
            raise ValueError(
                f"none of the {len(records)} responses ended by itself and has text: {unfinished} did not end within"
                f" sampling.max_new_tokens={self.prompts.sampling.max_new_tokens} tokens,"
                f" {len(records) - unfinished} are empty; raise it, or set keep_unfinished=true"
            )
        return Findings(
            {
                "responses": [len(kept)],
                "unfinished": [sum(not record["finished"] for record in records)],
                "mean_length": [sum(record["tokens"] for record in kept) / len(kept)],
                **({"with_special_tokens": [with_special_tokens]} if with_special_tokens else {}),
            }
        )

    def texts(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Return the responses that are kept, sample by sample in the order of the prompts."""
        rows = [_as_row(record) for record in self._kept(records)]
        hidden = () if self.keep_special_tokens else (RESPONSE_IDS,)
        return {"responses": [{key: value for key, value in row.items() if key not in hidden} for row in rows]}

    def _kept(self, records: Sequence[Record]) -> list[Record]:
        if self.keep_special_tokens:
            records = [{**record, "output": record.get(MARKED, record["output"])} for record in records]
        if self.keep_unfinished:
            return [record for record in records if record["output"] or "messages" not in record]
        return [record for record in records if record["finished"] and record["output"]]


def _as_row(record: Record) -> Record:
    """Return the row that training reads."""
    row = {key: value for key, value in record.items() if key not in ("item", MARKED)}
    if "messages" not in row:
        return row
    messages = [*row.pop("messages"), {"role": "assistant", "content": row.pop("output")}]
    talk = {"messages": messages} | ({"tools": row["tools"]} if row["tools"] else {})
    return talk | {key: value for key, value in row.items() if key not in ("instruction", "input", "tools")}


def _with_special_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str | None:
    """Return the text of a response without its end, special tokens included; ``None`` if it has none of them."""
    if set(ids).isdisjoint(tokenizer.all_special_ids):
        return None
    return str(tokenizer.decode(ids, skip_special_tokens=False)).strip()
