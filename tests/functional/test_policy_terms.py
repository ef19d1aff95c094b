import math

import pytest
import torch

from lightning_minillm.functional.divergences import entropy, reverse_kl
from lightning_minillm.functional.logprobs import gather_logprobs
from lightning_minillm.functional.policy_terms import policy_terms


def random_logits(count=9, vocabulary=13, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(count, vocabulary, generator=generator, dtype=dtype) for _ in range(2))
    return student.requires_grad_(), torch.randint(vocabulary, (count,), generator=generator), teacher


def test_values_are_those_of_each_function_by_itself():
    student, ids, teacher = random_logits()
    terms = policy_terms(student, ids, teacher)
    torch.testing.assert_close(terms.logprobs, gather_logprobs(student, ids))
    torch.testing.assert_close(terms.reverse_kl, reverse_kl(student, teacher))
    torch.testing.assert_close(terms.entropy, entropy(student))
    assert not terms.entropy.requires_grad


@pytest.mark.parametrize("name", ["logprobs", "reverse_kl"])
def test_gradients_by_finite_differences(name):
    student, ids, teacher = random_logits(4, 5)
    assert torch.autograd.gradcheck(lambda logits: getattr(policy_terms(logits, ids, teacher), name), student)


def test_gradients_of_both_terms_together_are_autograds():
    student, ids, teacher = random_logits(dtype=torch.float32)
    weights = torch.linspace(-1, 2, 9)
    terms = policy_terms(student, ids, teacher)
    (weights * terms.logprobs.exp() + (1 - weights) * terms.reverse_kl).sum().backward()
    given, student.grad = student.grad, None
    (weights * gather_logprobs(student, ids).exp() + (1 - weights) * reverse_kl(student, teacher)).sum().backward()
    torch.testing.assert_close(given, student.grad)


def test_tokens_the_student_cannot_say_count_nothing():
    """Also where the teacher cannot say them either."""
    student, ids, teacher = random_logits()
    with torch.no_grad():
        student[:, 4:6] = -math.inf
        teacher[:, 5:7] = -math.inf
        teacher[:3, 6] = 1.0
    ids = ids.clamp_max(3)
    terms = policy_terms(student, ids, teacher)
    torch.testing.assert_close(terms.entropy, entropy(student))
    torch.testing.assert_close(terms.reverse_kl, reverse_kl(student, teacher))
    assert terms.reverse_kl[3:].eq(math.inf).all()
    policy_terms(student, ids, teacher).reverse_kl[:3].sum().backward()
    assert student.grad[:3].isfinite().all()


def test_what_was_given_is_left_as_it_is():
    student, ids, teacher = random_logits()
    before = student.detach().clone(), teacher.clone()
    policy_terms(student, ids, teacher).reverse_kl.sum().backward()
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])
