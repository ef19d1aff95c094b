import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_minillm.data import PlainTemplate
from lightning_minillm.evaluation import PassageSet, Question, RetrievalEvaluation, load_encoder, scifact_source
from lightning_minillm.evaluation.retrieval.evaluation import INSTRUCTION, retrieval_metrics
from lightning_minillm.models import ModelPair

PASSAGES = ("w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w10", "w11 w12")
QUESTIONS = (
    Question("w20 w21", (0, 1, 2, 3, 4), frozenset({1})),
    Question("w22", (0, 1, 2, 3, 4), frozenset({0, 4})),
    Question("w23 w24 w25", (1, 2, 3), frozenset({3})),
)


class Passages:
    """A source that needs no file."""

    path = "memory"

    def __init__(self, questions=QUESTIONS):
        self.questions = questions

    def load(self):
        return PassageSet(PASSAGES, self.questions)


class Letters:
    """An encoder by which a text is its first word's number."""

    def encode(self, sentences):
        angles = [int(text.split()[0][1:]) / 40 for text in sentences]
        return np.array([[np.cos(angle), np.sin(angle)] for angle in angles])


@pytest.fixture
def pair(make_model, tokenizer):
    return ModelPair(make_model("llama", seed=1), tokenizer)


def make(tokenizer, questions=QUESTIONS, **options):
    evaluation = RetrievalEvaluation(
        {"set": Passages(questions)}, PlainTemplate(), max_length=40, **{"num_candidates": None, **options}
    )
    evaluation.prepare(tokenizer)
    return evaluation


@pytest.mark.parametrize("shift", [0.0, -400.0], ids=["cosines", "log-likelihoods"])
def test_metrics_of_a_table_made_by_hand(shift):
    scores = [[0.9, 0.5, 0.1], [0.2, 0.8, 0.3], [0.5, 0.4, 0.3, 0.2]]
    relevant = [[True, False, False], [True, False, True], [False, False, False, True]]
    found = retrieval_metrics([[score + shift for score in row] for row in scores], relevant, recall_at=[1, 2])
    assert found["mrr"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 4) / 3)
    assert found["recall_at_1"] == pytest.approx(100 * (1 + 0 + 0) / 3)
    assert found["recall_at_2"] == pytest.approx(100 * (1 + 1 / 2 + 0) / 3)


def test_scores_are_the_likelihood_of_the_question(pair, tokenizer, run_all):
    records = run_all(make(tokenizer), pair)
    for question, record in zip(QUESTIONS, records, strict=True):
        assert len(record["scores"]) == len(question.candidates)
        for passage, score in zip(question.candidates, record["scores"], strict=True):
            prompt = tokenizer(PlainTemplate().format(INSTRUCTION, PASSAGES[passage])).input_ids
            target = tokenizer(question.text).input_ids
            logits = pair.student(torch.tensor([prompt + target])).logits[0].detach().double().log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(target))
            assert score == pytest.approx(expected, abs=1e-5)


def test_batches_change_nothing(pair, tokenizer, run_all):
    expected = run_all(make(tokenizer), pair)
    for batch_size in (1, 7):
        given = run_all(make(tokenizer, batch_size=batch_size), pair)
        for left, right in zip(given, expected, strict=True):
            assert left["scores"] == pytest.approx(right["scores"], abs=1e-5)


def test_a_model_that_knows_the_answers_ranks_them_first(tokenizer):
    evaluation = make(tokenizer, recall_at=[1, 2])
    records = [
        {"item": place, "data_set": "set", "scores": [float(p in q.relevant) for p in q.candidates]}
        for place, q in enumerate(QUESTIONS)
    ]
    values = evaluation.findings(records).values
    assert values == {"mrr": [100.0], "recall_at_1": [pytest.approx(100 * (1 + 0.5 + 1) / 3)], "recall_at_2": [100.0]}
    assert set(values) == set(evaluation.measures)


def test_candidates_hold_the_relevant_ones_and_depend_on_the_seed(tokenizer):
    chosen = {seed: make(tokenizer, num_candidates=3, seed=seed) for seed in range(6)}
    for evaluation in chosen.values():
        assert [sum(flags) for flags in evaluation.relevant["set"]] == [1, 2, 1]
        assert [len(flags) for flags in evaluation.relevant["set"]] == [3, 3, 3]
    again = make(tokenizer, num_candidates=3, seed=0)
    assert again.identity() == chosen[0].identity()
    assert len({evaluation.identity()["data"] for evaluation in chosen.values()}) > 1
    assert len(make(tokenizer, num_questions=2).relevant["set"]) == 2


def test_an_encoder_is_measured_beside_the_model(pair, tokenizer, run_all):
    evaluation = make(tokenizer, encoder=Letters)
    values = evaluation.findings(run_all(evaluation, pair)).values
    # w20, w22 and w23 are nearest to w11 (place 4), then w10: ranks of the relevant ones are 4 of 5, 1, and 1
    assert values["encoder_mrr"] == [pytest.approx(100 * (1 / 4 + 1 + 1) / 3)]
    assert set(values) == set(evaluation.measures)


def test_an_encoder_without_its_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"lightning-minillm\[encoder\]"):
        load_encoder("somewhere")


def test_long_passages_are_cut(tokenizer):
    evaluation = make(tokenizer, max_passage_length=2)
    texts = {record.input for record in evaluation.rows["set"].records}
    assert texts == {" ".join(text.split()[:2]) for text in PASSAGES}


def test_bad_input_says_what_to_do(tokenizer):
    with pytest.raises(ValueError, match=r"evaluation\.retrieval\.datasets\.NAME\.path=FILE"):
        RetrievalEvaluation({}, PlainTemplate()).prepare(tokenizer)
    with pytest.raises(ValueError, match="num_candidates must be at least 2"):
        make(tokenizer, num_candidates=1)
    with pytest.raises(ValueError, match="at least 1"):
        make(tokenizer, recall_at=[])
    evaluation = RetrievalEvaluation({"set": Passages()}, PlainTemplate(), max_length=18)
    with pytest.raises(ValueError, match=r"lower evaluation\.retrieval\.max_passage_length"):
        evaluation.prepare(tokenizer)


def test_the_real_scifact_with_a_real_model(data_folder, run_all):
    """Claims and abstracts as they are, with a tokenizer of word pieces."""
    folder, file = data_folder / "models" / "stories260K", data_folder / "scifact" / "test.csv.gz"
    if not folder.is_dir() or not file.is_file():
        pytest.skip(f"no model at '{folder}' or no SciFact at '{file}'")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = ModelPair(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer)
    evaluation = RetrievalEvaluation(
        {"scifact": scifact_source(str(file))},
        PlainTemplate(),
        num_questions=10,
        num_candidates=4,
        max_passage_length=64,
        max_length=256,
    )
    evaluation.prepare(tokenizer)
    records = run_all(evaluation, pair)
    assert [len(record["scores"]) for record in records] == [4] * 10
    rows = evaluation.rows["scifact"].records
    for row, score in enumerate(records[0]["scores"]):
        prompt = PlainTemplate().format(rows[row].instruction, rows[row].input)
        ids = tokenizer(prompt + rows[row].responses[0], add_special_tokens=False).input_ids
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        logprobs = pair.student(torch.tensor([ids])).logits[0].detach().double().log_softmax(-1)
        expected = sum(float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids)))
        assert score == pytest.approx(expected, abs=1e-3)
    values = evaluation.findings(records).values
    assert 25 <= values["mrr"][0] <= 100  # the last of four at worst
    assert values["recall_at_1"][0] <= values["recall_at_5"][0] == 100
