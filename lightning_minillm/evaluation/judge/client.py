"""A client for chat models behind any OpenAI-compatible endpoint, with retries, cost limits and a file of answers."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning_minillm.evaluation.judge.answers import AnswerFile, Answers, CostLimits, Spending
from lightning_minillm.files import digest

_LATER = (408, 409, 425, 429, 500, 502, 503, 504)  # the same request may succeed later
_THIS_REQUEST = (400, 413, 422)  # a different request may succeed
_LONGEST_WAIT = 60.0
_REFUSALS = 5  # after this many refusals and no answer, the endpoint is at fault, not the requests
_CHARACTERS_PER_TOKEN = 3  # a cautious estimate, for endpoints that do not report tokens
_FAILURES = (urllib.error.URLError, http.client.HTTPException, OSError)


class JudgeError(ValueError):
    """The endpoint cannot be reached, or does not answer; the answers received so far are kept."""


class _LaterError(Exception):
    """A request that may be repeated, after ``wait`` seconds if the endpoint asked for that."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _RefusedError(Exception):
    """A request that the endpoint refuses."""


class ChatClient:
    """Sends questions to the ``/chat/completions`` of an OpenAI-compatible endpoint.

    Args:
        base_url: URL up to the version, such as ``http://localhost:8000/v1``; ``None`` if none is chosen, which
            :meth:`check` refuses.
        model: name of the model at the endpoint; ``None`` as for ``base_url``.
        api_key_env: environment variable with the key; ``None`` for an endpoint without keys.
        options: other fields of every request, such as ``temperature`` and ``max_tokens``; fields that are ``None`` are
            left out.
        cache_file: JSON Lines file of answers by a digest of the request, so that nothing is asked twice; ``None`` for
            none.
        limits: of the cost of one :meth:`ask`.
        max_retries: how often a request is repeated after a failure that may pass (no connection, a timeout, 429, 500,
            ...); at least 0.
        backoff: seconds before the first repetition, doubled with each, unless the endpoint asks for a different wait.
        timeout: seconds to wait for an answer.
        concurrency: number of requests in flight at once, at least 1.

    Raises:
        ValueError: the URL is not http or https, or an option is outside its range.
    """

    def __init__(
        self,
        base_url: str | None,
        model: str | None,
        *,
        api_key_env: str | None = "OPENAI_API_KEY",
        options: Mapping[str, Any] | None = None,
        cache_file: str | Path | None = None,
        limits: CostLimits | None = None,
        max_retries: int = 5,
        backoff: float = 1.0,
        timeout: float = 60.0,
        concurrency: int = 4,
    ) -> None:
        parts = urllib.parse.urlsplit(base_url or "")
        if base_url is not None and (parts.scheme not in ("http", "https") or not parts.netloc):
            raise ValueError(f"base_url must be like http://localhost:8000/v1, got {base_url!r}")
        for name, value, least in (("max_retries", max_retries, 0), ("concurrency", concurrency, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if timeout <= 0 or backoff < 0:
            raise ValueError(f"timeout must be positive and backoff not negative, got {timeout} and {backoff}")
        self.base_url = base_url.rstrip("/") if base_url is not None else None
        self.model = model
        self.api_key_env = api_key_env
        options = {"temperature": 0.0, "max_tokens": 512} if options is None else options
        self.options = {name: value for name, value in options.items() if value is not None}
        self.limits = limits or CostLimits()
        self.max_retries, self.backoff, self.timeout, self.concurrency = max_retries, backoff, timeout, concurrency
        self._cache = AnswerFile(cache_file)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def check(self) -> None:
        """Check that there is a key and that the endpoint answers, without asking anything.

        Raises:
            JudgeError: there is no base_url or model, the variable has no key, the endpoint cannot be reached, or it
                does not accept the key.
        """
        if not self.base_url or not self.model:
            raise JudgeError(
                "no judge is chosen: give the base_url of an OpenAI-compatible endpoint and its model, e.g."
                " evaluation.judge.client.base_url=http://localhost:8000/v1 evaluation.judge.client.model=NAME"
            )
        try:
            self._open(urllib.request.Request(f"{self.base_url}/models", headers=self._headers())).close()
        except urllib.error.HTTPError as error:  # the endpoint answers; not every one lists its models
            error.close()
            if error.code in (401, 403):
                raise self._key_error(error.code) from error
        except _FAILURES as error:
            raise JudgeError(
                f"the judge at {self.base_url} cannot be reached ({_reason(error)}): start it, or give a"
                " different base_url"
            ) from error

    def known(self, question: str) -> str | None:
        """Return the answer to a question that was asked before, or ``None``."""
        return self._cache.get(self._key(question))

    def ask(self, questions: Sequence[str], on_answer: Callable[[], None] = lambda: None) -> Answers:
        """Ask each question that has no answer yet, in order, as long as the limits allow.

        Args:
            questions: texts of a user's turn; duplicates are asked once.
            on_answer: called after each answer, from any thread.

        Raises:
            JudgeError: a request failed permanently, or the first requests were all refused. Answers received before
                are in the file.
        """
        spending = Spending(self.limits)
        unknown = [question for question in dict.fromkeys(questions) if self.known(question) is None]
        answered = len(unknown) < len(set(questions))
        refusals: dict[str, str] = {}

        def answer(question: str) -> str | None:
            nonlocal answered
            text = None
            try:
                text = self._ask(question, spending)
                answered = answered or text is not None
            except _RefusedError as error:
                refusals[question] = str(error)
                if len(refusals) >= min(_REFUSALS, len(unknown)) and not answered:
                    raise JudgeError(f"the judge at {self.base_url} accepts no request: {error}") from error
            on_answer()
            return text

        found = dict(zip(unknown, self._in_threads(answer, unknown, spending), strict=True))
        texts = tuple(found[question] if question in found else self.known(question) for question in questions)
        return Answers(texts, spending.requests, spending.tokens, refusals, spending.stopped)

    def _in_threads(
        self, answer: Callable[[str], str | None], questions: Sequence[str], spending: Spending
    ) -> Iterator[str | None]:
        def run(question: str) -> str | None:
            try:
                return answer(question)
            except BaseException:
                spending.over.set()  # before this thread takes the next question
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(run, question) for question in questions]
            try:
                for future in futures:
                    yield future.result()
            except BaseException:
                spending.over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    # --- one request ------------------------------------------------------------------------------------------------

    def _body(self, question: str) -> dict[str, Any]:
        return {**self.options, "model": self.model, "messages": [{"role": "user", "content": question}]}

    def _key(self, question: str) -> str:
        return digest([self.base_url, self._body(question)])

    def _ask(self, question: str, spending: Spending) -> str | None:
        """Send one request, repeating it if that may help; return ``None`` if a limit is reached."""
        for attempt in range(self.max_retries + 1):
            if not spending.take():
                return None
            try:
                text, tokens = self._send(question)
            except _LaterError as error:
                if attempt == self.max_retries:
                    raise JudgeError(
                        f"the judge at {self.base_url} did not answer in {attempt + 1} attempts ({error}). Its"
                        " answers so far are kept: repeat the command to resume"
                    ) from error
                wait = self.backoff * 2**attempt if error.wait is None else error.wait
                spending.over.wait(min(wait, _LONGEST_WAIT))
            else:
                spending.pay(tokens)
                self._cache.add(self._key(question), text, tokens)
                return text
        raise AssertionError("unreachable")

    def _send(self, question: str) -> tuple[str, int]:
        body = json.dumps(self._body(question)).encode()
        headers = self._headers() | {"Content-Type": "application/json"}
        try:
            with self._open(urllib.request.Request(f"{self.base_url}/chat/completions", body, headers)) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            raise self._http_error(error) from error
        except _FAILURES as error:
            raise _LaterError(_reason(error)) from error
        text, tokens = _read(content)
        if text is None:
            raise JudgeError(
                f"{self.base_url}/chat/completions does not answer with a chat completion ({content[:200]!r}): give"
                " the base_url of an OpenAI-compatible endpoint, up to its version, such as http://localhost:8000/v1"
            )
        return text, tokens or (len(question) + len(text)) // _CHARACTERS_PER_TOKEN

    def _open(self, request: urllib.request.Request) -> Any:
        return self._opener.open(request, timeout=self.timeout)

    def _http_error(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            said = error.read(2000).decode("utf-8", "replace").strip()
        key = self._secret()
        said = said.replace(key, "***") if key else said
        if error.code in (401, 403):
            return self._key_error(error.code)
        if error.code in _LATER:
            after = error.headers.get("Retry-After", "")
            return _LaterError(f"HTTP {error.code}: {said[:200]}", float(after) if after.isdigit() else None)
        if error.code in _THIS_REQUEST:
            return _RefusedError(f"HTTP {error.code}: {said[:500]}")
        return JudgeError(
            f"{self.base_url}/chat/completions answers HTTP {error.code} for {self.model!r}: {said[:500]}"
        )

    def _key_error(self, code: int) -> JudgeError:
        where = f"the key in {self.api_key_env}" if self.api_key_env else "requests without a key: set api_key_env"
        return JudgeError(f"the judge at {self.base_url} does not accept {where} (HTTP {code})")

    def _secret(self) -> str | None:
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else None

    def _headers(self) -> dict[str, str]:
        key = self._secret()
        if key is None:
            return {}
        if not key:
            raise JudgeError(
                f"the environment variable {self.api_key_env} has no key for {self.base_url}: set it, name a"
                " different one in api_key_env, or set that to null for an endpoint without keys"
            )
        if not key.isascii() or not key.isprintable():  # http.client would show it in its error
            raise JudgeError(f"the environment variable {self.api_key_env} contains characters that no key has")
        return {"Authorization": f"Bearer {key}"}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirections: the key is for the given host alone."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Make the redirection an error."""


def _read(content: bytes) -> tuple[str | None, int]:
    """Return the text and the number of tokens of a chat completion.

    The text is ``""`` if the model said nothing and ``None`` if this is not a chat completion; the number of tokens is
    0 if it is not reported. Lone surrogates, which cannot be written to a file, are replaced.
    """
    try:
        completion = json.loads(content)
        text = completion["choices"][0]["message"].get("content")
        tokens = int((completion.get("usage") or {}).get("total_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None, 0
    if isinstance(text, list):  # parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    return (text or "").encode("utf-8", "replace").decode(), tokens


def _reason(error: BaseException) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
