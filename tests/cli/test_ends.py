"""Ends of responses, and pairs whose tokenizers differ, from the command line."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.export import export
from lightning_minillm.cli.generate import generate
from lightning_minillm.cli.train import train

TURN_END = "<|im_end|>"


@pytest.fixture
def base_and_instruct(folders, tmp_path, make_model, make_special_tokenizer):
    """``base/``, which ends with eos, and ``instruct/``, which ends with its end of turn and has two tokens more."""
    for name, added, eos in (("base", (), "<eos>"), ("instruct", ("<think>", "</think>"), TURN_END)):
        tokenizer = make_special_tokenizer(eos=eos, added=added, words=37)
        model = make_model("gpt2", seed=len(added), vocab_size=40)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return [
        "student=pretrained",
        f"student.path={tmp_path}/base",
        "teacher=pretrained",
        f"teacher.path={tmp_path}/instruct",
        f"data.tokenizer={tmp_path}/base",
    ]


@pytest.fixture
def ends_its_turn(tmp_path, make_model, make_special_tokenizer):
    """A folder of a model that writes nothing but its end of turn, which only its generation config names."""
    model = make_model("gpt2", vocab_size=37)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.ln_f.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[2] = 3.0
    model.generation_config.eos_token_id = [0, 2]
    model.save_pretrained(tmp_path / "model")
    make_special_tokenizer(words=37).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_generated_responses_end_where_the_generation_config_says(ends_its_turn, data_overrides):
    common = [o for o in data_overrides if not o.startswith(("eval_batch_size", "data.tokenizer"))]
    overrides = [*common, f"model={ends_its_turn}", "sampling.max_new_tokens=6", "sampling.temperature=0"]
    overrides += ["trainer.accelerator=cpu", "keep_unfinished=true"]
    metrics, objects = generate(compose_config("generate", overrides))
    rows = [json.loads(line) for line in objects["output"].read_text().splitlines()]
    assert metrics["unfinished"] == 0
    assert metrics["mean_length"] == 1
    assert all(row["finished"] for row in rows)


@pytest.mark.parametrize("named", ["w9", 9])
def test_an_end_can_be_named(folders, data_overrides, named):
    common = [o for o in data_overrides if not o.startswith("eval_batch_size")]
    overrides = [*common, f"model={folders}/teacher", "sampling.max_new_tokens=8", f"sampling.eos_token_ids=[{named}]"]
    _, objects = generate(compose_config("generate", [*overrides, "keep_unfinished=true", "trainer.accelerator=cpu"]))
    rows = [json.loads(line) for line in objects["output"].read_text().splitlines()]
    assert all("w9" not in row["output"].split()[:-1] for row in rows)
    ended = [row for row in rows if row["output"].endswith("w9")]
    assert ended
    assert all(row["finished"] for row in ended)


@pytest.mark.parametrize("experiment", ["minillm", "kd", "gkd"])
def test_a_base_student_learns_from_an_instruct_teacher(base_and_instruct, train_overrides, tmp_path, experiment):
    sizes = ["batch_size=4", "max_steps=4", "eval_every=2"]
    if experiment != "kd":
        sizes += ["module.rollouts.num_rollouts=8", "module.rollouts.sampling.max_new_tokens=6"]
    overrides = [*train_overrides, *base_and_instruct, *sizes]
    with pytest.warns(UserWarning, match=r"only the teacher has 2 tokens \('<think>', '</think>'\).*either ends"):
        metrics, objects = train(compose_config("train", [f"experiment={experiment}", *overrides]))
    assert metrics["optimizer_steps"] == 4
    pair = objects["module"].pair
    assert set(pair.end_ids()) == {0, 2}
    assert pair.vocabulary == 37
    exported = GenerationConfig.from_pretrained(tmp_path / "run" / "student")
    assert set(exported.eos_token_id) == {0, 2}
    for name in ("last", "best"):  # which do not know the teacher
        export(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", tmp_path / name)
        assert set(GenerationConfig.from_pretrained(tmp_path / name).eos_token_id) == {0, 2}
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student").get_output_embeddings().weight.shape[0] == 40
    )


def test_an_instruct_teacher_measures_a_base_student(base_and_instruct, data_overrides, tmp_path):
    common = [o for o in data_overrides if not o.startswith("data.tokenizer")]
    overrides = [*common, *base_and_instruct[2:4], f"model={tmp_path}/base", "trainer.accelerator=cpu", "seeds=[1]"]
    results, _ = evaluate(compose_config("evaluate", [*overrides, "sampling.max_new_tokens=4"]))
    assert 0 < results["model"]["reverse_kl"]["mean"] < 100


def test_tokenizers_that_cannot_be_compared_are_refused_before_models_are_loaded(
    folders, train_overrides, tmp_path, make_special_tokenizer, monkeypatch
):
    shutil.copytree(folders / "teacher", tmp_path / "other")
    make_special_tokenizer(words=37).save_pretrained(tmp_path / "other")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    overrides = ["experiment=kd", *train_overrides, "teacher=pretrained", f"teacher.path={tmp_path}/other"]
    with pytest.raises(ValueError, match=r"different tokenizers.*SeqKD.*with one tokenizer"):
        train(compose_config("train", overrides))
