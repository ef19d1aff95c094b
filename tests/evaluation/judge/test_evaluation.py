import json
import re

import pytest
from lightning.pytorch import Trainer

from lightning_minillm.data import InstructionRecord, PlainTemplate
from lightning_minillm.evaluation import (
    ChatClient,
    CostLimits,
    EvaluationModule,
    JudgeError,
    JudgeEvaluation,
    PromptSets,
    run_evaluation,
)
from lightning_minillm.evaluation.judge.rows import judge_row
from lightning_minillm.rollout import SamplingConfig, decode_responses, sampler_for

SAMPLING = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=0.0)
SHOWN = re.compile(r"\[Response A\]\n(.*)\n\[End of response A\]\n\n\[Response B\]\n(.*)\n\[End of response B\]", re.S)


def shown(question):
    """The responses A and B of a request."""
    return SHOWN.search(question).groups()


@pytest.fixture
def make_client(stub_judge, tmp_path):
    def make(**options):
        defaults = {"api_key_env": None, "cache_file": tmp_path / "answers.jsonl", "backoff": 0.0, "concurrency": 1}
        return ChatClient(stub_judge.url, "stub", **{**defaults, **options})

    return make


@pytest.fixture
def make_judge(make_client, words, tokenizer):
    """``make_judge(sources=..., client=..., **options)``: a prepared evaluation."""

    def make(sources=None, client=None, seed=10, **options):
        lengths = {"max_length": 32, "max_prompt_length": 16, "batch_size": 4}
        prompts = PromptSets(sources or {"test": words(6)}, PlainTemplate(), SAMPLING, seeds=[seed], **lengths)
        evaluation = JudgeEvaluation(prompts, client or make_client(), **options)
        evaluation.prepare(tokenizer)
        return evaluation

    return make


@pytest.fixture(scope="module")
def pair(make_model, make_pair):
    return make_pair(make_model("gpt2", seed=1))


def write_responses(file, records, response):
    rows = [
        {"index": place, "prompt": record["prompt"], "response": response(record)}
        for place, record in enumerate(records)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_responses_are_those_of_the_sampler(make_judge, pair, run_all):
    evaluation = make_judge(seed=3)
    records = run_all(evaluation, pair)
    assert [record["item"] for record in records] == list(range(6))
    rows = evaluation.prompts.data["test"]
    sampled = decode_responses(pair.tokenizer, sampler_for(pair, SAMPLING).sample(rows.prompt_batch(range(6)), seed=3))
    assert [record["response"] for record in records] == sampled
    assert [record["references"] for record in records] == [list(one.responses) for one in rows.records]


def test_the_judge_is_shown_both_responses_in_both_orders(make_judge, pair, run_all, stub_judge):
    evaluation = make_judge()
    records = run_all(evaluation, pair)
    assert stub_judge.bodies == []
    evaluation.findings(records)
    pairs = [(record["response"], record["references"][0]) for record in records]
    assert [shown(question) for question in stub_judge.questions] == [
        order for pair in pairs for order in (pair, pair[::-1])
    ]
    assert all(
        record["prompt"] in question for record, question in zip(records, stub_judge.questions[::2], strict=True)
    )


def test_score_is_the_ratio_of_sums(make_judge, pair, run_all, stub_judge):
    """A judge that likes the place A: two points more for whoever is shown first."""
    evaluation = make_judge()
    records = run_all(evaluation, pair)
    own = {record["response"]: 2 + place for place, record in enumerate(records)}
    assert len(own) == 6
    reference_score = 8

    def answer(question):
        first, second = (own.get(text, reference_score) for text in shown(question))
        return f"A: {first + 2}, B: {second}\nbecause"

    stub_judge.answer = answer
    values = evaluation.findings(records).values
    sums = sum(own.values()) + 6, 6 * reference_score + 6  # each is shown first once, so one point more on average
    assert values["score_ratio"] == [pytest.approx(100 * sums[0] / sums[1])]
    assert values["score"] == [pytest.approx(sums[0] / 6)]
    assert values["reference_score"] == [pytest.approx(sums[1] / 6)]
    assert [values[key] for key in ("judged", "not_judged", "unreadable")] == [[6], [0], [0]]
    assert list(values) == list(evaluation.measures)


def test_one_order_asks_half_as_much(make_judge, pair, run_all, stub_judge):
    stub_judge.answer = lambda question: "A: 9, B: 6"
    evaluation = make_judge(swap_order=False)
    values = evaluation.findings(run_all(evaluation, pair)).values
    assert values["score_ratio"] == [pytest.approx(150.0)]
    assert len(stub_judge.bodies) == 6


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        (("[[A]]", "[[B]]"), "win"),
        (("[[B]]", "[[A]]"), "loss"),
        (("[[A]]", "[[A]]"), "tie"),  # it likes the place, not the response
        (("[[B]]", "[[B]]"), "tie"),
        (("[[A]]", "[[tie]]"), "tie"),
        (("[[tie]]", "[[tie]]"), "tie"),
        (("[[A]]",), "win"),
        (("[[B]]",), "loss"),
    ],
)
def test_a_win_is_one_in_both_orders(answers, outcome):
    assert judge_row("pairwise", answers) == ("judged", None, outcome)


def test_rows_without_all_answers_are_not_judged():
    assert judge_row("score", ["A: 8, B: 7", "A: 5, B: 6"]) == ("judged", (7.0, 6.0), None)
    assert judge_row("score", ["A: 8, B: 7", None]).state == "not_judged"
    assert judge_row("score", ["A: 8, B: 7", "no idea"]).state == "unreadable"
    assert judge_row("pairwise", ["[[A]]", "no idea"]).state == "unreadable"


def test_wins_over_a_baseline(make_judge, pair, run_all, stub_judge, tmp_path):
    """The judge prefers the longer response, and the first one where they are as long: a tie."""
    records = run_all(make_judge(), pair)
    texts = [
        "",
        *[record["response"] + " w1" for record in records[1:4]],
        *["." * len(r["response"]) for r in records[4:]],
    ]
    own = dict(zip([record["prompt"] for record in records], texts, strict=True))
    assert records[0]["response"]
    file = write_responses(tmp_path / "base.jsonl", records, lambda record: own[record["prompt"]])
    stub_judge.answer = lambda question: "[[B]]" if len(shown(question)[1]) > len(shown(question)[0]) else "[[A]]"
    evaluation = make_judge(mode="pairwise", baseline=file)
    values = evaluation.findings(records).values
    assert [values[key][0] for key in ("win_rate", "tie_rate", "loss_rate")] == pytest.approx(
        [100 / 6, 200 / 6, 300 / 6]
    )
    assert list(values) == list(evaluation.measures)
    (rows,) = evaluation.texts(records).values()
    assert [row["outcome"] for row in rows] == ["win", "loss", "loss", "loss", "tie", "tie"]


def test_baselines_of_other_data_sets_are_not_read(make_judge, pair, run_all, tmp_path):
    file = write_responses(tmp_path / "base.jsonl", run_all(make_judge(), pair), lambda record: "w1")
    evaluation = make_judge(mode="pairwise", baseline={"test": file, "other": "nowhere.jsonl"})
    assert list(evaluation.opponents) == ["test"]


def test_a_limit_stops_and_says_so_and_can_be_raised(make_judge, make_client, pair, run_all, stub_judge):
    stub_judge.answer = lambda question: "A: 6, B: 6"
    records = run_all(make_judge(), pair)
    limited = make_judge(client=make_client(limits=CostLimits(5)))
    with pytest.warns(UserWarning, match="max_requests=5 is reached, and 7 of 12 questions are open"):
        values = limited.findings(records).values
    assert [values[key] for key in ("judged", "not_judged", "score_ratio")] == [[2], [4], [100.0]]
    assert [row["judged"] for row in limited.texts(records)["judge"]] == [True, True, False, False, False, False]
    values = make_judge(client=make_client(limits=CostLimits(7))).findings(records).values
    assert [values[key] for key in ("judged", "not_judged")] == [[6], [0]]
    assert len(stub_judge.bodies) == 12  # nothing was asked twice


def test_answers_that_cannot_be_read_are_counted(make_judge, pair, run_all, stub_judge):
    evaluation = make_judge(swap_order=False)
    records = run_all(evaluation, pair)
    stub_judge.failures = [None, 400]
    stub_judge.answer = lambda question: "I would rather not." if records[0]["prompt"] in question else "A: 4, B: 8"
    with pytest.warns(UserWarning, match=r"refused 1 questions, e\.g\. with HTTP 400"):
        values = evaluation.findings(records).values
    assert [values[key] for key in ("judged", "unreadable", "score_ratio")] == [[4], [2], [50.0]]


def test_a_judge_that_says_nothing_readable_has_no_score(make_judge, pair, run_all, stub_judge):
    stub_judge.answer = lambda question: "no"
    evaluation = make_judge()
    values = evaluation.findings(run_all(evaluation, pair)).values
    assert values == {"judged": [0], "not_judged": [0], "unreadable": [6]}


def test_each_of_several_data_sets_has_its_own_values(make_judge, pair, run_all, stub_judge, words):
    evaluation = make_judge(sources={"a": words(3), "b": words(4, seed=1)})
    records = run_all(evaluation, pair)
    stub_judge.answer = lambda question: "A: 5, B: 5"
    values = evaluation.findings(records).values
    assert (values["a/judged"], values["b/judged"]) == ([3], [4])
    assert list(values) == list(evaluation.measures)
    assert {name: len(rows) for name, rows in evaluation.texts(records).items()} == {"a_judge": 3, "b_judge": 4}


def test_an_unreachable_judge_is_an_error_before_any_data_is_read(make_judge, make_client, stub_judge):
    class Unread:
        def load(self):
            raise AssertionError("read")

    client = make_client()
    stub_judge.shutdown()
    stub_judge.server_close()
    with pytest.raises(JudgeError, match="cannot be reached"):
        make_judge(sources={"test": Unread()}, client=client)


def test_a_run_resumes_where_the_judge_fell_silent(
    make_judge, make_client, make_model, tokenizer, stub_judge, tmp_path
):
    """Nothing is sampled or asked twice, and the end is that of a run without a stop."""

    def run(folder, client):
        evaluation = make_judge(client=client)
        module = EvaluationModule(make_model("gpt2", seed=1), tokenizer)
        trainer = Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
        return run_evaluation(trainer, module, evaluation, folder)

    stub_judge.answer = lambda question: f"A: {1 + len(shown(question)[0]) % 10}, B: {1 + len(shown(question)[1]) % 10}"
    expected = run(tmp_path / "whole", make_client(cache_file=None))
    stub_judge.bodies.clear()
    stub_judge.failures = [None] * 5 + [500] * 3
    with pytest.raises(JudgeError, match="did not answer"):
        run(tmp_path / "stopped", make_client(max_retries=2))
    written = (tmp_path / "stopped" / "judge" / "rank_0.jsonl").read_bytes()
    assert len(stub_judge.bodies) == 8
    assert run(tmp_path / "stopped", make_client()) == expected
    assert (tmp_path / "stopped" / "judge" / "rank_0.jsonl").read_bytes() == written
    assert len(stub_judge.bodies) == 8 + 7
    assert len(set(stub_judge.questions)) == 12


def test_the_judge_does_not_decide_the_responses(make_judge, make_client):
    base = make_judge().identity()
    assert make_judge(client=make_client(limits=CostLimits(1)), swap_order=False).identity() == base
    assert make_judge(seed=4).identity() != base
    json.dumps(base)


def test_bad_input_says_what_to_do(make_judge, make_client, pair, run_all, words, tmp_path):
    with pytest.raises(ValueError, match="mode must be score or pairwise, got 'best'"):
        make_judge(mode="best")
    with pytest.raises(ValueError, match=r"needs the baseline's responses to test: evaluation\.judge\.baseline=FILE"):
        make_judge(mode="pairwise")
    several = {"a": words(3), "b": words(3)}
    with pytest.raises(ValueError, match=r"responses to b: evaluation\.judge\.baseline=\{a: FILE, b: FILE\}"):
        make_judge(sources=several, mode="pairwise", baseline={"a": "x.jsonl"})
    with pytest.raises(ValueError, match=r"nowhere\.jsonl"):
        make_judge(mode="pairwise", baseline=str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "fields.jsonl").write_text('{"prompt": "w1", "text": "w2"}\n')
    with pytest.raises(ValueError, match=r"line 1: a baseline's row needs prompt and response; it has prompt, text"):
        make_judge(mode="pairwise", baseline=str(tmp_path / "fields.jsonl"))
    (tmp_path / "few.jsonl").write_text('{"prompt": "w1", "response": "w2"}\n')
    with pytest.raises(ValueError, match=r"no response to 6 of the 6 prompts of data set 'test'.*on the same data"):
        make_judge(mode="pairwise", baseline=str(tmp_path / "few.jsonl"))


def test_prompts_with_an_input_are_matched(make_judge, tmp_path):
    class OneRecord:
        def load(self):
            return [InstructionRecord("w1 w2", "w3", ("w4",))]

    file = tmp_path / "base.jsonl"
    file.write_text(json.dumps({"prompt": "w1 w2\nw3", "response": "w5"}) + "\n")
    evaluation = make_judge(sources={"test": OneRecord()}, mode="pairwise", baseline=str(file))
    assert evaluation.opponents["test"] == {"w1 w2\nw3": "w5"}
