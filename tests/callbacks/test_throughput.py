import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_minillm.callbacks import ThroughputMonitor
from lightning_minillm.callbacks.throughput import count_tokens, gradient_norm, peak_memory_gib
from lightning_minillm.types import PolicyBatch, RolloutBatch, TokenBatch


def tokens(lengths, width=5):
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return TokenBatch(mask.long(), mask, mask.clone(), torch.arange(len(lengths)), 1.0)


def policy(lm=None):
    prompt = torch.tensor([[False, True, True], [True, True, True]])
    response = torch.tensor([[True, True, False], [True, False, False]])
    zeros = torch.zeros(2, 3)
    rollouts = RolloutBatch(
        prompt.long(), prompt, response.long(), response, torch.arange(2), zeros, zeros, zeros, zeros
    )
    return PolicyBatch(rollouts, zeros, zeros, 1.0, lm)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (tokens([3, 5]), 8),
        (policy(), 5 + 3),
        (policy(tokens([4])), 5 + 3 + 4),
        ({"a": tokens([1]), "b": [tokens([2])]}, 3),
        (torch.ones(3), 0),
    ],
)
def test_padding_is_not_counted(batch, count):
    assert count_tokens(batch) == count


def test_gradient_norm_is_over_all_parameters():
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=0.1)
    layer.weight.grad, layer.bias.grad = torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])
    assert gradient_norm(optimizer) == pytest.approx(7.0)
    layer.bias.grad = None
    assert gradient_norm(optimizer) == pytest.approx(13**0.5)


def test_memory_is_positive():
    assert peak_memory_gib(torch.device("cpu")) > 0


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)

    def training_step(self, batch, batch_idx):
        return 1000 * self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_values_are_logged_on_the_steps_that_are_logged(tmp_path):
    seen = []

    class Logged(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append(set(trainer.logged_metrics))

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        log_every_n_steps=2,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[ThroughputMonitor(), Logged()],
        logger=L.pytorch.loggers.CSVLogger(tmp_path),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader([tokens([3])] * 8, batch_size=None))
    metrics = trainer.logged_metrics
    assert metrics["train/grad_norm"] == pytest.approx(1000.0)  # before clipping
    assert metrics["perf/tokens_per_second"] > 0
    assert metrics["perf/peak_memory_gib"] > 0
    assert "train/grad_norm" not in seen[1]
