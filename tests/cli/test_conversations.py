"""A file of messages, a tokenizer with a chat format, and a base and an instruct model, from every command."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.generate import generate
from lightning_minillm.cli.train import train
from lightning_minillm.reports.plots import read_curve

QWEN = Path(os.environ.get("MINILLM_TEST_DATA", Path(__file__).parents[3] / "shared/data")) / "tokenizers/qwen1.5"


def write_talks(file, count):
    """Conversations of three answers, with a system turn in every second."""
    rows = []
    for row in range(count):
        turns = [{"role": "system", "content": "Be brief."}] * (row % 2)
        for number in range(3):
            turns.append({"role": "user", "content": f"What is {row} + {number}?"})
            turns.append({"role": "assistant", "content": f"It is {row + number}."})
        rows.append({"messages": turns})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module", params=["bytes", pytest.param("qwen", marks=pytest.mark.slow)])
def talks(request, tmp_path_factory, make_model, make_chat_tokenizer):
    """Folder of ``base/`` and ``instruct/``, which ends turns with its eos, and of conversations."""
    if request.param == "qwen" and not QWEN.is_dir():
        pytest.skip(f"no tokenizer at '{QWEN}': set MINILLM_TEST_DATA to a folder that has tokenizers/qwen1.5")
    root = tmp_path_factory.mktemp(request.param)
    tokenizer = make_chat_tokenizer() if request.param == "bytes" else AutoTokenizer.from_pretrained(QWEN)
    for seed, name in enumerate(("base", "instruct")):
        model = make_model("qwen2", seed=seed, vocab_size=len(tokenizer) + 5, max_position_embeddings=512)
        if name == "instruct":
            tokenizer.eos_token = "<|im_end|>"
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        write_talks(root / f"{split}.jsonl", count)
    return root


def options(talks, folder, command, *more):
    lengths = ["max_length=384", "max_prompt_length=352", f"cache_dir={folder}/cache"]
    places = ["data=instructions", f"data.path={talks}", "trainer.accelerator=cpu", *lengths]
    return compose_config(command, [*places, *more])


def train_options(talks, folder, *more):
    return options(
        talks,
        folder,
        "train",
        "experiment=minillm",
        f"student.path={talks}/base",
        f"teacher.path={talks}/instruct",
        f"output_dir={folder}/run",
        "batch_size=4",
        "eval_batch_size=4",
        "eval_every=2",
        "checkpoint_every=2",
        "module.rollouts.num_rollouts=4",
        "module.rollouts.ppo_epochs=1",
        "module.rollouts.sampling.max_new_tokens=8",
        "validation.sampling.max_new_tokens=8",
        "logger=csv",
        "callbacks.progress=null",
        "trainer.log_every_n_steps=1",
        *more,
    )


def test_messages_are_trained_on_resumed_evaluated_and_generated(talks, tmp_path):
    train(train_options(talks, tmp_path, "max_steps=2"))
    metrics, objects = train(train_options(talks, tmp_path, "max_steps=4"))
    assert metrics["optimizer_steps"] == 4
    assert [step for step, _ in read_curve(tmp_path / "run", "train/loss")] == [0, 1, 2, 3]
    assert (tmp_path / "run/metrics/version_1").is_dir()  # the second command resumed
    rows = objects["datamodule"].train_set
    prompt = objects["module"].tokenizer.decode(rows.prompt_batch([1]).input_ids[0])
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 0?<|im_end|>\n")
    assert prompt.endswith("<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n")
    assert rows.records[1].responses == ("It is 3.",)

    student, small = f"{tmp_path}/run/student", ["sampling.max_new_tokens=8", f"output_dir={tmp_path}/more"]
    teacher = ["teacher=pretrained", f"teacher.path={talks}/instruct", "seeds=[10]"]
    results, _ = evaluate(options(talks, tmp_path, "evaluate", f"model={student}", *teacher, *small))
    assert {"rougeL", "reverse_kl", "loss"} <= results["model"].keys()
    metrics, objects = generate(
        options(
            talks,
            tmp_path,
            "generate",
            f"model={student}",
            "keep_unfinished=true",
            *small,
            f"output_dir={tmp_path}/own",
        )
    )
    written = [json.loads(line) for line in objects["output"].read_text(encoding="utf-8").splitlines()]
    assert written
    for row in written:
        assert [turn["content"] for turn in row["messages"][:-1] if turn["role"] == "user"][
            -1
        ] == f"What is {row['row']} + 2?"
        assert row["messages"][-1]["role"] == "assistant"


def test_supervised_targets_are_the_assistants_turns(talks, tmp_path):
    for targets, expected in (
        ("all", [f"It is {1 + n}.<|im_end|>" for n in range(3)]),
        ("last", ["It is 3.<|im_end|>"]),
    ):
        config = options(
            talks,
            tmp_path,
            "train",
            "experiment=sft",
            "student=pretrained",
            f"student.path={talks}/base",
            f"data.datamodule.targets={targets}",
            f"output_dir={tmp_path}/{targets}",
            "batch_size=4",
            "max_steps=1",
            "eval_every=1",
            "validation.sampling.max_new_tokens=4",
            "logger=csv",
            "callbacks.progress=null",
        )
        _, objects = train(config)
        batch = objects["datamodule"].train_set.token_batch([1], 1.0)
        ids = torch.where(batch.target_mask[0], batch.input_ids[0], -1).tolist()
        tokenizer, shown, span = objects["module"].tokenizer, [], []
        for token in [*ids, -1]:
            if token < 0 and span:
                shown.append(tokenizer.decode(span))
                span = []
            elif token >= 0:
                span.append(token)
        assert shown == expected


def test_models_that_differ_in_the_chat_template_alone_are_not_given_the_same_prompts(talks, tmp_path):
    shutil.copytree(talks / "base", tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(talks / "base")
    tokenizer.chat_template = None
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "plain")
    models = f"models={{base: {talks}/base, plain: {tmp_path}/plain}}"
    config = options(talks, tmp_path, "evaluate", models, f"output_dir={tmp_path}/out", "seeds=[1]")
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        evaluate(config)
