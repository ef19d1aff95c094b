"""A tiny model folder, tiny data files, and the overrides that make the commands quick."""

import json

import lightning as L
import pytest

WORDS = [f"w{i}" for i in range(1, 37)]


def write_records(file, count, start=0):
    """Records whose response repeats a word of the instruction."""
    rows = []
    for row in range(start, start + count):
        first, second = WORDS[row % 36], WORDS[(7 * row + 3) % 36]
        rows.append(
            {"instruction": f"{first} {second}", "input": "", "output": f"{second} {second}", "exact": row % 2 == 0}
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_model, make_tokenizer):
    """``model/`` and ``teacher/`` (Hugging Face folders), and train, validation and test files."""
    root = tmp_path_factory.mktemp("cli")
    for name, seed in (("model", 0), ("teacher", 1)):
        make_model("gpt2", seed=seed).save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    for split, count in (("train", 40), ("validation", 6), ("test", 6)):
        write_records(root / f"{split}.jsonl", count, start=100 * len(split))
    return root


@pytest.fixture
def data_overrides(folders, tmp_path):
    """Overrides that every command takes."""
    return [
        "data=instructions",
        f"data.path={folders}",
        f"data.tokenizer={folders}/model",
        "data.datamodule.template._target_=lightning_minillm.data.PlainTemplate",
        "max_length=32",
        "max_prompt_length=16",
        "eval_batch_size=6",
        f"cache_dir={tmp_path}/cache",
        f"output_dir={tmp_path}/run",
    ]


@pytest.fixture
def train_overrides(folders, data_overrides):
    """Overrides of a run of a few steps without screen output."""
    return [
        *data_overrides,
        "student=pretrained",
        f"student.path={folders}/model",
        "batch_size=4",
        "max_steps=6",
        "eval_every=3",
        "checkpoint_every=2",
        "validation.sampling.max_new_tokens=4",
        "optimizer.lr=1e-3",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
        "logger=csv",
        "callbacks.progress=null",
    ]


class Stop(L.Callback):
    """Break a run off, as a crash would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.fixture
def stop_at(monkeypatch):
    """``stop_at(step)`` makes the next runs break off after that optimiser step; ``stop_at(None)`` none."""
    from lightning_minillm.cli import train as module

    build_trainer = module.build_trainer

    def set_step(step):
        extra = () if step is None else (Stop(step),)
        monkeypatch.setattr(module, "build_trainer", lambda config, sizes: build_trainer(config, sizes, extra))

    return set_step
