"""Passage retrieval: passages ranked by the likelihood of the question given the passage.

Legend: D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torchmetrics.functional.retrieval import retrieval_recall, retrieval_reciprocal_rank
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data import EncodedInstructions, InstructionRecord, Lengths, PromptTemplate
from lightning_minillm.evaluation.base import Evaluation, Findings, Measure, Record, join_sets
from lightning_minillm.evaluation.data_sets import ItemNumbers, digest_of_data, require_data
from lightning_minillm.evaluation.retrieval.passages import PassageSet, PassageSource, Question
from lightning_minillm.evaluation.scoring import response_scores
from lightning_minillm.models import ModelPair

INSTRUCTION = "Read the passage and write a question or claim about what it says."


class SentenceEncoder(Protocol):
    """A model that ranks passages by embeddings, such as sentence-transformers' ``SentenceTransformer``."""

    def encode(self, sentences: list[str]) -> npt.ArrayLike:
        """Return an array ``[len(sentences), D]``."""


def load_encoder(path: str) -> SentenceEncoder:
    """Load a sentence encoder from a folder or hub name.

    Raises:
        ImportError: the extra ``encoder`` is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            "a sentence encoder needs sentence-transformers: pip install 'lightning-minillm[encoder]'"
        ) from error
    encoder: SentenceEncoder = SentenceTransformer(path)
    return encoder


class RetrievalEvaluation(Evaluation):
    """Mean reciprocal rank and Recall@k of passages ranked by log p(question | passage) under the model.

    The passage is the input of a prompt that asks for a question, and the score is the sum of the log-probabilities of
    the question's tokens as the response (query likelihood: Ponte and Croft 1998; Sachan et al., arXiv 2204.07496).
    Values are means over questions, in percent.

    Args:
        datasets: retrieval sets by name; those without a path are left out. If one is left, metrics have plain names.
        template: makes the prompts.
        num_questions: number of questions of each set, from its start; ``None`` for all.
        num_candidates: number of passages that are ranked for a question: the relevant ones, and others drawn from its
            candidates; at least 2, ``None`` for all.
        recall_at: the k of Recall@k, each at least 1.
        seed: of the draw of candidates.
        max_passage_length: maximum number of tokens of a passage; longer passages are cut.
        max_length: maximum number of tokens of prompt and question.
        batch_size: number of sequences that one rank processes together.
        encoder: makes a sentence encoder, whose ranking by cosine similarity is measured too; ``None`` for none.

    Raises:
        ValueError: an option is outside its range.
    """

    name = "retrieval"

    def __init__(
        self,
        datasets: Mapping[str, PassageSource],
        template: PromptTemplate,
        *,
        num_questions: int | None = None,
        num_candidates: int | None = 16,
        recall_at: Sequence[int] = (1, 5),
        seed: int = 0,
        max_passage_length: int = 256,
        max_length: int = 512,
        batch_size: int = 64,
        encoder: Callable[[], SentenceEncoder] | None = None,
    ) -> None:
        if num_candidates is not None and num_candidates < 2:
            raise ValueError(f"num_candidates must be at least 2 or null, got {num_candidates}")
        for name, value in (("batch_size", batch_size), ("max_passage_length", max_passage_length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not recall_at or min(recall_at) < 1 or (num_questions is not None and num_questions < 1):
            raise ValueError(
                f"recall_at must be values of at least 1 and num_questions at least 1 or null, got {list(recall_at)}"
                f" and {num_questions}"
            )
        self.known = tuple(datasets)
        self.sources = {name: source for name, source in datasets.items() if source.path is not None}
        self.template = template
        self.num_questions, self.num_candidates = num_questions, num_candidates
        self.recall_at = tuple(recall_at)
        self.seed = seed
        self.max_passage_length, self.max_length = max_passage_length, max_length
        self.batch_size = batch_size
        self._make_encoder = encoder
        self.rows: dict[str, EncodedInstructions] = {}
        self.relevant: dict[str, list[list[bool]]] = {}
        self.encoder_scores: dict[str, list[list[float]]] = {}
        self.items = ItemNumbers({})
        self.data_sets = tuple(self.sources)
        self.measures = join_sets(dict.fromkeys(self.sources, self._measures()))

    def _measures(self) -> dict[str, Measure]:
        of_model = {"mrr": Measure("MRR %", 1, True)}
        of_model |= {f"recall_at_{k}": Measure(f"Recall@{k} %", 1, True) for k in self.recall_at}
        if self._make_encoder is None:
            return of_model
        return of_model | {
            f"encoder_{key}": Measure(f"{measure.title}, encoder", 1, True) for key, measure in of_model.items()
        }

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the sets, choose candidates, and tokenise every passage with its question.

        Raises:
            ValueError: no set has a path, or a set is missing, is empty or lacks a field.
            ImportError: there is an encoder and it cannot be loaded.
        """
        require_data(self.name, self.known, self.sources)
        encoder = None if self._make_encoder is None else self._make_encoder()
        for name, source in self.sources.items():
            try:
                found = source.load()
            except FileNotFoundError as error:
                raise ValueError(f"retrieval set {name!r}: {error}") from error
            questions = found.questions[: self.num_questions]
            candidates = [self._candidates(question, place) for place, question in enumerate(questions)]
            self.relevant[name] = [
                [passage in question.relevant for passage in chosen]
                for question, chosen in zip(questions, candidates, strict=True)
            ]
            self.rows[name] = self._encode(name, found, questions, candidates, tokenizer)
            if encoder is not None:
                self.encoder_scores[name] = _cosines(encoder, found, questions, candidates)
        self.items = ItemNumbers({name: len(relevant) for name, relevant in self.relevant.items()})

    def _candidates(self, question: Question, place: int) -> list[int]:
        """Return the passages to rank, in the order of the set; the draw depends on the seed and the question alone."""
        others = [passage for passage in question.candidates if passage not in question.relevant]
        if self.num_candidates is not None:
            room = max(1, self.num_candidates - len(question.relevant))
            drawn = np.random.default_rng((self.seed, place)).permutation(len(others))[:room]
            others = [others[index] for index in drawn]
        return sorted([*question.relevant, *others])

    def _encode(
        self,
        name: str,
        found: PassageSet,
        questions: Sequence[Question],
        candidates: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> EncodedInstructions:
        used = sorted({passage for chosen in candidates for passage in chosen})
        cut = {passage: _cut(found.passages[passage], self.max_passage_length, tokenizer) for passage in used}
        records = [
            InstructionRecord(INSTRUCTION, cut[passage], (question.text,))
            for question, chosen in zip(questions, candidates, strict=True)
            for passage in chosen
        ]
        lengths = Lengths(self.max_length, self.max_length - 1)
        rows = EncodedInstructions(records, tokenizer, self.template, lengths, add_bos=self.add_bos)
        if rows.num_dropped or rows.num_truncated:
            raise ValueError(
                f"retrieval set {name!r}: {rows.num_dropped + rows.num_truncated} passages with their questions have"
                f" more than max_length={self.max_length} tokens: lower evaluation.retrieval.max_passage_length"
                f" ({self.max_passage_length})"
            )
        return rows

    def batches(self) -> list[list[int]]:
        """Return each set's questions in batches with at most ``batch_size`` candidates (but at least one question)."""
        batches = []
        for name, relevant in self.relevant.items():
            size = max(1, self.batch_size // max(map(len, relevant)))
            places = range(len(relevant))
            batches += [self.items.number(name, places[start : start + size]) for start in places[::size]]
        return batches

    def identity(self) -> dict[str, Any]:
        """Return the name, the batch size, and a digest of the pairs of passage and question."""
        return {"name": self.name, "batch_size": self.batch_size, "data": digest_of_data(self.rows)}

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Score the candidates of a batch of questions: log p(question | passage) of each."""
        name, questions = self.items.find(items)
        counts = list(map(len, self.relevant[name]))
        starts = np.cumsum([0, *counts])
        rows = [row for question in questions for row in range(starts[question], starts[question + 1])]
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            scores += response_scores(pair, self.rows[name].token_batch(chosen, normalizer=1.0))
        of_question = iter(scores)
        return [
            {"item": item, "data_set": name, "scores": [next(of_question) for _ in range(counts[question])]}
            for item, question in zip(items, questions, strict=True)
        ]

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Compute MRR and Recall@k."""
        scores = [record["scores"] for record in records]
        measured = retrieval_metrics(scores, self.relevant[name], self.recall_at)
        if name in self.encoder_scores:
            by_encoder = retrieval_metrics(self.encoder_scores[name], self.relevant[name], self.recall_at)
            measured |= {f"encoder_{key}": value for key, value in by_encoder.items()}
        return Findings({key: [value] for key, value in measured.items()})


def retrieval_metrics(
    scores: Sequence[Sequence[float]], relevant: Sequence[Sequence[bool]], recall_at: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Return MRR and Recall@k in percent.

    Args:
        scores: of the candidates of each question; higher is better.
        relevant: whether each candidate is relevant; at least one per question is.
        recall_at: the k of Recall@k.

    Example:
        >>> retrieval_metrics([[0.1, 0.3, 0.2]], [[False, False, True]], recall_at=[1])
        {'mrr': 50.0, 'recall_at_1': 0.0}
    """
    rows: dict[str, list[torch.Tensor]] = {"mrr": [], **{f"recall_at_{k}": [] for k in recall_at}}
    for own, flags in zip(scores, relevant, strict=True):
        # torchmetrics treats candidates with a score of 0 or less as not found: the lowest score becomes 1
        predictions = torch.tensor([1 + score - min(own) for score in own], dtype=torch.float64)
        targets = torch.tensor(flags)
        rows["mrr"].append(retrieval_reciprocal_rank(predictions, targets))
        for k in recall_at:
            rows[f"recall_at_{k}"].append(retrieval_recall(predictions, targets, top_k=k))
    return {name: 100 * float(torch.stack(values).mean()) for name, values in rows.items()}


def _cosines(
    encoder: SentenceEncoder, found: PassageSet, questions: Sequence[Question], candidates: Sequence[Sequence[int]]
) -> list[list[float]]:
    used = sorted({passage for chosen in candidates for passage in chosen})
    places = {passage: place for place, passage in enumerate(used)}
    texts = ([found.passages[passage] for passage in used], [question.text for question in questions])
    vectors = (torch.from_numpy(np.asarray(encoder.encode(text), dtype=np.float64)) for text in texts)
    of_passages, of_questions = (functional.normalize(each, dim=-1) for each in vectors)
    return [
        (of_passages[[places[passage] for passage in chosen]] @ of_questions[place]).tolist()
        for place, chosen in enumerate(candidates)
    ]


def _cut(text: str, length: int, tokenizer: PreTrainedTokenizerBase) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return text if len(ids) <= length else str(tokenizer.decode(ids[:length], skip_special_tokens=True))
