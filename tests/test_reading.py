"""Kinds of turns and endings, on dialogues written by hand."""

import pytest

from itpo_lib.dialogue import Dialogue
from itpo_lib.errors import ItpoError
from itpo_lib.reading import ENDINGS, ending, endings_figure, known_facts, own_wording, transcript, turn_kinds
from itpo_lib.tasks import get_task

TASK = get_task("math_tutoring")
GOAL = TASK.goal(0, "validation")  # 11 stones, 7 are removed
ASKS = "what happens to the stones in the story ?", "and what is the amount then ?"
RIGHT, WRONG = "the answer is 11 minus 7 stones .", "the answer is 11 plus 6 stones ."


def dialogue(*texts: str) -> Dialogue:
    """Turns of assistant and user in alternation, judged by the task."""
    said = [{"role": "user" if i % 2 else "assistant", "content": text} for i, text in enumerate(texts)]
    messages = [*TASK.opening_messages(GOAL), *said]
    outcome = TASK.outcome(GOAL, messages)
    return Dialogue([], messages, GOAL.index, GOAL.split, 0, outcome=outcome, n_turns=(len(said) + 1) // 2)


INFORMED = (ASKS[0], "some are removed .", ASKS[1], "i count 7 here .")
MISLED = (ASKS[0], "some are added .", ASKS[1], "i count 7 here .")
CASES = {
    "informed, right": dialogue(*INFORMED, RIGHT),
    "informed, wrong": dialogue(*INFORMED, WRONG),
    "misled": dialogue(*MISLED, "the answer is 11 plus 7 stones ."),
    "lucky guess": dialogue(*INFORMED[:2], RIGHT),
    "wrong guess": dialogue(WRONG),
    "no answer": dialogue(*INFORMED, "i like this story ."),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_endings_by_hand(name):
    assert ending(TASK, CASES[name]) == name


def test_what_is_heard_after_the_last_turn_is_not_known_by_then():
    cut = dialogue(ASKS[0], "some are removed .", ASKS[1])
    assert known_facts(TASK, cut) == {"action": True} and ending(TASK, cut) == "no answer"
    assert known_facts(TASK, CASES["misled"]) == {"action": False, "amount": True}
    with pytest.raises(ItpoError, match="failed dialogue"):
        ending(TASK, Dialogue([], cut.messages, GOAL.index, GOAL.split, 0))


def test_kinds_of_turns_by_hand():
    turns = dialogue(
        *(
            "hello emma , nice to meet you .",
            "what do you mean ?",
            "how old is emma in the story ?",
            "nine years old .",
        ),
        *(ASKS[1], "i am not sure .", ASKS[0], "some are added .", ASKS[0], "some are removed ."),
        *(ASKS[1], "i count 7 here .", RIGHT),
    )
    beside, vague = ["beside the point"] * 2, "user vague"
    assert turn_kinds(TASK, turns) == [*beside, vague, "told it wrong", "asked again", "told a fact", "answered"]
    assert ending(TASK, turns) == "informed, right"  # asking again corrected it


def test_own_wording_is_what_no_script_says():
    strange = dialogue("please tell emma , emma .", "what do you mean ?", ASKS[1], "i count 7 here .", RIGHT)
    assert own_wording(TASK, strange) == [True, False]
    assert own_wording(TASK, dialogue("does anna gain or lose some stones ?")) == [True]  # the user is emma
    assert own_wording(TASK, CASES["wrong guess"]) == []


def test_the_figure_holds_every_share_and_the_transcript_its_notes():
    import matplotlib.pyplot as plt

    figure = endings_figure(TASK, {"before": [CASES["wrong guess"], CASES["misled"]], "after": list(CASES.values())})
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == pytest.approx([0, 0, 1 / 2, 0, 1 / 2, 0, *[1 / 6] * 6])
    plt.close(figure)
    lines = transcript(CASES["lucky guess"].messages, ["asks", "guesses"]).splitlines()
    assert lines[1] == f"assistant: {ASKS[0]}   [asks]" and lines[2] == "     user: some are removed ."
    assert lines[3].endswith("[guesses]")
    long = [{"role": "user", "content": "two " * 20 + "lines"}]
    assert transcript(long, width=60).splitlines()[1].startswith(" " * 11 + "two")
    assert all(len(line) <= 60 for line in transcript(long, width=60).splitlines())
