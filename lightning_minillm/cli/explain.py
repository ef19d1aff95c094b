"""Hydra's errors in terms of the command line: what was given, and what to write instead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_minillm.cli.config import hydra_is_ready, quote, quote_numbers
from lightning_minillm.cli.repeats import check_repeats
from lightning_minillm.files import nearest

COMPOSING = (HydraException, OmegaConfBaseException)
"""What Hydra and OmegaConf raise when a configuration cannot be composed or resolved."""
_KEY = re.compile(r"(?:Could not override|Could not delete from config\. The value of|does not exist\.) '([^']+)'")
_CHOICE = re.compile(r"Could not find '([^']+)'")


def check_words(words: Sequence[str]) -> None:
    """Check that every word has the form KEY=VALUE in Hydra's grammar.

    Raises:
        ValueError: one has not; the message shows how to quote it. Or a mapping has a key twice.
    """
    check_repeats(words)
    parser = OverridesParser.create()
    for word in words:
        try:
            parser.parse_override(word)
        except HydraException as error:
            key, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"{word!r} is not of the form KEY=VALUE") from error
            quoted = f"{key}={quote(value)}"
            shell = shlex.quote(quoted) if set('"$`\\') & set(quoted) else f'"{quoted}"'
            raise ValueError(
                f"the value of {key} cannot be read: {value!r} has characters that Hydra's grammar reserves, such as"
                f" = , : ( ) [ ] {{ }}, or letters beyond ASCII; quote it, for Hydra and for the shell: {shell}"
            ) from error


def explain(error: Exception, name: str, words: Sequence[str]) -> str:
    """Return the message for an error of Hydra or OmegaConf.

    Args:
        error: one of :data:`COMPOSING`.
        name: of the command.
        words: the overrides that were given.
    """
    if isinstance(error, MissingConfigException) and (choice := _CHOICE.search(str(error))):
        group, _, option = choice[1].rpartition("/")
        options = sorted(error.options or ())
        known = f"; the options are {', '.join(options)}" if options else ""
        return f"there is no {group}={option}{nearest(option, options)}{known}"
    if found := _KEY.search(str(error)):
        return _explain_key(found[1], name, words)
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith("object_type=")))


def _explain_key(key: str, name: str, words: Sequence[str]) -> str:
    config = _without(key, name, words)
    text, (parent, _, last) = f"there is no key {key}", key.rpartition(".")
    node: Any = config
    for part in parent.split(".") if parent else ():
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return text + nearest(key, _paths(config))
    keys = [str(other) for other in node if not str(other).startswith("_") and other != "hydra"]
    groups = [] if parent else [str(group) for group in config["hydra"]["runtime"]["choices"]]
    deeper = [] if parent else sorted((path for path in _paths(config) if path.endswith(f".{last}")), key=len)
    if deeper:
        return f"{text}; did you mean {deeper[0]}?"
    if near := nearest(last, [*keys, *groups]):
        return text + near
    added = f"; other arguments of {node['_target_']} are added with +" if "_target_" in node else ""
    return f"{text}; the keys{f' of {parent}' if parent else ''} are {', '.join(keys)}{added}"


def _without(key: str, name: str, words: Sequence[str]) -> Mapping[str, Any]:
    """Return the configuration, not resolved, without the override of a key; without any if the rest fails too."""
    kept = [word for word in words if word.lstrip("+~").partition("=")[0] != key]
    with hydra_is_ready():
        for overrides in (kept, []):
            try:
                cfg = compose(name, overrides=quote_numbers(overrides), return_hydra_config=True)
            except COMPOSING:
                continue
            config: Any = OmegaConf.to_container(cfg, resolve=False)
            return {str(key): value for key, value in config.items()}
    raise AssertionError("the configuration of the command itself does not compose")


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys, except Hydra's own."""
    for key, value in node.items():
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from _paths(value, f"{prefix}{key}.")
