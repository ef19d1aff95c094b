"""``minillm-generate``: write a model's responses to the prompts of a data set as JSONL, the training data of SeqKD."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from omegaconf import DictConfig

from lightning_minillm.cli import commands, schema
from lightning_minillm.cli.build import build_trainer, prepare_data
from lightning_minillm.cli.config import Config, build, to_plain
from lightning_minillm.cli.evaluate import make_module, without_tokenizer
from lightning_minillm.cli.models import open_model
from lightning_minillm.cli.resume import IDENTITY_FILE, input_paths
from lightning_minillm.cli.start import RunStart
from lightning_minillm.evaluation import GenerationEvaluation, record_files, run_evaluation
from lightning_minillm.files import changed_keys, read_json, write_json, write_json_lines
from lightning_minillm.reports import run_folder as runs

KEYS = schema.KEYS["generate"].split()
_CHOICES = ("keep_unfinished", "keep_special_tokens")  # among the same responses


def generate(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample responses to every prompt and write them as instruction records.

    The fields of a line are those of :class:`~lightning_minillm.evaluation.GenerationEvaluation`. Responses are kept in
    the folder ``<output>.partial`` until all of them exist; then the file is written and the folder removed. An
    interrupted run resumes from the folder.

    Args:
        cfg: as composed from ``conf/generate.yaml``.

    Returns:
        Metrics (``responses``, ``unfinished``, ``empty``, ``dropped_prompts``, ``mean_length``, and, if there
        are any, ``with_special_tokens``) and objects (``config``, ``output``).

    Raises:
        ValueError: the configuration is wrong, the folder is in use, the output exists, or its partial responses were
            made with different settings or weights.
    """
    config = to_plain(without_tokenizer(cfg), KEYS)
    output = Path(config["output"]).expanduser()
    with runs.claimed(Path(config["output_dir"])), runs.claimed(_partial(output), keep=False):
        return _generate(config, output)


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _generate(config: Config, output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder, partial = Path(config["output_dir"]), _partial(output)
    runs.check_folder(folder, "generate")
    _check_output(config, output)
    evaluation: GenerationEvaluation = build(config["generation"])
    trainer, _ = build_trainer(config)
    model = open_model(
        "model", config["model"], config["dtype"], config["trust_remote_code"], length=config["max_length"]
    )
    prepare_data(config["data"])
    evaluation.add_bos = config["data"]["datamodule"]["add_bos"]
    evaluation.prepare(model.tokenizer)
    module = make_module(config, model)
    identity, records = module.identity(evaluation), record_files(partial, evaluation)
    records.check(identity)
    chosen = {name: config[name] for name in _CHOICES}
    made_with = {**identity, **chosen}
    if output.exists():
        stored, metrics = read_json(folder / IDENTITY_FILE), read_json(folder / runs.METRICS_FILE)
        changed = changed_keys(stored, made_with) if stored and metrics else ["output_dir"]
        if not changed and not records.folder.exists():
            rank_zero_info(f"{config['name']}: {output} is complete")
            return metrics, {"config": config, "output": output}
        if not set(changed) <= set(_CHOICES):
            raise ValueError(f"{str(output)!r} exists: choose another output, or delete the file to generate it again")
        now = ", ".join(f"{name}={str(chosen[name]).lower()}" for name in changed) or "the same settings"
        rank_zero_info(f"{config['name']}: {output} is replaced, now with {now}")
    RunStart(config).begin(())
    rank_zero_only(write_json)(folder / IDENTITY_FILE, made_with)
    findings = run_evaluation(trainer, module, evaluation, partial)
    metrics = {name: values[0] for name, values in findings.values.items()}
    left_out = evaluation.num_responses - metrics["responses"]
    unfinished = 0 if config["keep_unfinished"] else metrics["unfinished"]
    metrics["empty"] = left_out - unfinished
    metrics["dropped_prompts"] = evaluation.prompts.num_dropped
    rank_zero_only(write_json_lines)(output, evaluation.texts(records.read())["responses"])
    rank_zero_only(write_json)(folder / runs.METRICS_FILE, metrics)
    rank_zero_only(shutil.rmtree)(records.folder)
    rank_zero_info(f"{config['name']}: wrote {metrics['responses']} responses to {output}")
    if not config["keep_special_tokens"] and metrics.get("with_special_tokens"):
        rank_zero_warn(
            f"{metrics['with_special_tokens']} of {evaluation.num_responses} responses contain special tokens, which"
            " are left out of their text: keep_special_tokens=true keeps them"
        )
    if left_out:
        limit = evaluation.prompts.sampling.max_new_tokens
        rank_zero_warn(
            f"{left_out} of {evaluation.num_responses} responses are left out: {unfinished} did not end"
            f" within sampling.max_new_tokens={limit} tokens, and {metrics['empty']} are empty; raise it, or keep them"
            " with keep_unfinished=true"
        )
    return metrics, {"config": config, "output": output}


def _check_output(config: Config, output: Path) -> None:
    """Check that the output is a new file and none that is read.

    Raises:
        ValueError: it is a folder, or a file of the data.
    """
    if output.is_dir():
        raise ValueError(f"output={output} is a folder: give the name of a file in it")
    for key, path in input_paths(config).items():
        if output.exists() and Path(path).expanduser().samefile(output):
            raise ValueError(f"output={output} is also {key}, which is read: choose another output")


if __name__ == "__main__":
    commands.generate()
