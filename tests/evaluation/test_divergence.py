import pytest

from lightning_minillm.evaluation.divergence import DivergenceEvaluation


def test_values_are_means_over_all_tokens(make_evaluation, words):
    evaluation = make_evaluation(DivergenceEvaluation, {"test": words(2)})
    text = {"forward_kl": 3.0, "reverse_kl": 1.0, "tokens": 1}
    longer = {"forward_kl": 1.0, "reverse_kl": 3.0, "tokens": 3}
    records = [
        {"item": 0, "data_set": "test", "student": text, "teacher": text, "reference": longer},
        {"item": 1, "data_set": "test", "student": longer, "teacher": text, "reference": longer},
    ]
    assert evaluation.findings(records).values == {
        "forward_kl_on_student_text": [1.0],
        "reverse_kl_on_student_text": [1.0],
        "forward_kl_on_teacher_text": [3.0],
        "reverse_kl_on_teacher_text": [1.0],
        "forward_kl_on_reference_text": [pytest.approx(1 / 3)],
        "reverse_kl_on_reference_text": [1.0],
    }


def test_damage_shows_in_every_distance(make_model, make_pair, make_evaluation, run_all, words, damage):
    def values(scale):
        pair = make_pair(damage(make_model("gpt2", seed=2), scale), make_model("gpt2", seed=2))
        evaluation = make_evaluation(DivergenceEvaluation, {"test": words(50)})
        return evaluation.findings(run_all(evaluation, pair)).values

    slight, heavy = values(0.05), values(0.3)
    assert len(slight) == 6
    for name, value in slight.items():
        assert 0 < value[0] < heavy[name][0] / 3
