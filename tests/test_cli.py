"""The command line: help, clear errors with exit code 2, and each command on a tiny job."""

import json

import pytest
from typer.testing import CliRunner

from itpo_lib.cli import app
from itpo_lib.commands.options import parse_options
from itpo_lib.errors import ItpoError

runner = CliRunner()


def run(*arguments, **kwargs):
    return runner.invoke(app, [str(a) for a in arguments], **kwargs)


def test_help_lists_the_commands():
    text = run("--help").output
    assert all(
        name in text for name in ("train", "demo", "evaluate", "play", "warmstart", "serve-user", "study", "lab")
    )


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["train", "--task", "maths"], "math_tutoring"),
        (["train", "--credit", "norm"], "norm_itpo"),
        (["train", "--set", "nonsense"], "name=value"),
        (["train", "--set", "num_generations=1"], "num_generations"),
        (["train", "--set", "per_device_train_batch_size=5", "--set", "num_generations=8"], "divisible"),
        (["train", "--set", "lerning_rate=0.1"], "did you mean 'learning_rate'"),
        (["train", "--peft", "dora"], "lora"),
        (["train", "--resume"], "settings.json"),
        (["train", "--resume", "--steps", 3, "--seed", 1], "--steps, --seed: a resumed run keeps its settings"),
        (["train", "--set", "prm_balanced=no"], "prm_balanced must be bool, got 'no' (str); write true or false"),
        (["train", "--set", "learnin_rate=1"], "did you mean 'learning_rate'?"),
        (["train", "--set", "seed=3"], "use --seed"),
        (["train", "--set", "loss_type=dapoo"], "Did you mean 'dapo'?"),
        (["train", "--set", "report_to=foo"], "foo is not supported"),
        (["train", "--set", "eval_strategy=steps"], "eval_strategy"),
        (["train", "--device", "gpu"], "unknown device 'gpu'"),
        (["study", "--credit", "norm"], "norm_itpo"),
        (["study", "--difficulty", "hard"], "unknown difficulty"),
        (["evaluate", "--out", "/proc/nowhere/x.json"], "cannot write to /proc/nowhere"),
        (["play", "--save", "/proc/nowhere/x.json"], "cannot write to /proc/nowhere"),
        (["evaluate", "--model", "no/such/folder", "-n", "2"], "cannot load"),
        (["warmstart", "--task", "math_tutoring", "--difficulty", "hard", "--steps", "1"], "stress"),
        (["lab", "no-such-folder"], "no-such-folder"),
    ],
)
def test_bad_input_ends_with_a_clear_line_and_code_2(tmp_path, arguments, says):
    extra = ["--out", tmp_path / "run"] if arguments[0] == "train" else []
    result = run(*arguments, *extra)
    assert result.exit_code == 2, result.output
    assert says in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["train", "--seed", -1], ["play", "--seed", -1], ["play", "--goal", -1]])
def test_numbers_below_zero_are_refused(arguments):
    result = run(*arguments, env={"COLUMNS": "200"})
    assert (result.exit_code == 2 and "range" in result.output) or "greater than or equal to 0" in result.output


def test_a_run_needs_a_folder(tmp_path):
    (tmp_path / "file").touch()
    result = run("train", "--steps", 1, "--out", tmp_path / "file")
    assert result.exit_code == 2 and "cannot write to" in result.output, result.output


def test_options_are_json_where_they_can_be():
    assert parse_options(["f=True", "g=False", "h=None", "i=no"]) == {"f": True, "g": False, "h": None, "i": "no"}
    assert parse_options(["a=1", "b=0.5", "c=true", "d=text", "e=null"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "text",
        "e": None,
    }
    with pytest.raises(ItpoError):
        parse_options(["1x=2"])


def test_play_scores_what_a_person_says(tmp_path):
    from itpo_lib.tasks import get_task

    goal = get_task("math_tutoring").goal(3, "validation")
    answer = f"the answer is {goal.answer.split()[0]}"
    result = run("play", "--goal", 3, "--save", tmp_path / "t.json", input=f"how many are there ?\n{answer}\n")
    assert result.exit_code == 0, result.output
    assert "R = 1.00" in result.output
    assert json.loads((tmp_path / "t.json").read_text())["outcome"] == 1.0


def test_train_evaluate_and_resume_through_the_command_line(tmp_path):
    small = ["--set", "per_device_train_batch_size=8", "--set", "num_generations=4", "--eval-dialogues", 4]
    done = run("train", "--steps", 1, "--out", tmp_path / "run", "--device", "cpu", *small)
    assert done.exit_code == 0, done.output
    assert "Before training" in done.output and "of the ceiling" in done.output
    measured = run("evaluate", "--model", tmp_path / "run" / "policy", "-n", 4, "--out", tmp_path / "played.json")
    assert measured.exit_code == 0, measured.output
    assert "sampled" in measured.output and "greedy" in measured.output
    assert len(json.loads((tmp_path / "played.json").read_text())["greedy"]) == 4
    again = run("train", "--resume", "--out", tmp_path / "run")
    assert again.exit_code == 0, again.output
