"""Types and ranges of every key."""

import pytest
from omegaconf import OmegaConf

from lightning_minillm.cli.config import compose_config, to_plain
from lightning_minillm.cli.schema import KEYS, METRICS, check_values, kind_of, unread_keys
from lightning_minillm.files import nearest

GIVEN = ("student.path=X", "teacher.path=X", "data.tokenizer=X")


def composed(command, *overrides):
    return to_plain(compose_config(command, list(overrides)), KEYS[command].split())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps=ten", "max_steps must be a whole number of at least 1, got 'ten'"),
        ("max_steps=0", "max_steps must be a whole number of at least 1, got 0"),
        ("max_length=1e2", r"max_length must be a whole number of at least 1, got 100.0 \(write 100\)"),
        ("batch_size=8.0", r"batch_size must be .*, got 8.0 \(write 8\)"),
        ("batch_size=true", "batch_size must be a whole number of at least 1, got true"),
        ("eval_every=0", "eval_every must be a whole number of at least 1, got 0"),
        ("micro_batch_size=0", "micro_batch_size must be a whole number of at least 1, or null, got 0"),
        ("validation.sampling.max_new_tokens=24.5", "validation.sampling.max_new_tokens must be a whole number"),
        ("optimizer.lr=1e-3x", "optimizer.lr must be a number of at least 0, got '1e-3x'"),
        ("optimizer.lr=nan", "optimizer.lr must be a number of at least 0, got nan"),
        ("optimizer.betas=[0.9]", r"optimizer.betas must be two numbers in \[0, 1\), got \[0.9\]"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas must be two numbers"),
        ("data.limits.train=20.5", "data.limits.train must be a whole number of at least 1, or null, got 20.5"),
        ("scheduler.num_warmup_steps=-5", "scheduler.num_warmup_steps must be a whole number of at least 0, got -5"),
        ("monitor=val/rougel", r"monitor=val/rougel is not measured; did you mean val/rougeL\?"),
        ("monitor_mode=min", "monitor=val/rougeL is better when it is maximal: set monitor_mode=max"),
        ("eval_first=yes_please", "eval_first must be true or false, got 'yes_please'"),
        ("resume=maybe", "resume must be auto or never, got 'maybe'"),
        ("output_dir=''", "output_dir must be text, got ''"),
        (
            "data.datamodule.template=ChatTemplate",
            "data.datamodule.template must be alpaca or auto or chat or plain or raw, got 'ChatTemplate'",
        ),
        ("max_steps=ten batch_size=x", "max_steps must be .*; batch_size must be "),
    ],
)
def test_values_are_checked_when_a_configuration_is_composed(override, message):
    with pytest.raises(ValueError, match=message):
        composed("train", *override.split())


def test_values_of_rollouts_and_evaluations_are_checked_too():
    for override in ("module.rollouts.num_rollouts=0", "module.rollouts.sampling.top_p=0", "advantages.gamma=2"):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            composed("train", "experiment=smoke", override)
    with pytest.raises(ValueError, match="seeds must be a list of one or more whole numbers, got 10"):
        composed("evaluate", "seeds=10")
    with pytest.raises(ValueError, match="split must be train or validation or test, got 'tset'"):
        composed("evaluate", "split=tset")
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1, or auto, got 0"):
        composed("recipe", "workers=0")


def test_a_value_that_is_copied_is_named_once():
    with pytest.raises(ValueError, match=r"^loss\.pg_coef must be a number of at least 0, got -1$"):
        composed("train", "experiment=smoke", "loss.pg_coef=-1")


def test_nodes_of_own_classes_are_left_to_them():
    check_values({"loss": {"_target_": "mine.Loss", "temperature": "auto", "seed": None}, "max_steps": 3})
    with pytest.raises(ValueError, match=r"loss\.temperature"):
        check_values({"loss": {"_target_": "lightning_minillm.losses.X", "temperature": "auto"}})


def test_metrics_of_own_modules_can_be_monitored():
    config = {"monitor": "val/mine", "monitor_mode": "min", "module": {"_target_": "mine.Module"}}
    check_values(config)
    with pytest.raises(ValueError, match="val/mine is not measured"):
        check_values({**config, "module": {"_target_": "lightning_minillm.modules.SFTModule"}})


def test_metrics_are_those_of_the_modules():
    from lightning_minillm.evaluation.responses import MEASURES
    from lightning_minillm.modules import base

    assert set(METRICS) | {"val/response_length"} == {f"val/{name}" for name in base.MEASURED}
    for name, measure in MEASURES.items():
        if f"val/{name}" in METRICS:
            assert {"max": True, "min": False}[METRICS[f"val/{name}"]] is measure.higher_is_better


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", ["experiment=smoke"]),
        ("train", ["experiment=minillm", *GIVEN[:2]]),
        ("train", ["experiment=distillm", *GIVEN[:2], "strategy=fsdp", "scheduler=cosine", "logger=csv"]),
        ("train", ["student=lora", "student.path=X", "corpus=text", "data.datamodule.lm_corpus.path=X"]),
        ("evaluate", ["evaluation=[responses,calibration,retrieval,judge,divergence,exposure_bias]", "model=X"]),
        ("generate", ["model=X"]),
        ("recipe", []),
    ],
)
def test_every_number_and_flag_of_our_classes_has_a_kind(command, overrides):
    unknown = []

    def visit(node, path):
        if not str(node.get("_target_", "lightning_minillm.")).startswith("lightning_minillm."):
            return
        for key, value in node.items():
            if isinstance(value, dict):
                visit(value, f"{path}{key}.")
            elif isinstance(value, int | float) and kind_of(f"{path}{key}") is None and not str(key).startswith("_"):
                unknown.append(f"{path}{key}={value}")

    visit(composed(command, *overrides), "")
    assert not unknown


def test_what_nothing_reads_is_found_where_interpolations_show_it():
    config = {
        "data": {"datamodule": "${data.path}", "path": 1, "left": 2, "sizes": {"a": 1}},
        "student": {"x": "${data.sizes.a}"},
    }
    assert unread_keys(config) == {
        "data.left": ["datamodule", "path", "sizes"],
        "student.x": [],
    }
    resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    assert unread_keys(resolved) == {}


def test_nearest_ignores_case():
    assert nearest("VAL/ROUGEL", METRICS) == "; did you mean val/rougeL?"
    assert nearest("nothing like it", METRICS) == ""
