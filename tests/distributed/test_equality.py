"""MiniLLM ends with the same weights, rollouts and metrics however it is spread over ranks."""

import runpy
from pathlib import Path

import pytest
import torch

train = runpy.run_path(str(Path(__file__).parent / "scenarios.py"), run_name="scenarios")["train"]
STEPS = 12


def largest_difference(given, expected):
    assert given.keys() == expected.keys()
    return max(float((given[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def plain(run_ranks):
    """One process without any strategy."""
    return run_ranks(train, 1, steps=STEPS)[0]


CASES = {
    "ddp x2": (2, "ddp", {}, 1e-5),
    "fsdp x1": (1, "fsdp", {}, 1e-5),
    "fsdp x2": (2, "fsdp", {}, 1e-5),
    "fsdp x3": (3, "fsdp", {}, 1e-5),
    "fsdp x2, grad_op": (2, "fsdp", {"sharding": "grad_op"}, 1e-5),
    "fsdp x2, offload": (2, "fsdp", {"cpu_offload": True}, 1e-5),
    "fsdp x4, hybrid": (4, "fsdp", {"sharding": "hybrid", "replicas": 2}, 1e-5),
    "tensor parallel x2": (2, "fsdp", {"tensor_parallel_size": 2}, 1e-4),
    "2-D x4": (4, "fsdp", {"tensor_parallel_size": 2}, 1e-4),
}


@pytest.mark.parametrize("case", CASES)
def test_training_ends_as_in_one_process(case, plain, run_ranks):
    ranks, strategy, options, tolerance = CASES[case]
    results = run_ranks(train, ranks, strategy=strategy, options=options, steps=STEPS)
    assert largest_difference(results[0]["weights"], plain["weights"]) < tolerance
    for phase, rollouts in plain["phases"].items():
        dealt = {}
        for result in results:
            dealt |= result["phases"][phase]
        assert dealt == rollouts, f"phase {phase}"
    # time and memory are those of a rank
    compared = {name for name in plain["last"] if "second" not in name and not name.endswith("_mib")}
    assert {"val/rougeL", "val/loss", "val/reverse_kl", "rollout/reward", "train/loss"} <= compared
    for name in compared:
        for result in results:
            assert result["last"][name] == pytest.approx(plain["last"][name], rel=1e-3, abs=1e-4), name


def test_training_changes_the_weights(plain, make_model):
    before = make_model("llama", seed=1).state_dict()
    assert min(float((plain["weights"][name] - before[name]).abs().max()) for name in before) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3"])
def test_families_are_sharded_alike(family, run_ranks):
    # not Adam, which makes whole steps of the rounding errors that are the gradient of a key's bias
    options = {"family": family, "steps": 4, "optimizer": "SGD", "lr": 0.05}
    expected = run_ranks(train, 1, **options)[0]
    given = run_ranks(train, 2, strategy="fsdp", **options)[0]
    assert largest_difference(given["weights"], expected["weights"]) < 1e-5


def test_accumulated_micro_batches_make_the_same_step(plain, run_ranks):
    given = run_ranks(train, 2, strategy="fsdp", micro_batch_size=2, steps=STEPS)[0]
    assert largest_difference(given["weights"], plain["weights"]) < 1e-5


def test_sharded_rollouts_equal_gathered_ones(run_ranks):
    """One row at a time, so that ranks finish at different moments and have to wait for each other."""
    module_options = {"rollout_batch_size": 1}
    results = {}
    for gather in (True, False):
        options = {"gather_for_rollouts": gather}
        results[gather] = run_ranks(
            train, 2, strategy="fsdp", options=options, steps=5, max_new_tokens=40, module_options=module_options
        )
    assert [result["phases"] for result in results[True]] == [result["phases"] for result in results[False]]
    lengths = [[len(row) for row in result["phases"][0].values()] for result in results[True]]
    assert sum(mine != others for mine, others in zip(*lengths, strict=True)) > 6
    assert largest_difference(results[True][0]["weights"], results[False][0]["weights"]) < 1e-6


def test_models_that_are_loaded_before_the_run_are_sharded_too(plain, run_ranks):
    given = run_ranks(train, 2, strategy="fsdp", steps=STEPS, load_first=True)[0]
    assert largest_difference(given["weights"], plain["weights"]) < 1e-5


def test_a_teacher_with_shards_on_the_cpu_says_the_same(plain, run_ranks):
    given = run_ranks(train, 2, strategy="fsdp", steps=STEPS, module_options={"offload": True})[0]
    assert largest_difference(given["weights"], plain["weights"]) < 1e-5


def test_a_quantised_teacher_is_whole_on_every_rank(run_ranks, make_model, tmp_path):
    pytest.importorskip("bitsandbytes")
    make_model("llama", seed=2, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    options = {"quantized_teacher": str(tmp_path), "steps": 4}
    expected = run_ranks(train, 1, **options)[0]
    given = run_ranks(train, 2, strategy="fsdp", **options)[0]
    # in 4 bits, where a row does not depend on the others; LLM.int8 looks for outliers in a whole batch
    assert largest_difference(given["weights"], expected["weights"]) < 1e-5


def test_half_precision_computes_in_it_and_keeps_float32_masters(plain, run_ranks):
    given = run_ranks(train, 2, strategy="fsdp", options={"param_dtype": "bfloat16"}, steps=4)[0]
    assert {value.dtype for value in given["weights"].values()} == {torch.float32}
    assert abs(given["metrics"][0]["train/loss"] - plain["metrics"][0]["train/loss"]) < 0.5


def test_sizes_that_do_not_divide_are_errors(run_ranks):
    with pytest.raises(ValueError, match="ranks=3 is not a multiple of tensor_parallel_size=2; the nearest is 2 or 4"):
        run_ranks(train, 3, strategy="fsdp", options={"tensor_parallel_size": 2}, devices=3)
    with pytest.raises(ValueError, match="does not define tensor parallelism for GPT2LMHeadModel"):
        run_ranks(train, 2, strategy="fsdp", options={"tensor_parallel_size": 2}, family="gpt2", steps=1)
