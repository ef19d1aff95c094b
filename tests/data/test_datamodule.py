import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_minillm.data import (
    BatchOptions,
    DistillationDataModule,
    EvaluationLoader,
    InstructionRecord,
    Lengths,
    PlainTemplate,
    SyntheticSource,
    TokenLoader,
    generate_corpus,
    generate_records,
)


@pytest.fixture
def make(tokenizer):
    def make(**kwargs):
        settings = {
            "train": SyntheticSource("train", limit=40),
            "validation": generate_records("validation", 10),
            "test": generate_records("test", 10),
            "lm_corpus": generate_corpus(30),
            "template": PlainTemplate(),
            "lengths": Lengths(96, 64),
            "batches": BatchOptions(batch_size=8, micro_batch_size=4, eval_batch_size=4),
        }
        return DistillationDataModule(tokenizer=tokenizer, **(settings | kwargs))

    return make


class Recorder(LightningModule):
    """Trains one number and remembers which rows it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch.indices.tolist())))
        return self.weight * batch.target_mask.sum() / batch.normalizer

    def validation_step(self, batch, batch_idx):
        self.validated += batch.prompts.indices.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **kwargs):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=tmp_path, **(settings | kwargs))


def test_works_without_a_trainer(make):
    data = make()
    assert isinstance(data.train_dataloader(), TokenLoader)
    assert data.accumulation == 2
    assert len(data.train_set) == 40
    assert [len(list(loader)) for loader in (data.val_dataloader(), data.test_dataloader())] == [3, 3]
    assert data.lm_stream.batch(0).input_ids.shape == (4, 96)
    assert data.train_set is data.train_set


def test_micro_batch_size_defaults_to_the_share_of_a_rank(make):
    data = make(batches=BatchOptions(batch_size=8))
    assert (data.micro_batch_size, data.accumulation) == (8, 1)


def test_lm_batches_have_the_same_number_of_micro_batches_as_the_pairs(make):
    data = make(batches=BatchOptions(8, 4, lm_batch_size=6), lengths=Lengths(96, 64, lm_max_length=20))
    assert data.lm_stream.batch(0).input_ids.shape == (3, 20)
    assert data.lm_stream.accumulation == data.accumulation == 2
    with pytest.raises(ValueError, match=r"lm_batch_size=5 is not a multiple of .*=2; the nearest is 4 or 6"):
        _ = make(batches=BatchOptions(8, 4, lm_batch_size=5)).lm_stream
    assert make(lm_corpus=None).lm_stream is None


def test_the_module_may_bring_its_own_loader(make, tmp_path):
    class Own(Recorder):
        def build_train_loader(self, data):
            return TokenLoader(data.train_set, 20)

    module, data = Own(), make(validation=None)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(module, datamodule=data)
    assert [epoch for epoch, _ in module.seen] == [0, 0, 1, 1]
    assert sorted(module.seen[0][1] + module.seen[1][1]) == list(range(40))
    assert module.validated == []


def test_lightning_trains_and_validates_every_row(make, tmp_path):
    module, data = Recorder(), make()
    fit = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=data.accumulation, enable_checkpointing=False)
    fit.fit(module, datamodule=data)
    for epoch in (0, 1):
        assert sorted(row for e, rows in module.seen if e == epoch for row in rows) == list(range(40))
    assert [rows for e, rows in module.seen if e == 0] != [rows for e, rows in module.seen if e == 1]
    assert fit.global_step == 10
    assert sorted(module.validated) == sorted(list(range(10)) * 2)


def test_lightning_resumes_in_the_middle_of_an_epoch(make, tmp_path):
    whole = Recorder()
    trainer(tmp_path, max_steps=20, enable_checkpointing=False).fit(whole, datamodule=make())

    # Epochs have ten micro-batches: the run resumes from the checkpoint after the 13th.
    first, keep = Recorder(), ModelCheckpoint(tmp_path, "mid", every_n_train_steps=13)
    trainer(tmp_path, max_steps=16, callbacks=keep).fit(first, datamodule=make())
    assert first.seen == whole.seen[:16]
    second = Recorder()
    trainer(tmp_path, max_steps=20, callbacks=ModelCheckpoint(tmp_path)).fit(
        second, datamodule=make(), ckpt_path=tmp_path / "mid.ckpt", weights_only=False
    )
    assert second.seen == whole.seen[13:]


def test_splits_may_be_missing(make):
    data = make(validation=None, test=None, train=None)
    assert data.val_dataloader() == data.test_dataloader() == []
    with pytest.raises(ValueError, match=r"no train records: pass train=\.\.\."):
        data.train_dataloader()
    data.prepare_data()


def test_dropped_prompts_are_reported_once(make, tmp_path):
    long = InstructionRecord("word " * 200, "", ("x",))
    data = make(train=[*generate_records("train", 9), long])
    with pytest.warns(UserWarning, match="train: 1 of 10 prompts have more than max_prompt_length=64"):
        data.prepare_data()
    assert data.train_set.num_dropped == 1


def test_cache_dir_serves_all_sets(make, tmp_path):
    for from_cache in (False, True):
        data = make(lengths=Lengths(96, 64, cache_dir=tmp_path / "cache"))
        data.prepare_data()
        sets = (data.train_set, data.validation_set, data.test_set, data.lm_corpus)
        assert [part.from_cache for part in sets] == [from_cache] * 4


def test_ranks_share_the_rows(make, monkeypatch):
    rows = []
    for rank in (0, 1):
        data = make()
        monkeypatch.setattr(DistillationDataModule, "world_size", property(lambda self: 2))
        monkeypatch.setattr(DistillationDataModule, "rank", property(lambda self, rank=rank: rank))
        assert data.accumulation == 1
        rows += [row for batch in data.train_dataloader() for row in batch.indices.tolist()]
        assert isinstance(data.val_dataloader(), EvaluationLoader)
    assert sorted(rows) == list(range(40))


def test_errors_before_work_starts(make, tmp_path):
    module = Recorder()
    with pytest.raises(ValueError, match=r"batch_size=8 .* nearest is 6 or 9"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=make(batches=BatchOptions(8, 3)))
    with pytest.raises(ValueError, match="test: there are no instruction records"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=make(test=[]))
    assert module.seen == []


def test_the_training_pairs_can_be_the_pretraining_corpus(make):
    data = make(lm_corpus="pairs")
    batch = data.lm_stream.batch(0)
    assert torch.equal(batch.input_ids, data.train_set.token_batch(batch.indices, 1.0).input_ids)
    with pytest.raises(ValueError, match="'pairs' or null"):
        make(lm_corpus="paris")


def test_a_checkpoint_recognises_its_data(make):
    state = make().state_dict()
    make().load_state_dict(state)
    make().load_state_dict({})
    make(train=generate_records("train", 40)).load_state_dict(state)  # the same records from elsewhere
    fewer = generate_records("train", 39)
    with pytest.raises(
        ValueError, match=r"changed since the checkpoint \(train: 40 records then, 39 now\): resume with"
    ):
        make(train=fewer).load_state_dict(state)
    edited = [*fewer, InstructionRecord("a", "b", ("c",))]
    with pytest.raises(ValueError, match="train: 40 records then and now, with different content"):
        make(train=edited).load_state_dict(state)
    with pytest.raises(ValueError, match=r"corpus: \d+ blocks then, \d+ now"):
        make(lm_corpus=generate_corpus(20)).load_state_dict(state)
    with pytest.warns(UserWarning, match="validation data have changed .*: 10 records then, 9 now"):
        make(validation=generate_records("validation", 9)).load_state_dict(state)
    make(lm_corpus=None).load_state_dict(make(lm_corpus="pairs").state_dict())


@pytest.mark.parametrize("wanted", [[5], [6, 9], [0], [36], []])
def test_rows_with_token_ids_are_those_that_a_search_finds(make_tokenizer, wanted):
    records = [InstructionRecord(f"w{n} w{n + 1}", "", (f"w{n + 2}",)) for n in range(1, 20)]
    records.insert(3, InstructionRecord("w9 " * 30, "", ("w5",)))  # too long, and dropped
    documents = [f"w{n} w{n + 3}" for n in range(1, 20)]
    lengths = Lengths(20, 12, lm_max_length=4)
    data = DistillationDataModule(
        records, records[:2], records, tokenizer=make_tokenizer(), template="raw", lm_corpus=documents, lengths=lengths
    )
    data.prepare_data()
    found = data.rows_with(wanted)
    for name, rows in (("train", data.train_set), ("validation", data.validation_set), ("corpus", data.lm_corpus)):
        batch = rows.token_batch(range(len(rows)), 1.0)
        has = [
            bool(set(ids[mask].tolist()) & set(wanted))
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        ]
        assert found.get(name, []) == [row for row, hit in enumerate(has) if hit]
    assert "test" not in found
