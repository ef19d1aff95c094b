"""A sweep over numbers of devices: every job runs once, with as many ranks as it asks for."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from lightning_minillm.reports.read_runs import read_runs

SMALL = (
    "experiment=smoke strategy=ddp trainer.accelerator=cpu logger=none callbacks=quiet max_steps=2 eval_every=2"
    " module.rollouts.num_rollouts=8 data.prepare.sizes.train=40 data.prepare.sizes.validation=4"
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


ONE_PROCESS = [word for word in SMALL if word != "strategy=ddp"]


def run_sweep(tmp_path, *words, timeout=170):
    """Run minillm-train, and return the folders of the jobs in order."""
    sweep = tmp_path / "sweep"
    chosen = {word.partition("=")[0] for word in words}
    small = [word for word in ONE_PROCESS if word.partition("=")[0] not in chosen]
    words = [*words, *small, f"hydra.sweep.dir={sweep}", f"cache_dir={tmp_path}/cache"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_minillm.cli.train", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return sorted((item for item in sweep.iterdir() if item.name.isdigit()), key=lambda item: int(item.name))


def advantages_of(jobs):
    return [yaml.safe_load((job / "config.yaml").read_text())["advantages"] for job in jobs]


@pytest.mark.slow
def test_sweep_over_losses_is_one_row_each_and_one_run_each(tmp_path):
    jobs = run_sweep(tmp_path, "-m", "loss=minillm_official,minillm_paper", "logger=wandb")
    assert [advantages["gamma"] for advantages in advantages_of(jobs)] == [0.95, 1.0]
    logged = [yaml.safe_load((job / "config.yaml").read_text())["logger"]["wandb"] for job in jobs]
    assert [node["name"] for node in logged] == ["smoke loss=minillm_official", "smoke loss=minillm_paper"]
    assert logged[0]["tags"] == ["smoke", "loss=minillm_official"]
    assert {node["group"] for node in logged} == {"smoke/sweep"}
    assert len({node["id"] for node in logged}) == 2
    assert [len(list(job.glob("wandb/offline-run-*"))) for job in jobs] == [1, 1]
    assert {entry.model for entry in read_runs([tmp_path / "sweep"])} == {"loss=minillm_official", "loss=minillm_paper"}


@pytest.mark.slow
def test_sweep_that_stands_in_the_configuration_needs_no_flag(tmp_path):
    words = ["sweep=presets", "callbacks=default", "callbacks.progress=null"]
    jobs = run_sweep(tmp_path, *words)
    assert [advantages["whiten"] for advantages in advantages_of(jobs)] == ["all", "none"]
    entries = read_runs([tmp_path / "sweep"])
    assert [entry.model for entry in entries] == ["variant=official", "variant=paper"]
    assert all(entry.responses for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_jobs_in_processes_of_their_own(launcher, tmp_path):
    jobs = run_sweep(tmp_path, "-m", "advantages.gamma=0.9,1.0", f"hydra/launcher={launcher}")
    assert [advantages["gamma"] for advantages in advantages_of(jobs)] == [0.9, 1.0]
    assert all((job / "metrics.json").is_file() for job in jobs)


@pytest.mark.slow
def test_optuna_searches_for_the_best_value_of_monitor(tmp_path):
    jobs = run_sweep(tmp_path, "sweep=optuna", "hydra.sweeper.n_trials=2")
    values = [json.loads((job / "metrics.json").read_text())["best"]["value"] for job in jobs]
    best = yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())
    assert best["best_value"] == pytest.approx(max(values))
    assert len({yaml.safe_load((job / "config.yaml").read_text())["optimizer"]["lr"] for job in jobs}) == 2
