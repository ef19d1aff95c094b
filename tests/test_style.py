"""The rules of the house that a test can hold: sizes, class depth, typed seams, and no private reach."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lightning_minillm

PACKAGE = Path(lightning_minillm.__file__).parent
FILES = {str(file.relative_to(PACKAGE)): file for file in sorted(PACKAGE.rglob("*.py"))}
MOST_LINES = 320
MOST_FUNCTION_LINES = 70
MOST_PARAMETERS = 10
DEEPEST = 2
# What a strategy, a module or a loader is called; asking one for a name in a string hides a misspelt method.
SEAM = re.compile(r"strategy|module|loader|trainer")


def parse(name):
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def classes():
    """Every class that the package defines."""
    for info in pkgutil.walk_packages([str(PACKAGE)], "lightning_minillm."):
        if info.name.startswith("lightning_minillm.conf"):
            continue
        module = importlib.import_module(info.name)
        for _, item in inspect.getmembers(module, inspect.isclass):
            if item.__module__ == info.name:
                yield item


CLASSES = sorted(set(classes()), key=lambda item: (item.__module__, item.__qualname__))


def full_name(item):
    return f"{item.__module__.removeprefix('lightning_minillm.')}.{item.__qualname__}"


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(parse(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("item", CLASSES, ids=full_name)
def test_classes_are_at_most_two_deep(item):
    def depth(kind):
        own = [base for base in kind.__bases__ if base.__module__.startswith("lightning_minillm")]
        return 1 + max(map(depth, own), default=0)

    assert depth(item) <= DEEPEST, f"{item.__qualname__} is {depth(item)} deep: compose instead"


@pytest.mark.parametrize("item", CLASSES, ids=full_name)
def test_constructors_take_at_most_ten_parameters(item):
    is_data = hasattr(item, "__dataclass_fields__") or issubclass(item, tuple)
    if "__init__" not in vars(item) or is_data:  # the fields of a dataclass are its documentation
        return
    parameters = [name for name in inspect.signature(item).parameters if name not in ("args", "kwargs")]
    assert len(parameters) <= MOST_PARAMETERS, f"{len(parameters)} parameters: an object is missing"


@pytest.mark.parametrize("item", [c for c in CLASSES if hasattr(c, "__dataclass_fields__")], ids=full_name)
def test_options_are_frozen(item):
    """A dataclass of many fields is one of options or values; those that grow are named."""
    grows = {
        "rollout.cache._Extent",
        "reports.results.Results",
        "reports.comparison.Model",
        "cli.recipe.scheduler._Parallel",
    }
    assert item.__dataclass_params__.frozen or full_name(item) in grows


@pytest.mark.parametrize("name", FILES)
def test_nobody_asks_a_seam_for_a_name_in_a_string(name):
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            asked, key = node.args[:2]
            in_a_string = isinstance(key, ast.Constant)
            assert not (in_a_string and SEAM.search(ast.unparse(asked))), ast.unparse(node)


def private_names_of_ours():
    """Names with one leading underscore that the package defines somewhere."""
    names = set()
    for name in FILES:
        for node in ast.walk(parse(name)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


OURS = private_names_of_ours()
PUBLIC_BY_CONVENTION = {"_replace", "_asdict", "_fields", "_exit"}  # of the standard library


@pytest.mark.parametrize("name", [name for name in FILES if name != "_reach.py"])
def test_private_names_of_dependencies_are_read_in_one_module(name):
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            allowed = node.attr in OURS | PUBLIC_BY_CONVENTION
            assert allowed, f"{ast.unparse(node)} reaches into a dependency: add a function to _reach.py"
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lightning_minillm"):
            hidden = [alias.name for alias in node.names if re.match(r"_[^_]", alias.name)]
            assert not hidden, f"{name} imports {hidden} from {node.module}: add a function to _reach.py"
