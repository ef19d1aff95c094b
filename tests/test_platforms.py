"""What other systems lack: Windows has no ``resource`` and starts processes by spawning alone."""

import math
import subprocess
import sys
from pathlib import Path

import torch

import lightning_minillm
from lightning_minillm.callbacks import throughput

ROOT = Path(lightning_minillm.__file__).parent

# The libraries below are imported first: on Linux psutil itself reads resource.
ON_WINDOWS = """
import importlib, multiprocessing, multiprocessing.context, sys
import psutil, torch, lightning.pytorch, transformers, datasets, matplotlib, hydra, torchmetrics, rich.live
from transformers import AutoModelForCausalLM, PreTrainedModel
sys.modules["resource"] = sys.modules["fcntl"] = sys.modules["pwd"] = sys.modules["grp"] = None
del multiprocessing.context.ForkServerProcess, multiprocessing.context.ForkProcess
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def test_every_module_can_be_imported_on_windows():
    files = [file for file in sorted(ROOT.rglob("*.py")) if file.name != "__main__.py"]
    names = [".".join(file.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__") for file in files]
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS, *names], capture_output=True, text=True)
    assert done.stdout.strip() == f"imported {len(names)}", done.stderr[-2000:]


def test_peak_memory_is_unknown_without_resource(monkeypatch):
    assert throughput.peak_memory_gib(torch.device("cpu")) > 0
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(throughput.peak_memory_gib(torch.device("cpu")))
