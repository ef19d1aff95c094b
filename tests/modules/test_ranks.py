"""Two processes on the CPU: what one rank gives, two give."""

import multiprocessing

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_minillm.modules import minillm
from lightning_minillm.rollout import SamplingConfig

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starts its second process by a fork"
)


@pytest.fixture
def train(make_model, tokenizer, make_data, make_evaluation, make_trainer, sgd, weights_of, tmp_path, options_of):
    """Weights and metrics at the end of a run on some ranks."""

    def run(ranks, steps=8, **fit):
        options = {
            "whiten": "all",
            "optimizer": sgd(0.1),
            "sampling": SamplingConfig(max_new_tokens=6),
            "validation_sampling": SamplingConfig(max_new_tokens=4, teacher_mix_alpha=0.0),
            "num_rollouts": 16,
            "ppo_epochs": 2,
        }
        student, teacher = make_model("gpt2", seed=1), make_model("gpt2", seed=2)
        module = minillm(student, tokenizer, teacher=teacher, **options_of(options))
        # rows with one right answer on the first batch only: with two ranks, on the first rank only
        module.configure_model()
        validation = [make_evaluation(exact=(True, True, True, True)), make_evaluation(exact=(False,) * 4, seed=5)]
        keep = ModelCheckpoint(tmp_path, filename=f"{ranks} {{step}}", every_n_train_steps=3, save_top_k=-1)
        trainer = make_trainer(
            max_steps=steps,
            devices=ranks,
            strategy="ddp_fork" if ranks > 1 else "auto",
            accumulate_grad_batches=2 // ranks,
            callbacks=[keep],
            enable_checkpointing=True,
        )
        data = make_data(micro_batch_size=4, lm=False, validation=validation)
        trainer.fit(module, data, **fit)
        return weights_of(module.student), {k: float(v) for k, v in trainer.callback_metrics.items()}

    return run


def test_two_ranks_train_and_measure_like_one(train, tmp_path):
    weights, metrics = train(1)
    given, measured = train(2)
    torch.testing.assert_close(given, weights, rtol=1e-4, atol=1e-5)
    assert measured.keys() == metrics.keys()
    # what is logged of an update is of its last micro-batch; time and memory are those of a rank
    compared = {
        name for name in metrics if not name.startswith("train/") and "second" not in name and not name.endswith("_mib")
    }
    assert {"val/rougeL", "val/exact_match", "val/loss", "val/reverse_kl", "rollout/reward"} <= compared
    for name in compared:
        assert measured[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-5), name
    resumed, _ = train(2, ckpt_path=tmp_path / "2 step=3.ckpt", weights_only=False)
    assert torch.equal(resumed, given)
