import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import LanguageModelingLoss, MiniLLMLoss, TokenLoss
from lightning_minillm.losses.chunking import tokens_per_chunk
from lightning_minillm.models import SplitCausalLM
from lightning_minillm.types import TokenValues

SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
HEADS = {
    "tied": ("gpt2", {}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "soft_cap": ("gemma2", {**SMALL, "head_dim": 4, "final_logit_softcapping": 2.0, "sliding_window": 8}),
    "scale": ("cohere", {**SMALL, "logit_scale": 0.37}),
    "division": ("granite", {**SMALL, "logits_scaling": 3.0}),
}


def with_bias(model):
    """A head with a bias of its own."""
    head = model.get_output_embeddings()
    biased = nn.Linear(head.in_features, head.out_features)
    biased.weight = head.weight
    model.set_output_embeddings(biased)
    return model


def with_lora(model):
    """A head that only its adapter trains, and that has seen a step."""
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"], lora_alpha=4)).base_model.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=[*HEADS, "bias", "lora"])
def student(request, make_model):
    if request.param == "bias":
        return with_bias(make_model("llama", seed=1, tie_word_embeddings=False))
    if request.param == "lora":
        return with_lora(make_model("llama", seed=1, tie_word_embeddings=False))
    family, options = HEADS[request.param]
    return make_model(family, seed=1, **options)


def apply(model, teacher, loss, scale=1.0):
    """Loss and gradients of every trainable weight, the body's included."""
    ids = torch.randint(1, 37, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    targets = mask.clone()
    targets[:, :3] = False
    states, target_ids = SplitCausalLM(model).token_states(ids, mask, targets)
    assert states.parameters is not None
    with torch.no_grad():
        teacher_states, _ = SplitCausalLM(teacher).token_states(ids, mask, targets)
    inputs = {
        "old_logprobs": torch.linspace(-3, -2, len(states)),
        "advantages": torch.linspace(-1, 1, len(states)),
        "importance_weights": torch.linspace(0.8, 1.2, len(states)),
    }
    output = loss(states, target_ids, teacher_states, inputs, normalizer=20.0, temperature=0.9)
    model.zero_grad()
    (scale * output.loss).backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk_size", [1, 4, 18, "auto"])
def test_gradients_of_every_kind_of_head(student, make_model, chunk_size):
    """Taken chunk by chunk in the forward pass, they are those of the plain computation."""
    teacher = make_model("llama", seed=2)
    plain, expected = apply(student, teacher, MiniLLMLoss(chunk_size=None), scale=3.0)
    given, gradients = apply(student, teacher, MiniLLMLoss(chunk_size=chunk_size), scale=3.0)
    torch.testing.assert_close(given.loss, plain.loss)
    torch.testing.assert_close(dict(given.parts), dict(plain.parts))
    assert gradients.keys() == expected.keys()
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_a_model_whose_head_cannot_be_told_from_its_body(make_model):
    def split_states(model, chunk_size):
        split = SplitCausalLM(model)
        split.is_split = False
        ids = torch.arange(1, 9)[None]
        mask = torch.ones_like(ids, dtype=torch.bool)
        states, target_ids = split.token_states(ids, mask, mask & (ids > 1))
        assert states.parameters == ()
        LanguageModelingLoss(chunk_size)(states, target_ids).loss.backward()
        return model.get_output_embeddings().weight.grad

    model = make_model("gpt2", seed=1)
    torch.testing.assert_close(split_states(copy.deepcopy(model), 2), split_states(copy.deepcopy(model), None))


def linear_states(count, head, requires_grad=True):
    hidden = torch.randn(count, head.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=requires_grad)
    return TokenStates(hidden, lambda states: states @ head.T, (head,), len(head))


def test_every_chunk_is_projected_once():
    head, seen = torch.randn(7, 4, requires_grad=True), []
    states = linear_states(40, head)
    counted = TokenStates(states.hidden, lambda h: seen.append(len(h)) or states.project(h), (head,), 7)
    LanguageModelingLoss(10)(counted, torch.arange(40) % 7).loss.backward()
    assert seen == [10] * 4


@pytest.mark.parametrize("trained", ["hidden", "head"])
def test_only_what_requires_a_gradient_gets_one(trained):
    head = torch.randn(7, 4, requires_grad=trained == "head")
    states = linear_states(9, head, requires_grad=trained == "hidden")
    LanguageModelingLoss(4)(states, torch.arange(9) % 7).loss.backward()
    assert (states.hidden.grad is None) is (trained == "head")
    assert (head.grad is None) is (trained == "hidden")


def test_without_anything_to_train_there_is_no_graph():
    states = linear_states(9, torch.randn(7, 4), requires_grad=False)
    assert not LanguageModelingLoss(4)(states, torch.arange(9) % 7).loss.requires_grad


def test_half_precision_gradients_add_up_in_single_precision():
    """With many chunks, a half-precision sum would stop growing."""
    head = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    states = linear_states(512, head.detach().float())
    half = TokenStates(states.hidden.detach().bfloat16().requires_grad_(), lambda h: h @ head.T, (head,), 7)
    ids = torch.zeros(512, dtype=torch.int64)
    LanguageModelingLoss(None)(half, ids, normalizer=1.0).loss.backward()
    whole, head.grad = head.grad, None
    LanguageModelingLoss(1)(half, ids, normalizer=1.0).loss.backward()
    torch.testing.assert_close(head.grad, whole, rtol=2e-2, atol=1.0)
    assert half.hidden.grad.dtype == torch.bfloat16


def test_under_autocast_gradients_are_those_of_the_plain_computation():
    head = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradients = []
    for chunk_size in (None, 4):
        states = linear_states(9, head)
        head.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = LanguageModelingLoss(chunk_size)(states, torch.arange(9) % 7).loss
        loss.backward()
        gradients.append((head.grad, states.hidden.grad))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-3)


class LearnedWeight(TokenLoss):
    """A loss with a weight of its own."""

    needs_teacher = False

    def __init__(self, chunk_size):
        super().__init__(chunk_size)
        self.weight = nn.Parameter(torch.tensor(0.5))

    def token_values(self, signals):
        nll = -signals.student_logits.log_softmax(-1).gather(-1, signals.target_ids[:, None]).squeeze(-1)
        return TokenValues(self.weight * nll, {})


def test_weights_of_the_loss_itself_are_trained():
    gradients = []
    for chunk_size in (None, 2):
        loss = LearnedWeight(chunk_size)
        states = linear_states(9, torch.ones(7, 4))
        loss(states, torch.arange(9) % 7).loss.backward()
        gradients.append(loss.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(("vocabulary", "tokens"), [(37, 2**21 // 37), (8192, 256), (32768, 128), (151936, 128)])
def test_chunks_chosen_by_the_vocabulary(vocabulary, tokens):
    states = TokenStates(torch.zeros(1, 4), lambda hidden: hidden, vocabulary=vocabulary)
    assert tokens_per_chunk("auto", states) == tokens
    assert tokens_per_chunk(5, states) == 5
    assert tokens_per_chunk(None, states) is None


def test_chunks_of_an_unknown_vocabulary():
    assert tokens_per_chunk("auto", TokenStates(torch.zeros(1, 4), lambda hidden: hidden)) == 1024


@pytest.mark.parametrize("chunk_size", ["automatic", 0, -1, 2.5])
def test_chunk_size_out_of_range(chunk_size):
    with pytest.raises(ValueError, match="chunk_size must be at least 1, 'auto', or null"):
        LanguageModelingLoss(chunk_size)
