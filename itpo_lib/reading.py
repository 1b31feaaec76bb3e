"""Reading many dialogues of a tiny world: what was each turn, how did the dialogue end, and what was known by then?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .dialogue import Dialogue, Message, said_by
from .errors import require
from .plots import COLOURS, STYLE
from .tasks.slot_task import SlotTask
from .tasks.slots import asked_slot

ENDINGS = ("informed, right", "informed, wrong", "misled", "lucky guess", "wrong guess", "no answer")
TURNS = ("told a fact", "told it wrong", "asked again", "user vague", "beside the point", "answered")
LOOKS = {  # colour (place in COLOURS) and hatch of each ending
    "informed, right": (0, ""),
    "informed, wrong": (4, ".."),
    "misled": (3, "xx"),
    "lucky guess": (5, "//"),
    "wrong guess": (1, "\\\\"),
    "no answer": (6, ""),
}


def known_facts(task: SlotTask, dialogue: Dialogue) -> dict[str, bool]:
    """The hidden facts that the user told before the last turn, and whether what they told last is true."""
    goal = task.goal(dialogue.goal_index, dialogue.split)
    told = task.told(before_last_turn(dialogue.messages))
    return {name: told[name] == truth for name, truth in goal.hidden.items() if name in told}


def before_last_turn(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages before the assistant's last turn, which the answer can rest on."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def ending(task: SlotTask, dialogue: Dialogue) -> str:
    """One of `ENDINGS`. Right is what reaches the task's threshold; a guess is an answer with facts missing."""
    require(dialogue.outcome is not None, f"goal {dialogue.goal_index}: a failed dialogue has no ending to name")
    goal, known = task.goal(dialogue.goal_index, dialogue.split), known_facts(task, dialogue)
    said = said_by("assistant", dialogue.messages)[-1]
    right = float(dialogue.outcome or 0.0) >= task.success_threshold
    if task.done_word not in said.split():
        return "no answer"
    if len(known) < len(goal.hidden):
        return "lucky guess" if right else "wrong guess"
    if right:
        return "informed, right"
    return "informed, wrong" if all(known.values()) else "misled"


def turn_kinds(task: SlotTask, dialogue: Dialogue) -> list[str]:
    """One of `TURNS` for each assistant turn; a fact is told where a hidden slot's value is heard for the first time."""
    goal, kinds = task.goal(dialogue.goal_index, dialogue.split), []
    for i, message in enumerate(dialogue.messages):
        if message["role"] == "assistant":
            before, after = (task.told(dialogue.messages[:n]) for n in (i + 1, i + 2))
            kinds.append(_kind(task, message["content"], goal.hidden, before, after))
    return kinds


def _kind(
    task: SlotTask, text: str, hidden: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]
) -> str:
    if task.done_word in text.split():
        return "answered"
    slot = asked_slot(text, task.slots)
    if slot is None or slot.name not in hidden:
        return "beside the point"
    if slot.name in before:
        return "asked again"
    if slot.name not in after:
        return "user vague"
    return "told a fact" if after[slot.name] == hidden[slot.name] else "told it wrong"


def own_wording(task: SlotTask, dialogue: Dialogue) -> list[bool]:
    """For each question: is its wording none that this world's scripts would use? A policy's language may drift."""
    goal = task.goal(dialogue.goal_index, dialogue.split)
    known = {wording for wordings in task.phrases(goal).values() for wording in wordings}
    said = said_by("assistant", dialogue.messages)
    return [text not in known for text in said if task.done_word not in text.split()]


def transcript(messages: Sequence[Message], beside: Sequence[str] = (), width: int = 116) -> str:
    """The dialogue as text, with a note beside each assistant turn where there is one; longer lines are broken."""
    notes, lines = iter(beside), []
    for message in messages:
        note = next(notes, "") if message["role"] == "assistant" else ""
        line = f"{message['role']:>9}: {message['content']}" + f"   [{note}]" * bool(note)
        lines.append(line if len(line) <= width else fill(line, width, subsequent_indent=" " * 11))
    return "\n".join(lines)


def endings_figure(task: SlotTask, sets: Mapping[str, Sequence[Dialogue]]) -> Figure:
    """How the dialogues of each set ended: one bar of shares per set, every share above 3% with its number."""
    with plt.rc_context({**STYLE, "figure.figsize": (9, 1.2 + 0.55 * len(sets)), "axes.grid": False}):
        figure, axis = plt.subplots(layout="constrained")
        for place, dialogues in enumerate(sets.values()):
            left, counts = 0.0, Counter(ending(task, d) for d in dialogues)
            for kind in ENDINGS:
                share, (colour, hatch) = counts[kind] / len(dialogues), LOOKS[kind]
                label = None if place else kind
                axis.barh(place, share, left=left, color=COLOURS[colour], hatch=hatch, edgecolor="white", label=label)
                if share > 0.03:
                    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
                    axis.text(left + share / 2, place, f"{share:.0%}", ha="center", va="center", fontsize=11, bbox=box)
                left += share
        axis.invert_yaxis()
        axis.set(xlim=(0, 1), xticks=[], yticks=range(len(sets)))
        axis.set_yticklabels(list(sets))
        axis.spines[["left", "bottom"]].set_visible(False)
        figure.legend(ncols=3, loc="outside lower center", fontsize=11)
    return figure
