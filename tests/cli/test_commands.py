"""What the commands answer, and what they import for it."""

import subprocess
import sys

import pytest

from lightning_minillm.cli import commands
from lightning_minillm.cli.errors import RecipeError

HEAVY = ("torch", "lightning", "transformers", "datasets", "wandb", "matplotlib", "peft", "torchmetrics")


@pytest.fixture
def answer(monkeypatch, capsys, tmp_path):
    """``answer("train", *words)`` runs a command that must end by itself; its exit code and what it printed."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(name, *words, target="tests.nowhere:work"):
        monkeypatch.setattr(sys, "argv", [f"minillm-{name}", *words])
        with pytest.raises(SystemExit) as stop:
            commands.run_command(name, target)
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("max_stepz=1", 1),
        ("student=pretrained student.path=/nowhere/model", 1),
        ("max_steps=ten", 1),
        ("--experiment smoke", 2),
    ],
)
def test_answers_import_nothing_heavy(words, code, tmp_path):
    script = (
        f"import sys; sys.argv = ['minillm-train', *{words.split()!r}]\n"
        "from lightning_minillm.cli.commands import train\n"
        "try: train()\n"
        "except SystemExit as stop: code = stop.code\n"
        f"print('answer', code, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert f"answer {code} []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["export", "plan", "compare"])
def test_usage_of_the_other_commands_imports_nothing_heavy(command):
    script = (
        f"import sys; sys.argv = ['minillm-{command}', '--help']\n"
        f"from lightning_minillm.cli.{command} import main\n"
        "try: main()\n"
        "except SystemExit as stop: code = stop.code\n"
        f"print('answer', code, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "answer 0 []" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("max_stepz=1", "there is no key max_stepz; did you mean max_steps?"),
        ("lr=1", "there is no key lr; did you mean optimizer.lr?"),
        ("experiment=smoke num_rollouts=8", "there is no key num_rollouts; did you mean module.rollouts.num_rollouts?"),
        ("experimnt=smoke", "there is no key experimnt; did you mean experiment?"),
        ("optimizer.learning_rate=1", "there is no key optimizer.learning_rate; the keys of optimizer are lr, betas"),
        ("trainer.max_step=1", "there is no key trainer.max_step; did you mean max_steps?"),
        ("optimizer=adam", "there is no optimizer=adam; did you mean adamw?; the options are adamw"),
        ("smoke", "'smoke' is not of the form KEY=VALUE"),
        ("data.path=/a=b", "the value of data.path cannot be read: '/a=b'"),
        ("data.path=/a(b", "\"data.path='/a(b'\""),
        ("experiment=smoke +teacher.path=X", "nothing reads teacher.path"),
        ("+data.limit=5", "nothing reads data.limit; did you mean limits?"),
        ("+data.limits.trian=5", "nothing reads data.limits.trian; did you mean train?"),
        ("+student.model_path=X", "nothing reads student.model_path; did you mean model?"),
        ("data=instructions data.path=/nowhere", "data.path=/nowhere: there is no file or folder '/nowhere'"),
        ("teacher=pretrained teacher.path=./nowhere", "teacher.path=./nowhere: there is no folder 'nowhere'"),
        ("ckpt_path=./best.ckpt", "ckpt_path=./best.ckpt: there is no file or folder 'best.ckpt'"),
        ("output_dir=file.txt/run", "output_dir=file.txt/run: '{}/file.txt' is a file; give a folder"),
        ("-m seed=1,2 output_dir=runs", "output_dir has no effect in a sweep: give the folder of all its jobs, hydra."),
        ("sweep=ablation output_dir=runs", "output_dir has no effect in a sweep"),
        ("-m seed=1,2 max_stepz=1", "there is no key max_stepz; did you mean max_steps?"),
        ("paper/size=gpt2_120m", "paper/size=gpt2_120m needs a method"),
    ],
)
def test_mistakes_are_named_with_what_to_do(answer, tmp_path, words, message):
    (tmp_path / "file.txt").touch()
    code, printed = answer("train", *words.split())
    assert code == 1
    assert printed.startswith("error: ")
    assert message.format(tmp_path) in printed
    assert "Traceback" not in printed
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_quoting_that_an_error_shows_is_right(answer, tmp_path):
    folder = tmp_path / "a=b (ü), it's"
    _, printed = answer("train", "data=instructions", f"data.path={folder}")
    shown = printed.split("and for the shell: ")[1].splitlines()[0]
    words = subprocess.run(
        [sys.executable, "-c", "import sys, shlex; print(shlex.split(sys.argv[1])[0], end='')", shown],
        capture_output=True,
        text=True,
    ).stdout
    _, printed = answer("train", "data=instructions", words)
    assert f"there is no file or folder {str(folder)!r}" in printed


def test_options_that_do_not_exist_are_a_mistake_in_usage(answer):
    code, printed = answer("train", "--experiment", "smoke")
    assert code == 2
    assert "there is no option --experiment; keys are given without dashes: experiment=smoke" in printed


def test_home_is_expanded_where_the_shell_does_not(answer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _, printed = answer("train", "data=instructions", "data.path=~/nowhere")
    assert f"there is no file or folder '{tmp_path}/nowhere'" in printed


def work(cfg):
    work.seen = cfg
    if work.error:
        raise work.error
    return 0.5


@pytest.mark.parametrize(
    "error", [ValueError("what to do"), RecipeError("what to do"), OSError(28, "What to do", "/full")]
)
def test_expected_errors_are_printed(answer, monkeypatch, error, tmp_path):
    monkeypatch.setattr(work, "error", error, raising=False)
    monkeypatch.setattr(commands, "resolve_name", lambda target: work)
    monkeypatch.setattr(commands, "quiet_libraries", lambda: None)
    code, printed = answer("train", f"output_dir={tmp_path}/run")
    assert work.seen.output_dir == f"{tmp_path}/run"
    assert code == 1
    assert "what to do" in printed
    assert "Traceback" not in printed
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["minillm-train", f"output_dir={tmp_path}/run"])
    with pytest.raises(type(error)):
        commands.run_command("train", "tests.nowhere:work")


def test_errors_of_the_code_keep_their_traceback(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(work, "error", KeyError("a mistake in the code"), raising=False)
    monkeypatch.setattr(commands, "resolve_name", lambda target: work)
    monkeypatch.setattr(commands, "quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["minillm-train", f"output_dir={tmp_path}/run"])
    with pytest.raises((SystemExit, KeyError)) as raised:
        commands.run_command("train", "tests.nowhere:work")
    if raised.type is SystemExit:  # Hydra's own exit, after the traceback; under a tracer it raises the error itself
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert "a mistake in the code" in printed
