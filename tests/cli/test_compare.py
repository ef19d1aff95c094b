"""Comparisons of run folders written by hand, so that every number in the table is known."""

import json

import pytest
import yaml

from lightning_minillm.cli.compare import compare, main
from lightning_minillm.reports import plots
from lightning_minillm.reports.summary import summarise

PROMPTS = 12


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def write_config(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def write_responses(file, right, prompt="prompt"):
    """Responses that are perfect on the first rows and share nothing with the reference on the others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"index": i, "prompt": f"{prompt} {i}", "references": ["w1 w2"], "response": "w1 w2" if i < right else "w9"}
        for i in range(PROMPTS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_curve(folder, values, start=0):
    file = folder / "metrics/version_0/metrics.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{10 * i + start},{value}" for i, value in enumerate(values, 1)]
    file.write_text("\n".join(["step,val/rougeL", *lines]) + "\n")


def make_recipe(root, seed, rouge=50.0, finished=True):
    """A recipe of two students, of whom MiniLLM is right twice as often."""
    folder = root / f"seed_{seed}"
    stage = {"command": "train"}
    stages = {
        "teacher": {**stage, "title": "teacher"},
        "sft": {**stage, "title": "SFT"},
        "minillm": {**stage, "title": "MiniLLM", "starts_at": "sft"},
    }
    node = {"name": "r", "teacher": "teacher", "shared": ["teacher"], "stages": stages}
    node["evaluate"] = {"models": ["teacher", "sft", "minillm"], "seeds": [10, 20]}
    write_config(folder, {"recipe": node, "seed": seed, "teacher_seed": 0, "shared_dir": str(root / "shared")})
    for name, right in (("teacher", 12), ("sft", 3), ("minillm", 10)):
        place = root / "shared" if name == "teacher" else folder
        for sampling in (10, 20):
            write_responses(place / f"evaluate_{name}/responses/{name}_seed_{sampling}.jsonl", right)
    write_config(folder / "sft", {"max_steps": 30})
    write_curve(folder / "sft", [1 + seed, 2 + seed])
    write_curve(folder / "minillm", [3 + seed])
    values = {"teacher": 100.0, "SFT": 25.0 + seed, "MiniLLM": rouge + seed}
    models = {title: {"rougeL": summarise([v - 1, v + 1])} for title, v in values.items()}
    models["MiniLLM"]["reverse_kl"] = summarise([0.5])
    if finished:
        write_json(folder / "results.json", {"recipe": "r", "models": models})
    return folder


def make_training(folder, rouge=20.0, seed=0, right=6, finished=True, **config):
    known = {"name": "minillm", "seed": seed, "max_steps": 20, "module": {"x": 1}, "validation": {"seed": 5}}
    write_config(folder, known | config)
    write_curve(folder, [rouge - 1, rouge], start=-1)
    write_responses(folder / "samples/val_step_000020.jsonl", right)
    best = {"metric": "val/rougeL", "value": rouge, "optimizer_steps": 20}
    if finished:
        write_json(folder / "metrics.json", {"best": best, "last": {}, "optimizer_steps": 20})
    return folder


def make_job(folder, number, overrides, **training):
    """A job of a sweep; without training it never started."""
    job = folder / str(number)
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    if training:
        make_training(job, **training)


def run(tmp_path, *folders, **options):
    found = compare(folders, output_dir=tmp_path / "out", **options)
    return found.summaries, found


def test_recipes_of_several_training_seeds(tmp_path):
    folders = [make_recipe(tmp_path / "r", seed) for seed in (0, 2)]
    results, found = run(tmp_path, *folders)
    assert list(results) == ["teacher", "SFT", "MiniLLM"]
    assert results["MiniLLM"]["rougeL"]["values"] == [50.0, 52.0]
    assert results["teacher"]["rougeL"]["values"] == [99.0, 101.0]  # shared by the seeds: measured once
    lines = (tmp_path / "out/compare.md").read_text().splitlines()
    assert "| model | Rouge-L ↑ | p | reverse KL / token ↓ |" in lines
    assert any(line.startswith(r"| MiniLLM | **51.00 ± 1.41\***") for line in lines)
    assert any(line.startswith(r"| teacher | 100.00 ± 1.41\* |") and line.endswith("| - |") for line in lines)
    assert any("over 2 training seeds (0, 2)" in line for line in lines)
    assert "SFT: no reverse KL / token" in lines
    (minillm,) = [model for model in found.models if model.name == "MiniLLM"]
    difference, prompts = minillm.tests["rougeL"]
    assert prompts == PROMPTS
    assert difference.mean == pytest.approx(100 * 7 / 12)
    assert difference.p_value < 0.01


def test_every_file_is_written(tmp_path, capsys):
    run(tmp_path, make_recipe(tmp_path / "r", 0))
    out = tmp_path / "out"
    for name in ("curves.png", "bars.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    stored = json.loads((out / "compare.json").read_text())["models"]
    assert stored["MiniLLM"]["difference_to_baseline"]["rougeL"]["prompts"] == PROMPTS
    assert stored["MiniLLM"]["runs"][0]["training_seed"] == 0
    assert "MiniLLM,test,50.0," in (out / "compare.csv").read_text()
    assert r"\toprule" in (out / "compare.tex").read_text()
    assert "Rouge-L" in capsys.readouterr().out


def test_curves_are_means_over_seeds_and_begin_where_the_student_did(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        plots,
        "plot_curves",
        lambda curves, file, models, label: drawn.update(curves, models=models, label=label),
    )
    run(tmp_path, *(make_recipe(tmp_path / "r", seed) for seed in (0, 2)))
    assert drawn["val/rougeL"] == {"teacher": [], "SFT": [(10, 2.0), (20, 3.0)], "MiniLLM": [(40, 4.0)]}
    assert drawn["models"] == ["teacher", "SFT", "MiniLLM"]  # those of the bars, for the same colours
    assert drawn["label"] == plots.STEPS_FROM_INITIAL


def test_models_that_answer_alike_get_no_star(tmp_path):
    folder = make_recipe(tmp_path / "r", 0)
    for sampling in (10, 20):
        write_responses(folder / f"evaluate_minillm/responses/minillm_seed_{sampling}.jsonl", 3)
    run(tmp_path, folder)
    assert "| MiniLLM | **50.00 ± 1.41** | 1.000 |" in (tmp_path / "out/compare.md").read_text()


def test_other_prompts_are_not_compared(tmp_path):
    folder = make_recipe(tmp_path / "r", 0)
    for sampling in (10, 20):
        write_responses(folder / f"evaluate_minillm/responses/minillm_seed_{sampling}.jsonl", 10, prompt="another")
    _, found = run(tmp_path, folder)
    assert {model.name for model in found.models if model.tests} == {"teacher"}


def test_sweep_is_named_by_what_differs_and_gathered_over_seeds(tmp_path):
    sweep = tmp_path / "sweep"
    jobs = [(gamma, seed) for gamma in ("0.9", "1.0") for seed in (0, 1)]
    for number, (gamma, seed) in enumerate(jobs):
        overrides = ["experiment=x", f"advantages.gamma={gamma}", f"seed={seed}"]
        make_job(sweep, number, overrides, rouge=20.0 + number, seed=seed, right=4 if gamma == "0.9" else 9)
    results, found = run(tmp_path, sweep)
    assert {name: summary["rougeL"]["values"] for name, summary in results.items()} == {
        "gamma=0.9": [20.0, 21.0],
        "gamma=1.0": [22.0, 23.0],
    }
    assert found.table.title == "Results on the validation split"
    assert found.models[1].tests["rougeL"][0].mean == pytest.approx(100 * 5 / 12)


def test_what_is_missing_is_named(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    make_job(sweep, 0, ["variant=full"], rouge=20.0)
    make_job(sweep, 1, ["variant=stopped"], finished=False)
    make_job(sweep, 2, ["variant=never"])
    results, _ = run(tmp_path, sweep)
    assert list(results) == ["variant=full", "variant=stopped", "variant=never"]
    text = (tmp_path / "out/compare.md").read_text()
    assert "| variant=stopped | - |" in text
    assert "lacks metrics.json (the run has not finished)" in text
    assert f"variant=never: {sweep}/2 lacks everything" in text
    recipe = make_recipe(tmp_path / "r", 0, finished=False)
    results, _ = run(tmp_path, sweep, recipe)
    assert results["MiniLLM"] == {}
    assert "lacks results.json (the recipe has not finished)" in (tmp_path / "out/compare.md").read_text()


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [make_training(tmp_path / name, rouge=rouge, max_steps=rouge) for name, rouge in (("a", 20), ("b", 30))]
    results, _ = run(tmp_path, *folders, folders[0])
    assert list(results) == ["minillm (a)", "minillm (b)"]


def test_training_runs_that_differ_in_the_seed_are_one_row(tmp_path):
    folders = [make_training(tmp_path / f"seed_{seed}", rouge=20.0 + seed, seed=seed) for seed in (0, 4)]
    results, _ = run(tmp_path, *folders)
    assert results["minillm"]["rougeL"]["values"] == [20.0, 24.0]


def test_evaluations_of_several_data_sets(tmp_path):
    folder = tmp_path / "e"
    write_config(folder, {"models": {"a": "A", "t": "T"}, "teacher": {"path": "T"}, "seeds": [1]})
    scores = {"x/rougeL": 10.0, "y/rougeL": 20.0, "y/dist4": 30.0}
    models = {name: {key: summarise([v + n]) for key, v in scores.items()} for n, name in enumerate(("a", "b", "t"))}
    measures = {key: {"title": "Rouge-L", "decimals": 1, "higher_is_better": True} for key in ("x/rougeL", "y/rougeL")}
    about = {"seeds": [1], "split": "test", "data_sets": {"x": "X", "y": "Y"}, "measures": measures}
    write_json(folder / "results.json", {**about, "models": models})
    for name, right in (("a", 2), ("b", 11), ("t", 12)):
        write_responses(folder / f"responses/{name}_x_seed_1.jsonl", right)
        write_responses(folder / f"responses/{name}_y_seed_1.jsonl", 2)
    _, found = run(tmp_path, folder)
    text = (tmp_path / "out/compare.md").read_text()
    assert "| model | x: Rouge-L ↑ | p | y: Rouge-L ↑ | p |" in text
    assert [model.name for model in found.models] == ["t", "a", "b"]
    assert found.models[2].tests["x/rougeL"][0].p_value < 0.01
    assert found.models[2].tests["y/rougeL"][0].p_value == 1.0
    run(tmp_path, folder, metrics=["y/dist4"], baseline="t")
    assert "| model | y/dist4 |" in (tmp_path / "out/compare.md").read_text()


def test_evaluation_without_responses_shows_what_it_has(tmp_path):
    write_json(tmp_path / "e/results.json", {"models": {"a": {"exposure_bias/excess_error": summarise([3.0])}}})
    run(tmp_path, tmp_path / "e")
    assert "| model | exposure_bias/excess_error |" in (tmp_path / "out/compare.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "nobody"}, "the baseline 'nobody' is not a row; the rows are teacher, SFT, MiniLLM"),
        ({"teacher": "nobody"}, "the teacher 'nobody' is not a row; the rows are teacher, SFT"),
        ({"metrics": ["bleu"]}, r"no run has the metric\(s\) bleu; the runs have reverse_kl, rougeL"),
        ({"significance": 5}, "significance must be between 0 and 1"),
    ],
)
def test_wrong_choices_are_named(options, message, tmp_path):
    folder = make_recipe(tmp_path / "r", 0)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, folder, **options)


def test_what_is_no_run_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"contains no run; a run is a recipe's folder \(results.json\)"):
        run(tmp_path, tmp_path / "empty")
    with pytest.raises(ValueError, match="there is no folder"):
        run(tmp_path, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no runs given: name at least one"):
        run(tmp_path)


def test_folders_of_any_name_and_options_are_read_from_the_command_line(tmp_path, capsys):
    folder = make_recipe(tmp_path / "it's alpha=0.2, [odd]", 0)
    main([str(folder), "--baseline", "MiniLLM", "--metrics", "reverse_kl", "rougeL", "--output-dir", f"{tmp_path}/out"])
    text = (tmp_path / "out/compare.md").read_text()
    assert "| model | reverse KL / token ↓ | Rouge-L ↑ | p |" in text
    assert "differs from MiniLLM" in text
    assert f"results are written to {tmp_path}/out" in capsys.readouterr().out


def test_mistakes_on_the_command_line_are_short(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nowhere")])
    assert stop.value.code == 1
    assert "error: there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "recipe: {name", "config.yaml' is not valid YAML"),
        ("config.yaml", "just words", "is not the configuration of a run"),
        ("results.json", '{"models": {"SFT": {"rou', "results.json' is not valid JSON"),
        ("results.json", '{"models": {"SFT": {"rougeL": {}}}}', "cannot be read, a file lacks something .*values"),
        ("config.yaml", "recipe: {stages: {}}", "cannot be read, a file lacks something .*evaluate"),
    ],
)
def test_half_written_run_says_what_is_wrong(name, content, message, tmp_path):
    make_recipe(tmp_path, 0)
    (tmp_path / "seed_0" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        compare([tmp_path / "seed_0"], output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_last_row_of_a_curve_may_be_cut_off(tmp_path):
    write_curve(tmp_path, [1.0, 2.0])
    with open(tmp_path / "metrics/version_0/metrics.csv", "a", encoding="utf-8") as file:
        file.write("30,4")  # of 45.0
    assert plots.read_curve(tmp_path, "val/rougeL") == [(10, 1.0), (20, 2.0)]


def test_report_of_a_run_is_not_overwritten(tmp_path):
    make_recipe(tmp_path, 0)
    with pytest.raises(ValueError, match="contains a run, whose report would be overwritten"):
        compare([tmp_path / "seed_0"], output_dir=tmp_path / "seed_0")
