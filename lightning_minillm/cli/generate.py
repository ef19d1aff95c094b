"""``minillm-generate``: a model's responses to the prompts of a data set, as JSONL (SeqKD's training data)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig
from rich.progress import track

from lightning_minillm.cli.build import prepare_data
from lightning_minillm.cli.config import Config, build, run_command, to_plain
from lightning_minillm.data import EncodedInstructions
from lightning_minillm.files import read_json, write_json, write_text
from lightning_minillm.models import SplitCausalLM, fuse_activations, load_causal_lm, load_tokenizer
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.rollout import MixtureSampler

KEYS = (
    "batch_size cache_dir data device dtype keep_unfinished max_length max_prompt_length"
    " model name num_samples output output_dir sampling seed split trust_remote_code"
).split()
# What decides the text of the responses, so that a file begun under others is not gone on with.
_IDENTITY = "data dtype max_length max_prompt_length model sampling seed split".split()


def generate(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample responses to every prompt and write them as instruction records.

    Every line has ``instruction``, ``input``, ``output``, ``task``, ``exact``, and ``row`` and ``sample`` (which
    response to the prompt). Lines go to ``<output>.partial`` as they are made; the whole file appears at the end.

    Args:
        cfg: as composed from ``conf/generate.yaml``.

    Returns:
        Metrics (``responses``, ``unfinished``, ``dropped_prompts``, ``mean_length``) and objects (``config``,
        ``output``).

    Raises:
        ValueError: a configuration that cannot work, or an unfinished file made under another one.
    """
    config = to_plain(cfg, KEYS)
    if config["num_samples"] < 1 or config["batch_size"] < 1:
        raise ValueError("num_samples and batch_size must be at least 1")
    output = Path(config["output"])
    sampling = build(config["sampling"])
    prepare_data(config["data"])
    tokenizer = load_tokenizer(config["model"], trust_remote_code=config["trust_remote_code"])
    prompts = encode_split(config, tokenizer)
    runs.start_run(Path(config["output_dir"]), config)
    device = _device(config["device"])
    model = load_causal_lm(config["model"], dtype=config["dtype"], trust_remote_code=config["trust_remote_code"])
    fuse_activations(model)
    sampler = MixtureSampler(
        SplitCausalLM(model.to(device)),
        None,
        eos_token_ids=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        config=sampling,
    )
    partial = _open_partial(output, config)
    jobs = _jobs(prompts, config, done=_count_lines(partial))
    with open(partial, "a", encoding="utf-8") as file:
        for sample, rows in track(jobs, description="Generating", disable=not jobs):
            batch = prompts.prompt_batch(rows).to(device)
            rollouts = sampler.sample(batch, seed=config["seed"], phase=sample)
            file.writelines(_lines(prompts, rollouts, tokenizer, sample))
            file.flush()
    metrics = _finish(partial, output, config["keep_unfinished"])
    metrics["dropped_prompts"] = prompts.num_dropped
    write_json(Path(config["output_dir"]) / runs.METRICS_FILE, metrics)
    rank_zero_info(f"{config['name']}: wrote {metrics['responses']} responses to {output}")
    return metrics, {"config": config, "output": output}


def encode_split(config: Config, tokenizer: Any) -> EncodedInstructions:
    """Load and tokenise the split whose prompts are to be responded to.

    Raises:
        ValueError: an unknown split, and what :class:`EncodedInstructions` raises.
    """
    node = config["data"]["datamodule"]
    if config["split"] not in ("train", "validation", "test"):
        raise ValueError(f"split must be train, validation or test, got {config['split']!r}")
    return EncodedInstructions(
        build(node[config["split"]]).load(),
        tokenizer,
        build(node["template"]),
        max_length=config["max_length"],
        max_prompt_length=config["max_prompt_length"],
        cache_dir=node["cache_dir"],
    )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open_partial(output: Path, config: Config) -> Path:
    """Return the file to append to, cut after its last whole line.

    Raises:
        ValueError: it was begun under a configuration that gives other responses.
    """
    partial = output.with_name(output.name + ".partial")
    marker = output.with_name(output.name + ".partial.json")
    identity = {key: config[key] for key in _IDENTITY}
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists() and read_json(marker) != identity:
        raise ValueError(f"{partial} was begun under another configuration; remove it, or choose another output")
    write_json(marker, identity)
    if partial.exists():
        whole = partial.read_bytes().rpartition(b"\n")
        os.truncate(partial, len(whole[0]) + len(whole[1]))
    return partial


def _count_lines(file: Path) -> int:
    if not file.exists():
        return 0
    with open(file, "rb") as lines:
        return sum(1 for _ in lines)


def _jobs(prompts: EncodedInstructions, config: Config, done: int) -> list[tuple[int, list[int]]]:
    """Return (sample, rows) of every batch that is still to do; responses are made in this order."""
    todo = [(sample, row) for sample in range(config["num_samples"]) for row in range(len(prompts))][done:]
    jobs = []
    for sample in range(config["num_samples"]):
        rows = [row for of_sample, row in todo if of_sample == sample]
        size = config["batch_size"]
        jobs.extend((sample, rows[start : start + size]) for start in range(0, len(rows), size))
    return jobs


def _lines(prompts: EncodedInstructions, rollouts: Any, tokenizer: Any, sample: int) -> Iterable[str]:
    lengths = rollouts.lengths.tolist()
    for place, row in enumerate(rollouts.indices.tolist()):
        record = prompts.records[row]
        ids = rollouts.response_ids[place, : lengths[place]].tolist()
        line = {
            "instruction": record.instruction,
            "input": record.input,
            "output": tokenizer.decode(ids, skip_special_tokens=True).strip(),
            "task": record.task,
            "exact": record.exact,
            "row": row,
            "sample": sample,
            "tokens": lengths[place],
            "finished": ids[-1] == tokenizer.eos_token_id,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _finish(partial: Path, output: Path, keep_unfinished: bool) -> dict[str, Any]:
    """Move the whole file into place, without the responses that are not wanted."""
    rows = [json.loads(line) for line in partial.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if keep_unfinished or (row["finished"] and row["output"])]
    if not kept:
        raise ValueError(
            f"none of the {len(rows)} responses ended by itself; raise sampling.max_new_tokens, or set"
            " keep_unfinished=true"
        )
    write_text(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    partial.unlink()
    partial.with_name(partial.name + ".json").unlink()
    return {
        "responses": len(kept),
        "unfinished": sum(not row["finished"] for row in rows),
        "mean_length": sum(row["tokens"] for row in kept) / len(kept),
    }


def main() -> None:
    """Run ``generate`` from the command line."""
    run_command(generate, "generate")


if __name__ == "__main__":
    main()
