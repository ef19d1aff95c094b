"""Plain text as packed blocks for language modelling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.cache import load_or_write_tokens, tokenizer_fingerprint
from lightning_minillm.data.encoding import Indices, as_rows
from lightning_minillm.data.formats import DATA_SUFFIXES
from lightning_minillm.data.records import as_text
from lightning_minillm.data.rows import Paths, check_limit, each_path, iterate_rows
from lightning_minillm.files import nearest, open_text
from lightning_minillm.tokens import AddBos, begin_ids, special_ids, with_begin
from lightning_minillm.types import TokenBatch

TEXT_SUFFIXES = (".txt", ".txt.gz", ".text", ".md")
_BATCH_BLOCKS = 4096
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 2**19


class DocumentSource(Protocol):
    """Where documents come from."""

    def documents(self) -> Iterator[str]:
        """Yield the documents, always in the same order."""

    def key(self) -> list[Any]:
        """Return JSON values that change when the documents do; they are part of the cache's key."""


@dataclass(frozen=True)
class CorpusSource:
    """Documents from text files, JSON Lines and other tables, folders of these, or a hub data set.

    The cache identifies a file by its path, size and modification time, and a hub data set by its name and split. If a
    hub data set has changed, delete the cache.

    Raises:
        ValueError: an option outside its range.
    """

    path: Paths
    """One or several files, folders or hub names."""
    split: str | None = None
    """Split of a folder of tables or of a hub data set; ignored for text files."""
    field: str = "text"
    """Field that contains the document, for files other than text files."""
    documents_are: Literal["lines", "paragraphs", "files"] = "lines"
    """Whether each line, each paragraph (between blank lines) or the whole text file is a document."""
    newline_marker: str | None = None
    """Text that represents a newline inside a one-line document (``<@x(x!>`` in the official format)."""
    limit: int | None = None
    """Number of documents to read; ``None`` reads all."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""

    def __post_init__(self) -> None:
        if self.documents_are not in ("lines", "paragraphs", "files"):
            raise ValueError(f"documents_are must be 'lines', 'paragraphs' or 'files', got {self.documents_are!r}")
        check_limit(self.limit)

    def documents(self) -> Iterator[str]:
        """Yield the documents that are not blank.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a line that is not JSON, or a row without the field.
        """
        texts = (text for path in each_path(self.path) for text in self._texts(path))
        return islice((text for text in texts if text.strip()), self.limit)

    def key(self) -> list[Any]:
        """Return what identifies the documents in the cache."""
        files: list[Any] = []
        for path in each_path(self.path):
            local = Path(path).expanduser()
            found = sorted(local.rglob("*")) if local.is_dir() else [local]
            stats = [(str(file.resolve()), file.stat()) for file in found if file.is_file()]
            files.append([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats] or str(path))
        options = [self.split, self.field, self.documents_are, self.newline_marker, self.limit, self.name]
        return [files, *options, *([self.revision] if self.revision else [])]

    def _texts(self, path: str | Path) -> Iterator[str]:
        local = Path(path).expanduser()
        if local.is_dir() and (files := [file for file in sorted(local.iterdir()) if _is_text(file)]):
            for file in files:
                yield from self._text_file(file)
        elif local.is_file() and _is_text(local):
            yield from self._text_file(local)
        elif local.is_file() and not local.name.lower().endswith(DATA_SUFFIXES):
            suffixes = ", ".join(TEXT_SUFFIXES + DATA_SUFFIXES)
            raise ValueError(f"{str(path)!r} has an unknown format: use one of {suffixes}")
        elif not local.exists() and _is_text(local):
            raise FileNotFoundError(f"there is no text file {str(path)!r} (looked in {str(Path.cwd())!r})")
        else:
            is_part = self.limit is not None
            rows = iterate_rows(path, self.split, name=self.name, revision=self.revision, streaming=is_part)
            for where, row in rows:
                if self.field not in row:
                    present, near = ", ".join(map(repr, row)), nearest(self.field, row)
                    raise ValueError(f"{where}: no field {self.field!r} for the text; the row has {present}{near}")
                yield as_text(row[self.field], self.field, where)

    def _text_file(self, file: Path) -> Iterator[str]:
        with open_text(file) as handle:
            for text in _split_documents(handle, self.documents_are):
                yield text.replace(self.newline_marker, "\n") if self.newline_marker else text


@dataclass(frozen=True)
class _Documents:
    """Documents in memory."""

    texts: tuple[str, ...]

    def documents(self) -> Iterator[str]:
        return iter(self.texts)

    def key(self) -> list[Any]:
        return list(self.texts)


def _is_text(file: Path) -> bool:
    return file.name.lower().endswith(TEXT_SUFFIXES)


def _split_documents(lines: Iterable[str], documents_are: str) -> Iterator[str]:
    if documents_are == "lines":
        return (line.rstrip("\r\n") for line in lines)
    groups = groupby(lines, lambda line: documents_are == "files" or bool(line.strip()))
    return ("".join(group).rstrip() for _, group in groups)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """Yield documents in lists that are short in number and in characters."""
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH_DOCUMENTS or sum(map(len, batch)) >= _BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


class PackedCorpus:
    """Blocks of ``max_length`` tokens, cut from documents that are joined by eos.

    Every token except the first of a block is a target. The tokens after the last full block are left out. Documents
    are read and tokenised a few at a time, and blocks are read from a file: memory does not grow with the corpus.

    Args:
        source: of the documents, or the documents.
        tokenizer: has an eos token.
        max_length: tokens of a block, at least 2.
        cache_dir: folder for the tokens; ``None`` tokenises every time, into a temporary file.
        add_bos: what documents begin with; see :func:`~lightning_minillm.tokens.begin_ids`.

    Attributes:
        num_documents: number of documents that were joined (0 if they came from the cache).
        lengths: ``[blocks]`` int64, ``max_length`` each.
        target_counts: ``[blocks]`` int64, ``max_length - 1`` each.

    Raises:
        ValueError: the text does not fill one block, or ``max_length`` is below 2.
    """

    def __init__(
        self,
        source: DocumentSource | Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        cache_dir: str | Path | None = None,
        add_bos: AddBos = "auto",
    ) -> None:
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {max_length}")
        if isinstance(source, str):
            raise TypeError(
                "source must be a CorpusSource or a list of documents: use CorpusSource(path=...) for files"
            )
        found = _Documents(tuple(source)) if isinstance(source, Sequence) else source
        eos, _ = special_ids(tokenizer)
        settings = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "eos_token_id": eos,
            "max_length": max_length,
            "source": found.key(),
        }
        begin = begin_ids(tokenizer, add_bos)
        if begin:
            settings["begin"] = list(begin)
        self.max_length = max_length
        self.num_documents = 0
        tokens, self.from_cache = load_or_write_tokens(
            cache_dir, "corpus", settings, lambda: self._tokens(found.documents(), tokenizer, eos, begin)
        )
        self._blocks = tokens[: len(tokens) // max_length * max_length].reshape(-1, max_length)
        self.lengths = torch.full((len(self._blocks),), max_length)
        self.target_counts = self.lengths - 1

    def _tokens(
        self, documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, eos: int, begin: Sequence[int]
    ) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the tokens of one document after the other."""
        num_tokens = 0
        for batch in _batches(documents):
            self.num_documents += len(batch)
            encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
            for ids in encoded.input_ids:
                tokens = [*with_begin(begin, ids), eos]
                num_tokens += len(tokens)
                yield np.array(tokens, dtype=np.int32)
        if num_tokens < self.max_length:
            raise ValueError(
                f"the corpus has {self.num_documents} documents with {num_tokens} tokens, less than one block of "
                f"max_length={self.max_length}: give more text or a smaller max_length"
            )

    def __len__(self) -> int:
        return len(self._blocks)

    def rows_with(self, token_ids: Sequence[int]) -> list[int]:
        """Return the blocks that have any of these ids."""
        places = range(0, len(self), _BATCH_BLOCKS)
        pieces = (np.isin(self._blocks[start : start + _BATCH_BLOCKS], token_ids).any(1) for start in places)
        found: list[int] = np.flatnonzero(np.concatenate([*pieces])).tolist()
        return found

    def token_batch(self, indices: Indices, normalizer: float) -> TokenBatch:
        """Return blocks; all tokens except the first are targets.

        Args:
            indices: ``[B]`` block numbers in ``[0, len(self))``, at least one.
            normalizer: summed losses are divided by it; ``TokenBatch`` says by what number.

        Returns:
            A batch of ``[B, max_length]``, without padding.
        """
        rows = as_rows(indices, len(self))
        input_ids: Tensor = torch.from_numpy(self._blocks[rows].astype(np.int64))
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        target_mask = mask.clone()
        target_mask[:, 0] = False
        return TokenBatch(input_ids, mask, target_mask, indices=torch.tensor(rows), normalizer=float(normalizer))
