"""The benchmark of an outer iteration times the package's modules under Lightning's trainer."""

import pytest
import torch


@pytest.fixture
def outer_iteration(script):
    return script("outer_iteration")


@pytest.mark.parametrize(("method", "lm"), [("minillm", True), ("minillm", False), ("kd", False)])
def test_it_runs_and_reports_what_it_did(outer_iteration, tiny_workload, method, lm):
    options = [f"--method={method}", "--lm" if lm else "--no-lm", "--micro-batch-size=2"]
    fields = outer_iteration.measure(outer_iteration.parse([*tiny_workload, *options]))
    assert fields["steps"] == 4
    assert fields["lm"] is lm
    assert 1 <= fields["mean_length"] <= 12
    assert fields["total_s"] == pytest.approx(fields["rollout_s"] + fields["update_s"])
    assert (fields["rollout_s"] > 0) is (method == "minillm")
    assert fields["floor_ratio"] > 0


def test_repeats_do_the_same_work(outer_iteration, script, tiny_workload):
    arguments = outer_iteration.parse(tiny_workload)
    iteration = outer_iteration.OuterIteration(arguments, script("workload").load_workload(arguments))
    results = []
    for _ in range(2):
        iteration.run()
        results.append((iteration.response_lengths, [p.clone() for p in iteration.module.student.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(first, second) for first, second in zip(results[0][1], results[1][1], strict=True))


def test_kd_learns_from_the_prompts_and_responses_of_the_rollouts(outer_iteration, script, tiny_workload):
    minillm, kd = (outer_iteration.parse([*tiny_workload, f"--method={name}"]) for name in ("minillm", "kd"))
    workload = script("workload").load_workload(kd)
    rollouts = outer_iteration.collected(outer_iteration.OuterIteration(minillm, workload).fit(max_steps=1))
    pairs = outer_iteration.OuterIteration(kd, workload).data.train_set
    assert pairs.target_counts.tolist() == rollouts.lengths.tolist()
    batch = pairs.token_batch(torch.arange(8), normalizer=1.0)
    assert batch.input_ids[batch.target_mask].tolist() == rollouts.response_ids[rollouts.response_mask].tolist()


def test_a_profile_is_written(outer_iteration, tiny_workload, tmp_path):
    outer_iteration.main([*tiny_workload, f"--profile={tmp_path / 'profile.txt'}"])
    assert "addmm" in (tmp_path / "profile.txt").read_text()
