"""One sweep over every loss."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
LOSSES = sorted(file.stem for file in (CONF / "loss").glob("*.yaml"))
SMALL = (
    "experiment=smoke trainer.accelerator=cpu logger=none callbacks=quiet max_steps=2 eval_every=2"
    " module.rollouts.num_rollouts=8 data.prepare.sizes.train=40 data.prepare.sizes.validation=4"
).split()


@pytest.mark.slow
def test_every_loss_trains_in_one_sweep(tmp_path):
    places = [f"hydra.sweep.dir={tmp_path}/sweep", f"cache_dir={tmp_path}/cache"]
    words = [sys.executable, "-m", "lightning_minillm.cli.train", "-m", f"loss={','.join(LOSSES)}", *SMALL, *places]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    targets = set()
    for number in range(len(LOSSES)):
        folder = tmp_path / "sweep" / str(number)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        targets.add(json.dumps(config["loss"], sort_keys=True))
        assert json.loads((folder / "metrics.json").read_text())["optimizer_steps"] == 2
    assert len(targets) == len(LOSSES)
