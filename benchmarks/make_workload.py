r"""Write a workload for the benchmarks: student, teacher and prompts, all random. Prints one JSON line.

    python benchmarks/make_workload.py work --vocabulary 8192 --mean-length 31
    python benchmarks/make_workload.py xl --student gpt2-120m --teacher gpt2-xl --vocabulary 50257 ...
    python benchmarks/make_workload.py other --student '{"model_type": "llama", "num_hidden_layers": 2, ...}' ...

It writes ``DIR/student``, ``DIR/teacher`` (Hugging Face folders without a tokenizer) and ``DIR/prompts.json``.

With random weights no token is more probable than another, so that no response would end. The eos row of the head is
therefore set such that eos has the same probability at every step, the one by which responses cut at
``--max-new-tokens`` have ``--mean-length`` tokens in the mean: one coordinate of the last hidden state is made constant
and no other row of the head reads it. All other weights are as transformers initialises them, and nothing else knows of
it: any implementation samples such responses. ``mean_length`` of a benchmark says what came of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-4x128": {"model_type": "gpt2", "n_layer": 4, "n_embd": 128, "n_head": 4},
    "gpt2-8x512": {"model_type": "gpt2", "n_layer": 8, "n_embd": 512, "n_head": 8},
    "gpt2-120m": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-340m": {"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "qwen-1.5b": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen-7b": {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
EOS = 0
_POSITION_FIELDS = ("n_positions", "max_position_embeddings")


def stop_probability(mean_length: float, max_new_tokens: int) -> float:
    """Return the probability p of eos at a step by which responses have ``mean_length`` tokens in the mean.

    Responses of at most T tokens have (1 - (1 - p)^T) / p.

    Raises:
        ValueError: a mean length outside (1, T).

    Example:
        >>> round(stop_probability(31, 64), 4)
        0.0265
    """
    if not 1 < mean_length < max_new_tokens:
        raise ValueError(f"--mean-length must lie between 1 and --max-new-tokens {max_new_tokens}, got {mean_length}")
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        longer = (1 - (1 - middle) ** max_new_tokens) / middle > mean_length
        low, high = (middle, high) if longer else (low, middle)
    return low


def build_model(shape: dict[str, Any], vocabulary: int, positions: int, seed: int, dtype: torch.dtype) -> Any:
    """Make a model with random weights.

    Args:
        shape: fields of its config, ``model_type`` among them.
        vocabulary: ids.
        positions: most tokens of a sequence.
        seed: of the weights.
        dtype: of the weights.
    """
    torch.manual_seed(seed)
    fields = dict(shape)
    model_type = fields.pop("model_type")
    known = AutoConfig.for_model(model_type)
    fields |= {name: positions for name in _POSITION_FIELDS if name in known.to_dict() and name not in fields}
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **ids, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = EOS
    return model


@torch.no_grad()
def set_stop_probability(model: PreTrainedModel, probability: float) -> float:
    """Give eos the same probability at every step, in place; return the mean that comes out on random tokens.

    The first coordinate of the last hidden state is made constant: by the bias of the last norm where it has one, else
    by a residual stream to which no layer adds there. The head's eos row is a multiple of that coordinate.

    Raises:
        ValueError: a model whose last norm cannot be found.
    """
    norms = [m for name, m in model.base_model.named_children() if name in ("ln_f", "norm", "final_layer_norm")]
    if not norms:
        raise ValueError(f"the last norm of {type(model).__name__} is not known; use gpt2, llama, qwen2 or the like")
    head: Tensor = model.get_output_embeddings().weight
    head[:, 0] = 0
    if getattr(norms[-1], "bias", None) is not None:
        norms[-1].weight[0], norms[-1].bias[0] = 0, 1
    else:
        model.get_input_embeddings().weight[:, 0] = model.config.initializer_range
        for name, module in model.base_model.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(("o_proj", "down_proj")):
                module.weight[0] = 0
    hidden = _last_hidden(model)
    others = (hidden @ head.float().T).index_fill(-1, torch.tensor([EOS]), -torch.inf).logsumexp(-1)
    low, high = -1e4, 1e4
    for _ in range(100):
        scale = (low + high) / 2
        mean = torch.sigmoid(scale * hidden[:, 0] - others).mean().item()
        low, high = (scale, high) if mean < probability else (low, scale)
    head[EOS] = 0
    head[EOS, 0] = low
    return torch.sigmoid(head[EOS, 0].float() * hidden[:, 0] - others).mean().item()


def _last_hidden(model: PreTrainedModel) -> Tensor:
    """Hidden states ``[N, H]`` of random tokens, float32; eos is not among them."""
    ids = torch.randint(EOS + 1, model.config.vocab_size, (4, 16))
    return model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1).float()


def draw_rows(count: int, lengths: Sequence[int], vocabulary: int, generator: torch.Generator) -> list[list[int]]:
    """Draw rows of random tokens other than eos, their lengths evenly from ``lengths[0]`` to ``lengths[1]``."""
    sizes = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator).tolist()
    return [torch.randint(EOS + 1, vocabulary, (size,), generator=generator).tolist() for size in sizes]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    shapes = f"one of {', '.join(SHAPES)}, or JSON"
    parser.add_argument("--student", default="gpt2-4x128", help=f"{shapes} (default: %(default)s)")
    parser.add_argument("--teacher", default="gpt2-8x512", help=f"{shapes} (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--prompt-lengths", type=int, nargs=2, default=(16, 64), metavar=("LEAST", "MOST"))
    parser.add_argument("--mean-length", type=float, default=31.0, help="of responses (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of responses (default: %(default)s)")
    parser.add_argument("--num-lm", type=int, default=256, help="pretraining rows; 0 for none")
    parser.add_argument("--lm-lengths", type=int, nargs=2, default=(128, 128), metavar=("LEAST", "MOST"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the teacher's file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write folders and file."""
    arguments = parse(argv)
    probability = stop_probability(arguments.mean_length, arguments.max_new_tokens)
    positions = max(arguments.prompt_lengths[1] + arguments.max_new_tokens, arguments.lm_lengths[1])
    written: dict[str, Any] = {"benchmark": "make_workload", "directory": str(arguments.directory)}
    for number, role in enumerate(("student", "teacher")):
        shape = getattr(arguments, role)
        fields = SHAPES[shape] if shape in SHAPES else json.loads(shape)
        dtype = torch.float32 if role == "student" else getattr(torch, arguments.dtype)
        model = build_model(fields, arguments.vocabulary, positions, arguments.seed + number, dtype)
        written[f"{role}_stop_probability"] = round(set_stop_probability(model, probability), 5)
        written[f"{role}_parameters"] = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(arguments.directory / role)
    generator = torch.Generator().manual_seed(arguments.seed)
    content = {
        "prompts": draw_rows(arguments.num_prompts, arguments.prompt_lengths, arguments.vocabulary, generator),
        "lm": draw_rows(arguments.num_lm, arguments.lm_lengths, arguments.vocabulary, generator),
    }
    (arguments.directory / "prompts.json").write_text(json.dumps(content))
    print(json.dumps(written), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
