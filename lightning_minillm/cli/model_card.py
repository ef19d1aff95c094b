"""The model card of a run, from its configuration and metrics."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lightning_minillm.files import write_text
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.model_card import ModelCard, render_model_card

CARD_FILE = "README.md"
_HYPERPARAMETERS = ("max_steps", "batch_size", "max_length", "max_prompt_length", "seed")
_GROUPS = ("optimizer", "scheduler", "module", "loss")
_TRAINER = ("precision", "gradient_clip_val", "devices", "num_nodes")


@rank_zero_only
def write_model_card(folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write ``README.md`` beside an exported student.

    Args:
        folder: the Hugging Face folder.
        config: plain configuration of the training run.
        metrics: as ``metrics.json`` holds them.
    """
    write_text(folder / CARD_FILE, render_model_card(describe_run(config, metrics)))


def describe_run(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelCard:
    """Say what a run was in a card's plain values."""
    data = {key: config["data"].get(key) for key in ("train", "validation")}
    corpus = (config["data"].get("datamodule") or {}).get("lm_corpus")
    data["pretraining text"] = corpus.get("path") if isinstance(corpus, Mapping) else corpus
    best = metrics.get("best")
    chosen = f"{best['metric']} = {best['value']:.4g} at step {best['optimizer_steps']}" if best else "the last step"
    module, loss = (_class_name(config[key]) for key in ("module", "loss"))
    # The last validation's values are not those of weights that an earlier one chose.
    measured = {} if best else {key: value for key, value in metrics["last"].items() if key.startswith("val/")}
    return ModelCard(
        name=config["name"],
        base=_model_name(config["student"]) or "random weights",
        teacher=_model_name(config["teacher"]),
        method=f"{module} with {loss}",
        data={key: str(value) for key, value in data.items() if value is not None},
        hyperparameters=_hyperparameters(config),
        metrics={best["metric"]: best["value"]} if best else measured,
        chosen_by=chosen,
        command=_command(),
        versions=_versions(),
    )


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _model_name(node: Mapping[str, Any] | None) -> str | None:
    if not node or not node.get("model"):
        return None
    path = node["model"].get("path")
    return str(path) if path else f"random weights ({node['model'].get('architecture')})"


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: config[key] for key in _HYPERPARAMETERS}
    for group in _GROUPS:
        values.update(_scalars(config[group] or {}, group))
    values.update({f"trainer.{key}": config["trainer"].get(key) for key in _TRAINER})
    return {key: value for key, value in values.items() if value is not None}


def _scalars(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield every value of a group by its dotted name; the loss inside the module is the group of its own."""
    for key, value in node.items():
        name = f"{path}.{key}"
        if name == "module.loss" or key == "_partial_":
            continue
        if isinstance(value, Mapping):
            yield from _scalars(value, name)
        else:
            yield name, value


def _command() -> str | None:
    """Return the shell command, where the run was started by one of ours."""
    program = Path(sys.argv[0]).name
    if program.startswith("minillm-"):
        return shlex.join([program, *sys.argv[1:]])
    if Path(sys.argv[0]).parent.name == "cli" and program.endswith(".py"):
        return shlex.join(["python", "-m", f"lightning_minillm.cli.{Path(program).stem}", *sys.argv[1:]])
    return None


def _versions() -> dict[str, str]:
    git = runs.git_state()
    versions = {name: version for name, version in runs.package_versions().items() if version}
    return {**versions, **({"commit": git["commit"] + (" with changes" if git["changed"] else "")} if git else {})}
