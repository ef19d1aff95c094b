"""Model folders before anything is loaded: what they are, whether they are complete, and whether they fit a run.

Weights are judged by the headers of their files. transformers itself compares their names and shapes with the model: it
loads tensors that have these shapes and share one number, which takes no memory.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lightning_minillm.files import read_json

ADAPTER_FILE = "adapter_config.json"
_CONFIG_FILE = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LFS_POINTER = b"version https://git-lfs"
_MOST_BYTES = 2**31  # of weights that are compared where transformers copies them
_ROTARY_FIELDS = ("rope_parameters", "rope_theta", "rotary_emb_base", "rope_scaling")
_OTHER_MEDIA = re.compile("image|audio|video|vision|media")
_VERSION = int(transformers.__version__.split(".")[0])
_STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_AGAIN = "copy or download the folder again"

Shapes = Mapping[str, tuple[int, ...]]


def local_or_hub(path: str | Path, what: str) -> str:
    """Return a hub name, or an existing folder with ``~`` expanded.

    Args:
        path: as a user gave it.
        what: is loaded from it, for the message.

    Raises:
        ValueError: the path looks like a folder and there is none.
    """
    name, folder = str(path), Path(path).expanduser()
    if not (name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists()):
        return name
    if not folder.is_dir():
        raise ValueError(f"there is no folder {name!r} to load a {what} from: pass an existing folder or a hub name")
    return str(folder)


def adapted_model(folder: str | Path) -> str | None:
    """Return the folder or hub name of the model that a folder's adapters belong to; ``None`` if it has none.

    Raises:
        ValueError: the adapters do not name their model.
    """
    file = Path(folder) / ADAPTER_FILE
    if not file.is_file():
        return None
    name = read_json(file).get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"{str(file)!r} does not name the model that the adapters belong to: set its base_model_name_or_path"
        )
    return str(name)


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
            weight_shapes(name, _ADAPTER_WEIGHTS)
        return check_model(base, trust_remote_code=trust_remote_code, weights=weights)
    local = Path(name).is_dir()
    if local and not (Path(name) / _CONFIG_FILE).is_file():
        raise ValueError(_no_config(Path(name)))
    config = _read_config(name, trust_remote_code, revision)
    _check_kind(name, config, trust_remote_code)
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
    remedy = _AGAIN
    if unexpected:
        first = sorted(unexpected)[0]
        parts.append(f"{len(unexpected)} are not the model's, e.g. {first}")
        prefix = first.partition(".")[0] + "."
        if first.removeprefix(prefix) in missing and all(key.startswith(prefix) for key in unexpected):
            remedy = f"save the weights without {prefix!r} in their names"
    raise ValueError(f"the weights in {name!r} do not belong to its config.json ({'; '.join(parts)}): {remedy}")


def weight_shapes(folder: str | Path, names: Sequence[str] = _WEIGHTS) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a folder's files of weights, of which only the headers are read.

    Raises:
        ValueError: there are no weights, a file is missing, empty or cut off, or is a pointer of Git LFS.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(Path(folder), names):
        with open(file, "rb") as content:
            start = content.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ValueError(f"{str(file)!r} is a pointer of Git LFS instead of weights: run 'git lfs pull' beside it")
        try:
            shapes |= _header(file)
        except Exception as error:  # torch and safetensors raise exceptions of many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"{str(file)!r} is not a complete file of weights ({reason}): {_AGAIN}") from error
    return shapes


def stored_dtype(folder: str | Path) -> torch.dtype | None:
    """Return the commonest dtype of a folder's weights; ``None`` if it has none in the format of safetensors."""
    files = [*_weight_files(Path(folder), _WEIGHTS)] if Path(folder).is_dir() else []
    if not files or files[0].suffix != ".safetensors":
        return None
    with safe_open(files[0], framework="pt") as content:
        kinds = Counter(content.get_slice(name).get_dtype() for name in content.keys())  # noqa: SIM118
    return _STORED_DTYPES.get(kinds.most_common(1)[0][0])


def _weight_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield the files that transformers would read."""
    for name in names:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            yield folder / name
            return
        if index.is_file():
            try:
                files = sorted({folder / file for file in read_json(index)["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{str(index)!r} is not a complete index of weights: {_AGAIN}") from error
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ValueError(
                    f"{len(missing)} of {len(files)} files of weights are missing in {str(folder)!r}, e.g."
                    f" {missing[0]}: {_AGAIN}"
                )
            yield from files
            return
    raise ValueError(f"{str(folder)!r} contains no weights ({' or '.join(names)}): {_AGAIN}")


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as content:
                return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(str(error)) from error
    state = torch.load(file, map_location="meta", mmap=zipfile.is_zipfile(file) or None, weights_only=True)
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _no_config(folder: Path) -> str:
    """Say what a folder without a model may be instead."""
    student = folder / "student"
    if (student / _CONFIG_FILE).is_file():
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


def _own_code(name: str) -> str:
    return f"{name!r} comes with its own code: set trust_remote_code=true if you trust its authors"


def _check_kind(name: str, config: PretrainedConfig, trust_remote_code: bool) -> None:
    """Check that a model predicts text from left to right."""
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if remote and not known and not trust_remote_code:
        raise ValueError(_own_code(name))
    both_ways = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if not (known or remote) or getattr(config, "is_encoder_decoder", False) or (known and both_ways):
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
