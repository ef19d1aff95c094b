"""The data sets that models respond to, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lightning_minillm.data import EncodedInstructions, FieldMap, InstructionSource, PromptTemplate, RecordSource
from lightning_minillm.files import digest


def named_sources(
    files: Mapping[str, str] | None,
    otherwise: RecordSource,
    *,
    split: str = "test",
    fields: FieldMap | None = None,
    limit: int | None = None,
) -> dict[str, RecordSource]:
    """Return one source per file, or a single other source if there are no files.

    Args:
        files: paths by the name of the data set.
        otherwise: used if there are no files.
        split: name of that source.
        fields: column names of the files.
        limit: maximum number of records per file; ``None`` for all.
    """
    if not files:
        return {split: otherwise}
    return {name: InstructionSource(path, fields=fields or FieldMap(), limit=limit) for name, path in files.items()}


def digest_of_data(data: Mapping[str, EncodedInstructions], template: PromptTemplate) -> str:
    """Return a digest of the prompts, responses and tasks of data sets."""
    texts = (
        text
        for name, rows in data.items()
        for record in rows.records
        for text in (name, template.format(record.instruction, record.input), *record.responses, record.task)
    )
    return digest("evaluation", texts)


def require_data(evaluation: str, known: Collection[str], chosen: Collection[str]) -> None:
    """Raise ``ValueError`` if no data set of an evaluation (``known``) was given a path (``chosen``)."""
    if not chosen:
        first = next(iter(known), "NAME")
        raise ValueError(
            f"{evaluation} has no data: none of its data sets ({', '.join(known) or 'none'}) has a path; give at least"
            f" one, e.g. evaluation.{evaluation}.datasets.{first}.path=FILE"
        )


def batches_by_length(dataset: EncodedInstructions, batch_size: int) -> list[list[int]]:
    """Return all rows in batches of at most ``batch_size`` prompts of similar length, the longest first.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    lengths = (dataset.lengths - dataset.target_counts).tolist()
    rows = sorted(range(len(dataset)), key=lambda row: (-lengths[row], row))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
