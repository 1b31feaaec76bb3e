"""The widgets in use: the play room in every task that can be played here, each widget in a notebook, colours for all eyes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from itpo_lib import widgets
from itpo_lib.tasks import get_task, list_tasks
from itpo_lib.widgets.playing import PlayScene
from itpo_lib.widgets.render import STYLE_FILE

ROOT = Path(__file__).resolve().parent.parent
PLAYABLE = [(name, scale) for name, scale in list_tasks() if scale != "hub"]  # a hub task needs a server
PANELS = ("CreditExplorer", "PlayRoom", "TrainingDashboard", "TurnInspector")


@pytest.mark.parametrize(("name", "scale"), PLAYABLE)
def test_play_room_takes_any_task(name, scale):
    """The expert's words, typed by a person: the goal is shown at the end only, and the outcome is the task's."""
    task = get_task(name, scale)
    goal, scene = task.goal(0, "validation"), PlayScene(task)
    expert = task.expert(goal, 0)
    assert "You want" not in scene.view(scene.settle({})).html
    while not scene.session.ended:
        scene.press("say", scene.settle({"text": expert.act(scene.session.messages)}))
    view = scene.view(scene.settle({}))
    assert f"R = {task.outcome(goal, scene.session.messages):.2f}" in view.status
    assert "<dl>" in view.html, "what the user hid is there to be looked at"


def test_each_widget_is_used_in_a_notebook():
    text = "\n".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert set(PANELS) <= set(widgets.__all__)
    assert [panel for panel in PANELS if f"{panel}(" not in text] == []


# How colours look to eyes without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1, linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
DIFFERENT = 20.0  # CIE 1976 ΔE; 2.3 is just noticeable


def lab(code: str, eyes: str) -> np.ndarray:
    """CIELAB of a colour such as "#0068a3", as these eyes see it (white point D65)."""
    rgb = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(np.clip(TO_XYZ @ np.clip(EYES[eyes] @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089]), 0.009, 1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_plus_and_minus_differ_for_all_eyes(theme, eyes):
    pairs = re.findall(r"--(plus|minus): light-dark\((#\w{6}), (#\w{6})\)", STYLE_FILE.read_text())
    colours = {name: codes[theme] for name, *codes in pairs}
    assert float(np.linalg.norm(lab(colours["plus"], eyes) - lab(colours["minus"], eyes))) > DIFFERENT


def test_the_measure_sees_what_red_green_blindness_confuses():
    red, green = "#b03030", "#5f7000"
    seen = {eyes: float(np.linalg.norm(lab(red, eyes) - lab(green, eyes))) for eyes in EYES}
    assert seen["all cones"] > 60 and min(seen["protanopia"], seen["deuteranopia"]) < DIFFERENT
    assert lab("#ffffff", "all cones") == pytest.approx([100, 0, 0], abs=0.1)
