"""On-policy distillation, replayed text included, ends alike however it is spread over ranks."""

import runpy
from pathlib import Path

import pytest

train = runpy.run_path(str(Path(__file__).parent / "scenarios.py"), run_name="scenarios")["train"]
# References, fresh and replayed text in turn: a phase fills the buffer, and half of the student's text is replayed.
OPTIONS = {"on_policy": {"probability": 0.8, "capacity": 24, "fresh": "constant"}, "steps": 32}


@pytest.fixture(scope="module")
def plain(run_ranks):
    """One process without any strategy."""
    return run_ranks(train, 1, **OPTIONS)[0]


def test_the_run_has_references_fresh_text_and_replays(plain):
    prompts_of = [tuple(sorted(map(tuple, rows.values()))) for rows in plain["phases"].values()]
    assert len(set(prompts_of)) < len(prompts_of)  # some phase has the text of another: a replay
    assert len(set(prompts_of)) > 2


@pytest.mark.parametrize(("ranks", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_training_ends_as_in_one_process(ranks, strategy, plain, run_ranks):
    results = run_ranks(train, ranks, strategy=strategy, **OPTIONS)
    for phase, rows in plain["phases"].items():
        dealt = {}
        for result in results:
            dealt |= result["phases"][phase]
        assert dealt == rows, f"phase {phase}"
    for name, value in plain["weights"].items():
        assert float((results[0]["weights"][name] - value).abs().max()) < 1e-5, name
    for name in ("val/loss", "train/loss", "rollout/response_length", "rollout/student_probability"):
        for result in results:
            assert result["last"][name] == pytest.approx(plain["last"][name], rel=1e-3, abs=1e-4), name
