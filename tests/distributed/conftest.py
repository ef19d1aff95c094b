import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory):
    """``run_ranks(function, world_size, timeout=90, **kwargs)``: what the function returned on every rank."""
    harness = runpy.run_path(str(HERE / "harness.py"), run_name="harness")
    return harness["Ranks"](tmp_path_factory.mktemp("ranks"))
