"""Every notebook runs from top to bottom, with the sizes of its cell ``parameters`` made small."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TOYS = {"RECIPE": "smoke", "STEPS": 8, "EVERY": 4, "PROMPTS": 8, "ROLLOUTS": 16, "BATCH": 8, "ANSWER": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of all notebooks, as it would be in a checkout: what they make beside it is shared."""
    folder = tmp_path_factory.mktemp("checkout") / "notebooks"
    folder.mkdir()
    return folder


def make_small(notebook):
    """Put a cell with toy sizes behind the one that is tagged ``parameters``."""
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    found = re.findall(r"^(\w+) = ", notebook.cells[place].source, flags=re.MULTILINE)
    sizes = [f"{name} = {TOYS[name]!r}" for name in found if name in TOYS]
    assert sizes
    notebook.cells.insert(place + 1, new_code_cell("\n".join(sizes)))


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_executes(path, folder):
    notebook = nbformat.read(path, as_version=4)
    make_small(notebook)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_stripped(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
