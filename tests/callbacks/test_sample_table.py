import json
from types import SimpleNamespace

import lightning as L
import pytest

from lightning_minillm.callbacks import SampleTable
from lightning_minillm.modules import CausalLMModule

SAMPLES = [
    {"index": i, "task": "t", "prompt": f"p{i}", "references": ["a", "b"], "response": f"r{i}", "exact": False}
    for i in range(5)
]


class TableLogger:
    def __init__(self):
        self.tables = []

    def log_table(self, **kwargs):
        self.tables.append(kwargs)


@pytest.fixture
def make_module(make_model, tokenizer):
    """``make_module(samples)``: a module whose last evaluation gave these samples."""

    def make(samples):
        module = CausalLMModule(make_model, tokenizer)
        module.samples = samples
        return module

    return make


def trainer(*loggers, rank_zero=True, sanity=False):
    return SimpleNamespace(loggers=list(loggers), is_global_zero=rank_zero, sanity_checking=sanity, global_step=7)


def test_samples_go_to_a_file_and_to_loggers_that_take_tables(make_module, tmp_path):
    logger = TableLogger()
    table = SampleTable(str(tmp_path), num_samples=2)
    module = make_module(SAMPLES)
    table.on_validation_end(trainer(logger, object()), module)
    table.on_test_end(trainer(logger), module)
    lines = (tmp_path / "val_step_000007.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == SAMPLES[:2]
    assert (tmp_path / "test_step_000007.jsonl").exists()
    assert logger.tables[0] == {
        "key": "val/samples",
        "columns": ["task", "prompt", "references", "response"],
        "data": [["t", "p0", "a | b", "r0"], ["t", "p1", "a | b", "r1"]],
        "step": 7,
    }
    assert logger.tables[1]["key"] == "test/samples"


@pytest.mark.parametrize(
    ("of_trainer", "samples"), [({"rank_zero": False}, SAMPLES), ({"sanity": True}, SAMPLES), ({}, [])]
)
def test_nothing_is_written_by_other_ranks_or_without_samples(of_trainer, samples, make_module, tmp_path):
    SampleTable(str(tmp_path / "x")).on_validation_end(trainer(**of_trainer), make_module(samples))
    assert not (tmp_path / "x").exists()


def test_modules_without_samples_are_left_alone(tmp_path):
    table, module = SampleTable(str(tmp_path / "x")), L.LightningModule()
    table.setup(trainer(), module, "fit")
    table.on_validation_end(trainer(), module)
    assert not (tmp_path / "x").exists()


def test_at_least_one_sample():
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        SampleTable("x", num_samples=0)


def test_the_teachers_responses_stand_beside_the_students(make_module, tmp_path):
    logger = TableLogger()
    samples = [{**SAMPLES[0], "teacher": "said"}, SAMPLES[1]]
    module = make_module(samples)
    assert not module.shows_teacher
    table = SampleTable(str(tmp_path))
    table.setup(trainer(), module, "fit")
    assert module.shows_teacher
    table.on_validation_end(trainer(logger), module)
    assert logger.tables[0]["columns"] == ["task", "prompt", "references", "teacher", "response"]
    assert [row[3:] for row in logger.tables[0]["data"]] == [["said", "r0"], ["", "r1"]]
