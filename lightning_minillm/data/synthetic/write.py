"""The built-in data set as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lightning_minillm.data.synthetic.generate import SPLITS, SyntheticSizes, generate_corpus, generate_records
from lightning_minillm.data.synthetic.tokenizer import build_tokenizer, tokenizer_texts
from lightning_minillm.files import digest, read_json, replacing, write_json, write_json_lines, write_text

_FINGERPRINT_FILE = "fingerprint.json"


def write_synthetic(folder: str | Path, seed: int = 0, sizes: SyntheticSizes | None = None) -> Path:
    """Write ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``, ``corpus.txt`` and ``tokenizer/``.

    The folder is complete or absent, and is kept if it already contains the same data set (same arguments, same
    generator).

    Args:
        folder: where to write; its parent folders are created.
        seed: of prompts and responses.
        sizes: of the data set.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder contains something that this function did not write.
    """
    folder, sizes = Path(folder), sizes or SyntheticSizes()
    fingerprint = {"seed": seed, "sizes": asdict(sizes), "generator": _generator_digest()}
    found = read_json(folder / _FINGERPRINT_FILE)
    if found == fingerprint:
        return folder
    if found is None and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} is not empty and not a built-in data set: use a different folder, or data=instructions "
            "to read data of your own"
        )
    try:
        with replacing(folder) as scratch:
            scratch.mkdir()
            _write_files(scratch, seed, sizes)
            write_json(scratch / _FINGERPRINT_FILE, fingerprint)
    except OSError:
        if read_json(folder / _FINGERPRINT_FILE) != fingerprint:  # equal if a different process was faster
            raise
    return folder


def _write_files(folder: Path, seed: int, sizes: SyntheticSizes) -> None:
    records = {}
    for split in SPLITS:
        references = 1 if split == "train" else sizes.references
        records[split] = generate_records(split, vars(sizes)[split], seed, references=references)
        rows = (
            {"instruction": r.instruction, "input": r.input, "output": r.responses, "task": r.task, "exact": r.exact}
            for r in records[split]
        )
        write_json_lines(folder / f"{split}.jsonl", rows)
    documents = generate_corpus(sizes.corpus, seed)
    write_text(folder / "corpus.txt", "\n".join(documents) + "\n")
    tokenizer = build_tokenizer(tokenizer_texts(records["train"], documents), sizes.vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")


def _generator_digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return digest([], (file.read_text(encoding="utf-8") for file in sources))
