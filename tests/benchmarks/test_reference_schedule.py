"""The reference schedule does the same mathematics as the package: same rollouts, same loss, same gradient."""

import pytest
import torch
from lightning import Callback


class BatchRecorder(Callback):
    """Keeps the training batches of a fit."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


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


def test_its_policy_loss_and_gradient_are_the_modules(script, tiny_workload):
    ours_script, reference = script("outer_iteration"), script("reference_schedule")
    ours_arguments = ours_script.parse([*tiny_workload, "--no-lm"])
    ours = ours_script.OuterIteration(ours_arguments, script("workload").load_workload(ours_arguments))
    arguments = reference.parse([*tiny_workload, "--no-lm"])
    theirs = reference.ReferenceSchedule(arguments, script("workload").load_workload(arguments))
    recorder = BatchRecorder()
    ours.fit(recorder)
    ours.module.student.load_state_dict(ours.initial)
    with torch.no_grad():  # away from a ratio of 1, so that the clipping matters
        for model in (ours.module.student, theirs.student):
            model.transformer.h[0].mlp.c_proj.weight.mul_(40)
    assert len(recorder.batches) == 4
    for batch in recorder.batches:
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


def test_its_scores_of_sampled_responses_are_the_samplers(script, tiny_workload):
    """Scored after the fact by the reference, in lockstep by us: the same numbers on the same tokens."""
    ours_script, reference = script("outer_iteration"), script("reference_schedule")
    ours_arguments = ours_script.parse([*tiny_workload, "--no-lm"])
    ours = ours_script.OuterIteration(ours_arguments, script("workload").load_workload(ours_arguments))
    arguments = reference.parse([*tiny_workload, "--no-lm"])
    theirs = reference.ReferenceSchedule(arguments, script("workload").load_workload(arguments))
    rollouts = ours_script.collected(ours.fit(max_steps=1))
    for model, expected in ((theirs.student, rollouts.student_logprobs), (theirs.teacher, rollouts.teacher_logprobs)):
        tensors = (rollouts.prompt_ids, rollouts.prompt_mask, rollouts.response_ids, rollouts.response_mask)
        with torch.no_grad():
            actual = theirs._logprobs(model, *tensors)
        torch.testing.assert_close(actual * rollouts.response_mask, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", ["0", "0.2"])
def test_it_runs_and_reports_what_it_did(script, tiny_workload, alpha):
    reference = script("reference_schedule")
    fields = reference.measure(reference.parse([*tiny_workload, "--lm", f"--teacher-mix-alpha={alpha}"]))
    assert fields["steps"] == 4
    assert fields["lm"] is True
    assert 1 <= fields["mean_length"] <= 12
    assert fields["total_s"] == pytest.approx(fields["rollout_s"] + fields["update_s"])


def test_its_mixture_is_that_of_the_two_distributions(script, tiny_workload):
    reference = script("reference_schedule")
    arguments = reference.parse(tiny_workload)
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
