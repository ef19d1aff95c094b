"""The built-in data set: instruction pairs and plain text, generated from a seed.

Thirteen kinds of instruction (:mod:`~lightning_minillm.data.synthetic.tasks`) are about one small world
(:mod:`~lightning_minillm.data.synthetic.world`: 60 things, 16 persons, 8 places, and facts that a model has to
memorise). Six have exactly one right answer (``exact``), seven are open-ended.

Why it suits distillation: choices follow Zipf's law over rankings that belong to single things and persons. A large
model learns the rankings and the agreement; a tiny one cannot store them all, and at temperature 1 it mixes themes
(a rainy day that ends in dancing). References are drawn from the same law, so a response made of likely choices
overlaps more with them than one made of unlikely or mixed choices.

Splits share no (instruction, input): a hash of the prompt decides which split it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.synthetic import tasks
from lightning_minillm.data.synthetic.tasks import Draft
from lightning_minillm.data.synthetic.world import World, build_world

SPLITS = ("train", "validation", "test")
_ATTEMPTS = 60


@dataclass(frozen=True)
class Task:
    """A kind of instruction."""

    name: str
    draw: Callable[[World, Random], Draft]
    exact: bool
    weight: float
    """Share of the data set, relative to the other tasks."""


TASKS: tuple[Task, ...] = (
    Task("fact", tasks.fact, exact=True, weight=1.2),
    Task("total", tasks.total, exact=True, weight=0.8),
    Task("reverse", tasks.reverse, exact=True, weight=0.8),
    Task("odd_one_out", tasks.odd_one_out, exact=True, weight=0.8),
    Task("extract", tasks.extract, exact=True, weight=0.8),
    Task("past_tense", tasks.past_tense, exact=True, weight=0.6),
    Task("describe", tasks.describe, exact=False, weight=1.4),
    Task("name_some", tasks.name_some, exact=False, weight=1.0),
    Task("story", tasks.story, exact=False, weight=1.4),
    Task("review", tasks.review, exact=False, weight=1.2),
    Task("note", tasks.note, exact=False, weight=1.2),
    Task("plan", tasks.plan, exact=False, weight=1.0),
    Task("present", tasks.present, exact=False, weight=1.0),
)


@dataclass(frozen=True)
class SyntheticSizes:
    """Numbers of records, documents, references and tokens of the written data set."""

    train: int = 7000
    validation: int = 300
    test: int = 300
    corpus: int = 2000
    """Documents of the plain-text corpus."""
    references: int = 4
    """Responses per open-ended validation and test prompt; training prompts have one."""
    vocab_size: int = 1024


@dataclass(frozen=True)
class SyntheticSource:
    """A split of the built-in data set, generated in memory; a source for ``DistillationDataModule``."""

    split: str
    limit: int | None = None
    """Number of records; ``None`` takes the default of ``SyntheticSizes``."""
    seed: int = 0
    references: int | None = None
    """Responses per open-ended prompt; ``None`` for 1 in training and the default of ``SyntheticSizes`` otherwise."""
    world_seed: int = 0

    def load(self) -> list[InstructionRecord]:
        """Return the records."""
        count = vars(SyntheticSizes()).get(self.split, 1) if self.limit is None else self.limit
        return generate_records(self.split, count, self.seed, references=self.references, world_seed=self.world_seed)


def generate_records(
    split: str, count: int, seed: int = 0, *, references: int | None = None, world_seed: int = 0
) -> list[InstructionRecord]:
    """Generate the records of one split.

    Args:
        split: ``train``, ``validation`` or ``test``; they share no (instruction, input).
        count: number of records, at least 1. A shorter list is the beginning of a longer one. All prompts differ until
            a task runs out of them (after about ten thousand training records).
        seed: of prompts and responses.
        references: responses per open-ended prompt, drawn independently of each other (so they may repeat); by
            default 1 for training and 4 otherwise. Prompts with one right answer have one.
        world_seed: of the facts; use the same for all splits.

    Raises:
        ValueError: an unknown split, or a count below 1.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if references is None:
        references = 1 if split == "train" else SyntheticSizes().references
    if count < 1 or references < 1:
        raise ValueError(f"count and references must be at least 1, got {count} and {references}")
    world, weights = build_world(world_seed), [task.weight for task in TASKS]
    seen: set[tuple[str, str]] = set()
    records = []
    for row in range(count):
        rng = Random(f"{seed}-{split}-{row}")
        task = rng.choices(TASKS, weights)[0]
        draft = _draw_new(task, world, rng, split, seen)
        responses = tuple(draft.respond(rng) for _ in range(1 if task.exact else references))
        records.append(InstructionRecord(draft.instruction, draft.input, responses, task.name, task.exact))
    return records


def _draw_new(task: Task, world: World, rng: Random, split: str, seen: set[tuple[str, str]]) -> Draft:
    """Draw a prompt of the split, one that is not in ``seen`` (it is added) if that succeeds within some attempts."""
    repeated, attempts = None, 0
    while repeated is None or attempts < _ATTEMPTS:
        attempts += 1
        draft = task.draw(world, rng)
        prompt = draft.instruction, draft.input
        if split_of(*prompt) == split:
            if prompt not in seen:
                seen.add(prompt)
                return draft
            repeated = draft
    return repeated


def split_of(instruction: str, input: str) -> str:
    """Return the split of a prompt, which does not depend on the seed: 80 / 10 / 10 % of all prompts."""
    bucket = crc32(f"{instruction}\n{input}".encode()) % 100
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"


def generate_corpus(count: int, seed: int = 0, *, world_seed: int = 0) -> list[str]:
    """Generate plain-text documents about the same world: each joins two to four texts of the open-ended kinds.

    Args:
        count: number of documents, at least 1. Each is one line without a newline.
        seed: of the texts.
        world_seed: of the facts; use that of the records.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    world, open_ended = build_world(world_seed), [task for task in TASKS if not task.exact]

    def document(rng: Random) -> str:
        return " ".join(rng.choice(open_ended).draw(world, rng).respond(rng) for _ in range(rng.randint(2, 4)))

    return [document(Random(f"{seed}-corpus-{row}")) for row in range(count)]
