"""Composes configurations and turns them into plain containers, and plain containers into objects."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_minillm.cli import tracking
from lightning_minillm.cli.own_data import expand_home, expand_overrides, settle_data
from lightning_minillm.cli.paper import PAPER, check_paper
from lightning_minillm.cli.repeats import check_repeats
from lightning_minillm.cli.schema import check_values, unread_keys
from lightning_minillm.files import nearest

CONFIG_MODULE = "lightning_minillm.conf"
CONFIG_PATH = f"pkg://{CONFIG_MODULE}"
HYDRA_VERSION = "1.3"
_NUMBERED = re.compile(r"^devices=\d+(,\d+)*$")
_HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
_DIGITS = re.compile(r"(?<=[=,])\d+")

Config = dict[str, Any]


def quote(value: Any) -> str:
    """Quote a value, such as a path, so that Hydra's grammar reads it as one string.

    Example:
        >>> print(quote("it's a path, with a comma"))
        'it\\'s a path, with a comma'
    """
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value))  # a backslash has no meaning elsewhere, as in C:\Users
    return "'" + text.replace("'", "\\'") + "'"


_RESOLVERS: dict[str, Callable[..., Any]] = {
    "sum": lambda *numbers: sum(numbers),
    "epochs": lambda epochs, rows, batch_size: epochs * (rows // batch_size),
    "quote": quote,
    "direction": {"min": "minimize", "max": "maximize"}.__getitem__,
    "expanduser": os.path.expanduser,
    "run_name": tracking.run_name,
    "run_group": tracking.run_group,
    "run_tags": tracking.run_tags,
    "run_id": tracking.run_id,
}
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration of a command, as the command line does.

    Args:
        name: ``train``, ``evaluate``, ``generate`` or ``recipe``.
        overrides: in Hydra's grammar, such as ``experiment=smoke`` or ``optimizer.lr=1e-4``.

    Returns:
        The configuration, unresolved. Setting a key that it does not have is an error.

    Raises:
        ValueError: a mapping in an override has a key twice.
    """
    check_repeats(overrides)
    with hydra_is_ready():
        overrides = expand_overrides(quote_numbers(overrides))
        return check_paper(settle_data(compose(name, overrides=overrides)))


def hydra_is_ready() -> AbstractContextManager[None]:
    """Return a context in which Hydra composes from the package's configuration files."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION)


def quote_numbers(overrides: Iterable[str]) -> list[str]:
    """Quote the choices of groups whose files are named by numbers, as Hydra's grammar requires.

    Example:
        >>> quote_numbers(["devices=1,2", "seed=1"])
        ["devices='1','2'", 'seed=1']
    """
    return [_NUMBERED.sub(lambda found: _DIGITS.sub(r"'\g<0>'", found[0]), override) for override in overrides]


def to_plain(cfg: DictConfig | Mapping[str, Any], known_keys: Iterable[str]) -> Config:
    """Resolve a configuration into dicts, lists and scalars, without the values that only others refer to (``paper``).

    Args:
        cfg: as composed, or already plain.
        known_keys: the keys that the command reads.

    Raises:
        ValueError: a key that nothing reads, a required key without a value, or a value that cannot be.
    """
    cfg = OmegaConf.create(dict(cfg)) if not isinstance(cfg, DictConfig) else cfg
    known = sorted(known_keys)
    unknown = sorted(set(map(str, cfg)) - {PAPER, *known})
    if unknown:
        raise ValueError(f"nothing reads the key(s) {', '.join(unknown)}; the keys are {', '.join(known)}")
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    for path, neighbours in unread_keys(raw).items():
        name = nearest(path.rpartition(".")[2], neighbours)
        raise ValueError(f"nothing reads {path}{name}; the keys beside it are {', '.join(neighbours)}")
    missing = sorted(_missing(raw))
    if missing:
        raise ValueError(f"no value was given for {', '.join(missing)}; set e.g. {missing[0]}=VALUE")
    check_values(raw)  # first, since keys refer to others by these values
    cfg = _with_place(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    check_values(plain)
    return {str(key): expand_home(value) for key, value in plain.items() if key != PAPER}


def _with_place(cfg: DictConfig) -> DictConfig:
    """Expand ``~`` in the folder of a run, to which other values refer."""
    if cfg.get("output_dir") is None:
        return cfg
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.output_dir = os.path.expanduser(cfg.output_dir)
    return cfg


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Yield the keys whose value is ``???``; OmegaConf's own search does not follow interpolations to them."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path


def build(node: Mapping[str, Any]) -> Any:
    """Make the object that a ``_target_`` node describes, with plain containers only.

    Args:
        node: plain; nodes inside it are made first.

    Raises:
        ValueError: a mistake in the configuration: a target that does not exist, arguments that it does not take, a
            value that it refuses, a file or model that cannot be read, an optional package that is not installed. The
            message begins with the target. Any other exception is raised as it is, with its traceback.
    """
    _check_targets(node)
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if not _is_mistake_of_user(cause):
            raise cause from cause.__cause__
        raise ValueError(f"{node.get('_target_', 'the configuration')}: {cause}") from error


def _is_mistake_of_user(error: BaseException) -> bool:
    if isinstance(error, ImportError):  # of an optional package, unless our own import is broken
        return not (error.name or "").startswith("lightning_minillm")
    return isinstance(error, ValueError | OSError | InstantiationException)


def _check_targets(node: Any) -> None:
    """Check that every target in a node exists and takes the arguments beside it."""
    is_mapping = isinstance(node, Mapping)
    for value in node.values() if is_mapping else node if isinstance(node, list) else ():
        _check_targets(value)
    if is_mapping and "_target_" in node:
        _check_arguments(node)


def _check_arguments(node: Mapping[str, Any]) -> None:
    target = _locate(node["_target_"])
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # it has none that can be read
        return
    bind = signature.bind_partial if node.get("_partial_") else signature.bind
    try:
        bind(*node.get("_args_", ()), **{key: value for key, value in node.items() if key not in _HYDRA_KEYS})
    except TypeError as error:
        arguments = ", ".join(signature.parameters)
        raise ValueError(f"{node['_target_']}: {error}; its arguments are {arguments}") from error


def _locate(target: str) -> Any:
    """Import what a dotted path names."""
    parent, _, name = target.rpartition(".")
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if not f"{target}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
    if not parent:
        raise ValueError(f"there is no module {name!r}")
    found = _locate(parent)
    if not hasattr(found, name):
        raise ValueError(f"{target!r} cannot be imported: {parent!r} has no {name!r}")
    return getattr(found, name)


def build_all(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Make every object of a group of named nodes, except those that are ``null``."""
    return {name: build(node) for name, node in nodes.items() if node is not None}
