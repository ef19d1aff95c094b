import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_minillm.data import InstructionRecord
from lightning_minillm.evaluation import PromptSets
from lightning_minillm.evaluation.exposure_bias import ExposureBiasEvaluation
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig


def naive_curves(records, num_lengths):
    """Regret, epsilon and excess error of every length, by their definition."""
    regret, epsilon, excess = [], [], []
    for length in range(1, num_lengths + 1):
        own = sum(sum(record["on_student_text"][:length]) for record in records) / len(records)
        oracle = sum(sum(record["on_teacher_text"][:length]) for record in records) / len(records) / length
        regret.append(own)
        epsilon.append(oracle)
        excess.append((own - length * oracle) / (length * oracle) * 100)
    return regret, epsilon, excess


def test_findings_are_those_of_a_loop(make_model, make_pair, make_evaluation, run_all, words):
    pair = make_pair(make_model("gpt2", seed=1), make_model("llama", seed=2))
    evaluation = make_evaluation(ExposureBiasEvaluation, {"test": words()}, max_new_tokens=15)
    records = run_all(evaluation, pair)
    findings = evaluation.findings(records)
    regret, epsilon, excess = naive_curves(records, 15)
    for name, expected in (("regret", regret), ("epsilon", epsilon), ("excess_error", excess)):
        assert findings.curves[name].x == list(range(1, 16))
        assert findings.curves[name].y == pytest.approx(expected, abs=1e-5)
        assert findings.values[name] == pytest.approx([expected[-1]], abs=1e-5)
    assert findings.values["excess_error_mean"] == pytest.approx([sum(excess) / 15])
    assert len({len(record["on_student_text"]) for record in records}) > 1
    # after the prompt alone there is no text of anybody's
    assert excess[0] == pytest.approx(0, abs=1e-3)


def markov_model(make_model, log_transitions):
    """A model whose next token depends on the last one alone, by a table ``[from, to]``."""
    size = len(log_transitions)
    model = make_model("gpt2", n_layer=1, n_head=1, n_embd=size, vocab_size=size, tie_word_embeddings=False)
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    state["transformer.wte.weight"] = torch.eye(size)
    # the last norm of a one-hot vector has two values: back to 1 and 0
    high, low = torch.nn.functional.layer_norm(torch.eye(size), (size,))[0, :2].tolist()
    state["transformer.ln_f.weight"] = torch.full((size,), 1 / (high - low))
    state["transformer.ln_f.bias"] = torch.full((size,), -low / (high - low))
    state["lm_head.weight"] = log_transitions.T.contiguous()
    model.load_state_dict(state)
    return model


GOOD, BAD, WORSE = slice(1, 19), slice(19, 28), slice(28, 37)


def transitions(**shares):
    """Next-token probabilities by kind of word: all words of a kind are alike, and nothing else happens."""
    row = torch.full((37,), 1e-12)
    for kind, share in shares.items():
        words = {"good": GOOD, "bad": BAD, "worse": WORSE}[kind]
        row[words] = share / (words.stop - words.start)
    return row.log()


class GoodWords:
    """Prompts of one good word."""

    def load(self):
        return [InstructionRecord(f"w{1 + i % 18}", "", ("w1",)) for i in range(1000)]


def test_a_student_that_slips_and_is_lost_after_it(make_model, make_pair, make_evaluation, run_all):
    """With a rule for each word the curve is known in closed form.

    On good words the student errs by log(1 / 0.9), and slips with probability 0.1, where the teacher never does; once
    it has slipped it errs by log(1 / 0.01), step after step.
    """
    teacher = torch.stack([transitions(good=1.0) if word < 19 else transitions(bad=1.0) for word in range(37)])
    student = torch.stack(
        [transitions(good=0.9, bad=0.1) if word < 19 else transitions(bad=0.01, worse=0.99) for word in range(37)]
    )
    pair = make_pair(markov_model(make_model, student), markov_model(make_model, teacher))
    length = 12
    evaluation = make_evaluation(
        ExposureBiasEvaluation, {"test": GoodWords()}, max_new_tokens=length, batch_size=500, template=AsItIs()
    )
    findings = evaluation.findings(run_all(evaluation, pair))
    slight, heavy = math.log(1 / 0.9), math.log(1 / 0.01)
    steps = [0.9**t * slight + (1 - 0.9**t) * heavy for t in range(length)]
    regret = [sum(steps[: t + 1]) for t in range(length)]
    excess = [100 * (regret[t] / ((t + 1) * slight) - 1) for t in range(length)]
    assert findings.curves["epsilon"].y == pytest.approx([slight] * length, abs=1e-4)
    assert findings.curves["regret"].y == pytest.approx(regret, rel=0.1)
    assert findings.curves["excess_error"].y == pytest.approx(excess, rel=0.1, abs=1e-3)
    assert findings.values["excess_error"][0] == pytest.approx(excess[-1], rel=0.1)
    assert findings.values["excess_error_mean"][0] == pytest.approx(sum(excess) / length, rel=0.1)
    assert excess[-1] > 1000


def test_a_damaged_language_model_errs_more_on_its_own_text(data_folder, damage, run_all):
    """A trained one, on the beginnings of stories."""
    folder = data_folder / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no model at '{folder}'")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2)]
    pair = ModelPair(damage(models[0], 0.2), tokenizer, models[1])
    sampling = SamplingConfig(max_new_tokens=40, teacher_mix_alpha=0.0)
    prompts = PromptSets({"test": Beginnings()}, AsItIs(), sampling, batch_size=100, seeds=(10,))
    evaluation = ExposureBiasEvaluation(prompts)
    evaluation.prepare(tokenizer)
    findings = evaluation.findings(run_all(evaluation, pair))
    assert findings.values["excess_error"][0] > 3
    assert findings.values["excess_error_mean"][0] > 0


class Beginnings:
    """Prompts of a few words."""

    def load(self):
        who = ["girl", "boy", "dog", "cat", "bird", "man", "bear", "frog", "king", "mouse"]
        what = ["liked to play", "was sad", "found a ball", "wanted to fly", "went home", "saw a tree", "lost a toy"]
        return [InstructionRecord(f"Once there was a {one} who {did}.", "", ("Yes.",)) for one in who for did in what]


class AsItIs:
    """The instruction as it is."""

    def format(self, instruction, input):
        return instruction
