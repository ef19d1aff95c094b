"""Imports go one way: every layer knows only those below it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lightning_minillm"

# Lowest first; members of one layer do not import each other, but for those of `WITHIN`.
LAYERS = [
    {"_reach", "types", "batch_sizes", "checks", "files", "figures", "functional"},
    {"losses", "metrics", "distributed", "tokens"},
    {"models", "data", "rollout", "checkpoints"},
    {"evaluation"},
    {"modules"},
    {"callbacks", "testing", "strategies"},
    {"reports"},
    {"cli"},
]
WITHIN = {("rollout", "models"), ("rollout", "data"), ("functional", "types"), ("batch_sizes", "checks")}
# Third-party packages that only some layers may know, with the lowest that may.
LOWEST_LAYER = {"torchmetrics": 1, "transformers": 1, "datasets": 2, "lightning": 3, "hydra": 7, "omegaconf": 7}
ALLOWED = {
    ("data/datamodule.py", "lightning"),
    ("data/reading.py", "lightning"),
    ("data/sources.py", "lightning"),  # to say once what was read
    ("checkpoints/files.py", "lightning"),
    ("distributed/placement.py", "lightning"),  # the type of a trainer
    ("_reach.py", "lightning"),
    ("_reach.py", "transformers"),
    ("_reach.py", "torchmetrics"),
}
NEVER = {"wandb"}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(file):
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write it in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "lightning_minillm")


def part_of(file):
    """Name of the subpackage or top module that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(part):
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_downwards(file):
    part = part_of(file)
    if part == "__init__":
        return
    layer = layer_of(part)
    assert layer is not None, f"{part} belongs to no layer: add it to LAYERS"
    for module in imported_modules(file):
        root, _, rest = module.partition(".")
        if root == "lightning_minillm":
            other = rest.partition(".")[0]
            if not other or other == part or other == "__version__":
                continue
            below = layer_of(other) is not None and layer_of(other) < layer
            assert below or (part, other) in WITHIN, f"{file.name} ({part}) imports {module}"
        lowest = LOWEST_LAYER.get(root, 0)
        relative = str(file.relative_to(PACKAGE))
        assert layer >= lowest or (relative, root) in ALLOWED, f"{relative} must not know {root}"
        assert root not in NEVER, f"{relative} must speak to trainer.loggers, not to {root}"


def test_every_subpackage_has_a_layer():
    parts = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and (folder / "__init__.py").exists()}
    assert parts <= set.union(*LAYERS)
