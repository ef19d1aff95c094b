"""The card beside an exported student: its base model, its training and its validation."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from lightning_minillm.files import write_text
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.tables import markdown_cell

CARD_FILE = "README.md"
_HYPERPARAMETERS = ("max_steps", "batch_size", "max_length", "max_prompt_length", "seed")
_GROUPS = ("optimizer", "scheduler", "module", "loss")
_GROUPS_IN_MODULE = ("module.loss", "module.training.optimizer", "module.training.scheduler")
_TRAINER = ("precision", "gradient_clip_val", "devices", "num_nodes")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FRONT_MATTER = (
    "---",
    "library_name: transformers",
    "pipeline_tag: text-generation",
    "tags: [knowledge-distillation, lightning-minillm]",
)
Value = str | int | float | bool | None | Sequence["Value"]


@dataclass(frozen=True)
class ModelCard:
    """The content of a card as plain values; ``None`` and empty values are left out."""

    name: str
    """The title: the name of the run."""
    base: str
    """Model that training started from: a hub name, a folder, or words such as ``random weights (gpt2)``."""
    method: str
    """Module and loss, by their class names."""
    teacher: str | None = None
    """Like ``base``."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Files or hub names by their purpose."""
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    """By their names in the configuration."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation values of the exported weights, by their log keys."""
    chosen_by: str | None = None
    """How the exported weights were chosen."""
    command: str | None = None
    """Shell command of the run."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages and the code's commit."""


def render_model_card(card: ModelCard) -> str:
    """Return the text of ``README.md`` in the hub's form: YAML front matter, then Markdown.

    Example:
        >>> print(render_model_card(ModelCard("toy", "gpt2", "SFTModule with LanguageModelingLoss")))
        ---
        library_name: transformers
        pipeline_tag: text-generation
        tags: [knowledge-distillation, lightning-minillm]
        base_model: "gpt2"
        ---
        <BLANKLINE>
        # toy
        <BLANKLINE>
        | | |
        |---|---|
        | base model | gpt2 |
        | method | SFTModule with LanguageModelingLoss |
        <BLANKLINE>
    """
    about = {"base model": card.base, "teacher": card.teacher, "method": card.method, "chosen by": card.chosen_by}
    base = [f"base_model: {json.dumps(card.base)}"] if _HUB_NAME.fullmatch(card.base) else []  # the hub's own form
    front_matter = "\n".join([*_FRONT_MATTER, *base, "---"])
    parts = [front_matter, f"# {card.name}", _table({key: text for key, text in about.items() if text})]
    sections = {
        "Data": _table(card.data),
        "Validation": _table({key: f"{value:.4g}" for key, value in card.metrics.items()}),
        "Hyper-parameters": _table(card.hyperparameters),
        "Command": f"```bash\n{card.command}\n```" if card.command else "",
        "Versions": _table(card.versions),
    }
    for title, text in sections.items():
        if text:
            parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, Value]) -> str:
    if not rows:
        return ""
    cells = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *cells])


def _cell(value: Value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return markdown_cell(" ".join(text.split()))


# --- from a run's configuration -------------------------------------------------------------------------------------


@rank_zero_only
def write_model_card(folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write ``README.md`` beside an exported student, from the run's configuration and ``metrics.json``."""
    write_text(folder / CARD_FILE, render_model_card(describe_run(config, metrics)))


def describe_run(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelCard:
    """Return the card of a run from its configuration and ``metrics.json``."""
    places = config["data"]
    data = {key: places.get(key) or places.get("path") for key in ("train", "validation")}
    if places.get("sources"):
        data["train"] = ", ".join(f"{name} ({source['path']})" for name, source in places["sources"].items())
    corpus = (config["data"].get("datamodule") or {}).get("lm_corpus")
    data["pretraining text"] = corpus.get("path") if isinstance(corpus, Mapping) else corpus
    best = metrics.get("best")
    by: dict[str, Any] = (best or {}).get("fallback") or best or {}  # decides where the monitored metric is always 0
    chosen = f"{by['metric']} = {by['value']:.4g} at step {best['optimizer_steps']}" if best else "the last step"
    module, loss = (_class_name(config[key]) for key in ("module", "loss"))
    # if an earlier validation chose the weights, the values of the last validation are not theirs
    measured = {} if best else {key: value for key, value in metrics["last"].items() if key.startswith("val/")}
    return ModelCard(
        name=config["name"],
        base=_model_name(config["student"]) or "random weights",
        teacher=_model_name(config["teacher"]),
        method=f"{module} with {loss}",
        data={key: str(value) for key, value in data.items() if value is not None},
        hyperparameters=_hyperparameters(config),
        metrics={each["metric"]: each["value"] for each in (best, by)} if best else measured,
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
    """Yield every value of a group by its dotted name; groups inside the module are shown on their own."""
    for key, value in node.items():
        name = f"{path}.{key}"
        if name in _GROUPS_IN_MODULE or key == "_partial_":
            continue
        if isinstance(value, Mapping):
            yield from _scalars(value, name)
        else:
            yield name, value


def _command() -> str | None:
    """Return the shell command if the run was started by one of our commands."""
    program = Path(sys.argv[0]).name
    if program.startswith("minillm-"):
        return shlex.join([program, *sys.argv[1:]])
    if Path(sys.argv[0]).parent.name == "cli" and program.endswith(".py"):
        return shlex.join(["python", "-m", f"lightning_minillm.cli.{Path(program).stem}", *sys.argv[1:]])
    return None


def _versions() -> dict[str, str]:
    git = runs.git_state()
    commit = {"commit": git["commit"] + (" with changes" if git["changed"] else "")} if git else {}
    return runs.package_versions() | commit
