import json
import math

import pytest
import torch

from lightning_minillm.evaluation.divergence import DivergenceEvaluation
from lightning_minillm.evaluation.exposure_bias import ExposureBiasEvaluation
from lightning_minillm.evaluation.scoring import token_divergences
from lightning_minillm.functional.divergences import reverse_kl
from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.rollout import MixtureSampler

KINDS = [ExposureBiasEvaluation, DivergenceEvaluation]


def token_kl(log_a, log_b):
    return sum(math.exp(a) * (a - b) for a, b in zip(log_a, log_b, strict=True))


def naive_divergences(student, teacher, prompt, response, temperature=1.0):
    """Forward and reverse KL of every token of a response, in float64, one position at a time."""
    forward, reverse = [], []
    ids = [*prompt, *response]
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].double() / temperature for model in (student, teacher)]
    for t in range(len(prompt), len(ids)):
        log_q, log_p = ((of_model[t - 1] - of_model[t - 1].logsumexp(-1)).tolist() for of_model in logits)
        forward.append(token_kl(log_p, log_q))
        reverse.append(token_kl(log_q, log_p))
    return forward, reverse


def sampled(model, prompts, evaluation):
    sampler = MixtureSampler(model, None, eos_token_ids=0, pad_token_id=0, config=evaluation.prompts.sampling)
    rollouts = sampler.sample(prompts, seed=evaluation.prompts.seeds[0])
    return [row[mask].tolist() for row, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]


@pytest.fixture(scope="module")
def pair(make_model, make_pair):
    """Student and teacher of other families."""
    return make_pair(make_model("gpt2", seed=1), make_model("llama", seed=2))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_values_are_those_of_a_loop(temperature, pair, make_evaluation, run_all, words):
    exposure = make_evaluation(ExposureBiasEvaluation, {"test": words()}, temperature=temperature, batch_size=5)
    divergence = make_evaluation(DivergenceEvaluation, {"test": words()}, temperature=temperature, batch_size=5)
    by_token, sums = run_all(exposure, pair), run_all(divergence, pair)
    data = exposure.prompts.data["test"]
    prompts = data.prompt_batch(range(len(data)))
    own = sampled(pair.student_split, prompts, exposure)
    oracle = sampled(pair.teacher_split, prompts, exposure)
    assert len({len(response) for response in own + oracle}) > 3
    batch = data.token_batch(range(len(data)), 1.0)
    for row in range(len(data)):
        prompt = prompts.input_ids[row][prompts.attention_mask[row]].tolist()
        reference = batch.input_ids[row][batch.target_mask[row]].tolist()
        for name, response in (("student", own[row]), ("teacher", oracle[row]), ("reference", reference)):
            forward, reverse = naive_divergences(pair.student, pair.teacher, prompt, response, temperature)
            if name != "reference":
                assert by_token[row][f"on_{name}_text"] == pytest.approx(forward, abs=2e-5)
            expected = {"forward_kl": sum(forward), "reverse_kl": sum(reverse), "tokens": len(response)}
            assert sums[row][name] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(kind, pair, make_evaluation, run_all, words):
    def findings(batch_size):
        evaluation = make_evaluation(kind, {"test": words()}, batch_size=batch_size)
        batches = evaluation.batches()
        assert max(map(len, batches)) == min(batch_size, 12)
        assert sorted(item for items in batches for item in items) == list(range(12))
        return evaluation.findings(run_all(evaluation, pair))

    one, many = findings(12), findings(5)
    assert one.values.keys() == many.values.keys()
    for name, values in one.values.items():
        assert values == pytest.approx(many.values[name], rel=1e-3, abs=1e-5)
    for name, curve in one.curves.items():
        assert curve.y == pytest.approx(many.curves[name].y, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_json_and_findings_need_nothing_else(kind, pair, make_evaluation, run_all, words):
    evaluation = make_evaluation(kind, {"test": words(5)})
    records = run_all(evaluation, pair)
    again = json.loads(json.dumps(records))
    assert evaluation.findings(again) == evaluation.findings(records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_equals_its_teacher_has_no_distance(
    kind, make_model, make_pair, make_evaluation, run_all, words
):
    pair = make_pair(make_model("gpt2", seed=1), make_model("gpt2", seed=1))
    evaluation = make_evaluation(kind, {"test": words()})
    findings = evaluation.findings(run_all(evaluation, pair))
    assert findings.values
    for values in findings.values.values():
        assert values == pytest.approx([0.0], abs=1e-6)
    for curve in findings.curves.values():
        assert curve.y == pytest.approx([0.0] * len(curve.x), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_several_data_sets_has_its_own_values(kind, pair, make_evaluation, run_all, words):
    both = make_evaluation(kind, {"a": words(5), "b": words(7, seed=3)}, batch_size=4)
    together = both.findings(run_all(both, pair))
    alone = make_evaluation(kind, {"b": words(7, seed=3)})
    of_b = alone.findings(run_all(alone, pair))
    assert set(together.values) == {f"{name}/{key}" for name in "ab" for key in of_b.values} == set(both.measures)
    assert set(together.curves) == {f"{name}/{key}" for name in "ab" for key in of_b.curves} == set(both.pictures)
    for key, values in of_b.values.items():
        assert together.values[f"b/{key}"] == pytest.approx(values, rel=1e-3, abs=1e-5)
        assert together.values[f"a/{key}"] != pytest.approx(values, rel=1e-4)
    assert set(alone.measures) == set(of_b.values)
    assert set(alone.pictures) == set(of_b.curves)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_tells_set_ups_apart(kind, make_evaluation, words):
    def identity(source, **options):
        return json.dumps(make_evaluation(kind, {"test": source}, **options).identity(), sort_keys=True)

    base = identity(words())
    assert base == identity(words())
    assert len({base, identity(words(seed=1)), identity(words(), seeds=(3,)), identity(words(), max_new_tokens=9)}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_responses_of_all_seeds_count_together(kind, pair, make_evaluation, run_all, words):
    evaluation = make_evaluation(kind, {"test": words(6)}, seeds=(1, 2))
    records = run_all(evaluation, pair)
    assert [record["item"] for record in records] == list(range(12))
    assert records[0] != records[6] | {"item": 0}
    both = evaluation.findings(records).values
    for seed, own in ((1, records[:6]), (2, records[6:])):
        alone = make_evaluation(kind, {"test": words(6)}, seeds=(seed,))
        assert alone.findings(run_all(alone, pair)).values == evaluation.findings(own).values != both


def test_divergences_are_of_the_ids_that_both_models_have():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 8), torch.randn(5, 11)
    made = [TokenStates(logits, lambda hidden: hidden, vocabulary=8) for logits in (student, teacher)]
    log_q, log_p = student.log_softmax(-1), teacher[:, :8].log_softmax(-1)
    found = token_divergences(*made, {"kl": reverse_kl})["kl"]
    assert torch.allclose(found, (log_q.exp() * (log_q - log_p)).sum(-1), atol=1e-6)
