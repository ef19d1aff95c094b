import sys

import pytest
from omegaconf import OmegaConf

from lightning_minillm.cli.config import (
    RecipeError,
    build,
    build_all,
    compose_config,
    quote_numbers,
    run_command,
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
    with pytest.raises(ValueError, match=r"nothing reads the key\(s\) typo; known are a, b"):
        to_plain({"a": 1, "typo": 2}, ["a", "b"])


def test_build_names_target_and_cause():
    with pytest.raises(ValueError, match=r"SamplingConfig: teacher_mix_alpha must lie in \[0, 1\], got 2"):
        build({"_target_": "lightning_minillm.rollout.SamplingConfig", "teacher_mix_alpha": 2})
    with pytest.raises(ValueError, match="no_such_argument"):
        build({"_target_": "lightning_minillm.rollout.SamplingConfig", "no_such_argument": 2})


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


@pytest.mark.parametrize("error", [ValueError("what to do"), RecipeError("what to do")])
def test_command_prints_expected_errors_and_raises_others(error, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["minillm-train", f"output_dir={tmp_path}/run"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def command(cfg):
        assert cfg.output_dir == f"{tmp_path}/run"
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(command, "train")
    assert stop.value.code == 1
    assert "error: what to do" in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)):
        run_command(command, "train")
