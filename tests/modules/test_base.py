import math
from functools import partial

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from lightning_minillm.models import ModelPair
from lightning_minillm.modules import CausalLMModule, KDModule, SFTModule, minillm
from lightning_minillm.rollout import SamplingConfig, decode_responses, sampler_for
from lightning_minillm.types import LossOutput

GREEDY = SamplingConfig(max_new_tokens=6, temperature=0.0, teacher_mix_alpha=0.0)
SAMPLED = SamplingConfig(max_new_tokens=6, temperature=0.9, teacher_mix_alpha=0.0)


@pytest.fixture(scope="module")
def make_module(make_model, tokenizer, adamw, options_of):
    """An SFT module of a tiny GPT-2; ``teacher=True`` gives it a tiny Llama as teacher."""

    def make(module_class=SFTModule, student=None, teacher=None, **options):
        if teacher is not None:
            options["teacher"] = make_model("llama", seed=2) if teacher is True else teacher
        student = student or make_model("gpt2", seed=1)
        defaults = {"optimizer": adamw(), "validation_sampling": SAMPLED}
        return module_class(student, tokenizer, **options_of(options, defaults))

    return make


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_may_be_given_as_callables_and_are_made_once(make_module, make_model):
    made = []

    def make():
        made.append(make_model("gpt2", seed=1))
        return made[-1]

    module = make_module(CausalLMModule, student=make)
    assert module.student is None
    assert made == []
    module.configure_model()
    module.configure_model()
    assert len(made) == 1
    assert module.student is made[0]


@pytest.mark.parametrize("given", ["models", "callables"])
def test_only_the_student_is_part_of_the_module(given, make_module, make_model):
    student, teacher = make_model("gpt2", seed=1), make_model("llama", seed=2)
    if given == "callables":
        module = make_module(student=lambda: student, teacher=lambda: teacher)
    else:
        module = make_module(student=student, teacher=teacher)
    module.configure_model()
    assert module.state_dict().keys() == {f"student.{name}" for name in student.state_dict()}
    assert {id(p) for p in module.parameters()} == {id(p) for p in student.parameters()}
    assert module.teacher is teacher
    module.train()
    assert not any(m.training for m in teacher.modules())


def test_inputs_belong_where_the_student_is(make_module, make_evaluation, make_data, make_trainer):
    """After a run on a GPU, the trainer has moved it back to the CPU."""
    module = make_module()
    evaluate(module, [make_evaluation()], make_trainer, make_data)
    module.student.to("meta")
    assert module.pair.device == torch.device("meta")


def test_evaluation_samples_the_student_alone(make_module):
    with pytest.raises(ValueError, match="teacher_mix_alpha=0"):
        make_module(validation_sampling=SamplingConfig(teacher_mix_alpha=0.2))


# --- optimiser and schedule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
def test_the_optimiser_gets_what_can_be_trained(frozen, make_module):
    module = make_module()
    module.configure_model()
    if frozen:
        module.student.transformer.wte.weight.requires_grad_(False)
    held = module.configure_optimizers().param_groups[0]["params"]
    assert len(held) == len(list(module.student.parameters())) - frozen


def test_no_optimiser_is_an_error_that_says_so(make_module):
    module = make_module(optimizer=None)
    module.configure_model()
    with pytest.raises(ValueError, match=r"SFTModule has no optimizer to train with: pass training="):
        module.configure_optimizers()


def test_a_schedule_learns_the_number_of_steps(make_module, make_data, make_tokens, make_trainer):
    """4 micro-batches an epoch, 2 a step, 3 epochs: 6 steps; stepped once an optimiser step."""
    module = make_module(scheduler=partial(get_cosine_schedule_with_warmup, num_warmup_steps=2))
    trainer = make_trainer(max_epochs=3, accumulate_grad_batches=2)
    trainer.fit(module, make_data(train_batches=[make_tokens(4, seed) for seed in range(4)]))
    assert trainer.global_step == 6
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.last_epoch == 6
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


# --- evaluation -------------------------------------------------------------------------------------------------------


def evaluate(module, batches, make_trainer, make_data, stage="validate"):
    trainer = make_trainer()
    return getattr(trainer, stage)(module, datamodule=make_data(validation=batches), verbose=False)[0]


@pytest.mark.parametrize(("stage", "prefix"), [("validate", "val"), ("test", "test")])
def test_metrics_of_an_evaluation(stage, prefix, make_module, make_evaluation, make_data, make_trainer):
    """Each metric against its definition, row by row."""
    batches = [make_evaluation(), make_evaluation((6, 2, 5), (False, True, True), seed=9, first_index=4)]
    module = make_module(teacher=True)
    given = evaluate(module, batches, make_trainer, make_data, stage)
    assert given.keys() == {f"{prefix}/{n}" for n in ("loss", "rougeL", "exact_match", "response_length", "reverse_kl")}

    student, teacher, tokenizer = module.student, module.teacher, module.tokenizer
    losses, kls, lengths, rouge, exact, rows = [], [], [], [], [], []
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for batch in batches:
        rollouts = sampler_for(module.pair, SAMPLED).sample(batch.prompts, seed=10)
        for row in range(len(batch.tasks)):
            ids = batch.tokens.input_ids[row][batch.tokens.attention_mask[row]]
            targets = batch.tokens.target_mask[row][batch.tokens.attention_mask[row]]
            with torch.no_grad():
                log_q = student(input_ids=ids[None]).logits[0].log_softmax(-1)
            losses += [-log_q[t - 1, ids[t]].item() for t in range(1, len(ids)) if targets[t]]
            prompt = batch.prompts.input_ids[row][batch.prompts.attention_mask[row]]
            response = rollouts.response_ids[row][rollouts.response_mask[row]]
            sequence = torch.cat([prompt, response])[None]
            with torch.no_grad():
                log_q, log_p = ((m(input_ids=sequence).logits[0] / 0.9).log_softmax(-1) for m in (student, teacher))
            predicting = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
            kls += (log_q.exp() * (log_q - log_p)).sum(-1)[predicting].tolist()
            lengths.append(len(response))
            text = tokenizer.decode(response, skip_special_tokens=True).strip()
            rouge.append(max(scorer.score(r, text)["rougeL"].fmeasure for r in batch.references[row]))
            if batch.exact[row]:
                exact.append(text in batch.references[row])
            rows.append((batch.prompts.indices[row].item(), text))
    assert given[f"{prefix}/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert given[f"{prefix}/reverse_kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-3)
    assert given[f"{prefix}/response_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert given[f"{prefix}/rougeL"] == pytest.approx(100 * sum(rouge) / len(rouge), abs=1e-3)
    assert given[f"{prefix}/exact_match"] == pytest.approx(100 * sum(exact) / len(exact))
    assert [(sample["index"], sample["response"]) for sample in module.samples] == rows
    texts = {"index", "task", "prompt", "references", "response", "exact"}
    numbers = {"rougeL", "response_tokens", "reverse_kl", "reference_loss", "loss_tokens"}
    assert module.samples[0].keys() == texts | numbers


def test_exact_match_counts_exact_rows_only(make_module, make_evaluation, make_data, make_trainer):
    """With the model's own greedy answers as references, every exact row matches."""
    module, batch = make_module(validation_sampling=GREEDY), make_evaluation()
    rollouts = sampler_for(module.pair, GREEDY).sample(batch.prompts, seed=0)
    answers = decode_responses(module.tokenizer, rollouts)
    references = tuple((text,) if flag else ("w1 w2 w3",) for text, flag in zip(answers, batch.exact, strict=True))
    object.__setattr__(batch, "references", references)
    assert evaluate(module, [batch], make_trainer, make_data)["val/exact_match"] == 100


def test_a_metric_that_no_row_has_is_left_out(make_module, make_evaluation, make_data, make_trainer):
    given = evaluate(make_module(), [make_evaluation(exact=(False,) * 4)], make_trainer, make_data)
    assert given.keys() == {"val/loss", "val/rougeL", "val/response_length"}


def test_a_metric_that_is_not_a_number_is_logged(make_module, make_model, make_evaluation, make_data, make_trainer):
    """It is a fact about the models; a callback that monitors it has to see it."""
    module = make_module(teacher=make_model("llama", seed=2))
    with torch.no_grad():
        module.pair.teacher.model.norm.weight.fill_(torch.nan)
    assert math.isnan(evaluate(module, [make_evaluation()], make_trainer, make_data)["val/reverse_kl"])


def test_samples_show_what_the_teacher_says(
    make_module, make_evaluation, make_data, make_trainer, make_model, tokenizer
):
    module = make_module(teacher=True)
    batches = [make_evaluation(), make_evaluation(first_index=4, seed=3)]
    expected = evaluate(module, batches, make_trainer, make_data)
    assert not any("teacher" in sample for sample in module.samples)
    module.shows_teacher = True
    assert evaluate(module, batches, make_trainer, make_data) == expected
    alone = sampler_for(ModelPair(module.teacher, tokenizer), SAMPLED)
    said = decode_responses(tokenizer, alone.sample(batches[0].prompts, seed=module.validation_options.seed))
    assert [sample["teacher"] for sample in module.samples[:4]] == said
    assert not any("teacher" in sample for sample in module.samples[4:])
    module.pair.teacher_split = None  # nothing is sampled again
    assert module._responses_of_teacher(batches[0]) == said


def test_evaluations_repeat_and_do_not_depend_on_the_batch_size(make_module, make_evaluation, make_data, make_trainer):
    module = make_module(teacher=True)
    whole = make_evaluation((5, 3, 7, 1, 2, 6), (True,) * 6)
    expected = evaluate(module, [whole], make_trainer, make_data)
    again = evaluate(module, [whole], make_trainer, make_data)
    assert again == expected

    def rows(batch, chosen):
        cut = lambda t: type(t)(**{k: v[chosen] if torch.is_tensor(v) else v for k, v in vars(t).items()})  # noqa: E731
        names = ("references", "tasks", "exact", "prompt_texts")
        picked = {name: tuple(getattr(batch, name)[i] for i in chosen) for name in names}
        return type(batch)(prompts=cut(batch.prompts), tokens=cut(batch.tokens), **picked)

    pieces = [rows(whole, chosen) for chosen in ([4], [0, 5, 2], [1, 3])]
    assert evaluate(module, pieces, make_trainer, make_data) == pytest.approx(expected, rel=1e-4)


def test_an_evaluation_is_without_dropout_and_leaves_no_gradient(
    make_model, make_module, make_evaluation, make_data, make_trainer
):
    plain = evaluate(make_module(), [make_evaluation()], make_trainer, make_data)
    module = make_module(student=make_model("gpt2", seed=1, resid_pdrop=0.5).train())
    assert evaluate(module, [make_evaluation()], make_trainer, make_data) == plain
    assert all(p.grad is None for p in module.student.parameters())


# --- a loss that is not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_whose_loss_is_not_finite_names_the_rows(value, make_module):
    with pytest.raises(FloatingPointError, match=r"at step 0, on the rows \[4, 9\] of the training data"):
        make_module().finish_step(LossOutput(torch.tensor(value), {}), torch.tensor([4, 9]))


# --- checkpoints and export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"n_embd": 32}, {"n_layer": 3}, {"vocab_size": 41}])
def test_a_checkpoint_of_another_architecture_says_so(
    change, make_module, make_model, make_data, make_tokens, make_trainer, tmp_path
):
    data = make_data(train_batches=[make_tokens(4)])
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_module(student=make_model("gpt2", **change)), data)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    module = make_module()
    with pytest.raises(
        ValueError, match=r"has a different architecture: \d+ weights differ .*here .* in the checkpoint "
    ):
        make_trainer(max_steps=2).fit(module, data, ckpt_path=tmp_path / "other.ckpt", weights_only=False)


def test_a_checkpoint_is_found_again_by_any_module_of_the_student(
    make_module, make_data, make_tokens, make_trainer, weights_of, tmp_path
):
    """What SFT has trained, MiniLLM and an evaluation may start from."""
    module, trainer = make_module(), make_trainer(max_steps=2)
    trainer.fit(module, make_data(train_batches=[make_tokens(4, 0), make_tokens(4, 1)]))
    trainer.save_checkpoint(tmp_path / "sft.ckpt")
    state = torch.load(tmp_path / "sft.ckpt", weights_only=False)["state_dict"]
    for module_class in (CausalLMModule, KDModule, minillm):
        other = make_module(module_class, teacher=True)
        other.configure_model()
        other.load_state_dict(state)
        assert torch.equal(weights_of(other.student), weights_of(module.student))


@pytest.mark.parametrize("trained", [True, False])
def test_an_exported_folder_loads_without_this_package(
    trained, make_module, make_data, make_tokens, make_trainer, make_prompts, tmp_path
):
    module = make_module()
    if trained:
        make_trainer(max_steps=1).fit(module, make_data(train_batches=[make_tokens(4)]))
    module.export(tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ids = make_prompts((6, 6)).input_ids
    torch.testing.assert_close(loaded.state_dict(), module.student.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(input_ids=ids).logits, module.student.eval()(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer("w3 w4")["input_ids"] == [3, 4]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
