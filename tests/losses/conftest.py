import pytest
import torch
from torch import nn

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import (
    AdaptiveKL,
    AlphaBetaDivergence,
    ForwardKL,
    GeneralizedJSD,
    Jeffreys,
    KDLoss,
    LanguageModelingLoss,
    MiniLLMLoss,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TeacherCrossEntropy,
    TotalVariation,
    WeightedLoss,
)

# every loss of the package, by a function of its chunk size
LOSSES = {
    "language_modeling": LanguageModelingLoss,
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": lambda chunk_size=None: GeneralizedJSD(0.3, chunk_size),
    "skewed_forward_kl": lambda chunk_size=None: SkewedForwardKL(0.1, chunk_size),
    "skewed_reverse_kl": lambda chunk_size=None: SkewedReverseKL(0.2, chunk_size),
    "total_variation": TotalVariation,
    "alpha_beta": lambda chunk_size=None: AlphaBetaDivergence(0.2, 0.7, chunk_size),
    "adaptive_kl": lambda chunk_size=None: AdaptiveKL(0.5, chunk_size),
    "jeffreys": Jeffreys,
    "teacher_cross_entropy": TeacherCrossEntropy,
    "kd": lambda chunk_size=None: KDLoss(0.5, chunk_size=chunk_size),
    "kd_reverse": lambda chunk_size=None: KDLoss(0.7, ReverseKL(), chunk_size),
    "weighted": lambda chunk_size=None: WeightedLoss(
        {"f": ForwardKL(), "r": ReverseKL(), "pg": MiniLLMLoss()}, {"f": 0.5, "r": -0.1, "pg": 2.0}, chunk_size
    ),
    "minillm": lambda chunk_size=None: MiniLLMLoss(chunk_size=chunk_size),
    "minillm_paper": lambda chunk_size=None: MiniLLMLoss(
        weight_single_step=True, chunk_size=chunk_size,
    ),
    "minillm_policy_gradient": lambda chunk_size=None: MiniLLMLoss(single_step=False, chunk_size=chunk_size),
}  # fmt: skip


class Tokens:
    """Hidden states of student and teacher for N tokens, their heads, target ids, and per-token inputs."""

    def __init__(self, count=11, student_vocabulary=13, teacher_vocabulary=13, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.student_hidden = normal(count, 6).requires_grad_(True)
        self.student_head = nn.Parameter(normal(student_vocabulary, 6))
        self.teacher_hidden = normal(count, 8).requires_grad_(True)
        self.teacher_head = nn.Parameter(normal(teacher_vocabulary, 8))
        shared = min(student_vocabulary, teacher_vocabulary)
        self.target_ids = torch.randint(shared, (count,), generator=generator)
        logprobs = (self.student_hidden @ self.student_head.T).log_softmax(-1).detach()
        self.inputs = {
            "old_logprobs": logprobs.gather(-1, self.target_ids[:, None]).squeeze(-1) + 0.2 * normal(count),
            "advantages": normal(count),
            "importance_weights": torch.rand(count, generator=generator) + 0.5,
        }

    @property
    def student(self):
        return TokenStates(self.student_hidden, lambda hidden: hidden @ self.student_head.T)

    @property
    def teacher(self):
        return TokenStates(self.teacher_hidden, lambda hidden: hidden @ self.teacher_head.T)

    def apply(self, loss, rows=slice(None), **kwargs):
        """The loss on some of the tokens."""
        student, teacher = self.student, self.teacher
        return loss(
            TokenStates(student.hidden[rows], student.project),
            self.target_ids[rows],
            TokenStates(teacher.hidden[rows], teacher.project),
            {name: value[rows] for name, value in self.inputs.items()},
            **kwargs,
        )

    def gradients(self, output):
        """Gradients of the loss for the student's hidden states and head."""
        return torch.autograd.grad(output.loss, [self.student_hidden, self.student_head])


@pytest.fixture
def make_tokens():
    return Tokens


@pytest.fixture(params=sorted(LOSSES))
def make_loss(request):
    """Each loss of the package, by a function of its chunk size."""
    return LOSSES[request.param]
