"""What a judge answered: kept in a file, and counted against the limits of its cost."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answers:
    """What came back of a list of questions."""

    texts: tuple[str | None, ...]
    """One a question; ``None`` where it was refused, or not asked since a limit was reached."""
    num_requests: int
    """Sent just now, the repeated ones included; the rest was known."""
    num_tokens: int
    """Of these requests and their answers."""
    refusals: Mapping[str, str]
    """By question, what the endpoint said of those that it did not want."""
    stopped: str | None
    """The limit that ended it, or ``None``."""


class AnswerFile:
    """Answers by key, in a file that grows by a line with each.

    Args:
        file: JSON lines; ``None`` keeps them in memory only. A line that was cut off is passed over.
    """

    def __init__(self, file: str | Path | None) -> None:
        self._file = Path(file).expanduser() if file is not None else None
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}
        if self._file is not None and self._file.is_file():
            for line in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    self._answers[row["key"]] = row["text"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> str | None:
        """Return the answer, or ``None``."""
        return self._answers.get(key)

    def add(self, key: str, text: str, tokens: int) -> None:
        """Keep an answer; it is in the file when this returns."""
        with self._lock:
            self._answers[key] = text
            if self._file is None:
                return
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab+") as file:
                if file.tell():  # a process that was killed may have left half a line
                    file.seek(-1, os.SEEK_END)
                    cut_off = file.read(1) != b"\n"
                    file.write(b"\n" if cut_off else b"")
                file.write(json.dumps({"key": key, "text": text, "tokens": tokens}).encode() + b"\n")


class Spending:
    """Counts requests and tokens against their limits, for all threads."""

    def __init__(self, max_requests: int | None, max_tokens: int | None) -> None:
        self._limits = {"max_requests": max_requests, "max_total_tokens": max_tokens}
        self._lock = threading.Lock()
        self.requests = self.tokens = 0
        self.stopped: str | None = None
        self.over = threading.Event()

    def take(self) -> bool:
        """Whether one more request may be sent; it counts as sent then."""
        with self._lock:
            spent = {"max_requests": self.requests, "max_total_tokens": self.tokens}
            for name, limit in self._limits.items():
                if limit is not None and spent[name] >= limit:
                    self.stopped = f"{name}={limit}"
            if self.stopped is not None or self.over.is_set():
                return False
            self.requests += 1
            return True

    def pay(self, tokens: int) -> None:
        """Count the tokens of a request that was answered."""
        with self._lock:
            self.tokens += tokens
