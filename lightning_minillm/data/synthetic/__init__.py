"""The built-in data set: a small world, questions about it, and their only right answers."""

from lightning_minillm.data.synthetic.source import (
    SyntheticSizes,
    SyntheticSource,
    build_tokenizer,
    generate_corpus,
    generate_records,
    write_synthetic,
)

__all__ = [
    "SyntheticSizes",
    "SyntheticSource",
    "build_tokenizer",
    "generate_corpus",
    "generate_records",
    "write_synthetic",
]
