"""Prompts, instruction pairs and packed text: from files to batches."""

from lightning_minillm.data.corpus import CorpusSource, PackedCorpus, SyntheticCorpus
from lightning_minillm.data.datamodule import DistillationDataModule
from lightning_minillm.data.encoding import EncodedInstructions
from lightning_minillm.data.loader import EvaluationLoader, LMStream, TokenLoader, accumulation_steps
from lightning_minillm.data.records import FieldMap, InstructionRecord, InstructionSource, load_instructions
from lightning_minillm.data.stream import ShuffledStream
from lightning_minillm.data.synthetic import (
    SyntheticSizes,
    SyntheticSource,
    build_tokenizer,
    generate_corpus,
    generate_records,
    write_synthetic,
)
from lightning_minillm.data.templates import AlpacaTemplate, ChatTemplate, PlainTemplate, PromptTemplate

__all__ = [
    "AlpacaTemplate",
    "ChatTemplate",
    "CorpusSource",
    "DistillationDataModule",
    "EncodedInstructions",
    "EvaluationLoader",
    "FieldMap",
    "InstructionRecord",
    "InstructionSource",
    "LMStream",
    "PackedCorpus",
    "PlainTemplate",
    "PromptTemplate",
    "ShuffledStream",
    "SyntheticCorpus",
    "SyntheticSizes",
    "SyntheticSource",
    "TokenLoader",
    "accumulation_steps",
    "build_tokenizer",
    "generate_corpus",
    "generate_records",
    "load_instructions",
    "write_synthetic",
]
