"""Students, teachers and tokenizers."""

from lightning_minillm.models.activations import fuse_activations
from lightning_minillm.models.dropout import disable_dropout
from lightning_minillm.models.loading import (
    init_causal_lm,
    is_quantized,
    load_causal_lm,
    load_tokenizer,
    shared_vocabulary,
)
from lightning_minillm.models.lora import add_lora, load_lora_causal_lm
from lightning_minillm.models.pair import ModelFactory, ModelPair, ModelWithTokenizer
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.tokens import check_tokenizers

__all__ = [
    "ModelFactory",
    "ModelPair",
    "ModelWithTokenizer",
    "SplitCausalLM",
    "add_lora",
    "check_tokenizers",
    "disable_dropout",
    "fuse_activations",
    "init_causal_lm",
    "is_quantized",
    "load_causal_lm",
    "load_lora_causal_lm",
    "load_tokenizer",
    "shared_vocabulary",
]
