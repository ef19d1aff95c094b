"""Measure what works with each family of causal language models that transformers can build small.

Prints docs/families.md: ``python tools/families.py > docs/families.md``. Names on the command line measure these
families alone.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import dataclass

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lightning_minillm.losses import ReverseKL
from lightning_minillm.models import SplitCausalLM, load_causal_lm
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.rollout import MixtureSampler, SamplingConfig
from lightning_minillm.types import PromptBatch, RolloutBatch

VOCABULARY = 37
EOS = [0, 1, 2, 3, 4, 5]  # so many that most rows end early
PROMPT_LENGTHS = [1, 2, 3, 4, 6, 6, 2, 5, 3, 1, 4, 6]
TOLERANCE = 5e-3  # nats; some models' steps differ from their own full passes by a thousandth

STD = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FEW = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
NO_PAD = {"pad_token_id": 0}  # the family's own pad id is outside of so small a vocabulary
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
STATE = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
MAMBA = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "expand": 2}
PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
SHARED_KV = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 5,
    "num_kv_shared_layers": 2,
}

FAMILIES: dict[str, dict[str, object]] = {
    # attention to all tokens
    "gpt2": GPT,
    "openai-gpt": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**FEW, "intermediate_size": 32},
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 5,
        "max_position_embeddings": 64,
    },
    "codegen": {**GPT, "n_head": 4, "rotary_dim": 4},
    "ctrl": {**GPT, "dff": 32},
    "opt": {**FEW, "word_embed_proj_dim": 16, "ffn_dim": 32, "init_std": 0.3},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "xglm": {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32, "max_position_embeddings": 64},
    "biogpt": {**FEW, "intermediate_size": 32},
    "llama": STD,
    "qwen2": STD,
    "qwen3": {**STD, **HEAD},
    "gemma": {**STD, **HEAD},
    "phi": {**STD, "num_key_value_heads": 4},
    "phi3": {**STD, **NO_PAD},
    "olmo": STD,
    "olmo2": STD,
    "smollm3": STD,
    "stablelm": STD,
    "persimmon": {**FEW, "intermediate_size": 32},
    "nemotron": STD,
    "cohere": STD,
    "granite": STD,
    "glm": {**STD, **HEAD, **NO_PAD},
    "glm4": {**STD, **HEAD, **NO_PAD, "partial_rotary_factor": 0.5},
    "ernie4_5": {**STD, **HEAD},
    "seed_oss": {**STD, **HEAD},
    "hunyuan_v1_dense": {**STD, **HEAD},
    "helium": {**STD, "head_dim": 4},
    "apertus": STD,
    "arcee": STD,
    "bitnet": STD,
    "diffllama": STD,
    # few heads of keys and values, or compressed ones
    "falcon": {**FEW, "alibi": False},
    "gpt_bigcode": GPT,
    "minicpm3": {**STD, **LATENT, "scale_emb": 1, "dim_model_base": 16},
    # sliding windows
    "mistral": {**STD, "head_dim": 4, "sliding_window": 5},
    "ministral": {**STD, **HEAD, **WINDOW},
    "starcoder2": {**STD, "sliding_window": 5},
    "gemma2": {**STD, **HEAD, "sliding_window": 5},
    "gemma3_text": {**STD, **HEAD, **WINDOW},
    "gemma3n_text": {
        **STD,
        **HEAD,
        **SHARED_KV,
        **PER_LAYER,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
    },
    "gemma4_text": {**STD, **HEAD, **SHARED_KV, **PER_LAYER, "global_head_dim": 8},
    "vaultgemma": {**STD, **HEAD, "sliding_window": 5},
    "cohere2": {**STD, **WINDOW},
    "olmo3": {**STD, **WINDOW},
    "exaone4": {**STD, **WINDOW},
    "modernbert-decoder": {**STD, **NO_PAD, **WINDOW, "cls_token_id": 0, "sep_token_id": 0, "local_attention": 8},
    # mixtures of experts
    "mixtral": {**STD, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {**STD, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**STD, **HEAD, **EXPERTS},
    "olmoe": {**STD, "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {**STD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**STD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**STD, **HEAD, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v2": {**STD, **LATENT, **ROUTED, **EXPERTS, "topk_method": "greedy"},
    "deepseek_v3": {**STD, **LATENT, **ROUTED, **EXPERTS},
    "deepseek_v32": {
        **STD,
        **LATENT,
        **ROUTED,
        **EXPERTS,
        "index_topk": 64,
        "index_n_heads": 2,
        "index_head_dim": 8,
    },
    "glm4_moe": {**STD, **HEAD, **ROUTED, **EXPERTS},
    "minimax_m2": {**STD, **HEAD, **EXPERTS},
    "llama4_text": {
        **STD,
        **HEAD,
        "intermediate_size_mlp": 32,
        "num_local_experts": 2,
        "attention_chunk_size": 5,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
    },
    # states in place of keys and values, in some layers or in all
    "lfm2": {**STD, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**STD, **EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_next": {**STD, **HEAD, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**STD, **HEAD, **LINEAR},
    "olmo_hybrid": {**STD, **LINEAR},
    "minimax": {
        **STD,
        **HEAD,
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "block_size": 8,
    },
    "granitemoehybrid": {
        **STD,
        **STATE,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
    "falcon_h1": {**STD, **STATE, "mamba_d_ssm": 32},
    "bamba": {**STD, **STATE, "attn_layer_indices": [1]},
    "jamba": {
        **STD,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        **STD,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "mamba_d_state": 4,
        "mamba_headdim": 8,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "mamba_expand": 2,
        "num_mem_blocks": 1,
        "chunk_size": 8,
        "use_mem_rope": True,
        "kv_channels": 4,
        "attention_hidden_size": 32,
        "attention_head_dim": 8,
    },
    "nemotron_h": {
        **STD,
        **HEAD,
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "recurrent_gemma": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "lru_width": 16,
        "attention_window_size": 5,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 8, "attention_hidden_size": 16, "context_length": 64},
    "xlstm": {"hidden_size": 16, "num_heads": 2, "num_blocks": 2, "mode": "inference"},
}


@dataclass(frozen=True)
class Measurement:
    """What was measured of a family."""

    family: str
    student: float
    """Largest difference of a student's log-probability from that of a full pass over the row alone, in nats."""
    teacher: float
    has_cache: bool
    is_split: bool
    gradients: bool
    """Whether the loss and all gradients are finite."""
    export: bool
    """Whether the exported folder loads and gives the same logits."""

    @property
    def verdict(self) -> str:
        """Whether the family can be used, and how."""
        if not (max(self.student, self.teacher) < TOLERANCE and self.gradients and self.export):
            return "no"
        notes = ["samples without a cache"] * (not self.has_cache) + ["full logits"] * (not self.is_split)
        return f"yes; {', '.join(notes)}" if notes else "yes"

    @property
    def row(self) -> str:
        """The family's row of the table."""
        numbers = (f"{number:.0e}" for number in (self.student, self.teacher))
        words = ("finite" if self.gradients else "not finite", "loads" if self.export else "does not load")
        return "| " + " | ".join([f"`{self.family}`", *numbers, *words, self.verdict]) + " |"


def build(family: str, seed: int) -> PreTrainedModel:
    """Build a tiny model with spread-out random weights: at the stock 0.02, errors hide in uniform distributions."""
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    fields = {**ids, **FAMILIES[family], "vocab_size": VOCABULARY}
    if hasattr(AutoConfig.for_model(family), "initializer_range"):
        fields.setdefault("initializer_range", 0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).float().eval()


def ragged_prompts() -> PromptBatch:
    """Left-padded prompts of different lengths."""
    lengths = torch.tensor(PROMPT_LENGTHS)
    mask = torch.arange(max(PROMPT_LENGTHS)) >= max(PROMPT_LENGTHS) - lengths[:, None]
    ids = torch.randint(len(EOS), VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(0))
    return PromptBatch(ids * mask, mask, torch.arange(len(lengths)))


@torch.no_grad()
def full_pass(model: PreTrainedModel, rollouts: RolloutBatch) -> torch.Tensor:
    """Return the log-probabilities of the responses by the stock model, which reads each row alone, unpadded."""
    values = torch.zeros_like(rollouts.student_logprobs)
    for row, mask in enumerate(rollouts.response_mask):
        prompt = rollouts.prompt_ids[row][rollouts.prompt_mask[row]]
        response = rollouts.response_ids[row][mask]
        logits = model(input_ids=torch.cat([prompt, response])[None], use_cache=False).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        values[row, : len(response)] = logprobs.gather(-1, response[:, None]).squeeze(-1)
    return values


def gradients_are_finite(student: SplitCausalLM, teacher: SplitCausalLM, rollouts: RolloutBatch) -> bool:
    """Compute a distillation loss on the rollouts in train mode, and all gradients."""
    student.model.train()
    ids = torch.cat([rollouts.prompt_ids, rollouts.response_ids], dim=1)
    mask = torch.cat([rollouts.prompt_mask, rollouts.response_mask], dim=1)
    targets = torch.cat([torch.zeros_like(rollouts.prompt_mask), rollouts.response_mask], dim=1)
    states, target_ids = student.token_states(ids, mask, targets)
    with torch.no_grad():
        teacher_states, _ = teacher.token_states(ids, mask, targets)
    loss = ReverseKL()(states, target_ids, teacher_states).loss
    loss.backward()
    student.model.eval()
    gradients = [parameter.grad for parameter in student.model.parameters() if parameter.grad is not None]
    moved = any(bool(gradient.any()) for gradient in gradients)
    return bool(loss.isfinite()) and moved and all(bool(gradient.isfinite().all()) for gradient in gradients)


@torch.no_grad()
def export_loads(model: PreTrainedModel) -> bool:
    """Export a model as a run does, and load it again."""
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    backend = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    ids = torch.arange(1, 9)[None]
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, tokenizer)
        again = load_causal_lm(folder)
        expected, given = (m(input_ids=ids, use_cache=False).logits for m in (model, again))
    return torch.allclose(expected, given, atol=1e-5)


def measure(family: str) -> Measurement:
    """Sample ragged prompts from a mixture of a student and a teacher of a family, train a step, and export."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        student, teacher = SplitCausalLM(build(family, seed=1)), SplitCausalLM(build(family, seed=2))
        sampler = MixtureSampler(
            student, teacher, eos_token_ids=EOS, pad_token_id=0, config=SamplingConfig(max_new_tokens=20)
        )
        rollouts = sampler.sample(ragged_prompts(), seed=0)
        if len(set(rollouts.lengths.tolist())) < 3:
            raise RuntimeError(f"the rows of {family} end together: this says nothing about rows that end early")
        assert rollouts.teacher_logprobs is not None
        pairs = ((student, rollouts.student_logprobs), (teacher, rollouts.teacher_logprobs))
        differences = [float((full_pass(m.model, rollouts) - given).abs().max()) for m, given in pairs]
        finite = gradients_are_finite(student, teacher, rollouts)
        return Measurement(
            family, *differences, student.cache_kind != "none", student.is_split, finite, export_loads(student.model)
        )


HEADER = """# Families of models

Each row is a tiny random model of a family (the name is transformers' `model_type`), built, sampled from, trained and
exported with transformers {version}. `python tools/families.py > docs/families.md` makes this page; `make test-all`
measures all rows again.

- **student, teacher**: twelve prompts of one to six tokens are continued together, and rows end at different places.
  The number is the largest difference of a sampled token's log-probability from that of a full pass of the model over
  the row alone, in nats. In `zamba2` and `nemotron_h`, transformers' own cached steps differ slightly from full passes.
- **gradients** of a distillation loss on these rollouts, and whether the **export** loads and gives the same logits.
- **verdict**: "samples without a cache" means that every token takes a pass over prompt and response so far, since the
  model's cache (or its absence) does not allow rows that end at different places. It is right, and slow: use such a
  model with recorded responses (SFT, KD, SeqKD) where you can. Which families need this depends on the version of
  transformers: before version 5, all with states (the last part of the table) do. It is tried on three short rows
  before sampling, and said once. "full logits" means that the head cannot be told from the body, so that training
  projects every token.

| family | student | teacher | gradients | export | verdict |
| --- | --- | --- | --- | --- | --- |
"""


def page(measurements: list[Measurement]) -> str:
    """Return docs/families.md."""
    rows = "\n".join(measurement.row for measurement in measurements)
    return HEADER.format(version=transformers.__version__) + rows + "\n"


if __name__ == "__main__":
    print(page([measure(family) for family in sys.argv[1:] or FAMILIES]), end="")
