"""The data sets that models are asked to respond to, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from lightning_minillm.data import EncodedInstructions, FieldMap, InstructionSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_minillm.data import PromptTemplate, RecordSource


def named_sources(
    files: Mapping[str, str] | None, otherwise: RecordSource, fields: FieldMap | None = None, limit: int | None = None
) -> dict[str, RecordSource]:
    """Return a source for each file, or the one other source where no file is named.

    Args:
        files: paths by name.
        otherwise: what is read without files; its name is ``test``.
        fields: names under which the files keep each part.
        limit: at most so many records of each file.
    """
    if not files:
        return {"test": otherwise}
    return {name: InstructionSource(path, fields=fields or FieldMap(), limit=limit) for name, path in files.items()}


def encode_source(
    name: str,
    source: RecordSource,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    *,
    max_length: int,
    max_prompt_length: int,
    cache_dir: str | None = None,
) -> EncodedInstructions:
    """Read and tokenise a data set, and say how many prompts were left out.

    Args:
        name: of the data set, for messages.
        source: of its records.
        tokenizer: of the model.
        template: makes the prompts.
        max_length: as in :class:`~lightning_minillm.data.EncodedInstructions`.
        max_prompt_length: likewise.
        cache_dir: likewise.

    Raises:
        ValueError: data that is missing, empty or lacks a field.
    """
    try:
        records = source.load()
    except FileNotFoundError as error:
        raise ValueError(f"data set '{name}': {error}") from error
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    encoded = EncodedInstructions(records, tokenizer, template, cache_dir=cache_dir, **lengths)
    if encoded.num_dropped:
        rank_zero_warn(
            f"{name}: {encoded.num_dropped} of {len(encoded) + encoded.num_dropped} prompts have more than"
            f" max_prompt_length={max_prompt_length} tokens and are left out."
        )
    return encoded


def batches_by_length(dataset: EncodedInstructions, batch_size: int) -> list[list[int]]:
    """Return all rows in batches of prompts of like length, the longest first.

    Args:
        dataset: what the rows are of.
        batch_size: rows of a batch, at most; at least 1.

    Raises:
        ValueError: batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    lengths = (dataset.lengths - dataset.target_counts).tolist()
    rows = sorted(range(len(dataset)), key=lambda row: (-lengths[row], row))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
