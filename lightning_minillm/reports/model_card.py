"""The card beside an exported student: what it came from, how it was trained, what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
Value = str | int | float | bool | None | Sequence["Value"]


@dataclass(frozen=True)
class ModelCard:
    """What a card says, as plain values; what is ``None`` or empty is left out."""

    name: str
    """Title: the run's name."""
    base: str
    """Model that training started from: a hub name, a folder, or words such as ``random weights (gpt2)``."""
    method: str
    """Module and loss, by their class names."""
    teacher: str | None = None
    """As ``base``."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Files or hub names by what they serve for."""
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    """By the names under which the configuration has them."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation values of the exported weights, by their log keys."""
    chosen_by: str | None = None
    """How the exported weights were chosen."""
    command: str | None = None
    """Shell command of the run."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages and the code's commit."""


def render_model_card(card: ModelCard) -> str:
    """Write the card in the hub's form: YAML front matter, then Markdown.

    Args:
        card: what to say.

    Returns:
        The text of ``README.md``.

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
    parts = [_front_matter(card), f"# {card.name}", _table({key: text for key, text in about.items() if text})]
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


def _front_matter(card: ModelCard) -> str:
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [knowledge-distillation, lightning-minillm]",
    ]
    if _is_hub_name(card.base):
        lines.append(f"base_model: {json.dumps(card.base)}")
    return "\n".join(["---", *lines, "---"])


def _is_hub_name(text: str) -> bool:
    """Whether this can be a repository on the hub (``gpt2``, ``facebook/opt-1.3b``), as the hub's front matter asks."""
    return _HUB_NAME.fullmatch(text) is not None


def _table(rows: Mapping[str, Value]) -> str:
    if not rows:
        return ""
    cells = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *cells])


def _cell(value: Value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split()).replace("|", "\\|")
