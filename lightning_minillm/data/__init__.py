"""Prompts, instruction pairs and packed text: from files to batches."""

from lightning_minillm.data.batches import EvaluationLoader, LMStream, ShuffledStream, TokenLoader
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.data.corpus import CorpusSource, PackedCorpus
from lightning_minillm.data.datamodule import BatchOptions, DistillationDataModule
from lightning_minillm.data.encoding import EncodedInstructions, Lengths
from lightning_minillm.data.reading import encode_records
from lightning_minillm.data.records import FieldMap, InstructionRecord
from lightning_minillm.data.sources import InstructionSource, RecordSource, Shares, SplitSource, load_instructions
from lightning_minillm.data.synthetic import (
    SyntheticSizes,
    SyntheticSource,
    build_tokenizer,
    generate_corpus,
    generate_records,
    write_synthetic,
)
from lightning_minillm.data.templates import (
    AlpacaTemplate,
    AutoTemplate,
    ChatTemplate,
    PlainTemplate,
    PromptTemplate,
    RawTemplate,
    as_template,
)

__all__ = [
    "AlpacaTemplate",
    "AutoTemplate",
    "BatchOptions",
    "ChatTemplate",
    "Conversation",
    "CorpusSource",
    "DistillationDataModule",
    "EncodedInstructions",
    "EvaluationLoader",
    "FieldMap",
    "InstructionRecord",
    "InstructionSource",
    "LMStream",
    "Lengths",
    "PackedCorpus",
    "PlainTemplate",
    "PromptTemplate",
    "RawTemplate",
    "RecordSource",
    "Shares",
    "ShuffledStream",
    "SplitSource",
    "SyntheticSizes",
    "SyntheticSource",
    "TokenLoader",
    "Turn",
    "as_template",
    "build_tokenizer",
    "encode_records",
    "generate_corpus",
    "generate_records",
    "load_instructions",
    "write_synthetic",
]
