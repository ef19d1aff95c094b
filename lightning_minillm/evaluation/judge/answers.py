"""The answers of a judge: kept in a file, and counted against the cost limits."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_minillm.files import append_json_lines, drop_cut_line, iterate_json_lines


@dataclass(frozen=True)
class CostLimits:
    """The cost of one :meth:`~lightning_minillm.evaluation.ChatClient.ask`, at most.

    Raises:
        ValueError: a limit is below 1.
    """

    max_requests: int | None = 1000
    """Requests, repeated ones included; ``None`` for any number."""
    max_total_tokens: int | None = None
    """Tokens of requests and answers; ``None`` for any number. No request is sent once they are reached, so only the
    requests in flight at that time (at most ``concurrency``) exceed the limit."""

    def __post_init__(self) -> None:
        for name, limit in (("max_requests", self.max_requests), ("max_total_tokens", self.max_total_tokens)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1 or null, got {limit}")


@dataclass(frozen=True)
class Answers:
    """The answers to a list of questions."""

    texts: tuple[str | None, ...]
    """One per question; ``None`` if it was refused, or was not asked because a limit was reached."""
    num_requests: int
    """Requests sent by this call, repeated ones included; all other answers were known."""
    num_tokens: int
    """Tokens of these requests and their answers."""
    refusals: Mapping[str, str]
    """By question, the reason that the endpoint gave for refusing it."""
    stopped: str | None
    """The limit that ended the call, or ``None``."""


class AnswerFile:
    """Answers by key, in a JSON Lines file to which each answer is appended.

    Args:
        file: its cut last line, if there is one, is removed; ``None`` keeps answers in memory only.

    Raises:
        ValueError: a line of the file is not JSON.
    """

    def __init__(self, file: str | Path | None) -> None:
        self._file = Path(file).expanduser() if file is not None else None
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        if self._file is not None and self._file.is_file():
            drop_cut_line(self._file)
            self._answers = {row["key"]: row["text"] for row in iterate_json_lines(self._file)}

    def get(self, key: str) -> str | None:
        """Return the answer, or ``None``."""
        return self._answers.get(key)

    def add(self, key: str, text: str, tokens: int) -> None:
        """Keep an answer; it has been handed to the system when this returns."""
        with self._lock:
            self._answers[key] = text
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                append_json_lines(self._file, [{"key": key, "text": text, "tokens": tokens}])


class Spending:
    """Counts requests and tokens of all threads against the limits."""

    def __init__(self, limits: CostLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self.requests = self.tokens = 0
        self.stopped: str | None = None
        self.over = threading.Event()

    def take(self) -> bool:
        """Return whether one more request may be sent; if so, it is counted."""
        with self._lock:
            most = self._limits
            if most.max_requests is not None and self.requests >= most.max_requests:
                self.stopped = f"max_requests={most.max_requests}"
            if most.max_total_tokens is not None and self.tokens >= most.max_total_tokens:
                self.stopped = f"max_total_tokens={most.max_total_tokens}"
            if self.stopped is not None or self.over.is_set():
                return False
            self.requests += 1
            return True

    def pay(self, tokens: int) -> None:
        """Count the tokens of a request that was answered."""
        with self._lock:
            self.tokens += tokens
