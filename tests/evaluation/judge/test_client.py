import json
import time

import pytest

from lightning_minillm.evaluation import ChatClient, CostLimits, JudgeError
from lightning_minillm.evaluation.judge.answers import AnswerFile


@pytest.fixture
def client(stub_judge, tmp_path):
    """``client(**options)``: without key or waiting, with a cache."""

    def make(**options):
        defaults = {"api_key_env": None, "cache_file": tmp_path / "answers.jsonl", "backoff": 0.0, "timeout": 5.0}
        url, model = options.pop("base_url", stub_judge.url), options.pop("model", "gpt-stub")
        return ChatClient(url, model, **{**defaults, **options})

    return make


def echo(question):
    return f"said {question}"


def test_answers_come_in_the_order_of_the_questions(client, stub_judge):
    stub_judge.answer = echo
    questions = [f"question {i}" for i in range(20)]
    found = client(concurrency=4).ask(questions)
    assert found.texts == tuple(map(echo, questions))
    assert (found.num_requests, found.num_tokens, found.refusals, found.stopped) == (20, 200, {}, None)
    assert sorted(stub_judge.questions) == sorted(questions)


def test_a_request_is_a_chat_completion_with_the_options_and_the_key(client, stub_judge, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1")
    client(api_key_env="MY_KEY", options={"max_completion_tokens": 9, "seed": None}, base_url=stub_judge.url + "/").ask(
        ["hello"]
    )
    assert stub_judge.bodies == [
        {
            "path": "/v1/chat/completions",
            "max_completion_tokens": 9,
            "model": "gpt-stub",
            "messages": [{"role": "user", "content": "hello"}],
        }
    ]
    assert stub_judge.headers[0]["Authorization"] == "Bearer secret-1"
    client().ask(["hello"])
    assert "Authorization" not in stub_judge.headers[1]


def test_nothing_is_asked_twice(client, stub_judge):
    stub_judge.answer = echo
    first = client()
    assert first.known("a") is None
    assert first.ask(["a", "b", "a"]).texts == ("said a", "said b", "said a")
    assert len(stub_judge.bodies) == 2
    again = client()  # another process: the answers are in the file
    found = again.ask(["b", "a"])
    assert (found.texts, found.num_requests, found.num_tokens) == (("said b", "said a"), 0, 0)
    assert again.known("a") == "said a"
    assert len(stub_judge.bodies) == 2
    client(model="another").ask(["a"])
    client(options={"temperature": 1.0}).ask(["a"])
    assert len(stub_judge.bodies) == 4  # those are other requests


def test_the_file_survives_a_process_that_was_killed(tmp_path):
    file = tmp_path / "answers.jsonl"
    AnswerFile(file).add("k1", "line 1\nline 2 \u2028 é", 3)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"key": "k2", "te')
    again = AnswerFile(file)
    assert again.get("k1") == "line 1\nline 2 \u2028 é"
    assert again.get("k2") is None
    again.add("k3", "three", 3)
    assert (AnswerFile(file).get("k1"), AnswerFile(file).get("k3")) == ("line 1\nline 2 \u2028 é", "three")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_may_pass_is_tried_again(status, client, stub_judge):
    stub_judge.failures = [status, status]
    started = time.monotonic()
    found = client(backoff=0.05).ask(["a"])
    assert found.texts == ("A: 5, B: 5",)
    assert found.num_requests == len(stub_judge.bodies) == 3
    assert time.monotonic() - started >= 0.05 + 0.1  # each wait is twice as long


def test_the_endpoint_says_how_long_to_wait(client, stub_judge):
    stub_judge.failures = [(429, {"Retry-After": "0"})]
    started = time.monotonic()
    assert client(backoff=30.0).ask(["a"]).texts == ("A: 5, B: 5",)
    assert time.monotonic() - started < 10


def test_what_was_answered_is_kept_when_the_judge_falls_silent(client, stub_judge, tmp_path):
    client().ask(["a", "b"])
    stub_judge.failures = [500] * 100
    with pytest.raises(JudgeError, match=r"did not answer in 3 attempts \(HTTP 500.*repeat the command to resume"):
        client(max_retries=2, concurrency=1).ask(["a", "b", "c", "d"])
    assert len(stub_judge.bodies) == 2 + 3  # d was not even tried
    stub_judge.failures = []
    assert client().ask(["a", "b", "c", "d"]).num_requests == 2
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4


def test_a_slow_judge_is_not_waited_for(client, stub_judge):
    stub_judge.answer = lambda question: time.sleep(0.5) or "late"
    with pytest.raises(JudgeError, match=r"2 attempts .*timed out"):
        client(timeout=0.05, max_retries=1).ask(["a"])


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_requests_than_the_limit(concurrency, client, stub_judge):
    questions = [f"q{i}" for i in range(10)]
    limited = client(limits=CostLimits(6), concurrency=concurrency)
    found = limited.ask(questions)
    assert len(stub_judge.bodies) == found.num_requests == 6
    assert sum(text is not None for text in found.texts) == 6
    assert found.stopped == "max_requests=6"
    rest = limited.ask(questions)  # the limit is of one call: the rest is asked with the next
    assert (rest.num_requests, rest.stopped, None in rest.texts) == (4, None, False)


def test_repeated_requests_count(client, stub_judge):
    stub_judge.failures = [500, 500]
    found = client(limits=CostLimits(3), concurrency=1).ask(["a", "b"])
    assert (found.texts, found.num_requests) == (("A: 5, B: 5", None), 3)


@pytest.mark.parametrize(("usage", "expected"), [({"total_tokens": 10}, 3), (None, 2)])
def test_no_more_tokens_than_the_limit(usage, expected, client, stub_judge):
    """Ten tokens a request, or, where it is not told, a token for three characters of question and answer."""
    stub_judge.usage = usage
    questions = [letter * 35 for letter in "abcde"]  # with the ten of the answer 45 characters
    found = client(limits=CostLimits(max_total_tokens=25), concurrency=1).ask(questions)
    assert [text is not None for text in found.texts] == [True] * expected + [False] * (5 - expected)
    assert found.stopped == "max_total_tokens=25"
    assert found.num_tokens == 30


def test_a_question_that_is_refused_stops_nothing(client, stub_judge):
    stub_judge.failures = [400]
    found = client(concurrency=1).ask(["bad", "good"])
    assert found.texts == (None, "A: 5, B: 5")
    assert list(found.refusals) == ["bad"]
    assert "HTTP 400" in found.refusals["bad"]
    assert found.stopped is None


def test_a_judge_that_refuses_everything_is_an_error(client, stub_judge):
    stub_judge.failures = [400] * 50
    with pytest.raises(JudgeError, match=r"accepts no request: HTTP 400.*as the test wants it"):
        client(concurrency=1).ask([f"q{i}" for i in range(50)])
    assert len(stub_judge.bodies) == 5


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (401, r"does not accept requests without a key: set api_key_env \(HTTP 401\)"),
        (404, "HTTP 404 for 'gpt-stub'"),
        ((302, {"Location": "http://127.0.0.1:9/elsewhere"}), "HTTP 302"),
    ],
)
def test_failures_that_do_not_pass_are_not_tried_again(failure, message, client, stub_judge):
    stub_judge.failures = [failure]
    with pytest.raises(JudgeError, match=message):
        client().ask(["a"])
    assert len(stub_judge.bodies) == 1


@pytest.mark.parametrize("raw", [b"<html>hello</html>", b'{"answer": "hello"}', b"[]", b'{"choices": []}'])
def test_an_answer_of_a_different_form_says_what_to_give(raw, client, stub_judge):
    stub_judge.raw = raw
    with pytest.raises(JudgeError, match=r"does not answer with a chat completion .*up to its version"):
        client().ask(["a"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, ""), ([{"type": "text", "text": "A: 1, "}, {"type": "text", "text": "B: 2"}], "A: 1, B: 2")],
)
def test_answers_of_nothing_or_in_parts(content, expected, client, stub_judge):
    stub_judge.answer = lambda question: content
    assert client().ask(["a"]).texts == (expected,)


def test_check_asks_nothing(client, stub_judge):
    client().check()
    stub_judge.check_status = 404  # somebody listens
    client().check()
    assert (stub_judge.checks, stub_judge.bodies) == (2, [])
    stub_judge.check_status = 401
    with pytest.raises(JudgeError, match="HTTP 401"):
        client().check()


def test_check_names_what_is_missing(client, stub_judge, monkeypatch):
    with pytest.raises(JudgeError, match=r"evaluation\.judge\.client\.base_url=.*evaluation\.judge\.client\.model="):
        ChatClient(None, None).check()
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(JudgeError, match="MY_KEY has no key"):
        client(api_key_env="MY_KEY").check()
    monkeypatch.setenv("MY_KEY", "broken\nsecret")
    with pytest.raises(JudgeError, match="contains characters that no key has") as raised:
        client(api_key_env="MY_KEY").check()
    assert "secret" not in str(raised.value)
    stub_judge.shutdown()
    stub_judge.server_close()
    with pytest.raises(JudgeError, match=r"cannot be reached \(.*start it, or give a different base_url"):
        client().check()


def test_no_key_in_files_or_messages(client, stub_judge, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "as")  # what the stub's error says, too
    client(api_key_env="MY_KEY").ask(["q"])
    assert "as" not in json.loads((tmp_path / "answers.jsonl").read_text()).values()
    stub_judge.failures = [404]
    with pytest.raises(JudgeError, match=r"\*\*\* the test wants it"):
        client(api_key_env="MY_KEY").ask(["another"])


def test_options_outside_their_range():
    with pytest.raises(ValueError, match="base_url must be like"):
        ChatClient("file:///etc", "m")
    for option in ("max_requests", "max_total_tokens"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1 or null, got 0"):
            CostLimits(**{option: 0})
    with pytest.raises(ValueError, match="concurrency must be at least 1, got 0"):
        ChatClient("http://x/v1", "m", concurrency=0)
    with pytest.raises(ValueError, match="timeout must be positive"):
        ChatClient("http://x/v1", "m", timeout=0)
