"""Every command checks its models before data are read and before anything is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.generate import generate
from lightning_minillm.cli.plan import plan
from lightning_minillm.cli.train import train


def drop_a_layer(folder):
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if ".h.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def become_bert(folder):
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", vocab_size=37, **fields)).save_pretrained(folder)


def change_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def shrink(folder):
    fields = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": 20}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **fields)).save_pretrained(folder)


DAMAGES = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "contains no weights"),
    "missing layer": (drop_a_layer, "12 are missing"),
    "another kind": (become_bert, "not a causal language model"),
    "small embedding": (shrink, "17 tokens beyond the 20 of the model's embedding"),
    "another shape": (change_config(n_embd=8), "have another shape"),
}


@pytest.fixture
def damaged(folders, tmp_path, request):
    damage, message = DAMAGES[request.param]
    shutil.copytree(folders / "model", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    return tmp_path / "damaged", message


def others(overrides, *keys):
    return [override for override in overrides if not override.startswith(keys)]


def refuses(command, words, message, tmp_path):
    """The model is refused although there are no data, which would be an error too, and nothing is written."""
    with pytest.raises(ValueError, match=message) as error:
        command(compose_config(command.__name__, [*words, f"data.path={tmp_path}/no_data"]))
    assert len(str(error.value)) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damaged", DAMAGES, indirect=True)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_train(role, damaged, train_overrides, folders, tmp_path):
    paths = {"student": f"{folders}/model", "teacher": f"{folders}/teacher", role: f"{damaged[0]}"}
    words = [*others(train_overrides, "student.path"), "experiment=kd", "teacher=pretrained"]
    words += [f"{name}.path={path}" for name, path in paths.items()]
    refuses(train, words, damaged[1], tmp_path)


@pytest.mark.parametrize("damaged", DAMAGES, indirect=True)
def test_evaluate_and_generate(damaged, data_overrides, folders, tmp_path):
    words = [*data_overrides, "trainer.accelerator=cpu"]
    refuses(evaluate, [*words, f"models={{good: {folders}/model, bad: {damaged[0]}}}"], damaged[1], tmp_path)
    teacher = [f"model={folders}/model", "teacher=pretrained", f"teacher.path={damaged[0]}"]
    refuses(evaluate, [*words, *teacher], damaged[1], tmp_path)
    words = [*others(words, "eval_batch_size"), f"model={damaged[0]}"]
    refuses(generate, words, damaged[1], tmp_path)


def test_sequences_longer_than_the_table_of_positions(train_overrides, data_overrides, folders, tmp_path):
    message = "64 positions and the run asks for sequences of 65 tokens"
    refuses(train, ["experiment=sft", *train_overrides, "max_length=65"], message, tmp_path)
    corpus = "data.datamodule.lengths.lm_max_length=65"
    refuses(train, ["experiment=sft", *train_overrides, corpus], message, tmp_path)
    scratch = [*others(train_overrides, "student"), "student=scratch", "student.model.n_positions=64", "max_length=65"]
    refuses(train, ["experiment=sft", *scratch], message, tmp_path)
    words = [*data_overrides, f"model={folders}/model", "max_length=65"]
    refuses(evaluate, words, message, tmp_path)
    with pytest.raises(ValueError, match=message):
        plan(f"{folders}/model", f"{folders}/teacher", max_length=65)


def test_quantised_students_and_adapters_that_cannot_be_merged(train_overrides, folders, tmp_path):
    words = ["experiment=sft", *train_overrides]
    options = ["+student.model.quantization=4bit"]
    refuses(train, [*words, *options], "is quantised .4bit. and cannot be trained", tmp_path)
    refuses(train, [*words, "student=lora", *options], "cannot be trained", tmp_path)
    tied = ["student=lora", "student.model.target_modules=[wte]"]
    refuses(train, [*words, *tied], "wte cannot be merged", tmp_path)
    shutil.copytree(folders / "model", tmp_path / "gptq")
    change_config(quantization_config={"quant_method": "gptq", "bits": 4})(tmp_path / "gptq")
    words = [*others(words, "student.path"), f"student.path={tmp_path}/gptq"]
    refuses(train, words, "is quantised .in its folder. and cannot be trained", tmp_path)


def test_plan(folders, tmp_path):
    become_bert(tmp_path / "bert")
    with pytest.raises(ValueError, match="not a causal language model"):
        plan(f"{folders}/model", str(tmp_path / "bert"), max_length=32)
    for name in ("max_length", "rollout_batch_size", "device_memory"):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            plan(f"{folders}/model", f"{folders}/teacher", **{"max_length": 32, name: 0})


def test_the_folder_of_a_run_names_its_student(folders, data_overrides, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "old" / "student")
    words = [*data_overrides, f"model={tmp_path}/old"]
    refuses(evaluate, words, "is the folder of a run, not of a model: pass .*old/student", tmp_path)


def test_a_revision_reaches_weights_and_tokenizers():
    words = ["experiment=kd", "student=pretrained", "student.path=x/y", "teacher=pretrained", "teacher.path=x/z"]
    config = compose_config("train", [*words, "student.revision=abc", "teacher.revision=def"])
    assert config["student"]["tokenizer"]["revision"] == config["student"]["model"]["revision"] == "abc"
    assert config["teacher"]["tokenizer"]["revision"] == config["teacher"]["model"]["revision"] == "def"
