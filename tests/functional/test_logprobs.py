import math

import pytest
import torch

from lightning_minillm.functional.logprobs import (
    TokenStates,
    chunk_bounds,
    gather_logprobs,
    select_targets,
    target_logprobs,
)

NAN = float("nan")


def make_states(tokens=7, hidden=5, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(vocabulary, hidden, generator=generator)
    states = TokenStates(torch.randn(tokens, hidden, generator=generator), lambda h: h @ head.T)
    return states, torch.randint(vocabulary, (tokens,), generator=generator)


def test_every_target_meets_the_state_before_it():
    """A loop over positions is the definition of the shift."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 6, 2, generator=generator)
    ids = torch.randint(50, (3, 6), generator=generator)
    mask = torch.rand(3, 6, generator=generator) < 0.5
    mask[:, 0] = False
    expected = [(hidden[b, t - 1], ids[b, t]) for b in range(3) for t in range(6) if mask[b, t]]
    states, targets = select_targets(hidden, ids, mask)
    assert torch.equal(states, torch.stack([state for state, _ in expected]))
    assert targets.tolist() == [int(target) for _, target in expected]


def test_states_of_other_positions_get_no_gradient_and_may_be_nan():
    hidden = torch.full((1, 4, 2), NAN)
    hidden[0, 1] = torch.tensor([1.0, 2.0])
    hidden.requires_grad_(True)
    mask = torch.tensor([[False, False, True, False]])
    states, _ = select_targets(hidden, torch.tensor([[3, 4, 5, 6]]), mask)
    states.square().sum().backward()
    assert hidden.grad[0, 1].tolist() == [2.0, 4.0]
    assert hidden.grad[0, [0, 2, 3]].eq(0).all()


def test_gather_logprobs_against_a_float64_loop():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 9, generator=generator) * 5
    ids = torch.randint(9, (2, 3), generator=generator)
    for b in range(2):
        for t in range(3):
            row = [float(x) for x in logits[b, t]]
            expected = row[ids[b, t]] - math.log(sum(math.exp(x) for x in row))
            assert gather_logprobs(logits, ids)[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_gather_logprobs_is_stable_and_computed_in_single_precision():
    logits = torch.tensor([[0.0, 200.0, -200.0]], dtype=torch.bfloat16)
    value = gather_logprobs(logits, torch.tensor([2]))
    assert value.dtype == torch.float32
    assert value.item() == -400
    assert gather_logprobs(logits.double(), torch.tensor([1])).dtype == torch.float64


@pytest.mark.parametrize(
    ("tokens", "size", "bounds"),
    [
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (4, 4, [(0, 4)]),
        (4, 9, [(0, 4)]),
        (4, None, [(0, 4)]),
        (0, 3, []),
        (0, None, []),
    ],
)
def test_chunk_bounds(tokens, size, bounds):
    assert list(chunk_bounds(tokens, size)) == bounds


def test_chunk_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1 or null"):
        list(chunk_bounds(4, 0))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_do_not_change_target_logprobs(chunk_size, temperature):
    states, ids = make_states()
    expected = gather_logprobs(states.project(states.hidden) / temperature, ids)
    given = target_logprobs(states, ids, temperature, chunk_size)
    torch.testing.assert_close(given, expected)
    assert not given.requires_grad


def test_target_logprobs_of_no_token_is_empty():
    states, ids = make_states(tokens=0)
    assert target_logprobs(states, ids).shape == (0,)
