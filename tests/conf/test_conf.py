"""Every file in conf/ is composed and made into what it describes."""

import math
import os
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from lightning_minillm.cli import evaluate, generate, train
from lightning_minillm.cli.build import (
    batch_sizes,
    build_datamodule,
    build_models,
    build_module,
    build_trainer,
    world_size,
)
from lightning_minillm.cli.config import CONFIG_MODULE, HYDRA_VERSION, build, build_all, compose_config, to_plain
from lightning_minillm.cli.paper import PAPER
from lightning_minillm.cli.recipe import command as recipe
from lightning_minillm.data import DistillationDataModule, as_template
from lightning_minillm.data.templates import TEMPLATES
from lightning_minillm.evaluation import Evaluation, GenerationEvaluation, PromptSets
from lightning_minillm.losses import TokenLoss
from lightning_minillm.modules import CausalLMModule
from lightning_minillm.rollout import AdvantageEstimator, SamplingConfig, TextSource
from lightning_minillm.strategies import AtomicCheckpointIO, ShardedStrategy

CONF = Path(__file__).resolve().parents[2] / "conf"
ON_POLICY = ("distillm", "gkd", "imitkd", "on_policy_reverse_kl")
# files with an underscore are parts of others
FILES = sorted(
    str(file.relative_to(CONF).with_suffix("")) for file in CONF.rglob("*.yaml") if not file.name.startswith("_")
)


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_model, make_tokenizer):
    """A folder with a tiny model and its tokenizer, and one with data files."""
    root = tmp_path_factory.mktemp("conf")
    make_model("gpt2").save_pretrained(root / "model")
    make_tokenizer().save_pretrained(root / "model")
    for split in ("train", "validation", "test"):
        (root / f"{split}.jsonl").write_text('{"instruction": "w1 w2", "output": "w3"}\n' * 4, encoding="utf-8")
    return root


@pytest.fixture
def given(places, tmp_path):
    """Values for the keys that have to be given, and folders that are thrown away."""
    return [f"output_dir={tmp_path}/run", f"cache_dir={tmp_path}/cache"], {
        "student": f"student.path={places}/model",
        "teacher": f"teacher.path={places}/model",
        "data": [f"data.path={places}", f"data.tokenizer={places}/model"],
    }


_MINILLM_LIKE = ("experiment=minillm", "experiment=quickstart_minillm", *(f"experiment={name}" for name in ON_POLICY))


def compose_train(given, *overrides):
    """Compose train.yaml, giving what is missing where the choice asks for it."""
    folders, values = given
    chosen = list(overrides)
    if {"student=pretrained", "student=lora"} & set(chosen) or any(o.startswith(_MINILLM_LIKE) for o in chosen):
        chosen.append(values["student"])
    if {"teacher=pretrained", "teacher=paper"} & set(chosen) or any(
        o.startswith((*_MINILLM_LIKE, "experiment=kd")) for o in chosen
    ):
        chosen.append(values["teacher"])
    if "data=instructions" in chosen or any(o.startswith("corpus=") for o in chosen):
        chosen = ["data=instructions", *values["data"], *[o for o in chosen if o != "data=instructions"]]
    else:
        # The built-in set would have to be written first: only its tokenizer is needed here.
        chosen.append(f"data.tokenizer={values['student'].removeprefix('student.path=')}")
    return to_plain(compose_config("train", [*chosen, *folders]), train.KEYS)


def make_everything(config):
    """Make all objects of a training run, models included."""
    sizes = batch_sizes(config)
    trainer, callbacks = build_trainer(config, sizes)
    models = build_models(config["student"], config["teacher"])
    module = build_module(config, models)
    module.configure_model()
    datamodule = build_datamodule(config["data"], models, config["teacher"])
    return trainer, callbacks, module, datamodule


def check_top(name, given):
    if name == "train":
        trainer, callbacks, module, datamodule = make_everything(compose_train(given))
        assert isinstance(trainer, L.Trainer)
        assert isinstance(module, CausalLMModule)
        assert isinstance(datamodule, DistillationDataModule)
        assert {"best", "last", "progress", "samples", "throughput", "learning_rate"} <= set(callbacks)
        # What the sharding notes ask of every trainer.
        assert trainer._accelerator_connector.use_distributed_sampler is False
        assert trainer.test_loop.inference_mode is False
    elif name == "evaluate":
        config = to_plain(compose_config("evaluate", given[0]), evaluate.KEYS)
        assert isinstance(build_trainer(config)[0], L.Trainer)
        assert build(config["sampling"]).teacher_mix_alpha == 0
        assert list(config["evaluation"]) == ["responses"]
    elif name == "generate":
        config = to_plain(compose_config("generate", ["model=x", *given[0]]), generate.KEYS)
        assert isinstance(build_trainer(config)[0], L.Trainer)
        assert isinstance(build(config["generation"]), GenerationEvaluation)
    else:
        assert name == "recipe"
        to_plain(compose_config("recipe", given[0]), recipe.KEYS)


def check_loss(name, given):
    assert isinstance(build(compose_train(given, f"loss={name}")["loss"]), TokenLoss)


def check_advantages(name, given):
    config = compose_train(given, "module=minillm", "teacher=pretrained", f"loss={name}")
    assert build(config["module"]["advantages"]) == build(config["advantages"])
    assert isinstance(build(config["advantages"]), AdvantageEstimator)


def check_module(name, given):
    teacher = () if name == "sft" else ("teacher=pretrained",)
    config = compose_train(given, f"module={name}", *teacher)
    module = make_everything(config)[2]
    assert type(module).__name__ == config["module"]["_target_"].rsplit(".", 1)[1]
    assert isinstance(module.loss, TokenLoss)


def check_rollout(name, given):
    config = compose_train(given, "module=on_policy_kd", "teacher=pretrained", f"rollout={name}")
    module = make_everything(config)[2]
    assert isinstance(module.rollouts.source, TextSource)
    assert type(module.rollouts.source).__name__ == config["rollout"]["_target_"].rsplit(".", 1)[1]


def check_optimizer(name, given):
    optimizer = build(compose_train(given, f"optimizer={name}")["optimizer"])(torch.nn.Linear(2, 2).parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)


def check_scheduler(name, given):
    make = build(compose_train(given, f"scheduler={name}", "scheduler.num_warmup_steps=2")["scheduler"])
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = make(optimizer) if name == "constant" else make(optimizer, num_training_steps=10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[-1] == (1.0 if name == "constant" else pytest.approx(0.038, abs=1e-3))


def check_model(group, name, given):
    config = compose_train(given, f"{group}={name}")
    models = build_models(config["student"], config["teacher"])
    made = models.student if group == "student" else models.teacher
    if name == "none":
        assert made is None
    else:
        assert len(models.tokenizer) <= made().get_output_embeddings().weight.shape[0]


def check_data(name, given):
    config = compose_train(given, f"data={name}")
    models = build_models(config["student"], None)
    datamodule = build_datamodule(config["data"], models)
    if name == "instructions":
        assert len(datamodule.test_set) == 4
    else:
        sizes = build(config["data"]["prepare"]["sizes"])
        assert sizes.train > sizes.test > 0


def check_teacher_template(name, given):
    config = compose_train(given, "data=instructions", "teacher=pretrained", f"teacher/template={name}")
    assert type(build(config["teacher"]["template"])) is TEMPLATES[name]
    of_data = compose_train(given, "data=instructions", f"data/template={name}")["data"]["datamodule"]
    assert config["teacher"]["template"] == of_data["template"]


def check_template(name, given):
    config = compose_train(given, "data=instructions", f"data/template={name}")
    template = build_datamodule(config["data"], build_models(config["student"], None)).template
    assert type(template) is TEMPLATES[name]
    assert type(as_template(name)) is type(as_template(f"{name.title()}Template")) is type(template)


def check_corpus(name, given):
    file = given[1]["data"][0].removeprefix("data.path=") + "/train.jsonl"
    overrides = [f"corpus={name}", f"data.datamodule.lm_corpus.path={file}", "data.datamodule.lm_corpus.field=output"]
    source = build(compose_train(given, *overrides)["data"]["datamodule"]["lm_corpus"])
    assert list(source.documents()) == ["w3"] * 4


def check_trainer(group, name, given):
    if (group, name) == ("trainer", "evaluation"):
        return check_top("evaluate", given)
    overrides = ["batch_size=32", "trainer.accelerator=cpu", "logger=none"]
    if name == "fsdp_tp":
        overrides.append("devices=2")
    config = compose_train(given, f"{group}={name}", *overrides)
    sizes = batch_sizes(config)
    assert sizes.micro_batch_size * sizes.world_size * sizes.accumulation == 32
    trainer, _ = build_trainer(config, sizes)
    if name.startswith("fsdp"):
        assert isinstance(trainer.strategy, ShardedStrategy)
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    assert trainer.accumulate_grad_batches == sizes.accumulation
    if group == "devices":
        assert trainer.num_devices * trainer.num_nodes == sizes.world_size == math.prod(map(int, name.split("x")))
    return None


def check_logger(name, given):
    nodes = compose_train(given, f"logger={name}")["logger"]
    loggers = build_all(nodes)
    assert set(loggers) == {"wandb": {"csv", "wandb"}, "csv": {"csv"}, "none": set()}[name]
    assert all(isinstance(logger, Logger) for logger in loggers.values())
    if name == "wandb":
        assert nodes["wandb"]["offline"] is True


def check_callbacks(name, given):
    if name == "evaluation":
        return check_top("evaluate", given)
    callbacks = build_all(compose_train(given, f"callbacks={name}")["callbacks"])
    assert all(isinstance(callback, Callback) for callback in callbacks.values())
    assert callbacks
    return None


def check_validation(name, given):
    sampling = build(compose_train(given, f"validation={name}")["validation"]["sampling"])
    assert isinstance(sampling, SamplingConfig)


def check_sampling(name, given):
    config = to_plain(compose_config("evaluate", [f"sampling={name}", *given[0]]), evaluate.KEYS)
    sampling = build(config["evaluation"]["responses"]["prompts"]["sampling"])
    assert sampling == build(config["sampling"])
    assert sampling.no_repeat_ngram_size == {"validation": 0, "paper_test": 6}[name]


def check_evaluation(name, given):
    config = to_plain(compose_config("evaluate", [f"evaluation=[{name}]", *given[0]]), evaluate.KEYS)
    assert list(config["evaluation"]) == [name]
    evaluation = build(config["evaluation"][name])
    assert isinstance(evaluation, Evaluation)
    assert evaluation.name == name


def check_prompts(name, given):
    config = to_plain(compose_config("evaluate", given[0]), evaluate.KEYS)
    assert isinstance(build(config["evaluation"]["responses"]["prompts"]), PromptSets)
    assert name == "default"  # each evaluation of prompts uses it


def check_experiment(name, given):
    config = compose_train(given, f"experiment={name}")
    assert config["name"] == name
    module = make_everything(config)[2]
    with_teacher = ("kd", "minillm", "minillm_paper", "quickstart_minillm", "smoke", *ON_POLICY)
    assert (module.teacher is not None) == (name in with_teacher)


def check_variant(name, given):
    """A variant is a change of MiniLLM that stands for itself: presets are those of the losses and experiments."""
    base = compose_train(given, "experiment=minillm")["module"]
    module = compose_train(given, "experiment=minillm", f"variant={name}")["module"]
    preset = compose_train(given, "experiment=minillm_paper" if name == "paper" else "experiment=minillm")["module"]
    advantages = {"no_length_normalization": {"length_normalize": False}, "paper": preset["advantages"]}.get(name, {})
    loss = {"no_single_step": {"single_step": False}, "paper": preset["loss"]}.get(name, {})
    assert module["advantages"] == base["advantages"] | advantages
    assert module["loss"] == base["loss"] | loss
    assert module["rollouts"]["sampling"]["teacher_mix_alpha"] == (0.0 if name == "no_mixing" else 0.2)
    assert module["pretraining"] == preset["pretraining"]
    build(module["loss"])
    build(module["advantages"])


def check_sweep(name, given):
    """Every value of a sweep composes; the file alone starts it."""
    if name == "optuna":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION):
        node = compose("train", overrides=[f"sweep={name}"], return_hydra_config=True).hydra
    assert node.mode == RunMode.MULTIRUN
    params = {key: str(value) for key, value in node.sweeper.params.items()}
    assert params
    if name == "optuna":
        assert (node.sweeper.direction, node.sweeper.n_jobs) == ("maximize", 1)
        return
    for key, values in params.items():
        for value in values.split(","):
            compose_train(given, "experiment=minillm", f"sweep={name}", f"{key}={value}")


def check_recipe(name, given):
    if name == "paper":  # tests/conf/test_paper.py makes its stages
        return
    _, values = given
    data = values["data"] if name == "dolly_scratch" else []
    cfg = compose_config("recipe", [f"recipe={name}", *given[0], *data])
    stages = recipe.compose_stages(recipe.read_config(cfg), shown_progress=True)
    for stage in stages.values():
        keys = {"train": train.KEYS, "generate": generate.KEYS, "evaluate": evaluate.KEYS}[stage.command]
        to_plain(stage.config, keys)
        for group in ("optimizer", "module", "loss", "sampling"):
            if group in stage.config:
                build(stage.config[group])
    steps = {stage: stages[stage].config["max_steps"] for stage in ("init", "minillm", "sft", "kd", "seqkd")}
    assert steps["sft"] == steps["kd"] == steps["seqkd"] == steps["init"] + steps["minillm"]


def check_paper(size, method, given):
    """Make a cell with tiny models; tests/conf/test_paper.py composes all cells and checks their values."""
    _, values = given
    has_teacher, has_corpus = method not in ("teacher", "init", "sft"), method in ("minillm", "distillm")
    overrides = [f"paper/size={size}", f"paper/method={method}", values["student"], *values["data"], *given[0]]
    overrides += [values["teacher"]] if has_teacher else []
    overrides += [values["student"].replace("student", "data.datamodule.lm_corpus", 1)] if has_corpus else []
    module = make_everything(to_plain(compose_config("train", overrides), train.KEYS))[2]
    assert (module.teacher is not None) == has_teacher


def check_paper_part(name, given):
    """A part belongs to a method."""
    texts = [file.read_text(encoding="utf-8") for file in (CONF / "paper").rglob("*.yaml")]
    assert any(f"paper/part/{name}\n" in text for text in texts)


def check_paper_checkpoints(name, given):
    """The files are found by the name of a size."""
    assert (CONF / "paper" / "size" / f"{name.removeprefix('published_')}.yaml").exists()


CHECKS = {
    "": check_top,
    "loss": check_loss,
    "advantages": check_advantages,
    "module": check_module,
    "rollout": check_rollout,
    "optimizer": check_optimizer,
    "scheduler": check_scheduler,
    "student": lambda name, given: check_model("student", name, given),
    "teacher": lambda name, given: check_model("teacher", name, given),
    "data": check_data,
    "corpus": check_corpus,
    "trainer": lambda name, given: check_trainer("trainer", name, given),
    "strategy": lambda name, given: check_trainer("strategy", name, given),
    "devices": lambda name, given: check_trainer("devices", name, given),
    "logger": check_logger,
    "callbacks": check_callbacks,
    "validation": check_validation,
    "sampling": check_sampling,
    "evaluation": check_evaluation,
    "evaluation/prompts": check_prompts,
    "data/template": check_template,
    "teacher/template": check_teacher_template,
    "experiment": check_experiment,
    "paper/size": lambda name, given: check_paper(name, "init", given),
    "paper/method": lambda name, given: check_paper("gpt2_120m", name, given),
    "paper/part": check_paper_part,
    "paper/checkpoints": check_paper_checkpoints,
    "recipe": check_recipe,
    "sweep": check_sweep,
    "variant": check_variant,
}


@pytest.mark.parametrize("file", FILES)
def test_file_composes_and_instantiates(file, given):
    group, _, name = file.rpartition("/")
    assert group in CHECKS, f"conf/{group}: say in CHECKS how its files are made into objects"
    CHECKS[group](name, given)


@pytest.mark.parametrize("strategy", sorted(file.stem for file in (CONF / "strategy").glob("*.yaml")))
@pytest.mark.parametrize("devices", sorted(file.stem for file in (CONF / "devices").glob("*.yaml")))
def test_global_batch_size_does_not_depend_on_strategy_and_devices(strategy, devices, given):
    overrides = [
        f"strategy={strategy}",
        f"devices={devices}",
        "batch_size=64",
        "trainer.accelerator=cpu",
        "logger=none",
    ]
    config = compose_train(given, *overrides, "batch_size=64", "micro_batch_size=2")
    if (strategy, devices) == ("fsdp_tp", "1"):
        with pytest.raises(ValueError, match="devices=1 is not a multiple of tensor_parallel_size=2; the nearest is 2"):
            batch_sizes(config)
        return
    sizes = batch_sizes(config)
    assert sizes.micro_batch_size * sizes.world_size * sizes.accumulation == 64
    trainer, _ = build_trainer(config, sizes)
    assert trainer.num_devices * trainer.num_nodes == world_size(config["trainer"])
    assert trainer.accumulate_grad_batches == sizes.accumulation


@pytest.mark.parametrize(
    "override", ["no_such_key=1", "optimizer.no_such_key=1", "module.no_such_key=1", "trainer.no_such_key=1"]
)
def test_unknown_keys_are_errors(override):
    with pytest.raises(Exception, match="no_such_key"):
        compose_config("train", [override])


@pytest.mark.parametrize("override", ["+optimizer.no_such_key=1", "+loss.no_such_key=1", "+module.no_such_key=1"])
def test_unknown_keys_that_were_forced_in_are_errors_too(override, given):
    config = compose_train(given, override)

    def make_with_optimizer():
        module = make_everything(config)[2]
        module._optimizer_factory(module.student.parameters())

    with pytest.raises((ValueError, TypeError), match="no_such_key"):
        make_with_optimizer()


def test_top_level_keys_that_were_forced_in_are_errors():
    with pytest.raises(ValueError, match="no_such_key"):
        to_plain(compose_config("train", ["+no_such_key=1"]), train.KEYS)


@pytest.mark.parametrize("command", ["train", "evaluate", "generate", "recipe"])
def test_every_top_level_key_is_read(command):
    keys = {"train": train, "evaluate": evaluate, "generate": generate, "recipe": recipe}[command].KEYS
    most = ["module=minillm"] if command == "train" else []  # the one with the most parts
    # Only conf/paper refers to the values of `paper`.
    assert {str(key) for key in compose_config(command, most)} - {PAPER} == set(keys)


def test_values_that_only_others_refer_to_are_left_out():
    assert PAPER in compose_config("train")
    assert PAPER not in to_plain(compose_config("train"), train.KEYS)


def test_presets_are_the_papers_and_the_official_codes(given):
    official = compose_train(given, "module=minillm", "teacher=pretrained")
    paper = compose_train(given, "module=minillm", "teacher=pretrained", "loss=minillm_paper")
    assert official["module"]["advantages"]["whiten"] == "all"
    assert official["module"]["advantages"]["gamma"] == 0.95
    assert paper["module"]["advantages"]["return_start"] == "next"
    assert paper["module"]["loss"]["weight_single_step"] is True
    assert official["optimizer"]["lr"] == 5e-6
    assert official["optimizer"]["betas"] == [0.9, 0.95]
    assert official["module"]["rollouts"]["sampling"]["teacher_mix_alpha"] == 0.2


def test_quickstart_minillm_is_the_stage_of_the_quickstart(tmp_path):
    """The experiment trains what the recipe's stage does; only where it is kept and logged is its own."""
    root = tmp_path / "quickstart"
    cfg = compose_config(
        "recipe", ["recipe=quickstart", "seed=3", f"output_dir={root}/seed_3", f"shared_dir={root}/shared"]
    )
    stage = recipe.compose_stages(recipe.read_config(cfg), shown_progress=True)["minillm"].config
    places = [f"data.path={root}/shared/data", "seed=3", f"output_dir={root}/seed_3/minillm"]
    run = to_plain(compose_config("train", ["experiment=quickstart_minillm", *places]), train.KEYS)

    def comparable(value):
        if isinstance(value, dict):
            return {key: comparable(item) for key, item in value.items()}
        if isinstance(value, list):
            return [comparable(item) for item in value]
        return os.path.normpath(value) if isinstance(value, str) and value.startswith("/") else value

    own = ("name", "logger")
    assert comparable({**run, **dict.fromkeys(own)}) == {**stage, **dict.fromkeys(own)}


def test_no_hydra_container_reaches_the_library(given):
    config = compose_train(given, "module=minillm", "teacher=pretrained")
    module = make_everything(config)[2]

    def plain(value):
        assert not OmegaConf.is_config(value)
        if isinstance(value, dict):
            for item in value.values():
                plain(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                plain(item)

    plain(config)
    optimizer = module.training_options.optimizer
    plain(dict(optimizer.keywords))
    assert isinstance(optimizer.keywords["betas"], list)
