import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.models import SplitCausalLM
from lightning_minillm.rollout import MixtureSampler, SamplingConfig
from lightning_minillm.types import RolloutBatch

EOS = 0


@pytest.fixture
def make_sampler():
    """``make_sampler(student, teacher=None, eos=0, pad=0, keep_teacher_hidden=False, **sampling)``."""

    def make(student, teacher=None, *, eos=EOS, pad=EOS, keep_teacher_hidden=False, static=None, **sampling):
        sampling = {"max_new_tokens": 20, "teacher_mix_alpha": 0.2 if teacher is not None else 0.0, **sampling}
        return MixtureSampler(
            SplitCausalLM(student),
            None if teacher is None else SplitCausalLM(teacher),
            eos_token_ids=eos,
            pad_token_id=pad,
            config=SamplingConfig(**sampling),
            keep_teacher_hidden=keep_teacher_hidden,
            static_steps=static,
        )

    return make


def random_rollouts(count=12, prompt_width=4, response_width=6, seed=0, hidden=3, first_index=0):
    """Rollouts made of random numbers, with every optional field."""
    generator = torch.Generator().manual_seed(seed)
    prompt_lengths = torch.randint(1, prompt_width + 1, (count,), generator=generator)
    lengths = torch.randint(1, response_width + 1, (count,), generator=generator)
    mask = lengths_to_mask(lengths, response_width)

    def logprobs():
        return -torch.rand(count, response_width, generator=generator).masked_fill(~mask, 0)

    return RolloutBatch(
        prompt_ids=torch.randint(1, 30, (count, prompt_width), generator=generator),
        prompt_mask=lengths_to_mask(prompt_lengths, prompt_width).flip(-1),
        response_ids=torch.randint(1, 30, (count, response_width), generator=generator).masked_fill(~mask, EOS),
        response_mask=mask,
        indices=torch.arange(first_index, first_index + count),
        student_logprobs=logprobs(),
        teacher_logprobs=logprobs(),
        mixture_logprobs=logprobs(),
        reward_logprobs=logprobs(),
        teacher_hidden=torch.randn(count, response_width, hidden, generator=generator).masked_fill(~mask[..., None], 0),
    )


@pytest.fixture
def make_rollouts():
    """``make_rollouts(count=12, prompt_width=4, response_width=6, seed=0, ...)``."""
    return random_rollouts


def batches_equal(first, second):
    """Whether two batches of rollouts are the same to the bit."""
    names = first.__dataclass_fields__
    return all(
        (getattr(first, n) is None and getattr(second, n) is None) or torch.equal(getattr(first, n), getattr(second, n))
        for n in names
    )


@pytest.fixture
def same_rollouts():
    return batches_equal
