"""What is on the console of a command."""

import re
import subprocess
import sys

import pytest

NOISY = """
import warnings
from lightning_minillm.cli.console import quiet_libraries
quiet_libraries()
import torch, transformers, lightning as L
from lightning.pytorch.utilities import rank_zero_info
L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
rank_zero_info("a message of our own")
for category in (DeprecationWarning, FutureWarning):
    warnings.warn("will be removed", category)
warnings.warn("fit has few workers, which does not have many workers")
transformers.utils.logging.get_logger("transformers.models").warning("We strongly recommend something")
transformers.utils.logging.get_logger("transformers.models").error("an error of transformers")
warnings.warn("num_rollouts is large")
"""


def test_only_what_a_user_can_use_is_shown():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "triton not found" not in line]
    assert lines == [
        "a message of our own",
        "[transformers] an error of transformers",
        "warning: num_rollouts is large",
    ]


@pytest.mark.slow
def test_console_of_a_run_is_our_own(tmp_path):
    words = ["experiment=smoke", f"output_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache"]
    command = [sys.executable, "-c", "from lightning_minillm.cli.commands import train; train()", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "step 16: val/" in printed
    assert f"wandb sync {tmp_path}/run/wandb/offline-run" in printed
    noise = r"💡|Tip|GPU available|deprecat|recommend|it/s|━|wandb: |LeafSpec|kernels|Trainer.fit|site-packages"
    assert not re.findall(noise, printed), printed
