"""The commands: a configuration is composed and checked first, and what does the work is imported after that."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from lightning_minillm.cli.config import CONFIG_PATH, HYDRA_VERSION, compose_config, quote_numbers, to_plain
from lightning_minillm.cli.console import quiet_libraries
from lightning_minillm.cli.errors import FULL_ERROR, short_errors
from lightning_minillm.cli.explain import COMPOSING, check_words, explain
from lightning_minillm.cli.own_data import check_own_data, expand_overrides, settle_data
from lightning_minillm.cli.paper import check_paper
from lightning_minillm.cli.places import check_places
from lightning_minillm.cli.schema import KEYS
from lightning_minillm.cli.tracking import keep_overrides

_FLAGS = (
    "--help --hydra-help --version --cfg --resolve --package --run --multirun --shell-completion --config-path"
    " --config-name --config-dir --experimental-rerun --info"
).split()


def train() -> None:
    """Run ``minillm-train``."""
    run_command("train", "lightning_minillm.cli.train:run")


def evaluate() -> None:
    """Run ``minillm-evaluate``."""
    run_command("evaluate", "lightning_minillm.cli.evaluate:evaluate")


def generate() -> None:
    """Run ``minillm-generate``."""
    run_command("generate", "lightning_minillm.cli.generate:generate")


def recipe() -> None:
    """Run ``minillm-recipe``."""
    run_command("recipe", "lightning_minillm.cli.recipe.command:recipe")


def run_command(name: str, target: str) -> None:
    """Run a command with the configuration that the command line asks for.

    Keys and values are checked first, then files and folders; only then the command's module is imported.

    Args:
        name: of the command and of its configuration file.
        target: ``module:function``; the function takes the composed configuration. If it returns a number, a search
            such as Optuna's optimises it.
    """
    sys.argv[1:] = expand_overrides(quote_numbers(sys.argv[1:]))
    _check_flags(name)
    given = get_args_parser().parse_args()
    with short_errors():
        check_words(given.overrides)
        if _sweeps(given) and any(word.lstrip("+").startswith("output_dir=") for word in given.overrides):
            raise ValueError(
                "output_dir has no effect in a sweep: give the folder of all its jobs, hydra.sweep.dir=..."
            )
        try:
            if _runs_once(given):
                _check(compose_config(name, given.overrides), name, given.overrides)
            _run(name, target)
        except COMPOSING as error:
            raise ValueError(explain(error, name, given.overrides)) from error


def _run(name: str, target: str) -> None:
    """Hand over to Hydra, which calls the command once, or once for every job of a sweep."""
    full_error = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra raises what it would print

    def task(cfg: DictConfig) -> float | None:
        _restore(full_error)
        with open_dict(cfg):
            cfg.output_dir = HydraConfig.get().runtime.output_dir  # which differs in a job of a sweep
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            keep_overrides(cfg.output_dir)  # also of a job that fails
        with short_errors():
            _check(check_paper(settle_data(cfg)), name, HydraConfig.get().overrides.task)
            quiet_libraries()
            command: Callable[[DictConfig], Any] = resolve_name(target)
            result = command(cfg)
        os.environ[FULL_ERROR] = "1"
        return result if isinstance(result, float) else None

    try:
        hydra.main(config_path=CONFIG_PATH, config_name=name, version_base=HYDRA_VERSION)(task)()
    finally:
        _restore(full_error)


def _restore(full_error: str | None) -> None:
    os.environ.pop(FULL_ERROR, None)
    if full_error is not None:
        os.environ[FULL_ERROR] = full_error


def _check(cfg: DictConfig, name: str, overrides: Iterable[str]) -> None:
    config = to_plain(cfg, KEYS[name].split())
    check_own_data(config, overrides)
    check_places(config)


def _sweeps(given: Namespace) -> bool:
    """Whether the command line asks for many runs."""
    return given.multirun or any(word.startswith(("sweep=", "+sweep=", "hydra.mode=M")) for word in given.overrides)


def _runs_once(given: Namespace) -> bool:
    """Whether the command line asks for one run, whose configuration can be composed before Hydra makes folders."""
    shows = given.help or given.hydra_help or given.cfg or given.info or given.shell_completion
    other = given.config_name or given.config_path or given.config_dir or given.experimental_rerun
    return not (shows or other or _sweeps(given))


def _check_flags(name: str) -> None:
    """Exit with code 2 at an option that does not exist; argparse would take ``--experiment`` for a longer one."""
    for word, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag.startswith("--") and flag not in _FLAGS:
            given = value or ("VALUE" if "=" in following or not following else following)
            print(
                f"error: there is no option {flag}; keys are given without dashes: {flag.lstrip('-')}={given}\n"
                f"(minillm-{name} --help shows the keys)",
                file=sys.stderr,
            )
            sys.exit(2)
