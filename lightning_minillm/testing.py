"""What a loss has to keep, as a function that a user's own tests can call.

Legend: N target tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import TokenLoss
from lightning_minillm.types import LossOutput

InputFactory = Callable[[int, torch.Generator], Tensor]
_COUNT, _HIDDEN, _VOCABULARY = 11, 6, 13
_GAP = 200.0


@dataclass(frozen=True)
class _Problem:
    """N tokens of a student and a teacher with linear heads."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    target_ids: Tensor
    inputs: Mapping[str, Tensor]

    def apply(self, loss: TokenLoss, rows: slice | Tensor = slice(None), normalizer: float | None = None) -> LossOutput:
        student = TokenStates(self.hidden[rows], lambda h: h @ self.head.T, (self.head,), len(self.head))
        teacher = TokenStates(self.teacher_hidden[rows], lambda h: h @ self.teacher_head.T)
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        output: LossOutput = loss(student, self.target_ids[rows], teacher, inputs, normalizer)
        return output

    def gradients(self, output: LossOutput) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output.loss, [self.hidden, self.head])


def check_loss(
    loss: TokenLoss, inputs: Mapping[str, InputFactory] | None = None, *, exact_gradient: bool = True
) -> None:
    """Hold a loss to the contract of :class:`~lightning_minillm.losses.TokenLoss`.

    Value and parts are finite scalars, one value a token; only the student gets a gradient; chunks, micro-batches and
    the order of tokens change nothing; masked tokens, which never reach a loss, leave no trace, even NaN; it is 0 at
    the teacher where it is a divergence; the gradient is that of the value; logits 200 apart, also in bfloat16, give
    finite values and gradients; it pickles.

    Args:
        loss: any loss. Its ``chunk_size`` is put back.
        inputs: makes each per-token input ``[N]`` from N and a generator; those named in ``token_inputs`` that are
            left out are drawn from [0.5, 1.5).
        exact_gradient: compare the gradient with finite differences; ``False`` for a loss that holds a part of itself
            fixed on purpose.

    Raises:
        AssertionError: names the property that does not hold.

    Example:
        >>> from lightning_minillm.losses import ReverseKL
        >>> check_loss(ReverseKL())
    """
    chunk_size = loss.chunk_size
    try:
        loss.chunk_size = None
        problem = _make_problem(loss, dict(inputs or {}))
        _check_values(loss, problem)
        _check_chunks(loss, problem)
        _check_masking(loss, problem)
        _check_divergence(loss, problem)
        if exact_gradient:
            _check_gradient(loss, problem)
        for dtype in (torch.float32, torch.bfloat16):
            _check_gaps(loss, problem, dtype)
        _check_pickle(loss, problem)
    finally:
        loss.chunk_size = chunk_size


def _make_problem(loss: TokenLoss, factories: dict[str, InputFactory]) -> _Problem:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator) + 0.5

    return _Problem(
        hidden=normal(_COUNT, _HIDDEN).requires_grad_(True),
        head=nn.Parameter(normal(_VOCABULARY, _HIDDEN)),
        teacher_hidden=normal(_COUNT, _HIDDEN).requires_grad_(True),
        teacher_head=nn.Parameter(normal(_VOCABULARY, _HIDDEN)),
        target_ids=torch.randint(_VOCABULARY, (_COUNT,), generator=generator),
        inputs={name: factories.get(name, uniform)(_COUNT, generator) for name in loss.token_inputs},
    )


def _check_values(loss: TokenLoss, problem: _Problem) -> None:
    output = problem.apply(loss)
    assert output.loss.shape == (), f"the loss must be a scalar, got the shape {tuple(output.loss.shape)}"
    assert bool(output.loss.isfinite()), f"the loss is {output.loss.item()} on ordinary logits"
    for name, value in output.parts.items():
        assert value.shape == (), f"the part {name!r} must be summed over tokens to a scalar"
        assert bool(value.isfinite()), f"the part {name!r} is {value.item()} on ordinary logits"
        assert not value.requires_grad, f"the part {name!r} carries a gradient"
    teacher = [problem.teacher_hidden, problem.teacher_head]
    leaked = torch.autograd.grad(problem.apply(loss).loss, teacher, allow_unused=True)
    assert all(gradient is None for gradient in leaked), "the teacher gets a gradient"
    assert any(bool((g != 0).any()) for g in problem.gradients(output)), "the student gets no gradient"


def _check_chunks(loss: TokenLoss, problem: _Problem) -> None:
    plain = problem.apply(loss)
    expected = (plain.loss, *problem.gradients(plain))
    for size in (1, 4, _COUNT):
        loss.chunk_size = size
        chunked = problem.apply(loss)
        given = (chunked.loss, *problem.gradients(chunked))
        loss.chunk_size = None
        _close(
            given, expected, f"chunks of {size} tokens change the value or its gradient: a token must not see others"
        )
    order = torch.randperm(_COUNT, generator=torch.Generator().manual_seed(1))
    _close(problem.apply(loss, order).loss, plain.loss, "the order of the tokens changes the value")
    pieces = [problem.apply(loss, rows, normalizer=_COUNT).loss for rows in (slice(0, 3), slice(3, _COUNT))]
    _close(pieces[0] + pieces[1], plain.loss, "micro-batches do not sum to the whole: return one value a token")


def _check_masking(loss: TokenLoss, problem: _Problem) -> None:
    """Rows that are not selected may hold anything."""
    rows = torch.arange(0, _COUNT, 2)
    expected = problem.apply(loss, rows).loss
    hidden, inputs = problem.hidden.detach().clone(), {name: v.clone() for name, v in problem.inputs.items()}
    for value in (hidden, *inputs.values()):
        value[1::2] = float("nan")
    spoilt = replace(problem, hidden=hidden, inputs=inputs)
    _close(spoilt.apply(loss, rows).loss, expected, "masked tokens have an effect")


def _check_divergence(loss: TokenLoss, problem: _Problem) -> None:
    if not loss.is_divergence:
        return
    same = replace(problem, teacher_hidden=problem.hidden, teacher_head=problem.head)
    value = same.apply(loss).loss
    assert abs(value.item()) < 1e-5, f"is_divergence is set, and d(p, p) = {value.item()}"
    assert problem.apply(loss).loss.item() > 0, "is_divergence is set, and d(p, q) is not positive"


def _check_gradient(loss: TokenLoss, problem: _Problem) -> None:
    """Step along the gradient in both directions: the value changes by what the gradient says."""
    gradient = problem.gradients(problem.apply(loss))[0]
    norm = gradient.norm()
    if norm == 0:
        return
    step = 1e-3 / norm * gradient

    def value(hidden: Tensor) -> float:
        return float(replace(problem, hidden=hidden).apply(loss).loss)

    with torch.no_grad():
        slope = (value(problem.hidden + step) - value(problem.hidden - step)) / 2e-3
    error = abs(slope - norm.item())
    assert error <= 0.02 * norm.item() + 1e-3, f"the value's slope is {slope:.5g}, the gradient's {norm.item():.5g}"


def _check_gaps(loss: TokenLoss, problem: _Problem, dtype: torch.dtype) -> None:
    """Student and teacher are sure of different tokens, by logits that lie 200 apart."""
    places = torch.arange(_COUNT)
    hidden = torch.zeros(_COUNT, _VOCABULARY, dtype=dtype)
    teacher = hidden.clone()
    hidden[places, places % _VOCABULARY] = _GAP
    teacher[places, (places + places % 2) % _VOCABULARY] = _GAP
    head = torch.eye(_VOCABULARY, dtype=dtype)
    wide = replace(
        problem, hidden=hidden.requires_grad_(True), head=head.requires_grad_(True),
        teacher_hidden=teacher, teacher_head=head.detach(), target_ids=places % _VOCABULARY,
    )  # fmt: skip
    output = wide.apply(loss)
    for name, value in zip(("loss", "gradient", "gradient"), (output.loss, *wide.gradients(output)), strict=True):
        assert bool(value.isfinite().all()), f"logits {_GAP:.0f} apart in {dtype} give a {name} that is not finite"


def _check_pickle(loss: TokenLoss, problem: _Problem) -> None:
    again = pickle.loads(pickle.dumps(loss))
    _close(problem.apply(again).loss, problem.apply(loss).loss, "a pickled loss gives a different value")


def _close(given: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], message: str) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, msg=lambda detail: f"{message}\n{detail}")
