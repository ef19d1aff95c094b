"""A teacher that was tuned on a chat format, and a student that is shown plain prompts, from the command line."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.train import train
from lightning_minillm.reports.plots import read_curve


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, make_chat_tokenizer):
    """``base/``, without a chat format, and ``instruct/``, and instructions."""
    root = tmp_path_factory.mktemp("template")
    for seed, name in enumerate(("base", "instruct")):
        tokenizer = make_chat_tokenizer()
        tokenizer.chat_template = "<|im_start|>" + tokenizer.chat_template if name == "instruct" else None
        model = make_model("qwen2", seed=seed, vocab_size=len(tokenizer) + 3, max_position_embeddings=512)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        rows = [{"instruction": f"What is {n} + {n}?", "output": f"It is {2 * n}."} for n in range(count)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def options(folder, tmp_path, experiment, *more):
    return compose_config(
        "train",
        [
            f"experiment={experiment}",
            "data=instructions",
            "data/template=plain",
            f"data.path={folder}",
            "student=pretrained",
            f"student.path={folder}/base",
            "teacher=pretrained",
            f"teacher.path={folder}/instruct",
            f"output_dir={tmp_path}/run",
            f"cache_dir={tmp_path}/cache",
            "max_length=192",
            "max_prompt_length=128",
            "batch_size=4",
            "eval_batch_size=4",
            "eval_every=2",
            "checkpoint_every=1",
            "max_steps=2",
            "validation.sampling.max_new_tokens=8",
            "logger=csv",
            "callbacks.progress=null",
            "trainer.accelerator=cpu",
            "trainer.log_every_n_steps=1",
            *more,
        ],
    )


MINILLM = (
    "module.rollouts.num_rollouts=4",
    "module.rollouts.ppo_epochs=2",
    "module.rollouts.sampling.max_new_tokens=8",
    "module.rollouts.sampling.teacher_mix_alpha=0",
)
EXPERIMENTS = {"kd": (), "minillm": MINILLM}


def losses(folder):
    return [value for _, value in read_curve(folder / "run", "train/loss")]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_students_template_as_the_teachers_gives_the_same_run(folder, tmp_path, experiment):
    after = ["module.teacher_use.reading=after"] if experiment == "minillm" else []
    runs = []
    for name, more in (("plain", []), ("own", ["teacher/template=plain"])):
        more = [*EXPERIMENTS[experiment], *after, *more]
        metrics, objects = train(options(folder, tmp_path / name, experiment, *more))
        weights = torch.cat([value.flatten() for value in objects["module"].student.state_dict().values()])
        runs.append((metrics["last"], losses(tmp_path / name), weights))
    assert len(runs[0][1]) == 2
    for key in ("val/loss", "val/reverse_kl", "train/loss"):
        assert runs[0][0][key] == runs[1][0][key]
    assert runs[0][1] == runs[1][1]
    assert torch.equal(runs[0][2], runs[1][2])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_teacher_with_the_chat_format_trains_a_student_with_plain_prompts(folder, tmp_path, experiment):
    given = EXPERIMENTS[experiment]
    plain, _ = train(options(folder, tmp_path / "plain", experiment, *given))
    own = ["teacher/template=chat", "teacher.template.system=Be brief."]
    with pytest.warns(UserWarning, match=r"train: 8 of 8 responses do not end with '<\|im_end\|>'"):
        metrics, objects = train(options(folder, tmp_path / "chat", experiment, *given, *own))
    assert metrics["optimizer_steps"] == 2
    assert losses(tmp_path / "chat") != losses(tmp_path / "plain")
    assert metrics["last"]["val/reverse_kl"] != plain["last"]["val/reverse_kl"]
    prompts = objects["datamodule"].train_set.prompt_batch([1])
    assert objects["module"].tokenizer.decode(prompts.input_ids[0]) == "What is 1 + 1?\n>\n"
    assert AutoTokenizer.from_pretrained(folder / "instruct").decode(prompts.teacher.input_ids[0]) == (
        "<|im_start|><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.filterwarnings("ignore:.*do not end with:UserWarning")
def test_a_resumed_run_is_the_uninterrupted_one(folder, tmp_path):
    """One step, of the two that a phase has, and then the other."""
    own = [*MINILLM, "teacher/template=chat", "module.teacher_use.cache=none"]
    weights = []
    for name, steps in (("whole", [2]), ("parts", [1, 2])):
        for number in steps:
            more = [*own, f"max_steps={number}", "eval_every=1"]
            _, objects = train(options(folder, tmp_path / name, "minillm", *more))
        weights.append(torch.cat([value.flatten() for value in objects["module"].student.state_dict().values()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "more", [["module.rollouts.sampling.teacher_mix_alpha=0.2"], ["module.teacher_use.reading=lockstep"]]
)
def test_sampling_together_is_refused_before_any_work(folder, tmp_path, more):
    with pytest.raises(ValueError, match=r"prompts of its own.*teacher_mix_alpha=0.*teacher\.template=null"):
        train(options(folder, tmp_path, "minillm", *MINILLM, "teacher/template=chat", *more))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_evaluation_refuses_it(folder, tmp_path):
    given = ["data=instructions", f"data.path={folder}", f"model={folder}/base", "teacher=pretrained"]
    given += [f"teacher.path={folder}/instruct", "teacher/template=chat", "trainer.accelerator=cpu"]
    given += [f"output_dir={tmp_path}/out", f"cache_dir={tmp_path}/cache"]
    with pytest.raises(ValueError, match=r"the same prompts: set teacher\.template=null"):
        evaluate(compose_config("evaluate", given))
