"""What the package takes from the insides of its dependencies is still there and still means the same."""

from datetime import datetime

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_minillm import _reach


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**48)
    assert _reach.is_out_of_memory(raised.value)
    assert _reach.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert _reach.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert _reach.is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not _reach.is_out_of_memory(raised.value)
    assert not _reach.is_out_of_memory(ValueError("out of memory"))


def test_one_entry_of_a_distributed_checkpoint_is_read(tmp_path):
    weights = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}
    dcp.save({"state_dict": weights, "optimizer_0": {"step": torch.tensor(3)}}, checkpoint_id=tmp_path)
    loaded = _reach.load_distributed(tmp_path, "state_dict")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_transformers_names_the_decoder_layers(family, make_model):
    model = make_model(family)
    layers = [module for module in model.modules() if type(module).__name__ in _reach.layer_class_names(model)]
    assert len(layers) == 2
    assert _reach.layer_class_names(torch.nn.Linear(1, 1)) == frozenset()


def test_transformers_tells_how_to_divide_a_head(make_model):
    assert _reach.head_parallel_styles(make_model("llama")).keys() == {"lm_head"}


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_the_attention_of_a_model_is_known(name, make_model):
    model = make_model("llama")
    model.set_attn_implementation(name)
    assert _reach.attention_implementation(model.config) == name


class Tiny(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).sum()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, *callbacks, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=5,
        callbacks=list(callbacks),
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Tiny(), DataLoader(torch.ones(3, 1)), DataLoader(torch.ones(1, 1)))


def test_a_module_knows_its_trainer_only_in_a_run(tmp_path):
    module, seen = Tiny(), []

    class Watch(L.Callback):
        def on_train_start(self, trainer, module):
            seen.append(_reach.trainer_of(module) is trainer)

    assert _reach.trainer_of(module) is None
    fit(tmp_path, Watch(), enable_checkpointing=False)
    assert seen == [True]


@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"val_check_interval": 4}, {}])
def test_a_validation_that_follows_is_foreseen(options, tmp_path):
    foreseen, happened = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if _reach.validation_follows(trainer):
                foreseen.append(trainer.global_step)

        def on_validation_start(self, trainer, module):
            happened.append(trainer.global_step)

    fit(tmp_path, Watch(), check_val_every_n_epoch=None if options else 1, enable_checkpointing=False, **options)
    assert foreseen == happened
    assert happened


def test_the_logged_step_can_be_set(tmp_path):
    class Shift(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            _reach.set_logged_step(trainer, trainer.global_step + 100)

    fit(tmp_path, Shift(), enable_checkpointing=False)
    lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert [line.split(",")[column] for line in lines[1:]] == ["100", "101", "102", "103", "104"]


def test_a_checkpoint_can_be_written_off_its_interval(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1000, save_top_k=-1)

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                with _reach.saving_every_step(checkpoint):
                    checkpoint.on_train_batch_end(trainer, module, outputs, batch, batch_idx)

    fit(tmp_path, Save(), checkpoint)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["step=3.ckpt"]


def test_a_checkpoint_counts_batches(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path / "kept", filename="last", every_n_train_steps=4))
    progress = _reach.batch_progress(torch.load(tmp_path / "kept/last.ckpt", weights_only=True))
    assert progress["total"]["ready"] == 4
    assert progress["current"].keys() == {"ready", "started", "processed", "completed"}
    assert progress["is_last_batch"] is False


def test_the_number_of_data_parallel_ranks_can_be_set():
    given, changed = (ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=2) for size in (3, "auto"))
    _reach.set_data_parallel_size(changed, 3)
    assert {name for name, value in vars(given).items() if value == 3} == {
        name for name, value in vars(changed).items() if value == 3
    }
    assert vars(given).keys() == vars(changed).keys()


def test_chat_templates_are_told_the_time_that_is_given(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
    messages = [{"role": "user", "content": "w1"}]
    with _reach.clock_of_chat_templates(datetime(2025, 1, 31)) as asked:
        assert not asked()
        assert tokenizer.apply_chat_template(messages, tokenize=False) == "31 Jan 2025"
        assert asked()
    assert tokenizer.apply_chat_template(messages, tokenize=False) == datetime.now().strftime("%d %b %Y")


def test_states_in_float64_stay_off_a_device_without_it():
    @_reach.keep_float64
    class Sum(Metric):
        def __init__(self):
            super().__init__()
            self.add_state("exact", torch.zeros((), dtype=torch.float64))
            self.add_state("count", torch.zeros(()))

        def update(self, value):
            self.exact += value

        def compute(self):
            return self.exact

    def without_float64(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("no float64")
        return tensor.to("meta")

    metric = Sum()._apply(without_float64)
    assert (metric.exact.device.type, metric.count.device.type) == ("cpu", "meta")
    assert Sum().to("meta").exact.device.type == "meta"
    assert Sum().half().exact.dtype == torch.float64  # torchmetrics ignores conversions of the dtype


def test_wandb_is_not_told_of_anonymous_runs(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    before = dict(logger._wandb_init)
    _reach.drop_anonymous(logger)
    assert "anonymous" in before
    assert logger._wandb_init == {key: value for key, value in before.items() if key != "anonymous"}
