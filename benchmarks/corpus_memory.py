"""Measure the peak memory of tokenising and packing a plain-text corpus, as it grows. One JSON line per size.

    python benchmarks/corpus_memory.py --megabytes 25 100 --tokenizer FOLDER

The text is made of documents of the built-in data set, one per line; without ``--tokenizer``, one is trained on such
documents. Every size runs in its own process. ``peak_mb`` is the peak memory minus the memory before the corpus is
read, ``tokens_mb`` the size of its tokens (4 bytes each).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import machine, peak_rss_mb, rss_mb
from transformers import AutoTokenizer

from lightning_minillm.data import CorpusSource, PackedCorpus, build_tokenizer, generate_corpus


def write_corpus(file: Path, megabytes: float) -> None:
    """Write made text of about this size."""
    texts, rng = generate_corpus(2000), random.Random(0)
    with open(file, "w", encoding="utf-8") as lines:
        while lines.tell() < megabytes * 1e6:
            lines.write(" ".join(rng.choices(texts, k=4)) + "\n")


def run_case(megabytes: float, tokenizer: str | None, max_length: int) -> dict[str, Any]:
    """Pack a corpus of this size."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "corpus.txt"
        write_corpus(file, megabytes)
        loaded = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else build_tokenizer(generate_corpus(500))
        before = rss_mb()
        corpus = PackedCorpus(CorpusSource(file), loaded, max_length=max_length, cache_dir=folder)
        return {
            "megabytes": megabytes,
            "documents": corpus.num_documents,
            "tokens_mb": round(len(corpus) * max_length * 4 / 1e6, 1),
            "peak_mb": round(max(0.0, peak_rss_mb() - before), 1),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[25, 100], help="sizes of the text")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a block")
    options = parser.parse_args(arguments)
    print(json.dumps({"machine": machine(torch.device("cpu"))}), flush=True)
    for megabytes in options.megabytes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            case = pool.apply(run_case, (megabytes, options.tokenizer, options.max_length))
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
