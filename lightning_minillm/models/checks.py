"""One check of a model before anything is loaded: whether it is complete, of the right kind, and fits a run.

Weights are judged by the headers of their files. transformers itself compares their names and shapes with the model: it
loads tensors that have these shapes and share one number, which takes no memory.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME, logging

from lightning_minillm.models.folders import (
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    REMEDY,
    adapted_model,
    local_or_hub,
    weight_shapes,
)
from lightning_minillm.models.multimodal import has_towers

_MOST_BYTES = 2**31  # of weights that are compared where transformers copies them
_ROTARY_FIELDS = ("rope_parameters", "rope_theta", "rotary_emb_base", "rope_scaling")
_OTHER_MEDIA = re.compile("image|audio|video|vision|media")
_VERSION = int(transformers.__version__.split(".")[0])

Shapes = Mapping[str, tuple[int, ...]]


def check_model(
    path: str | Path, *, trust_remote_code: bool = False, revision: str | None = None, weights: bool = True
) -> PretrainedConfig:
    """Check that a causal language model can be loaded, from its files' headers, and return its config.

    Args:
        path: folder or hub name; of a model on the hub, only the config is checked. Adapters are checked together with
            the model that they belong to.
        trust_remote_code: run code that comes with the model.
        revision: branch, tag or commit on the hub.
        weights: whether the folder must have complete weights, and not only a config.

    Raises:
        ValueError: the folder does not exist, is no model's, holds another kind of model or is incomplete.
        ImportError: adapters without peft.
    """
    name = local_or_hub(path, "model")
    base = adapted_model(name)
    if base is not None:
        if find_spec("peft") is None:
            raise ImportError("loading adapters needs peft: pip install 'lightning-minillm[peft]'")
        if weights:
            weight_shapes(name, ADAPTER_WEIGHTS)
        return check_model(base, trust_remote_code=trust_remote_code, weights=weights)
    local = Path(name).is_dir()
    if local and not (Path(name) / CONFIG_FILE).is_file():
        raise ValueError(_no_config(Path(name)))
    config = _read_config(name, trust_remote_code, revision)
    _check_kind(name, config, trust_remote_code)
    if local:
        _check_generation_config(Path(name))
    if local and weights:
        shapes = weight_shapes(name)
        if getattr(config, "quantization_config", None) is None:
            _compare(name, config, shapes)
    return config


def check_fit(name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, length: int | None) -> None:
    """Check that a model has an embedding for every token and a position for every place of a sequence.

    Args:
        name: of the model, for messages.
        config: of the model.
        tokenizer: of the model. Tokens that stand for images or sound need no embedding.
        length: tokens of the longest sequence; ``None`` if it is not known.

    Raises:
        ValueError: tokens without embedding, or a table of positions that is too short.
    """
    text = config.get_text_config()
    beyond = [token for token, index in tokenizer.get_vocab().items() if index >= text.vocab_size]
    beyond = [token for token in beyond if not _OTHER_MEDIA.search(token)]
    if beyond:
        raise ValueError(
            f"the tokenizer of {name!r} has {len(beyond)} tokens beyond the {text.vocab_size} of the model's embedding,"
            f" e.g. {beyond[0]!r}: use the model's own tokenizer, or call model.resize_token_embeddings and save it"
        )
    if length is not None:
        check_positions(name, config, length)


def check_positions(name: str, config: PretrainedConfig, length: int) -> None:
    """Check that a model that learns a table of positions has one for every place of a sequence.

    Args:
        name: of the model, for messages.
        config: of the model.
        length: tokens of the longest sequence.

    Raises:
        ValueError: the table is too short.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    rotary = any(getattr(text, field, None) is not None for field in _ROTARY_FIELDS)
    if isinstance(positions, int) and length > positions and not rotary:
        raise ValueError(
            f"{name!r} has {positions} positions and the run asks for sequences of {length} tokens: set"
            f" max_length={positions} or less, or use another model"
        )


def check_loaded(name: str, missing: Sequence[str], mismatched: Sequence[Any], unexpected: Sequence[str]) -> None:
    """Check what transformers reports about names and shapes of weights that it loaded.

    Args:
        name: of the model, for the message.
        missing: names of weights that no file has; they were made up at random.
        mismatched: weights of another shape, by name or as tuples that begin with it.
        unexpected: names in the files that the model does not have.

    Raises:
        ValueError: weights are missing or have another shape.
    """
    shaped = [entry if isinstance(entry, str) else entry[0] for entry in mismatched]
    if not missing and not shaped:
        return
    parts = [
        f"{len(names)} {what}, e.g. {sorted(names)[0]}"
        for names, what in ((missing, "are missing"), (shaped, "have another shape"))
        if names
    ]
    remedy = REMEDY
    if unexpected:
        unexpected = _names_in_file(missing, unexpected)
        first = sorted(unexpected)[0]
        parts.append(f"{len(unexpected)} are not the model's, e.g. {first}")
        prefix = first.partition(".")[0] + "."
        if first.removeprefix(prefix) in missing and all(key.startswith(prefix) for key in unexpected):
            remedy = f"save the weights without {prefix!r} in their names"
    raise ValueError(f"the weights in {name!r} do not belong to its config.json ({'; '.join(parts)}): {remedy}")


def _names_in_file(missing: Sequence[str], unexpected: Sequence[str]) -> Sequence[str]:
    """Return the unexpected names without the body's prefix, which transformers 4 adds to names that lack it."""
    added, wrapper, name = [*sorted(unexpected)[0].split(".", 2), "", ""][:3]
    is_added = _VERSION < 5 and name in missing and all(key.startswith(f"{added}.{wrapper}.") for key in unexpected)
    return [key.removeprefix(f"{added}.") for key in unexpected] if is_added else unexpected


def _no_config(folder: Path) -> str:
    """Say what a folder without a model may be instead."""
    student = folder / "student"
    if (student / CONFIG_FILE).is_file():
        return f"{str(folder)!r} is the folder of a run, not of a model: pass {str(student)!r}"
    checkpoints = sorted((folder / "checkpoints").glob("*.ckpt"))
    if checkpoints:
        return (
            f"{str(folder)!r} is the folder of an unfinished run, not of a model: pass its checkpoint"
            f" {str(checkpoints[-1])!r}, or convert that with minillm-export"
        )
    return f"{str(folder)!r} contains no config.json: pass a Hugging Face model folder or a hub name"


def _read_config(name: str, trust_remote_code: bool, revision: str | None) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=trust_remote_code, revision=revision
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(_own_code(name)) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"no model configuration can be read from {name!r} ({reason}): give a folder or a hub name"
        ) from error
    return config


def _check_generation_config(folder: Path) -> None:
    if (folder / GENERATION_CONFIG_NAME).is_file():
        try:
            GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(
                f"{str(folder / GENERATION_CONFIG_NAME)!r} is not valid ({reason}): correct or delete it"
            ) from error


def _own_code(name: str) -> str:
    return f"{name!r} comes with its own code: set trust_remote_code=true if you trust its authors"


def _check_kind(name: str, config: PretrainedConfig, trust_remote_code: bool) -> None:
    """Check that a model predicts text from left to right."""
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if remote and not known and not trust_remote_code:
        raise ValueError(_own_code(name))
    both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if (
        not (known or remote or has_towers(config))
        or getattr(config, "is_encoder_decoder", False)
        or (known and both_ways)
    ):
        classes = ", ".join(getattr(config, "architectures", None) or ()) or "no class named"
        raise ValueError(
            f"{name!r} is a model of type {config.model_type!r} ({classes}), which is not a causal language model: use"
            " one that predicts text from left to right, such as GPT-2, Llama or Qwen"
        )


def _compare(name: str, config: PretrainedConfig, shapes: Shapes) -> None:
    """Have transformers load tensors of these shapes, and check what it reports."""
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    size = 2 * sum(torch.Size(shape).numel() for shape in shapes.values())
    if not isinstance(model_class, type) or (size > _MOST_BYTES and _copies(shapes)):
        return  # loading checks it
    state = {key: torch.zeros((), dtype=torch.float16).expand(shape) for key, shape in shapes.items()}
    options = {"dtype": torch.float16, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with quiet_loading(), torch.random.fork_rng(devices=[]):
        try:
            _, report = model_class.from_pretrained(None, config=deepcopy(config), state_dict=state, **options)
        except (ValueError, RuntimeError):  # names that only the files' own loader understands
            return
    check_loaded(name, *(list(report[f"{kind}_keys"]) for kind in ("missing", "mismatched", "unexpected")))


def _copies(shapes: Shapes) -> bool:
    """Return whether transformers copies weights as it loads them: all of them before 5, those of experts since."""
    return _VERSION < 5 or any("expert" in name for name in shapes)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence what transformers prints while it loads weights; :func:`check_loaded` says what matters."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
