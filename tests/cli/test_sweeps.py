"""A sweep over numbers of devices: every job runs once, with as many ranks as it asks for."""

import json
import os
import subprocess
import sys

import pytest
import yaml

SMALL = (
    "experiment=smoke strategy=ddp trainer.accelerator=cpu logger=none callbacks=quiet max_steps=2 eval_every=2"
    " module.num_rollouts=8 data.prepare.sizes.train=40 data.prepare.sizes.validation=4"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1,2", "2,1"])
def test_every_job_has_the_ranks_it_asks_for(devices, tmp_path):
    places = [f"hydra.sweep.dir={tmp_path}/sweep", f"cache_dir={tmp_path}/cache"]
    words = [sys.executable, "-m", "lightning_minillm.cli.train", "-m", f"devices={devices}", *SMALL, *places]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for job in ("0", "1"):
        folder = tmp_path / "sweep" / job
        found.append(yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"])
        assert json.loads((folder / "metrics.json").read_text())["optimizer_steps"] == 2
    assert found == [int(number) for number in devices.split(",")]
    assert f"{found[1]} device(s)" in done.stderr + done.stdout
    assert sorted(item.name for item in (tmp_path / "sweep").iterdir() if item.is_dir()) == ["0", "1"]
