"""An evaluation gives the same records on any number of ranks, and after any stop."""

import logging
import runpy
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from lightning_minillm.data import InstructionRecord, PlainTemplate
from lightning_minillm.evaluation import (
    EvaluationModule,
    PromptSets,
    ResponsesEvaluation,
    record_files,
    run_evaluation,
)
from lightning_minillm.evaluation.judge.client import JudgeError
from lightning_minillm.evaluation.module import Jobs
from lightning_minillm.evaluation.records import RecordFiles
from lightning_minillm.rollout import SamplingConfig
from lightning_minillm.strategies import ShardedStrategy

TESTS = Path(__file__).resolve().parents[1]
GROUP_SECONDS = 4
TINY = runpy.run_path(str(TESTS / "conftest.py"), run_name="tiny")


class Records:
    """Eleven records of random words; every second has one right answer."""

    def load(self):
        generator = torch.Generator().manual_seed(3)
        rows = torch.randint(1, 37, (11, 8), generator=generator).tolist()
        words = [[f"w{number}" for number in row] for row in rows]
        return [
            InstructionRecord(" ".join(row[: 1 + i % 4]), "", (" ".join(row[5 : 6 + i % 3]),), exact=i % 2 == 0)
            for i, row in enumerate(words)
        ]


class Stopped(ResponsesEvaluation):
    """Breaks off before a batch."""

    stop_before = None

    def step(self, pair, items):
        if self.stop_before == 0:
            raise RuntimeError("the machine went away")
        self.stop_before = None if self.stop_before is None else self.stop_before - 1
        return super().step(pair, items)


class Slow(ResponsesEvaluation):
    """Takes longer to think than the process group waits."""

    slow_findings = True

    def findings(self, records):
        time.sleep(3 * GROUP_SECONDS)
        return super().findings(records)


class Wrong(ResponsesEvaluation):
    """Does not know what to make of the records."""

    slow_findings = True

    def findings(self, records):
        raise JudgeError("no idea")


def measure_wrongly(folder):
    with pytest.raises(JudgeError, match="no idea"):
        measure(folder, strategy="ddp", kind=Wrong)


def measure_slowly(folder):
    """Evaluate on ranks that give up on each other after ``GROUP_SECONDS``."""
    _set_pg_timeout(timedelta(seconds=GROUP_SECONDS), torch.distributed.group.WORLD)
    return measure(folder, strategy="ddp", kind=Slow)


def measure(folder, *, strategy="auto", stop_before=None, temperature=1.0, options=None, kind=Stopped):
    """Evaluate a tiny model on as many ranks as there are; return values, curves and records."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    tokenizer = TINY["build_word_tokenizer"]()
    sampling = SamplingConfig(max_new_tokens=5, teacher_mix_alpha=0.0, temperature=temperature)
    lengths = {"max_length": 24, "max_prompt_length": 12}
    evaluation = kind(PromptSets({"test": Records()}, PlainTemplate(), sampling, batch_size=4, seeds=(1, 2), **lengths))
    evaluation.stop_before = stop_before
    evaluation.prepare(tokenizer)
    module = EvaluationModule(
        partial(TINY["build_model"], "llama", seed=1), tokenizer, teacher=partial(TINY["build_model"], "llama", seed=2)
    )
    devices = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    made = {"auto": "auto", "ddp": "ddp", "fsdp": ShardedStrategy(**(options or {}))}[strategy]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=made,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )
    findings = run_evaluation(trainer, module, evaluation, folder)
    return dict(findings.values), dict(findings.curves), record_files(folder, evaluation).read()


@pytest.fixture(scope="module")
def run_ranks(tmp_path_factory):
    harness = runpy.run_path(str(TESTS / "distributed" / "harness.py"), run_name="harness")
    return harness["Ranks"](tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What one process finds out, uninterrupted."""
    return measure(tmp_path_factory.mktemp("plain"))


def assert_same(given, expected, tolerance=0.0):
    values, curves, records = given
    assert [record["item"] for record in records] == list(range(22))
    for record, other in zip(records, expected[2], strict=True):
        assert record.keys() == other.keys()
        for key, value in record.items():
            is_inexact = isinstance(value, float) and tolerance > 0
            assert value == (pytest.approx(other[key], rel=tolerance, abs=tolerance) if is_inexact else other[key]), key
    assert values.keys() == expected[0].keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[0][name], rel=tolerance, abs=tolerance), name
    assert curves.keys() == expected[1].keys()


@pytest.mark.parametrize(
    ("ranks", "strategy", "options"),
    [(2, "ddp", {}), (2, "fsdp", {}), (2, "fsdp", {"tensor_parallel_size": 2})],
    ids=["ddp", "fsdp", "tensor parallel"],
)
def test_ranks_find_out_what_one_process_does(ranks, strategy, options, run_ranks, plain, tmp_path):
    results = run_ranks(measure, ranks, folder=tmp_path, strategy=strategy, options=options)
    for result in results:
        assert_same(result, plain, tolerance=1e-4)
    files = sorted(file.name for file in (tmp_path / "responses").glob("rank_*"))
    assert files == (["rank_0.jsonl"] if options else ["rank_0.jsonl", "rank_1.jsonl"])


@pytest.mark.parametrize("stop_before", [0, 1, 5])
def test_stopped_evaluation_ends_like_an_uninterrupted_one(stop_before, plain, tmp_path):
    with pytest.raises(RuntimeError, match="went away"):
        measure(tmp_path, stop_before=stop_before)
    done = RecordFiles(tmp_path / "responses").read()
    assert len(done) == sum([4, 4, 3, 4, 4, 3][:stop_before])
    assert_same(measure(tmp_path), plain)


def test_two_ranks_stop_and_one_resumes(run_ranks, plain, tmp_path):
    with pytest.raises(RuntimeError, match="went away"):
        run_ranks(measure, 2, folder=tmp_path, strategy="ddp", stop_before=1)
    assert 0 < len(RecordFiles(tmp_path / "responses").read()) <= 8
    assert_same(measure(tmp_path), plain, tolerance=1e-4)


@pytest.mark.slow
def test_ranks_wait_for_findings_that_take_long(run_ranks, plain, tmp_path):
    for result in run_ranks(measure_slowly, 2, folder=tmp_path):
        assert_same(result, plain, tolerance=1e-4)


def test_every_rank_hears_of_findings_that_failed(run_ranks, tmp_path):
    assert run_ranks(measure_wrongly, 2, folder=tmp_path) == [None, None]


def test_half_a_line_is_cut_off(plain, tmp_path):
    measure(tmp_path)
    file = tmp_path / "responses" / "rank_0.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-30])
    assert_same(measure(tmp_path), plain)
    assert file.read_bytes().startswith(content[: content[:-30].rindex(b"\n") + 1])


def test_nothing_is_measured_twice(plain, tmp_path):
    measure(tmp_path)
    assert_same(measure(tmp_path, stop_before=0), plain)


def test_records_made_with_different_settings_are_not_resumed(tmp_path):
    measure(tmp_path)
    with pytest.raises(ValueError, match=r"different settings \(evaluation\.sampling\).*different output"):
        measure(tmp_path, temperature=0.5)


def test_every_rank_takes_part_in_as_many_steps():
    batches = [[0], [1], [2], [3], [4]]
    ranks = [list(Jobs(batches, rank, 3)) for rank in range(3)]
    assert [len(jobs) for jobs in ranks] == [2, 2, 2]
    kept = sorted(job.items[0] for jobs in ranks for job in jobs if job.is_kept)
    assert kept == [0, 1, 2, 3, 4]
    assert ranks[2][1] == ((4,), False)
    assert len(Jobs([], 0, 3)) == 0


def test_the_first_record_of_an_item_counts(tmp_path):
    files = RecordFiles(tmp_path)
    assert files.open({"name": "x"}) == set()
    files.append(1, [{"item": 1, "value": "b"}])
    files.append(0, [{"item": 1, "value": "a"}, {"item": 0, "value": "c"}])
    assert files.read() == [{"item": 0, "value": "c"}, {"item": 1, "value": "a"}]
    assert files.open({"name": "x"}) == {0, 1}
