"""Student and teacher whose tokenizers differ in added tokens and padding: what only one knows plays no part."""

import warnings

import pytest
import torch
from lightning import Trainer

from lightning_minillm.data import DistillationDataModule, InstructionRecord, Lengths
from lightning_minillm.models import ModelPair, ModelWithTokenizer
from lightning_minillm.modules import KDModule, TrainingOptions, ValidationOptions
from lightning_minillm.rollout import SamplingConfig, sampler_for
from lightning_minillm.rollout.scoring import policy_inputs, rollout_sequences
from lightning_minillm.types import PolicyBatch, TokenBatch

SHARED = 30
# added tokens of student and teacher, and the ids that both models know
PAIRS = {
    "teacher": ({}, {"added": ["<think>", "</think>"]}, range(SHARED)),
    "student": ({"added": ["<a>"]}, {}, range(SHARED)),
    "eos": ({}, {"eos": "<|im_end|>", "added": ["<a>"]}, range(SHARED)),
    "gap": ({"gap": 3}, {"gap": 3, "added": ["<a>"]}, [*range(SHARED), SHARED + 3]),
    "chat": ({}, {"chat": "{{ messages }}", "added": ["<a>"]}, range(SHARED)),
}


@pytest.fixture(params=sorted(PAIRS))
def differing(request, make_model, make_special_tokenizer):
    """Student, teacher, their tokenizers and the shared ids; the embeddings have 37 and 41 rows."""
    own, theirs, shared = PAIRS[request.param]
    models = (make_model("gpt2", seed=1, vocab_size=37), make_model("llama", seed=2, vocab_size=41))
    return *models, make_special_tokenizer(**own), make_special_tokenizer(**theirs), list(shared)


def make_pair(student, teacher, own, theirs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ModelPair(student, own, ModelWithTokenizer(teacher, theirs))


def make_batch(shared, width=9):
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor(shared)[torch.randint(len(shared), (6, width), generator=generator)]
    mask = torch.ones(6, width, dtype=torch.bool)
    target = mask.clone()
    target[:, :3] = False
    return TokenBatch(ids, mask, target, torch.arange(6), normalizer=36.0)


def loss_of(pair, loss, batch):
    """The loss, its parts, and the student's gradients."""
    states, target_ids = pair.token_states(batch)
    generator = torch.Generator().manual_seed(1)
    inputs = {name: torch.rand(len(target_ids), generator=generator) - 1 for name in loss.token_inputs}
    output = loss(states, target_ids, pair.teacher_token_states(batch), inputs, batch.normalizer)
    parameters = list(pair.student.parameters())
    return output, torch.autograd.grad(output.loss, parameters, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_that_only_one_knows_have_no_probability(differing, dtype):
    *models, own, theirs, shared = differing
    pair = make_pair(*(model.to(dtype) for model in models), own, theirs)
    batch = make_batch(shared)
    for states in (pair.token_states(batch)[0], pair.teacher_token_states(batch)):
        mass = states.logits(temperature=2.0).softmax(-1)
        unknown = [index for index in range(mass.shape[-1]) if index not in shared]
        assert mass[:, unknown].sum() == 0
        assert bool((mass[:, shared[0] : SHARED] > 0).all())
    for model in models:
        model.float()


def test_losses_do_not_see_them(differing, make_loss):
    """Finite values and gradients, to the bit those of any other padding."""
    student, teacher, own, theirs, shared = differing
    loss, batch = make_loss(chunk_size=None), make_batch(shared)
    output, gradients = loss_of(make_pair(student, teacher, own, theirs), loss, batch)
    assert bool(output.loss.isfinite())
    assert all(bool(value.isfinite()) for value in output.parts.values())
    assert all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
    unknown = [index for index in range(37) if index not in shared]
    rows = dict(zip((name for name, _ in student.named_parameters()), gradients, strict=True))
    assert not rows["transformer.wte.weight"][unknown].any()
    with torch.no_grad():
        for model in (student, teacher):
            weight = model.get_output_embeddings().weight
            weight[[index for index in range(len(weight)) if index not in shared]] += 3.0
    again, others = loss_of(make_pair(student, teacher, own, theirs), loss, batch)
    assert torch.equal(again.loss, output.loss)
    assert all(torch.equal(again.parts[name], value) for name, value in output.parts.items())
    assert all(torch.equal(*pair) for pair in zip(others, gradients, strict=True) if pair[0] is not None)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 3.0}, {"min_new_tokens": 4}])
def test_they_are_never_written(differing, make_prompts, options):
    *models, own, theirs, shared = differing
    pair = make_pair(*models, own, theirs)
    config = SamplingConfig(max_new_tokens=12, teacher_mix_alpha=0.5, **options)
    rollouts = sampler_for(pair, config).sample(make_prompts((5, 3) * 16, vocab_size=SHARED), seed=0)
    assert set(rollouts.response_ids[rollouts.response_mask].tolist()) <= set(shared)
    for values in (rollouts.student_logprobs, rollouts.teacher_logprobs, rollouts.mixture_logprobs):
        assert bool(values.isfinite().all())
        assert bool((values > -100).all())


def test_the_update_scores_them_as_the_sampler_did(differing, make_prompts):
    *models, own, theirs, _ = differing
    pair = make_pair(*models, own, theirs)
    sampler = sampler_for(pair, SamplingConfig(max_new_tokens=12, teacher_mix_alpha=0.5))
    rollouts = sampler.sample(make_prompts((5, 3, 7, 2), vocab_size=SHARED), seed=0)
    states, ids = pair.token_states(rollout_sequences(rollouts))
    given = states.logits().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    zeros = torch.zeros_like(rollouts.student_logprobs)
    expected = policy_inputs(PolicyBatch(rollouts, zeros, zeros, 1.0), ["old_logprobs"])["old_logprobs"]
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["prompt", "target"])
def test_a_text_that_holds_a_token_of_the_student_alone_is_refused(make_model, make_special_tokenizer, place):
    models = make_model("gpt2", vocab_size=37), make_model("gpt2", vocab_size=30)
    pair = make_pair(*models, make_special_tokenizer(added=["<a>"]), make_special_tokenizer())
    batch = make_batch(range(SHARED))
    batch.input_ids[4, 1 if place == "prompt" else -1] = 30
    with pytest.raises(ValueError, match=r"the rows \[4\] of the data contain the token ids \[30\]"):
        pair.token_states(batch)


def test_equal_tokenizers_leave_all_as_it_was(make_model, make_special_tokenizer):
    student, teacher = make_model("gpt2", seed=1), make_model("llama", seed=2)
    plain = ModelPair(student, make_special_tokenizer(), teacher)
    named = make_pair(student, teacher, make_special_tokenizer(), make_special_tokenizer())
    batch = make_batch(range(37))
    assert torch.equal(*(pair.token_states(batch)[0].logits() for pair in (plain, named)))


def test_data_with_a_token_of_the_student_alone_are_refused_before_any_work(make_model, make_special_tokenizer):
    own, theirs = make_special_tokenizer(added=["<a>"]), make_special_tokenizer()
    models = (make_model("gpt2", seed=1, vocab_size=37), make_model("llama", seed=2, vocab_size=41))
    pair = make_pair(*models, own, theirs)
    records = [InstructionRecord("w5", "", (text,)) for text in ("w6", "w7 <a>", "w8")]
    data = DistillationDataModule(records, records[:1], tokenizer=own, template="raw", lengths=Lengths(20, 12))
    data.prepare_data()
    pair.student_split.check_rows(lambda ids: data.rows_with([]))
    with pytest.raises(
        ValueError, match=r"token ids in 1 rows of train \(the first is 1\), which only one of student and teacher"
    ):
        pair.student_split.check_rows(data.rows_with)
    module = KDModule(
        models[0],
        own,
        teacher=ModelWithTokenizer(models[1], theirs),
        training=TrainingOptions(optimizer=torch.optim.SGD),
        validation=ValidationOptions(SamplingConfig(max_new_tokens=4, teacher_mix_alpha=0.0)),
    )
    with pytest.warns(UserWarning, match="the tokenizers of student and teacher differ"):
        module.configure_model()
    models[0].register_forward_pre_hook(lambda *_: pytest.fail("the student was run"))
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match="token ids in 1 rows of train"):
        trainer.fit(module, datamodule=data)
