"""From Hydra's containers to plain ones: the last place that sees an OmegaConf object."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_minillm.cli import tracking

CONFIG_MODULE = "lightning_minillm.conf"
CONFIG_PATH = f"pkg://{CONFIG_MODULE}"
HYDRA_VERSION = "1.3"
_NUMBERED = re.compile(r"^devices=\d+(,\d+)*$")
_DIGITS = re.compile(r"(?<=[=,])\d+")

Config = dict[str, Any]


class RecipeError(RuntimeError):
    """A stage of a recipe failed; what was finished is kept, and the recipe can be started again."""


OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
OmegaConf.register_new_resolver("epochs", lambda epochs, rows, batch_size: epochs * (rows // batch_size), replace=True)
OmegaConf.register_new_resolver("quote", lambda value: quote(value), replace=True)
OmegaConf.register_new_resolver("direction", {"min": "minimize", "max": "maximize"}.__getitem__, replace=True)
for _resolver in (tracking.run_name, tracking.run_group, tracking.run_tags, tracking.run_id):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)


def quote(value: Any) -> str:
    """Write a value, such as a path, so that Hydra's grammar takes it as one string whatever it contains.

    Example:
        >>> print(quote("it's a path, with a comma"))
        'it\\'s a path, with a comma'
    """
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose a command's configuration as the command line would.

    Args:
        name: ``train``, ``evaluate``, ``generate`` or ``recipe``.
        overrides: in Hydra's grammar, such as ``experiment=smoke`` or ``optimizer.lr=1e-4``.

    Returns:
        The configuration, unresolved; keys that it does not have cannot be set.
    """
    overrides = quote_numbers(overrides)
    if GlobalHydra.instance().is_initialized():
        return compose(name, overrides=overrides)
    with initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION):
        return compose(name, overrides=overrides)


def quote_numbers(overrides: Iterable[str]) -> list[str]:
    """Let groups whose files are named by numbers be chosen without quotes, which Hydra's grammar would want.

    Example:
        >>> quote_numbers(["devices=1,2", "seed=1"])
        ["devices='1','2'", 'seed=1']
    """
    return [_NUMBERED.sub(lambda found: _DIGITS.sub(r"'\g<0>'", found[0]), override) for override in overrides]


def run_command(command: Callable[[DictConfig], Any], name: str) -> None:
    """Run a command with the configuration that the command line asks for.

    Args:
        command: ``train``, ``evaluate``, ... ; gets the composed configuration. A number that it returns is what a
            search such as Optuna's optimises.
        name: of the configuration file.
    """
    sys.argv[1:] = quote_numbers(sys.argv[1:])

    def task(cfg: DictConfig) -> float | None:
        try:
            result = command(use_hydra_directory(cfg))
            return result if isinstance(result, float) else None
        except (ValueError, FileNotFoundError, FloatingPointError, RecipeError) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error}\n(HYDRA_FULL_ERROR=1 shows where it was raised)", file=sys.stderr)
            sys.exit(1)

    hydra.main(config_path=CONFIG_PATH, config_name=name, version_base=HYDRA_VERSION)(task)()


def use_hydra_directory(cfg: DictConfig) -> DictConfig:
    """Point ``output_dir`` at the directory that Hydra made, for a sweep's job or a rank."""
    with open_dict(cfg):
        cfg.output_dir = HydraConfig.get().runtime.output_dir
    return cfg


def to_plain(cfg: DictConfig | Mapping[str, Any], known_keys: Iterable[str]) -> Config:
    """Resolve a configuration into dicts, lists and scalars.

    Args:
        cfg: as composed, or already plain.
        known_keys: the keys that the command reads.

    Raises:
        ValueError: a key that nothing reads, or one that has to be given and was not.
    """
    cfg = OmegaConf.create(dict(cfg)) if not isinstance(cfg, DictConfig) else cfg
    known = set(known_keys)
    unknown = sorted(str(key) for key in cfg if str(key) not in known)
    if unknown:
        raise ValueError(f"nothing reads the key(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    missing = sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    if missing:
        raise ValueError(f"no value was given for {', '.join(missing)}; set e.g. {missing[0]}=VALUE")
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Yield the keys that hold ``???``; OmegaConf's own search stops at interpolations that lead to them."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path


def build(node: Mapping[str, Any]) -> Any:
    """Make the object that a ``_target_`` node describes, with plain containers only.

    Raises:
        ValueError: when the object cannot be made: the message of the cause, and the target.
    """
    try:
        return instantiate(dict(node), _convert_="all")
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{node.get('_target_', 'the configuration')}: {cause}") from error


def build_all(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Make every object of a group of named nodes; ``null`` switches one off."""
    return {name: build(node) for name, node in nodes.items() if node is not None}
