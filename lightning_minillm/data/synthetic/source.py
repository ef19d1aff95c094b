"""The built-in data set: instruction pairs, a plain-text corpus and a tokenizer, all made from a seed.

Thirteen kinds of instruction speak of one small world (``synthetic_world``: 60 things, 16 persons, 8 places, and facts
that have to be known by heart).

Six tasks have exactly one right answer (``exact``):

============  =====================================================================================
fact          a question about a thing's colour, kind, place, habit or friend
total         the sum of two small numbers in a story
reverse       3 to 5 words in reverse order
odd_one_out   the word of another category, with the reason
extract       a question about a passage
past_tense    a sentence put in the past
============  =====================================================================================

Seven are open-ended:

============  =====================================================================================
describe      size, colour, category, place, a phrase that goes with the place, two habits of a thing
name_some     2 to 4 things of a category, then the first one's colour and a habit
story         the tone (ranked by the thing and the person) rules weather, verbs and ending
review        the verdict (ranked by the person) rules adjective, opinion, stars and plan
note          the purpose rules opening, middle and closing
plan          the season rules three activities; the place follows the person, its phrase the place
present       two of a person's preferred gifts, and where they go
============  =====================================================================================

Why it suits distillation: choices follow Zipf's law over rankings that belong to single things and persons. A large
model learns the rankings and the agreement; a tiny one cannot hold them all, and at temperature 1 it mixes plans
(a rainy day that ends in dancing). References are drawn from the same law, so a response made of likely choices
overlaps more with them than one made of unlikely or mixed ones.

Splits share no (instruction, input): a hash of the prompt decides which split it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING
from zlib import crc32

from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.synthetic import tasks as synthetic_tasks
from lightning_minillm.data.synthetic import world as synthetic_world
from lightning_minillm.data.synthetic.tasks import EXACT_TASKS, TASKS, Draft, Task
from lightning_minillm.data.synthetic.world import World, build_world
from lightning_minillm.data.templates import PlainTemplate, PromptTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "EOS_TOKEN",
    "EXACT_TASKS",
    "SPLITS",
    "TASKS",
    "SyntheticSizes",
    "SyntheticSource",
    "build_tokenizer",
    "generate_corpus",
    "generate_records",
    "tokenizer_texts",
    "write_synthetic",
]

EOS_TOKEN = "<|endoftext|>"
SPLITS = ("train", "validation", "test")
_BUCKETS = {"train": range(80), "validation": range(80, 90), "test": range(90, 100)}
_ATTEMPTS = 60
_FINGERPRINT_FILE = "fingerprint.json"


@dataclass(frozen=True)
class SyntheticSizes:
    """How much :func:`write_synthetic` writes."""

    train: int = 7000
    validation: int = 300
    test: int = 300
    corpus: int = 2000
    """Documents of the plain-text corpus."""
    references: int = 4
    """Responses drawn for each open-ended validation and test prompt; training prompts have one."""
    vocab_size: int = 1024


@dataclass(frozen=True)
class SyntheticSource:
    """A split of the built-in data set, made in memory; a source for ``DistillationDataModule``."""

    split: str
    limit: int | None = None
    """Number of records; ``None`` takes :class:`SyntheticSizes`'s."""
    seed: int = 0
    references: int | None = None
    """Responses for each open-ended prompt; ``None``: 1 for training, :class:`SyntheticSizes`'s otherwise."""
    world_seed: int = 0

    def load(self) -> list[InstructionRecord]:
        """Return the records."""
        count = getattr(SyntheticSizes(), _checked_split(self.split)) if self.limit is None else self.limit
        return generate_records(self.split, count, self.seed, references=self.references, world_seed=self.world_seed)


def generate_records(
    split: str, count: int, seed: int = 0, *, references: int | None = None, world_seed: int = 0
) -> list[InstructionRecord]:
    """Make the records of one split.

    Args:
        split: ``train``, ``validation`` or ``test``; they share no (instruction, input).
        count: number of records, at least 1. A shorter list is the beginning of a longer one. Prompts are different
            from each other until a task runs out of them (past about ten thousand training records).
        seed: which prompts and responses are drawn.
        references: responses for each open-ended prompt, drawn independently of each other (so they may repeat);
            by default 1 for training and 4 otherwise. Prompts with one right answer have one.
        world_seed: which world is spoken of; keep it equal over the splits.

    Raises:
        ValueError: for an unknown split, or a count below 1.
    """
    _checked_split(split)
    if references is None:
        references = 1 if split == "train" else SyntheticSizes().references
    if count < 1 or references < 1:
        raise ValueError(f"count and references must be at least 1, got {count} and {references}.")
    world, weights = build_world(world_seed), [task.weight for task in TASKS]
    seen: set[tuple[str, str]] = set()
    records = []
    for row in range(count):
        rng = Random(f"{seed}-{split}-{row}")
        task = rng.choices(TASKS, weights)[0]
        draft = _draw_new(task, world, rng, split, seen)
        seen.add((draft.instruction, draft.input))
        responses = tuple(draft.respond(rng) for _ in range(1 if task.exact else references))
        records.append(InstructionRecord(draft.instruction, draft.input, responses, task.name, task.exact))
    return records


def _draw_new(task: Task, world: World, rng: Random, split: str, seen: set[tuple[str, str]]) -> Draft:
    """Draw a prompt of the split, an unseen one where that succeeds within some attempts."""
    fallback = None
    for _ in range(_ATTEMPTS):
        draft = task.draw(world, rng)
        if split_of(draft.instruction, draft.input) != split:
            continue
        if (draft.instruction, draft.input) not in seen:
            return draft
        fallback = draft
    while fallback is None:
        draft = task.draw(world, rng)
        fallback = draft if split_of(draft.instruction, draft.input) == split else None
    return fallback


def split_of(instruction: str, input: str) -> str:
    """Return the split that a prompt belongs to, whatever the seed: 80 / 10 / 10 % of all prompts."""
    bucket = crc32(f"{instruction}\n{input}".encode()) % 100
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"Unknown split '{split}': use one of {', '.join(SPLITS)}.")
    return split


def generate_corpus(count: int, seed: int = 0, *, world_seed: int = 0) -> list[str]:
    """Make plain-text documents about the same world: each joins two to four texts of the open-ended kinds.

    Args:
        count: number of documents, at least 1. Each is one line without a newline.
        seed: which texts are drawn.
        world_seed: as in :func:`generate_records`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    world = build_world(world_seed)
    tasks = [task for task in TASKS if not task.exact]
    documents = []
    for row in range(count):
        rng = Random(f"{seed}-corpus-{row}")
        parts = [rng.choice(tasks).draw(world, rng).respond(rng) for _ in range(rng.randint(2, 4))]
        documents.append(" ".join(parts))
    return documents


def tokenizer_texts(
    records: Iterable[InstructionRecord], documents: Iterable[str] = (), template: PromptTemplate | None = None
) -> Iterator[str]:
    """Yield the texts that :func:`build_tokenizer` should see: prompts with their response, and documents."""
    template = template or PlainTemplate()
    for record in records:
        yield template.format(record.instruction, record.input) + record.responses[0]
    yield from documents


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose pad token is its eos token.

    Args:
        texts: what to learn the merges from.
        vocab_size: tokens at most, at least 257 (the bytes and eos).

    Raises:
        ValueError: when ``vocab_size`` is too small for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257 (256 bytes and eos), got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def write_synthetic(folder: str | Path, seed: int = 0, sizes: SyntheticSizes | None = None) -> Path:
    """Write the data set: ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``corpus.txt`` and ``tokenizer/``.

    The folder appears complete or not at all, and is kept when it already holds the same data set (same arguments,
    same generator).

    Args:
        folder: where to write; its parents are made.
        seed: which prompts and responses are drawn.
        sizes: how many of each.

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder holds something that this function did not write.
    """
    folder, sizes = Path(folder), sizes or SyntheticSizes()
    fingerprint = {"seed": seed, "sizes": asdict(sizes), "generator": _generator_digest()}
    if _read_fingerprint(folder) == fingerprint:
        return folder
    if folder.is_dir() and any(folder.iterdir()) and _read_fingerprint(folder) is None:
        raise FileExistsError(f"'{folder}' is not empty and not a built-in data set: choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        _write_files(new, seed, sizes)
        (new / _FINGERPRINT_FILE).write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")
        try:
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)
        except OSError:  # another process was faster
            if _read_fingerprint(folder) != fingerprint:
                raise
        shutil.rmtree(Path(scratch) / "old", ignore_errors=True)
    return folder


def _write_files(folder: Path, seed: int, sizes: SyntheticSizes) -> None:
    records = {}
    for split in SPLITS:
        references = 1 if split == "train" else sizes.references
        records[split] = generate_records(split, getattr(sizes, split), seed, references=references)
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(_to_row(record)) + "\n" for record in records[split])
    documents = generate_corpus(sizes.corpus, seed)
    (folder / "corpus.txt").write_text("\n".join(documents) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(tokenizer_texts(records["train"], documents), sizes.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")


def _to_row(record: InstructionRecord) -> dict[str, object]:
    return {
        "instruction": record.instruction,
        "input": record.input,
        "output": list(record.responses),
        "task": record.task,
        "exact": record.exact,
    }


def _generator_digest() -> str:
    digest = hashlib.sha256()
    for file in (synthetic_world.__file__, synthetic_tasks.__file__, __file__):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _read_fingerprint(folder: Path) -> object:
    file = folder / _FINGERPRINT_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
