"""The numbers of responses: against rouge-score on real pairs, and against cases done by hand."""

import json
import math
import re
import string

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from lightning_minillm.data import InstructionRecord, PlainTemplate
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.evaluation import PromptSets, ResponsesEvaluation
from lightning_minillm.evaluation.responses import summarise_responses
from lightning_minillm.metrics import rouge_l
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig, decode_responses, sampler_for


class Fixed:
    """A source of given records."""

    def __init__(self, *records):
        self.records = list(records)

    def load(self):
        return self.records


RECORDS = Fixed(
    InstructionRecord("w1 w2", "", ("w3 w4",), task="a", exact=True),
    InstructionRecord("w5", "", ("w6 w7 w8 w9 w10 w11", "w1"), task="b"),
    InstructionRecord("w2 w3 w4", "w5", ("w9",)),
)


def make(sources=None, seeds=(1, 2), batch_size=2, words="auto", **sampling):
    config = SamplingConfig(**{"max_new_tokens": 4, "teacher_mix_alpha": 0.0, **sampling})
    sources = sources or {"test": RECORDS}
    lengths = {"max_length": 24, "max_prompt_length": 12}
    return ResponsesEvaluation(
        PromptSets(sources, PlainTemplate(), config, batch_size=batch_size, seeds=seeds, **lengths), words=words
    )


@pytest.fixture
def prepared(tokenizer):
    evaluation = make()
    evaluation.prepare(tokenizer)
    return evaluation


def record(response="a", references=("a",), **values):
    basis = {"response": response, "references": list(references), "exact": True, "rougeL": 0.0}
    return basis | {"reference_tokens": 3, "response_tokens": 2} | values


def official_normal_form(text):
    """As the official script compares answers: lower case, no punctuation, single spaces."""
    return " ".join("".join(sign for sign in text.lower() if sign not in set(string.punctuation)).split())


def real_pairs(folder):
    """Real sentences as predictions, with the references of the row that they are from, or of the next."""
    rows = [json.loads(line) for line in (folder / "dolly/valid.jsonl").read_text(encoding="utf-8").splitlines()[:100]]
    file = folder / "sni/minillm_sinst_11_valid.jsonl"
    rows += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:100]]
    outputs = [row["output"] if isinstance(row["output"], list) else [row["output"]] for row in rows]
    for place, row in enumerate(rows):
        first = re.split(r"(?<=[.!?])\s", row["input"] or row["instruction"])[0]
        # every fifth repeats its reference, in another spelling
        text = f"  {outputs[place][-1].upper()}!" if place % 5 == 0 else f"{first} {outputs[place - 1][0]}"
        yield text, outputs[place]


def test_rouge_and_exact_match_are_those_of_rouge_score_on_real_pairs(data_folder):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = list(real_pairs(data_folder))
    assert len(pairs) == 200
    evaluation = make(seeds=(1,))
    rows = [
        record(text, references, rougeL=rouge_l(text, references), data_set="test", seed=1, item=item)
        for item, (text, references) in enumerate(pairs)
    ]
    rows[0] |= {"reference_loss": 1.0, "loss_tokens": 1}
    expected = [max(scorer.score(r, text)["rougeL"].fmeasure for r in references) for text, references in pairs]
    assert [row["rougeL"] / 100 for row in rows] == pytest.approx(expected, abs=1e-6)
    values = evaluation.findings(rows).values
    assert values["rougeL"] == [pytest.approx(100 * sum(expected) / 200, abs=1e-6)]
    assert 20 < values["rougeL"][0] < 80
    equal = [official_normal_form(text) in map(official_normal_form, references) for text, references in pairs]
    assert values["exact_match"] == [pytest.approx(sum(equal) / 2, abs=1e-6)]
    assert 30 <= sum(equal) <= 60


def test_summary_by_hand():
    rows = [
        record("w x y z w x y z", ["q"], rougeL=10.0, reference_tokens=5, response_tokens=4, reverse_kl=2.0),
        record("The answer.", ["no", "the ANSWER"], rougeL=50.0, reference_tokens=6, response_tokens=6, reverse_kl=8.0),
        record("b", ["c"], exact=False, rougeL=90.0, reference_tokens=11, response_tokens=2, reverse_kl=0.5),
    ]
    assert summarise_responses(rows) == {
        "rougeL": pytest.approx(50),
        "exact_match": 50.0,
        "response_length": 4.0,
        "repetition": pytest.approx(100 / 5),  # of five 4-grams one comes twice; the others have none
        "dist4": pytest.approx(80),
        "rougeL_0-5": 10.0,
        "rougeL_6-10": 50.0,
        "rougeL_11+": 90.0,
        "reverse_kl": pytest.approx(10.5 / 12),
    }


@pytest.mark.parametrize(
    ("length", "bucket"), [(0, "0-5"), (5, "0-5"), (6, "6-10"), (10, "6-10"), (11, "11+"), (500, "11+")]
)
def test_both_ends_of_a_bucket_belong_to_it(length, bucket):
    values = summarise_responses([record(rougeL=40.0, reference_tokens=length)])
    assert {name for name in values if name.startswith("rougeL_") and values[name] == 40.0} == {f"rougeL_{bucket}"}


def test_what_cannot_be_measured_is_left_out():
    values = summarise_responses([record("a b", exact=False)])
    missing = {name for name, value in values.items() if math.isnan(value)}
    assert missing == {"exact_match", "repetition", "dist4", "rougeL_6-10", "rougeL_11+"}
    row = record("a b", exact=False, data_set="test", seed=1, reference_loss=3.0, loss_tokens=2)
    findings = make(seeds=(1,)).findings([row])
    assert set(findings.values) == {"rougeL", "response_length", "rougeL_0-5", "loss"}
    assert findings.values["loss"] == [1.5]


@torch.no_grad()
def test_loss_and_reverse_kl_are_those_of_whole_logits(prepared, make_model, make_pair):
    student, teacher = make_model("gpt2", seed=1), make_model("gpt2", seed=2)
    models = make_pair(student, teacher)
    records = [row for items in prepared.batches() for row in prepared.step(models, items)]
    assert sorted(row["item"] for row in records) == list(range(6))
    data = prepared.prompts.data["test"]
    sampler = sampler_for(models, prepared.prompts.sampling)
    for row in records:
        pair = data.token_batch([row["index"]], 1.0)
        logits = student(pair.input_ids).logits.double().log_softmax(-1)
        targets = pair.target_mask[0].nonzero()[:, 0]
        loss = -sum(float(logits[0, t - 1, pair.input_ids[0, t]]) for t in targets)
        if row["seed"] == 1:
            assert row["reference_loss"] == pytest.approx(loss, rel=1e-4)
            assert row["loss_tokens"] == len(targets)
        else:
            assert "reference_loss" not in row  # no seed changes it
        rollout = sampler.sample(data.prompt_batch([row["index"]]), seed=row["seed"])
        assert decode_responses(models.tokenizer, rollout) == [row["response"]]
        ids = torch.cat([rollout.prompt_ids, rollout.response_ids], 1)
        start = rollout.prompt_ids.shape[1] - 1
        log_q, log_p = (m(ids).logits.double().log_softmax(-1)[0, start:-1] for m in (student, teacher))
        assert row["reverse_kl"] == pytest.approx(float((log_q.exp() * (log_q - log_p)).sum()), rel=1e-4)


def test_batches_hold_prompts_of_like_length_and_every_item_once(prepared):
    batches = prepared.batches()
    assert sorted(item for items in batches for item in items) == list(range(6))
    assert batches == [[2, 0], [1], [5, 3], [4]]
    assert prepared.reference_lengths["test"] == [2, 6, 1]


def test_several_data_sets_have_their_names_before_the_metrics(tokenizer, make_model, make_pair, run_all):
    evaluation = make({"a": RECORDS, "b": Fixed(*RECORDS.records[:1])}, seeds=(1,))
    evaluation.prepare(tokenizer)
    records = run_all(evaluation, make_pair(make_model("gpt2")))
    assert [(r["data_set"], r["index"]) for r in records] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    findings = evaluation.findings(records)
    assert {"a/rougeL", "b/rougeL", "a/loss", "b/loss"} <= set(findings.values) <= set(evaluation.measures)
    assert "reverse_kl" not in {name[2:] for name in findings.values}
    assert set(findings.curves) == set(evaluation.pictures) == {"a/rougeL_by_length", "b/rougeL_by_length"}
    texts = evaluation.texts(records)
    assert list(texts) == ["a_seed_1", "b_seed_1"]
    assert texts["b_seed_1"][0]["response"] == records[3]["response"]


def test_identity_tells_set_ups_apart(prepared, tokenizer):
    def identity(**options):
        evaluation = make(**options)
        evaluation.prepare(tokenizer)
        return evaluation.identity()

    assert identity() == prepared.identity()
    others = [
        {"temperature": 0.5},
        {"seeds": (1,)},
        {"no_repeat_ngram_size": 6},
        {"sources": {"test": Fixed(*RECORDS.records[:2])}},
    ]
    for other in others:
        assert identity(**other) != prepared.identity(), other


def test_references_that_rouge_cannot_see_are_counted(tokenizer):
    sources = {"zh": Fixed(*(InstructionRecord("w1", "", (text,)) for text in ("今天", "42", "...")))}
    with pytest.warns(UserWarning, match=r"zh: rougeL sees no token in 1 of 3 references.*neither letters nor digits"):
        make(sources).prepare(tokenizer)
    with pytest.warns(UserWarning, match=r"no token in 2 of 3 references \(words=latin\).*words=unicode finds.* 1 of"):
        make(sources, words="latin").prepare(tokenizer)


def test_empty_responses_are_counted():
    rows = [record(text, data_set="test", seed=1, reference_loss=1.0, loss_tokens=1) for text in ("", "a", " ")]
    with pytest.warns(UserWarning, match="test: 2 of 3 responses are empty and score 0"):
        make(seeds=(1,)).findings(rows)


def test_the_metrics_go_by_the_words_of_the_references():
    chinese = {"references": ["今天天气很好"], "rougeL": 100.0}
    assert summarise_responses([record("今天天气很好。", **chinese)])["exact_match"] == 100
    assert summarise_responses([record("今天今天今天", **chinese)])["dist4"] == pytest.approx(100 * 2 / 3)
    assert math.isnan(summarise_responses([record("今天今天今天", **chinese)], "latin")["dist4"])
    mixed = [record("今天今天今天"), record("a b c d", ["今天"])]  # the first has a reference in Latin script
    assert summarise_responses(mixed)["dist4"] == 100


def test_records_say_which_words_were_compared(tokenizer, make_model, make_pair, run_all):
    sources = {"test": Fixed(InstructionRecord("w1", "", ("今天",)), InstructionRecord("w2", "", ("w1",)))}
    for words, expected in (("auto", ["unicode", "latin"]), ("characters", ["characters"] * 2)):
        evaluation = make(sources, seeds=(1,), words=words)
        evaluation.prepare(tokenizer)
        records = run_all(evaluation, make_pair(make_model("gpt2")))
        assert [row["words"] for row in records] == expected
        assert evaluation.identity()["words"] == words
    with pytest.raises(ValueError, match="words must be"):
        make(words="letters")


def test_conversations_are_measured_by_their_last_turn(make_chat_tokenizer, make_model, run_all):
    turns = (Turn("user", "1"), Turn("assistant", "2"), Turn("user", "三"), Turn("assistant", "四五六"))
    talk = Conversation(turns)
    source = Fixed(InstructionRecord(talk.prompt_text(), "", (talk.response_text(),), conversation=talk))
    tokenizer = make_chat_tokenizer()
    sampling = SamplingConfig(max_new_tokens=3, teacher_mix_alpha=0.0)
    prompts = PromptSets({"test": source}, "chat", sampling, seeds=(1,), max_length=400, max_prompt_length=300)
    evaluation = ResponsesEvaluation(prompts)
    evaluation.prepare(tokenizer)
    pair = ModelPair(make_model("gpt2", vocab_size=len(tokenizer), n_positions=512), tokenizer, None)
    (row,) = run_all(evaluation, pair)
    assert (row["prompt"], row["references"]) == ("user: 1\nassistant: 2\nuser: 三", ["四五六"])
    assert row["words"] == "unicode"
    assert row["loss_tokens"] == len("四五六".encode()) + 1  # bytes, and the end of the turn
    assert rouge_l("四五", row["references"]) == pytest.approx(80, abs=1e-4)
