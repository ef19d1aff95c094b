import pytest

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.repeats import repeated_key


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("models={a: x, a: y}", "a"),
        ("models={a:x,b:y,a:z}", "a"),
        ("models={'a b': x, 'a b': y}", "a b"),
        ("models={a: x, b: {c: 1, c: 2}}", "c"),
        ("models={ a: [1, {b: 1}], a : y}", "a"),
        ("models={a: x, b: x}", None),
        ("models={a: {b: 1}, b: {a: 1}}", None),
        ("models={a: 'x, a: y'}", None),
        ("evaluation=[responses,responses]", None),
        ("output_dir=runs/a,b", None),
        ("a=range(1,1)", None),
        ("model=x}y", None),
    ],
)
def test_keys_that_are_given_twice(override, key):
    assert repeated_key(override) == key


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="models has the key 'a' twice"):
        compose_config("evaluate", ["models={a: x, a: y}"])
