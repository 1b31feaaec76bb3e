"""The test kit: every offline task passes, every broken one is caught, and the documented example works."""

import copy
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from itpo_lib.chat import ChatFormat
from itpo_lib.errors import ItpoError
from itpo_lib.evaluate import evaluate
from itpo_lib.models import tiny_model, tiny_tokenizer
from itpo_lib.tasks import Limits, Reply, ceiling, get_task, list_tasks, play_scripted, task_class
from itpo_lib.tasks.check import check_task, holds

FILE = Path(__file__).parents[1] / "examples" / "twenty_questions.py"
PLACE = f"{FILE}:TwentyQuestions"
TwentyQuestions = task_class(PLACE)
Thinker = type(TwentyQuestions().user(TwentyQuestions().goal(0), 0))
OFFLINE = [(name, scale) for name, scale in list_tasks() if scale != "hub"]


@pytest.mark.parametrize(("name", "scale"), [*OFFLINE, (PLACE, "tiny")], ids=lambda value: Path(value).name)
def test_every_offline_task_keeps_the_rules(name, scale):
    if (name, scale) == ("math_tutoring", "text"):
        pytest.importorskip("reasoning_gym")
        pytest.importorskip("math_verify")
    means = check_task(get_task(name, scale), n=4)
    assert means["expert"] >= 0.8 and means["expert"] > means["novice"]


@pytest.mark.parametrize("difficulty", ["easy", "stress"])
@pytest.mark.parametrize("name", ["math_tutoring", "document_writing", "medical_recommendation", PLACE])
def test_so_do_the_other_levels_of_the_tiny_worlds(name, difficulty):
    check_task(get_task(name, difficulty=difficulty), n=8)


# Deliberately broken tasks: one broken rule each


class Moody(TwentyQuestions):
    """Goals from numpy's global generator."""

    def goal(self, index, split="train"):
        return replace(super().goal(index + np.random.randint(2, 99) * (index > 0), split), index=index)


class Counting(TwentyQuestions):
    """Goals that depend on how often one has asked."""

    asked = 0

    def goal(self, index, split="train"):
        self.asked += 1
        return replace(super().goal(index + self.asked, split), index=index)


class Empty(TwentyQuestions):
    """Hides nothing."""

    def goal(self, index, split="train"):
        return replace(super().goal(index, split), hidden={})


class Mute(TwentyQuestions):
    """Opens with nothing."""

    def goal(self, index, split="train"):
        return replace(super().goal(index, split), opening=" ")


class Leaky(TwentyQuestions):
    """Tells the thing in one of four openings."""

    def goal(self, index, split="train"):
        goal = super().goal(index, split)
        return replace(goal, opening=f"{goal.opening} a {goal.answer} ?") if index % 4 == 0 else goal


class Overlapping(TwentyQuestions):
    """Validates on goals 10 to 19 of 20 for training."""

    def size(self, split):
        return 20 if split == "train" else 10

    def goal(self, index, split="train"):
        goal = super().goal(index + 10 * (split == "validation"), "train")
        return replace(goal, index=index, split=split)


class OneStream(TwentyQuestions):
    """Endless, but the split makes no difference."""

    def goal(self, index, split="train"):
        return replace(super().goal(index, "train"), split=split)


class TooLarge(TwentyQuestions):
    """Promises more goals than it has."""

    def size(self, split):
        return 5

    def goal(self, index, split="train"):
        return super().goal(index, split) if index < 4 else [][index]


class Sizeless(TwentyQuestions):
    """A split of no goals."""

    def size(self, split):
        return 0


class Unmarked(TwentyQuestions):
    """Forgets which goal it was asked for."""

    def goal(self, index, split="train"):
        return replace(super().goal(index, split), index=0)


class Demanding(TwentyQuestions):
    """Cannot be made by the command line."""

    def __init__(self, things):
        super().__init__()


class Shapeless(TwentyQuestions):
    """Limits as a dictionary."""

    limits = {"max_turns": 8}


class Huge(TwentyQuestions):
    """A scale that no preset knows."""

    scale = "huge"


class Easygoing(TwentyQuestions):
    """Everything is a success."""

    success_threshold = 0.0


def with_user(cls):
    """A task with this user."""

    class WithUser(TwentyQuestions):
        def user(self, goal, seed):
            return cls(goal.answer, 0.3, seed)

    return WithUser


class GlobalNumpy(Thinker):
    def reply(self, text):
        return Reply("hard to say .") if np.random.random() < 0.2 else super().reply(text)


class GlobalPython(Thinker):
    def reply(self, text):
        return Reply("hard to say .") if random.random() < 0.2 else super().reply(text)


class Unseeded(Thinker):
    """Every other user understands nothing."""

    made = 0

    def __init__(self, thing, vague, seed):
        super().__init__(thing, vague, seed)
        type(self).made += 1
        self.deaf = self.made % 2 == 0

    def reply(self, text):
        return Reply("hard to say .") if self.deaf and "guess" not in text else super().reply(text)


class Remembering(Thinker):
    """What one user heard, all know."""

    heard: list = []

    def reply(self, text):
        self.heard.append(text)
        return super().reply(text) if self.heard.count(text) == 1 else Reply("again ?", done="guess" in text.split())


class SharingClone(Thinker):
    """The copy keeps the original's generator."""

    def clone(self):
        return copy.copy(self)


class SameClone(Thinker):
    def clone(self):
        return self


class FreshClone(Thinker):
    """The copy starts from the beginning."""

    def __init__(self, thing, vague, seed):
        super().__init__(thing, vague, seed)
        self.seed = seed

    def clone(self):
        return FreshClone(self.thing, self.vague, self.seed)


class Speechless(Thinker):
    def reply(self, text):
        return Reply("") if len(text) > 1000 else super().reply(text)


class Raw(Thinker):
    def reply(self, text):
        return super().reply(text).text or "bye"


class Hasty(Thinker):
    """Takes for granted that something was said."""

    def reply(self, text):
        return super().reply(text.split()[0] + " " + text)


class Endless(Thinker):
    def reply(self, text):
        return Reply(super().reply(text).text or "what ?")


def with_outcome(outcome):
    """A task with this outcome, a function of the last text and the right one."""

    class WithOutcome(TwentyQuestions):
        calls = 0

        def outcome(self, goal, messages):
            self.calls += 1
            return outcome(self, super().outcome(goal, messages), messages)

    return WithOutcome


def spoiling(task, value, messages):
    messages.pop()
    return value


class Rambling(TwentyQuestions):
    """Limits that the expert cannot keep."""

    limits = Limits(max_turns=8, max_turn_tokens=3, max_tokens=120)


class Cramped(TwentyQuestions):
    limits = Limits(max_turns=8, max_turn_tokens=8, max_tokens=9)


class Careless(TwentyQuestions):
    """The expert is the novice."""

    def expert(self, goal, seed):
        return self.novice(goal, seed)


class Harmless(TwentyQuestions):
    """Guessing is as good as asking."""

    def novice(self, goal, seed):
        return self.expert(goal, seed)


class Dicing(TwentyQuestions):
    """The novice draws what it does from nowhere."""

    def novice(self, goal, seed):
        return super().novice(goal, np.random.default_rng().integers(10**6))


class Wordless(TwentyQuestions):
    """The tokenizer would not know "organ"."""

    def vocabulary(self):
        return [word for word in super().vocabulary() if word not in ("loud", "organ")]


BROKEN = [
    (Moody, "a goal depends on split and index alone, goal 1 of 'train'", "default_rng"),
    (Counting, "a goal depends on split and index alone, goal 0 of 'train'", "once"),
    (Empty, "a goal is well formed, goal 0", "hidden is empty"),
    (Mute, "a goal is well formed, goal 0", "' ' in Goal"),
    (Unmarked, "a goal is well formed, goal 0", "index 0"),
    (Leaky, "an opening does not tell what is hidden, goal 0", "leave 'answer' out of it"),
    (Overlapping, "validation goals are not trained on", "validation goal 0 is in train"),
    (OneStream, "validation goals are not trained on", "are the same"),
    (TooLarge, "every goal of a split exists", "IndexError"),
    (Sizeless, "size is None or at least 1", "size('train') is 0"),
    (Demanding, "a registered task comes back by its name", "without arguments"),
    (Shapeless, "a task says what it is", "limits is {'max_turns': 8}"),
    (Huge, "a task says what it is", "scale is 'huge'"),
    (Easygoing, "a task says what it is", "success_threshold is 0.0"),
    (with_user(GlobalNumpy), "a user's randomness is its own", "global generator"),
    (with_user(GlobalPython), "a user's randomness is its own", "global generator"),
    (with_user(Unseeded), "a user depends on goal and seed alone", "once Reply"),
    (with_user(Remembering), "a user depends on goal and seed alone", "once Reply"),
    (with_user(SharingClone), "a clone does not disturb its original", "share nothing"),
    (with_user(SameClone), "a clone does not disturb its original", "share nothing"),
    (with_user(FreshClone), "a clone answers as its original would", "generators too"),
    (with_user(Speechless), "a user answers every turn", "an empty reply to 'aaaa"),
    (with_user(Raw), "a user answers every turn", " in answer to '"),
    (with_user(Hasty), "a user answers every turn", "IndexError"),
    (with_user(Endless), "the user ends a dialogue with the expert", "no end within max_turns=8"),
    (with_outcome(lambda task, value, messages: 10 * value), "every dialogue has an outcome from 0 to 1", "10.0"),
    (with_outcome(lambda task, value, messages: float("nan")), "every dialogue has an outcome from 0 to 1", "nan"),
    (with_outcome(lambda task, value, messages: None), "every dialogue has an outcome from 0 to 1", "None"),
    (
        with_outcome(lambda task, value, messages: task.calls % 7 / 7),
        "the outcome depends on goal and messages",
        "then",
    ),
    (
        with_outcome(lambda task, value, messages: value + 0 * int(messages[-1]["content"].isascii() or "x")),
        "every dialogue has an outcome from 0 to 1, goal 0 of 'train'",
        "ValueError",
    ),
    (with_outcome(spoiling), "the outcome depends on goal and messages alone", "changed the messages"),
    (Rambling, "the expert keeps to the limits", "a turn of 4 words, max_turn_tokens is 3"),
    (Cramped, "the expert keeps to the limits", "max_tokens is 9"),
    (Careless, "the expert is good", "below 0.8"),
    (Harmless, "the expert beats the novice", "mean outcomes"),
    (Dicing, "the novice depends on goal and seed alone", "another dialogue"),
    (Wordless, "the vocabulary holds all that is said", "loud"),
]


@pytest.mark.parametrize(
    ("cls", "rule", "found"), BROKEN, ids=lambda value: getattr(value, "__name__", "")[:20] or None
)
def test_broken_tasks_are_caught(cls, rule, found):
    task = object.__new__(cls)
    TwentyQuestions.__init__(task)
    with pytest.raises(ItpoError) as error:
        check_task(task, n=12)
    message = str(error.value)
    assert message.startswith(f"broken rule: {rule}") and found in message, message
    assert ". Remedy: " in message
    if any(word in rule for word in ("user's", "clone", "user depends", "user answers")):
        assert re.search(r"goal \d+ of '\w+', user seed \d+", message)


def test_a_task_that_reveals_its_goals_is_no_task():
    for name, scale in OFFLINE:
        with pytest.raises(ItpoError, match=r"does not tell what is hidden|hidden is empty"):
            check_task(get_task(name, scale, revealed=True), n=4)


def test_the_kit_leaves_everything_as_it_was():
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), repr(np.random.get_state()), list_tasks()
    check_task(TwentyQuestions(), n=4)
    with pytest.raises(ItpoError):
        check_task(Moody(), n=4)
    assert (random.getstate(), repr(np.random.get_state()), list_tasks()) == before
    assert ("twenty_questions", "tiny") not in list_tasks()


@pytest.mark.parametrize(
    ("text", "value", "held"),
    [
        ("it is RED .", "red", True),
        ("12 apples", "2", False),
        ("removed", "move", False),
        ("so (a+b) it is", "(a+b)", True),
        ("what is 12?", "12", True),
        ("", "x", False),
    ],
)
def test_holds_finds_whole_words(text, value, held):
    assert holds(text, value) == held


# The documented example


def test_the_example_is_short_and_sound():
    import ast

    tree = ast.parse(FILE.read_text())
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Module) and isinstance(node.body[0], ast.Expr)
        if docstring:
            node.body = node.body[1:]
    lines = {line for node in ast.walk(tree) if hasattr(node, "lineno") for line in (node.lineno, node.end_lineno)}
    assert len(lines) < 60
    task = get_task(PLACE)
    assert ceiling(task, n=200) == 1.0
    assert (
        0.1
        < np.mean([play_scripted(task, g, task.novice(g, i), i)[1] for i in range(200) for g in [task.goal(i)]])
        < 0.4
    )


def test_each_answer_halves_the_things():
    task = get_task(PLACE, difficulty="easy")
    for i in range(30):
        goal = task.goal(i)
        messages, outcome = play_scripted(task, goal, task.expert(goal, i), i)
        assert (len(messages), outcome) == (10, 1.0)  # opening, four questions with answers, a guess


def test_an_untrained_policy_can_be_evaluated():
    task = get_task(PLACE)
    tokenizer = tiny_tokenizer(task.vocabulary())
    summary, dialogues = evaluate(tiny_model(tokenizer), ChatFormat(tokenizer), task, n=32)
    assert summary.dialogues == 32 and summary.failed == 0 and summary.outcome_name == "right guesses"
    assert 1.0 < summary.turns.mean <= 8.0 and {d.ended for d in dialogues} <= {"user", "turn_limit", "token_limit"}


def test_the_example_from_the_command_line(tmp_path):
    from itpo_lib.cli import app

    tokenizer = tiny_tokenizer(get_task(PLACE).vocabulary())
    tiny_model(tokenizer).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    arguments = ["evaluate", "--task", PLACE, "--model", str(tmp_path / "policy"), "-n", "4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "mean right guesses" in result.output and "ceiling (scripted expert): 1.000" in result.output


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        (None, "Task", "there is no file"),
        ("x = 1 / 0", "Mine", "cannot be run: ZeroDivisionError"),
        ("def", "Mine", "cannot be run: SyntaxError"),
        ("from itpo_lib.tasks import Task", "Task", "unknown task class"),
        ("from itpo_lib.tasks import Task\nclass Mine(Task): pass", "Mien", "Did you mean 'Mine'"),
        ("from itpo_lib.tasks import Task\nclass Mine(Task): name = 'mine'", "Mine", "lacks the attributes scale"),
        (
            "from itpo_lib.tasks import Task\nclass Mine(Task): name, scale = 'mine', 'text'",
            "Mine",
            "choose one of text",
        ),
        ("from itpo_lib.tasks import Task\nclass Mine(Task): name, scale = 'mine', 'tiny'", "Mine", "abstract"),
        ("import sys\nclass Mine: pass", "Mine", "unknown task class"),
        (
            "from itpo_lib.tasks import Task\n"
            "class Mine(Task):\n name, scale = 'mine', 'tiny'\n goal = user = outcome = print",
            "Mine",
            "needs limits = Limits",
        ),
    ],
)
def test_wrong_files_and_classes(tmp_path, source, name, says):
    file = tmp_path / "mine.py"
    if source is not None:
        file.write_text(source)
    with pytest.raises(ItpoError, match=says):
        get_task(f"{file}:{name}")


def test_a_file_without_a_class_name():
    with pytest.raises(ItpoError, match=r"expected path/to/file\.py:ClassName, and the class is missing"):
        get_task(str(FILE))
