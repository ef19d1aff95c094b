"""The keys that each command reads, and the types and ranges of their values.

A configuration is held against these tables as soon as it is composed. Nothing here imports torch, so that a mistake is
reported before the slow imports.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_minillm.files import nearest

KEYS = {
    "train": "advantages batch_size cache_dir callbacks checkpoint_every ckpt_path data eval_batch_size eval_every"
    " eval_first export logger loss max_length max_prompt_length max_steps micro_batch_size module monitor monitor_mode"
    " name optimizer output_dir resume rollout scheduler seed student teacher trainer validation",
    "evaluate": "cache_dir callbacks data data_sets dtype eval_batch_size evaluation logger max_length"
    " max_prompt_length model models name output_dir sampling seed seeds split teacher trainer trust_remote_code",
    "generate": "batch_size cache_dir callbacks data dtype generation keep_special_tokens keep_unfinished max_length"
    " max_prompt_length model name num_samples output output_dir sampling seed split trainer trust_remote_code",
    "recipe": "cache_dir data output_dir recipe redo seed shared_dir teacher_seed until workers",
}
"""The top-level keys of each command."""


# --- kinds of values ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A set of values, and the words for it."""

    text: str
    holds: Callable[[Any], bool]

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.text}, or {other.text}", lambda value: self.holds(value) or other.holds(value))


def whole(least: int) -> Kind:
    """Return the kind of whole numbers from ``least``."""
    return Kind(f"a whole number of at least {least}", lambda value: type(value) is int and value >= least)


def number(low: float, high: float = math.inf, ends: str = "[]") -> Kind:
    """Return the kind of finite numbers from ``low`` to ``high``; ``ends`` are ``[`` or ``(``, and ``]`` or ``)``."""

    def holds(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return low < value < high or (value == low and ends[0] == "[") or (value == high and ends[1] == "]")

    if high < math.inf:
        return Kind(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", holds)
    return Kind(f"a number {'of at least' if ends[0] == '[' else 'above'} {low:g}", holds)


def one_of(*words: str) -> Kind:
    """Return the kind of some words."""
    return Kind(" or ".join(words), lambda value: value in words)


def list_of(kind: Kind, text: str, lengths: Callable[[int], bool] = bool) -> Kind:
    """Return the kind of lists of a kind whose length passes ``lengths``; by default, that are not empty."""
    return Kind(text, lambda value: isinstance(value, list) and lengths(len(value)) and all(map(kind.holds, value)))


NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("text", lambda value: isinstance(value, str) and bool(value.strip()))
NODE = Kind(
    "a node with _target_, such as the files of its group in conf/ have", lambda value: isinstance(value, Mapping)
)
COUNT, POSITIVE = whole(1), number(0, ends="(]")

# Kinds by the end of a key, or by the whole key behind a point; the longest that fits counts. They hold in every node
# except those of a user's own classes.
_TABLE: tuple[tuple[Kind, str], ...] = (
    (
        COUNT,
        "batch_size eval_batch_size max_length max_prompt_length max_steps eval_every checkpoint_every max_new_tokens"
        " num_rollouts ppo_epochs capacity rank num_samples num_bins max_passage_length concurrency num_nodes"
        " tensor_parallel_size every_n_train_steps sizes.train sizes.validation sizes.test sizes.corpus"
        " sizes.references sizes.vocab_size steps.teacher steps.init steps.minillm steps.baseline"
        " model.n_layer model.n_head model.n_embd model.n_positions",
    ),
    (
        whole(0),
        "seed teacher_seed split_seed min_new_tokens top_k no_repeat_ngram_size num_warmup_steps num_sanity_val_steps"
        " max_retries log_every_n_steps",
    ),
    (
        COUNT | NULL,
        "micro_batch_size lm_batch_size lm_max_length limit limits.train limits.validation limits.test num_questions"
        " num_candidates max_requests max_total_tokens max_tokens replicas",
    ),
    (
        number(0),
        "lr eps weight_decay coef pg_coef initializer_range temperature tolerance backoff clip_range alpha interval",
    ),
    (whole(-1), "save_top_k"),
    (POSITIVE, "timeout"),
    (POSITIVE | NULL, "teacher_reward_temperature loss_temperature reward_scaling"),
    (number(0) | NULL, "reward_clip gradient_clip_val"),
    (
        number(0, 1),
        "gamma teacher_mix_alpha student_fraction probability rollout.step rollouts.source.step kd_ratio resid_pdrop"
        " embd_pdrop attn_pdrop min_lr_rate head_mass",
    ),
    (number(0, 1, "(]"), "top_p"),
    (number(0, 1, "[)"), "dropout_lora shares.validation shares.test"),
    (number(0, 1, "[)") | NULL, "model.dropout"),
    (FLAG | NULL, "training.dropout"),
    (list_of(number(0, 1, "[)"), "two numbers in [0, 1)", lambda length: length == 2), "betas"),
    (list_of(whole(0), "a list of one or more whole numbers"), "seeds"),
    (list_of(COUNT, "a list of one or more whole numbers of at least 1"), "recall_at"),
    (COUNT | one_of("auto"), "chunk_size .workers"),
    (
        FLAG,
        "eval_first trust_remote_code keep_unfinished keep_special_tokens single_step weight_single_step"
        " length_normalize swap_order recompute_logprobs gradient_checkpointing activation_offload offload cpu_offload"
        " shorten_conversations gather_for_rollouts"
        " save_distributed_checkpoint save_weights_only enable_version_counter offline",
    ),
    (one_of("auto", "never"), ".resume"),
    (one_of("min", "max"), "monitor_mode"),
    (one_of("train", "validation", "test"), ".split"),
    (one_of("current", "next"), "return_start"),
    (one_of("none", "response", "all"), "whiten"),
    (one_of("auto", "lockstep", "after"), "teacher_use.reading"),
    (one_of("hidden", "none"), "teacher_use.cache"),
    (one_of("decreasing", "constant", "increasing"), "fresh"),
    (one_of("float32", "bfloat16", "float16"), "dtype"),
    (one_of("float32", "bfloat16", "float16") | NULL, "param_dtype export.dtype"),
    (one_of("8bit", "4bit") | NULL, "quantization"),
    (one_of("score", "pairwise"), "judge.mode"),
    (one_of("document", "sentence"), "scifact.unit"),
    (one_of("auto", "latin", "unicode", "characters"), "words"),
    (TEXT | NULL, "fallback"),
    (one_of("lines", "paragraphs", "files"), "documents_are"),
    (NODE, ".optimizer .module .validation .trainer"),
    (one_of("alpaca", "auto", "chat", "plain", "raw"), "datamodule.template"),
    (one_of("alpaca", "auto", "chat", "plain", "raw") | NULL, "teacher.template"),
    (one_of("all", "last"), "datamodule.targets"),
    (FLAG | one_of("auto"), "datamodule.add_bos"),
    (TEXT, ".name .output_dir .cache_dir .shared_dir .output .monitor"),
    (TEXT | NULL, ".ckpt_path"),
)
KINDS = {name: kind for kind, names in _TABLE for name in names.split()}
_LIBRARIES = ("lightning_minillm.", "lightning.", "torch.", "transformers.")

METRICS = {"val/loss": "min", "val/rougeL": "max", "val/exact_match": "max", "val/reverse_kl": "min"}
"""What our modules measure in validation and can be monitored, with the direction of better values."""


# --- checks ---------------------------------------------------------------------------------------------------------


def check_values(config: Mapping[str, Any]) -> None:
    """Check types and ranges of the values, and whether they agree.

    Args:
        config: resolved or not; values that refer to others are not checked.

    Raises:
        ValueError: names every key with a wrong value.
    """
    wrong: dict[tuple[str, str], str] = {}  # a value that an interpolation copies to other places is named once
    for path, value in _leaves(config):
        if "${" in str(value):
            continue
        kind = kind_of(path)
        if kind is not None and not kind.holds(value):
            name = path.rpartition(".")[2]
            wrong.setdefault((name, repr(value)), f"{path} must be {kind.text}, got {_shown(value)}")
    faults = [*wrong.values()] or [*_disagreements(config)]
    if faults:
        raise ValueError("; ".join(faults))


def kind_of(path: str) -> Kind | None:
    """Return the kind of a key's values, or ``None`` if every value may be right.

    Example:
        >>> kind_of("module.rollouts.sampling.max_new_tokens").text
        'a whole number of at least 1'
    """
    parts = ["", *path.split(".")]
    names = (".".join(parts[place:]) for place in range(len(parts)))
    return next((KINDS[name] for name in names if name in KINDS), None)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of a configuration, without the nodes of a user's own classes."""
    if not str(node.get("_target_", _LIBRARIES[0])).startswith(_LIBRARIES):
        return
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    """Return a value as it is written in a configuration, with the whole number that a float may be meant as."""
    if type(value) is float and value.is_integer():
        return f"{value} (write {int(value)})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _disagreements(config: Mapping[str, Any]) -> Iterator[str]:
    monitor, mode = config.get("monitor"), config.get("monitor_mode")
    is_ours = str((config.get("module") or {}).get("_target_", "")).startswith(_LIBRARIES[0])
    if monitor is None or not is_ours:
        return
    if str(monitor).startswith("val/") and monitor not in METRICS and monitor != "val/response_length":
        yield f"monitor={monitor} is not measured{nearest(monitor, METRICS)}; the metrics are {', '.join(METRICS)}"
    elif mode != METRICS.get(monitor, mode):
        yield f"monitor={monitor} is better when it is {METRICS[monitor]}imal: set monitor_mode={METRICS[monitor]}"


# Keys inside groups that the commands read by themselves. Others are read where an interpolation refers to them.
_READ = frozenset(
    "data.datamodule data.path data.prepare data.tokenizer student.model student.tokenizer teacher.model"
    " teacher.template teacher.tokenizer".split()
)
_REFERENCE = re.compile(r"\$\{(?:oc\.select:)?([\w.]+)")


def unread_keys(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the keys in ``data``, ``student`` and ``teacher`` that nothing reads, each with its neighbours.

    Args:
        config: not resolved, so that it shows which keys its interpolations refer to.
    """
    referred = set(_REFERENCE.findall(str(config)))
    unread: dict[str, list[str]] = {}

    def visit(node: Mapping[str, Any], place: str) -> None:
        for key, value in node.items():
            path = f"{place}.{key}"
            if path in _READ or path in referred:
                continue
            if isinstance(value, Mapping) and value and "_target_" not in value:
                visit(value, path)
            else:
                unread[path] = [str(other) for other in node if other != key]

    if referred:  # a configuration that was written by a run is resolved
        for group in ("data", "student", "teacher"):
            if "datamodule" in (config.get("data") or {}) and isinstance(config.get(group), Mapping):
                visit(config[group], group)
    return unread
