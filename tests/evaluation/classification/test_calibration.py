import json
import math

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_minillm.data import AlpacaTemplate, PlainTemplate
from lightning_minillm.evaluation import ClassificationSource, sst2_source
from lightning_minillm.evaluation.classification.calibration import CalibrationEvaluation, calibration_metrics
from lightning_minillm.models import ModelPair

ROWS = [(1, "w3 w4 w5"), (0, "w6"), (1, "w7 w8 w9 w10 w11"), (0, "w3 w3"), (0, "w12 w1"), (1, "w2 w13 w4 w5 w6 w20")]
ALPHABET = {"0": "w21", "1": "w22 w23 w24"}


@pytest.fixture
def source(tmp_path):
    """``source(rows=ROWS, words=ALPHABET, name="data", limit=None)``: examples for the tiny tokenizer."""

    def make(rows=ROWS, words=ALPHABET, name="data", limit=None):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for label, text in rows))
        return ClassificationSource(str(file), "w30 w31", "{text}", words, limit=limit)

    return make


@pytest.fixture
def prepared(tokenizer):
    """``prepared(datasets, **options)``."""

    def make(datasets, **options):
        evaluation = CalibrationEvaluation(datasets, PlainTemplate(cue="w32 "), **{"max_prompt_length": 20, **options})
        evaluation.prepare(tokenizer)
        return evaluation

    return make


@pytest.fixture(scope="module")
def pair(make_model, make_pair):
    return make_pair(make_model("gpt2", seed=1))


def word_score(model, prompt, word):
    """Sum of the log-probabilities of a word's tokens in float64, one pass a token."""
    total, ids = 0.0, list(prompt)
    for token in word:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(-1))
        ids.append(token)
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_words_are_scored_as_by_a_loop(batch_size, source, prepared, pair, run_all, tokenizer):
    """Words of one token and of three, prompts of many lengths, any batch."""
    evaluation = prepared({"data": source()}, batch_size=batch_size)
    records = run_all(evaluation, pair)
    assert [record["item"] for record in records] == list(range(6))
    for record, (label, text) in zip(records, ROWS, strict=True):
        prompt = tokenizer(f"w30 w31\n{text}\nw32", add_special_tokens=False).input_ids
        expected = [word_score(pair.student, prompt, ids) for ids in ([21], [22, 23, 24])]
        assert record["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert record["label"] == label


def test_batches_hold_every_example_once_the_longest_first(source, prepared):
    evaluation = prepared({"a": source(name="a"), "b": source(ROWS[:3], name="b")}, batch_size=4)
    assert evaluation.batches() == [[5, 2], [0, 3], [4, 1], [8, 6], [7]]
    assert evaluation.batches() == evaluation.batches()


def test_findings_of_a_hand_made_case(source, prepared):
    """Confidence 0.75 three times, right twice; 0.95 twice, right once."""
    evaluation = prepared({"data": source()})
    rows = [(0.25, 1), (0.75, 0), (0.75, 1), (0.95, 0), (0.05, 0)]
    records = [
        {"item": i, "data_set": "data", "label": label, "logprobs": [math.log(p) - 5, math.log(1 - p) - 5]}
        for i, (p, label) in enumerate(rows)
    ]
    findings = evaluation.findings(records)
    assert findings.values["ece"] == pytest.approx([3 / 5 * (0.75 - 2 / 3) + 2 / 5 * (0.95 - 0.5)], abs=1e-6)
    assert findings.values["accuracy"] == pytest.approx([60.0])
    assert findings.values["confidence"] == pytest.approx([100 * (3 * 0.75 + 2 * 0.95) / 5])
    curve = findings.curves["reliability"]
    assert curve.x == pytest.approx([0.75, 0.95])
    assert curve.y == pytest.approx([2 / 3, 0.5])
    assert list(findings.values) == list(evaluation.measures)
    assert {name: picture.kind for name, picture in evaluation.pictures.items()} == {"reliability": "reliability"}


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_torchmetrics_and_the_definition(classes):
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(500, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    labels = torch.randint(0, classes, (500,), generator=generator)
    given = calibration_metrics(probabilities, labels)
    assert given["ece"] == pytest.approx(float(MulticlassCalibrationError(classes, n_bins=10)(probabilities, labels)))
    confidence, predicted = (values.tolist() for values in probabilities.max(-1))
    right = [float(a == b) for a, b in zip(predicted, labels.tolist(), strict=True)]
    error = 0.0
    for k in range(10):
        own = [i for i, value in enumerate(confidence) if k / 10 < value <= (k + 1) / 10]
        error += abs(sum(confidence[i] for i in own) - sum(right[i] for i in own)) / 500
    assert given["ece"] == pytest.approx(error, abs=1e-6)
    assert given["accuracy"] == pytest.approx(100 * sum(right) / 500)
    assert given["confidence"] == pytest.approx(100 * sum(confidence) / 500)


def test_each_of_several_data_sets_has_its_own_values(source, prepared, pair, run_all):
    several = {"a": source(name="a"), "b": source(ROWS[:3], {"0": "w2", "1": "w3", "2": "w4"}, name="b")}
    both = prepared(several, batch_size=4)
    together = both.findings(run_all(both, pair))
    alone = prepared({"a": several["a"]})
    of_a = alone.findings(run_all(alone, pair))
    assert set(together.values) == set(both.measures) == {f"{n}/{key}" for n in "ab" for key in of_a.values}
    assert set(together.curves) == set(both.pictures) == {"a/reliability", "b/reliability"}
    for key, values in of_a.values.items():
        assert together.values[f"a/{key}"] == pytest.approx(values, abs=1e-4)
    assert set(alone.measures) == set(of_a.values)


def test_a_data_set_without_a_path_is_left_out(source, prepared, tokenizer):
    evaluation = prepared({"mine": source(), "sst2": sst2_source(None)})
    assert set(evaluation.measures) == {"ece", "accuracy", "confidence"}
    nothing = CalibrationEvaluation({"sst2": sst2_source(None)}, PlainTemplate())
    with pytest.raises(ValueError, match=r"none of its data sets.*datasets\.sst2\.path=FILE"):
        nothing.prepare(tokenizer)


def test_prompts_that_are_too_long_are_left_out_with_their_label(source, prepared, pair, run_all):
    with pytest.warns(UserWarning, match="2 of 6 prompts have more than max_prompt_length=7 tokens"):
        evaluation = prepared({"data": source()}, max_prompt_length=7)
    records = run_all(evaluation, pair)
    assert [record["label"] for record in records] == [1, 0, 0, 0]


def test_bad_data_is_named_before_any_model(source, prepared, tmp_path):
    with pytest.raises(ValueError, match=r"data set 'mine'.*nowhere\.tsv"):
        prepared({"mine": sst2_source(str(tmp_path / "nowhere.tsv"))})
    with pytest.raises(ValueError, match="cannot be told apart"):
        prepared({"mine": source(words={"0": "negative", "1": "positive"})})  # no words of this tokenizer
    with pytest.raises(ValueError, match="the label '1' has no label word"):
        prepared({"mine": source(words={"0": "w1", "2": "w2"})})
    with pytest.raises(ValueError, match="num_bins"):
        prepared({"mine": source()}, num_bins=0)
    with pytest.raises(ValueError, match="batch size"):
        prepared({"mine": source()}, batch_size=0)


def test_identity_tells_data_and_words_apart(source, prepared):
    base = prepared({"data": source()}).identity()
    assert base == prepared({"data": source()}).identity()
    other_words = prepared({"data": source(words={"0": "w21", "1": "w22"})}).identity()
    other_labels = prepared({"data": source([(1 - label, text) for label, text in ROWS])}).identity()
    assert len({json.dumps(one) for one in (base, other_words, other_labels)}) == 3


def test_the_real_sst2_with_a_real_model(data_folder, run_all):
    folder, file = data_folder / "models" / "stories260K", data_folder / "sst2" / "dev.tsv"
    if not folder.is_dir() or not file.is_file():
        pytest.skip(f"no model at '{folder}' or no SST-2 at '{file}'")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pair = ModelPair(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer)
    source = sst2_source(str(file), limit=64)
    evaluation = CalibrationEvaluation({"sst2": source}, AlpacaTemplate(), max_prompt_length=400)
    evaluation.prepare(tokenizer)
    records = run_all(evaluation, pair)
    assert len(records) == 64
    for record in records[:3]:
        example = source.load()[record["item"]]
        prompt = AlpacaTemplate().format(example.instruction, example.input)
        ids = [tokenizer(prompt + word, add_special_tokens=False).input_ids for word in source.label_words]
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        expected = [word_score(pair.student, row[:start], row[start:]) for row in ids]
        assert record["logprobs"] == pytest.approx(expected, abs=1e-3)
    values = evaluation.findings(records).values
    # a model of 260k parameters knows nothing of sentiment: its confidence is not its accuracy
    assert 30 < values["accuracy"][0] < 70
    assert 0 < values["ece"][0] <= 1
    assert values["ece"][0] >= abs(values["confidence"][0] - values["accuracy"][0]) / 100 - 1e-6
