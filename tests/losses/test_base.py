import io
import math

import pytest
import torch

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import ForwardKL, GeneralizedJSD, LanguageModelingLoss, MiniLLMLoss, ReverseKL, TokenLoss
from lightning_minillm.types import TokenValues

NAN = float("nan")


# --- properties of every loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 3, 5, 11, 64])
def test_chunks_change_neither_value_nor_gradient(make_loss, make_tokens, chunk_size, temperature):
    tokens = make_tokens()
    plain = tokens.apply(make_loss(chunk_size=None), temperature=temperature)
    chunked = tokens.apply(make_loss(chunk_size=chunk_size), temperature=temperature)
    torch.testing.assert_close(chunked.loss, plain.loss)
    torch.testing.assert_close(dict(chunked.parts), dict(plain.parts))
    torch.testing.assert_close(tokens.gradients(chunked), tokens.gradients(plain))


@pytest.mark.parametrize("chunk_size", [3, None])
def test_only_the_student_gets_a_gradient(make_loss, make_tokens, chunk_size):
    tokens = make_tokens()
    for value in tokens.inputs.values():
        value.requires_grad_(True)
    tokens.apply(make_loss(chunk_size=chunk_size)).loss.backward()
    assert tokens.student_hidden.grad.abs().sum() > 0
    assert tokens.student_head.grad.abs().sum() > 0
    assert tokens.teacher_hidden.grad is None
    assert tokens.teacher_head.grad is None
    assert tokens.inputs["advantages"].grad is None


def test_parts_are_detached_and_finite_scalars(make_loss, make_tokens):
    output = make_tokens().apply(make_loss())
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    for value in output.parts.values():
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad


def test_pieces_sum_to_the_whole(make_loss, make_tokens):
    """The normaliser of the whole step on every piece: values, parts and gradients add up."""
    tokens, loss = make_tokens(), make_loss(chunk_size=2)
    whole = tokens.apply(loss, normalizer=11.0)
    pieces = [tokens.apply(loss, rows, normalizer=11.0) for rows in (slice(0, 4), slice(4, 5), slice(5, 11))]
    torch.testing.assert_close(sum(piece.loss for piece in pieces), whole.loss)
    for name, value in whole.parts.items():
        torch.testing.assert_close(sum(piece.parts[name] for piece in pieces), value)
    summed = [sum(parts) for parts in zip(*(tokens.gradients(piece) for piece in pieces), strict=True)]
    torch.testing.assert_close(tuple(summed), tokens.gradients(whole))


def test_the_order_of_tokens_changes_nothing(make_loss, make_tokens):
    tokens = make_tokens()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    plain, shuffled = tokens.apply(make_loss()), tokens.apply(make_loss(), order)
    torch.testing.assert_close(shuffled.loss, plain.loss)
    torch.testing.assert_close(tokens.gradients(shuffled), tokens.gradients(plain))


def test_without_a_normalizer_the_loss_is_the_mean(make_loss, make_tokens):
    tokens = make_tokens()
    torch.testing.assert_close(tokens.apply(make_loss()).loss, tokens.apply(make_loss(), normalizer=11).loss)
    torch.testing.assert_close(tokens.apply(make_loss()).loss * 11, tokens.apply(make_loss(), normalizer=1).loss)


@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(13, 17), (17, 13)])
def test_vocabularies_are_compared_on_the_shared_ids(make_loss, make_tokens, student_rows, teacher_rows):
    """Embedding rows past the tokenizer stand for nothing: cutting them off beforehand gives the same."""
    tokens, loss = make_tokens(9, student_rows, teacher_rows), make_loss(chunk_size=4)
    given = tokens.apply(loss)
    if not loss.reads_teacher:
        assert given.loss == loss(tokens.student, tokens.target_ids, None, tokens.inputs).loss
        return
    tokens.student_head.data, tokens.teacher_head.data = tokens.student_head[:13], tokens.teacher_head[:13]
    torch.testing.assert_close(given.loss, tokens.apply(loss).loss)


def test_losses_pickle(make_loss, make_tokens):
    tokens, loss = make_tokens(), make_loss()
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(tokens.apply(again).loss, tokens.apply(loss).loss)


def test_no_token_is_an_error(make_loss, make_tokens):
    with pytest.raises(ValueError, match="no target token"):
        make_tokens().apply(make_loss(), slice(0, 0))


def test_a_missing_teacher_is_an_error(make_loss, make_tokens):
    tokens, loss = make_tokens(), make_loss()
    if loss.reads_teacher:
        with pytest.raises(ValueError, match=r"pass teacher=\.\.\. to the module"):
            loss(tokens.student, tokens.target_ids, None, tokens.inputs)
    else:
        assert loss(tokens.student, tokens.target_ids, None, tokens.inputs).loss.isfinite()


@pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL(), GeneralizedJSD(0.1), GeneralizedJSD(0.9)])
def test_divergences_say_so_and_are_zero_at_the_teacher(loss, make_tokens):
    tokens = make_tokens()
    assert loss.is_divergence
    itself = loss(tokens.student, tokens.target_ids, tokens.student)
    assert itself.loss.abs().item() < 1e-6
    assert tokens.apply(loss).loss.item() > 0.01


# --- the base itself --------------------------------------------------------------------------------------------------


class WeightedNLL(TokenLoss):
    """What a user would write: per-token weights on the negative log-likelihood."""

    needs_teacher = False
    token_inputs = ("weights",)

    def token_values(self, signals):
        nll = -signals.student_logits.log_softmax(-1).gather(-1, signals.target_ids[:, None]).squeeze(-1)
        return TokenValues(nll * signals.inputs["weights"], {"nll": nll})


def test_a_loss_of_the_users_own_is_chunked_and_reduced(make_tokens):
    tokens = make_tokens()
    weights = torch.linspace(0, 1, 11)
    nll = -(tokens.student_hidden @ tokens.student_head.T).log_softmax(-1)[torch.arange(11), tokens.target_ids]
    given = WeightedNLL(chunk_size=3)(tokens.student, tokens.target_ids, inputs={"weights": weights}, normalizer=4.0)
    torch.testing.assert_close(given.loss, (weights * nll).sum() / 4)
    torch.testing.assert_close(given.parts["nll"], nll.detach().sum() / 4)


def test_a_missing_input_names_what_there_is(make_tokens):
    tokens = make_tokens()
    with pytest.raises(ValueError, match=r"needs the per-token inputs \['weights'\]; got \['advantages'"):
        WeightedNLL()(tokens.student, tokens.target_ids, inputs=tokens.inputs)


def test_student_and_teacher_must_have_the_same_tokens(make_tokens):
    tokens = make_tokens()
    short = TokenStates(tokens.teacher_hidden[:5], tokens.teacher.project)
    with pytest.raises(ValueError, match="11 student and 5 teacher tokens"):
        ForwardKL()(tokens.student, tokens.target_ids, short)


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_out_of_range(chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        LanguageModelingLoss(chunk_size)


@pytest.mark.parametrize(("chunk_size", "largest"), [(None, 40), (10, 10), (7, 7)])
def test_no_more_logits_than_a_chunk_exist_at_once(make_tokens, chunk_size, largest):
    """Each projection is of at most ``chunk_size`` tokens, and happens again in the backward pass."""
    tokens, seen = make_tokens(count=40), []

    def project(hidden):
        seen.append(len(hidden))
        return hidden @ tokens.student_head.T

    output = LanguageModelingLoss(chunk_size)(TokenStates(tokens.student_hidden, project), tokens.target_ids)
    forward = len(seen)
    output.loss.backward()
    assert max(seen) == largest
    assert sum(seen[:forward]) == 40
    assert len(seen) == (forward if chunk_size is None else 2 * forward)


def test_nothing_is_kept_for_a_backward_pass_without_gradient(make_tokens):
    tokens = make_tokens()
    with torch.no_grad():
        output = tokens.apply(MiniLLMLoss(chunk_size=2))
    assert not output.loss.requires_grad


def test_half_precision_states_are_reduced_in_single_precision(make_tokens):
    tokens = make_tokens(count=64)
    hidden = tokens.student_hidden.detach().bfloat16()
    head = tokens.student_head.detach().bfloat16()
    states = TokenStates(hidden, lambda h: h @ head.T)
    output = LanguageModelingLoss(chunk_size=5)(states, tokens.target_ids)
    expected = torch.nn.functional.cross_entropy((hidden @ head.T).float(), tokens.target_ids)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", ["old_logprobs", "advantages", "importance_weights"])
def test_a_nan_in_a_valid_token_shows(make_tokens, name):
    """Masked tokens never reach a loss; a valid one that is not finite must not be hidden."""
    tokens = make_tokens()
    tokens.inputs[name][3] = NAN
    assert math.isnan(tokens.apply(MiniLLMLoss(chunk_size=4)).loss.item())
