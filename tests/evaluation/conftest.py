import pytest
import torch

from lightning_minillm.data import InstructionRecord, PlainTemplate
from lightning_minillm.evaluation import PromptSets
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig

VOCAB_SIZE = 37


class Words:
    """A source of random instructions and references over the words of the tiny tokenizer."""

    def __init__(self, count=12, seed=0):
        self.count, self.seed = count, seed

    def load(self):
        generator = torch.Generator().manual_seed(self.seed)

        def words(most):
            count = int(torch.randint(1, most + 1, (), generator=generator))
            return " ".join(f"w{i}" for i in torch.randint(1, VOCAB_SIZE, (count,), generator=generator).tolist())

        return [InstructionRecord(words(6), "", (words(5),)) for _ in range(self.count)]


def add_noise(model, scale, seed=0):
    """Damage a model: every weight is moved at random, by ``scale`` of its matrix' deviation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += scale * parameter.std(unbiased=False) * noise
    return model


def run_steps(evaluation, pair, batches=None):
    """The records of all items, sorted, as the runner hands them to ``findings``."""
    batches = evaluation.batches() if batches is None else batches
    with torch.no_grad():
        records = [record for items in batches for record in evaluation.step(pair, items)]
    return sorted(records, key=lambda record: record["item"])


@pytest.fixture(scope="session")
def words():
    """``words(count=12, seed=0)``: a source of random records."""
    return Words


@pytest.fixture(scope="session")
def damage():
    """``damage(model, scale, seed=0)``."""
    return add_noise


@pytest.fixture(scope="session")
def run_all():
    """``run_all(evaluation, pair, batches=None)``."""
    return run_steps


@pytest.fixture(scope="session")
def make_pair(tokenizer):
    """``make_pair(student, teacher=None)``: models ready to be measured."""

    def make(student, teacher=None):
        return ModelPair(student, tokenizer, teacher)

    return make


@pytest.fixture(scope="session")
def make_evaluation(tokenizer):
    """``make_evaluation(kind, sources, max_new_tokens=10, seeds=(10,), ...)``: a prepared evaluation of prompts."""

    def make(kind, sources, *, max_new_tokens=10, temperature=1.0, template=None, seeds=(10,), **options):
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, teacher_mix_alpha=0.0)
        lengths = {"max_length": 32, "max_prompt_length": 16}
        evaluation = kind(PromptSets(sources, template or PlainTemplate(), sampling, seeds=seeds, **lengths, **options))
        evaluation.prepare(tokenizer)
        return evaluation

    return make
