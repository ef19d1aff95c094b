"""The opponent does the same mathematics as the package: same rollouts, same loss, same gradient."""

import pytest
import torch

TINY = '{"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2}'


@pytest.fixture
def command(script, tmp_path, capsys):
    """The options of a workload of tiny models; the two vocabularies are one."""
    shapes = ["--student", TINY, "--teacher", TINY.replace("16", "24")]
    sizes = ["--vocabulary", "61", "--num-prompts", "8", "--num-lm", "8", "--mean-length", "4"]
    lengths = ["--prompt-lengths", "2", "6", "--max-new-tokens", "12", "--lm-lengths", "6", "18"]
    script("make_workload").main([str(tmp_path), *shapes, *sizes, *lengths])
    capsys.readouterr()
    folders = [f"--{name}={tmp_path / name}" for name in ("student", "teacher")]
    options = "--rollouts 8 --batch-size 4 --ppo-epochs 2 --max-prompt-length 6 --max-length 18 --threads 1"
    return [*folders, f"--prompts={tmp_path / 'prompts.json'}", *options.split(), "--repeats=1", "--warmup=0"]


def reference_batch(reference, batch):
    """Our buffer's batch, padded to the maximum as the reference has it."""
    rollouts, width = batch.rollouts, 12

    def wide(values, fill=0):
        return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=fill)

    return reference.Rollouts(
        rollouts.prompt_ids,
        rollouts.prompt_mask,
        wide(rollouts.response_ids),
        wide(rollouts.response_mask, False),
        wide(rollouts.student_logprobs),
        wide(rollouts.teacher_logprobs),
        wide(batch.importance_weights, 1),
        wide(batch.advantages),
    )


def test_its_policy_loss_and_gradient_are_the_modules(script, command):
    ours_script, reference = script("outer_iteration"), script("reference_schedule")
    ours_arguments = ours_script.parse([*command, "--no-lm"])
    ours = ours_script.OuterIteration(ours_arguments, script("workload").load_workload(ours_arguments))
    arguments = reference.parse([*command, "--no-lm"])
    theirs = reference.ReferenceSchedule(arguments, script("workload").load_workload(arguments))
    ours._fill_buffer()
    with torch.no_grad():  # away from a ratio of 1, so that the clipping matters
        for model in (ours.module.student, theirs.student):
            model.transformer.h[0].mlp.c_proj.weight.mul_(40)
    for batch in ours.buffer:
        for model in (ours.module.student, theirs.student):
            model.zero_grad()
        expected = ours.module.rollout_loss(batch)
        expected.loss.backward()
        padded = reference_batch(reference, batch)
        actual = theirs.policy_loss(padded, padded.returns)
        actual.backward()
        torch.testing.assert_close(actual, expected.loss, rtol=1e-5, atol=1e-6)
        for own, other in zip(ours.module.student.parameters(), theirs.student.parameters(), strict=True):
            torch.testing.assert_close(other.grad, own.grad, rtol=1e-4, atol=1e-6)


def test_its_scores_of_sampled_responses_are_the_samplers(script, command):
    """Scored after the fact by the reference, in lockstep by us: the same numbers on the same tokens."""
    ours_script, reference = script("outer_iteration"), script("reference_schedule")
    ours_arguments = ours_script.parse([*command, "--no-lm"])
    ours = ours_script.OuterIteration(ours_arguments, script("workload").load_workload(ours_arguments))
    arguments = reference.parse([*command, "--no-lm"])
    theirs = reference.ReferenceSchedule(arguments, script("workload").load_workload(arguments))
    rollouts = ours._collect()
    for model, expected in ((theirs.student, rollouts.student_logprobs), (theirs.teacher, rollouts.teacher_logprobs)):
        tensors = (rollouts.prompt_ids, rollouts.prompt_mask, rollouts.response_ids, rollouts.response_mask)
        with torch.no_grad():
            actual = theirs._logprobs(model, *tensors)
        torch.testing.assert_close(actual * rollouts.response_mask, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", ["0", "0.2"])
def test_it_runs_and_reports_what_it_did(script, command, alpha):
    reference = script("reference_schedule")
    fields = reference.measure(reference.parse([*command, "--lm", f"--teacher-mix-alpha={alpha}"]))
    assert fields["steps"] == 4
    assert fields["lm"] is True
    assert 1 <= fields["mean_length"] <= 12
    assert fields["total_s"] == pytest.approx(fields["rollout_s"] + fields["update_s"])


def test_its_mixture_is_that_of_the_two_distributions(script, command):
    reference = script("reference_schedule")
    arguments = reference.parse(command)
    schedule = reference.ReferenceSchedule(arguments, script("workload").load_workload(arguments))
    ids, mask = script("workload").pad_rows(schedule.workload.prompts, 0, left=True, width=6)
    processor = reference.TeacherMixture(schedule.teacher, mask, 0.3, schedule.vocabulary)
    with torch.no_grad():
        for _ in range(3):  # the cache carries on from token to token
            every = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1).long()
            positions = (every.cumsum(-1) - 1).clamp_min(0)
            inputs = {"input_ids": ids, "attention_mask": every, "position_ids": positions}
            q, p = (model(**inputs).logits[:, -1].softmax(-1) for model in (schedule.student, schedule.teacher))
            mixed = processor(ids, q.log())
            torch.testing.assert_close(mixed.exp(), 0.7 * q + 0.3 * p, rtol=1e-4, atol=1e-6)
            ids = torch.cat([ids, mixed.argmax(-1, keepdim=True)], 1)
