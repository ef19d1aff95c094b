"""The built-in data set: instructions and plain text about a small world, generated from a seed."""

from lightning_minillm.data.synthetic.generate import SyntheticSizes, SyntheticSource, generate_corpus, generate_records
from lightning_minillm.data.synthetic.tokenizer import build_tokenizer
from lightning_minillm.data.synthetic.write import write_synthetic

__all__ = [
    "SyntheticSizes",
    "SyntheticSource",
    "build_tokenizer",
    "generate_corpus",
    "generate_records",
    "write_synthetic",
]
