import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lightning_minillm.cli.config import (
    build,
    build_all,
    compose_config,
    quote,
    quote_numbers,
    to_plain,
)


def test_plain_configuration_is_resolved_and_has_no_containers_of_omegaconf():
    cfg = OmegaConf.create({"a": {"b": [1, "${c}"]}, "c": 2})
    plain = to_plain(cfg, ["a", "c"])
    assert plain == {"a": {"b": [1, 2]}, "c": 2}
    assert type(plain["a"]) is dict
    assert type(plain["a"]["b"]) is list
    assert to_plain(plain, ["a", "c"]) == plain


def test_missing_values_are_all_named_also_behind_interpolations():
    cfg = OmegaConf.create({"model": {"path": "???", "tokenizer": "${model.path}"}, "data": {"path": "???"}})
    with pytest.raises(ValueError, match=r"no value was given for data.path, model.path"):
        to_plain(cfg, ["model", "data"])


def test_unknown_key_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match=r"nothing reads the key\(s\) typo; the keys are a, b"):
        to_plain({"a": 1, "typo": 2}, ["a", "b"])


def test_build_names_target_and_cause():
    with pytest.raises(ValueError, match=r"SamplingConfig: teacher_mix_alpha must be in \[0, 1\], got 2"):
        build({"_target_": "lightning_minillm.rollout.SamplingConfig", "teacher_mix_alpha": 2})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "lightning_minillm.rollout.SamplingConfig", "no_such_argument": 2},
            "SamplingConfig: got an unexpected keyword argument 'no_such_argument'; its arguments are max_new_tokens, ",
        ),
        ({"_target_": "fractions.Fraction", "_partial_": True, "typo": 2}, "fractions.Fraction: .*'typo'"),
        ({"_target_": "lightning_minillm.data.WordLevel"}, "'lightning_minillm.data' has no 'WordLevel'"),
        ({"_target_": "lightning_minillm.nothing.Here"}, "'lightning_minillm' has no 'nothing'"),
        ({"_target_": "no_such_package.Here"}, "there is no module 'no_such_package'"),
        ({"_target_": "lightning_minillm.models.load_causal_lm"}, "missing a required argument: 'path'"),
        ({"_target_": "lightning_minillm.files.iterate_json_lines", "path": [{"_target_": "no.X"}]}, "'no'"),
        ({"_target_": f"{__name__}.needs_extra"}, "needs_extra: LoRA needs peft"),
        ({"_target_": f"{__name__}.reads_file"}, "reads_file: .*nowhere"),
    ],
)
def test_build_shortens_mistakes_in_the_configuration(node, message):
    with pytest.raises(ValueError, match=message):
        build(node)


def needs_extra():
    raise ImportError("LoRA needs peft: pip install 'lightning-minillm[peft]'")


def reads_file():
    return open("nowhere")


def broken(error):
    raise {
        "AttributeError": AttributeError("no attribute 'logits'"),
        "TypeError": TypeError("unsupported operand"),
        "RuntimeError": RuntimeError("out of memory"),
        "ImportError": ImportError("cannot import name 'x'", name="lightning_minillm.losses"),
    }[error]


@pytest.mark.parametrize("error", ["AttributeError", "TypeError", "RuntimeError", "ImportError"])
def test_build_raises_mistakes_in_the_code_as_they_are(error):
    with pytest.raises((AttributeError, TypeError, RuntimeError, ImportError)) as raised:
        build({"_target_": f"{__name__}.broken", "error": error})
    assert type(raised.value).__name__ == error
    assert raised.traceback[-1].name == "broken"


def test_build_all_leaves_out_what_is_switched_off():
    node = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    assert list(build_all({"a": node, "b": None})) == ["a"]


@pytest.mark.parametrize(
    ("override", "quoted"),
    [
        ("devices=2", "devices='2'"),
        ("devices=1,2", "devices='1','2'"),
        ("devices=2x8", "devices=2x8"),
        ("trainer.devices=2", "trainer.devices=2"),
        ("seed=1,2", "seed=1,2"),
    ],
)
def test_numbers_that_name_files_are_quoted(override, quoted):
    assert quote_numbers([override]) == [quoted]


def test_groups_are_chosen_by_number():
    assert compose_config("train", ["devices=4"]).trainer.devices == 4


@pytest.mark.parametrize(
    "path",
    ["/a/it's, here", r"C:\Users\me", "C:\\ends\\", r"\\server\it's", "a=b (c) {d}", "ü", "'", "\\'", "tab\there"],
)
def test_a_quoted_path_is_read_as_it_was(path):
    assert OverridesParser.create().parse_override(f"data.path={quote(path)}").value() == path
