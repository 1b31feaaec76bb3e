"""The widgets without a browser: numbers against references, escaping, static twins, contrast, and the kernel's side."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itpo_lib.advantages import rloo
from itpo_lib.credit import CreditInputs, assign_credit
from itpo_lib.dialogue import Dialogue
from itpo_lib.errors import ItpoError
from itpo_lib.prm import ImplicitPRM
from itpo_lib.scoring import score_turns
from itpo_lib.tasks import play_scripted
from itpo_lib.widgets import CreditExplorer, PlayRoom, PRMRecorder, Recording, TrainingDashboard, TurnInspector
from itpo_lib.widgets.charts import Line, line_chart, spread_labels
from itpo_lib.widgets.exploration import BASELINE_LABELS, ExplorerScene, explore
from itpo_lib.widgets.inspection import METHODS, InspectorScene, disagreement, turn_rewards
from itpo_lib.widgets.live import DashboardScene, TrainingWatch, time_split
from itpo_lib.widgets.panel import Panel
from itpo_lib.widgets.playing import PlayScene
from itpo_lib.widgets.recording import record_inspection
from itpo_lib.widgets.render import STYLE_FILE, Scene, signed

XSS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "</style></textarea></title><iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt;",
)


def make_dialogue(turns: list[int], outcome: float, said: str = "words") -> Dialogue:
    """A dialogue with the given tokens per turn, and two tokens of the user between turns."""
    dialogue = Dialogue([1, 2], [{"role": "user", "content": f"user {said}"}])
    for k, n in enumerate(turns):
        dialogue.add_assistant([5] * n, [0.0] * n, f"assistant {said} {k + 1}")
        if k + 1 < len(turns):
            dialogue.add_user([6, 7], f"reply {said}")
    dialogue.outcome, dialogue.ended = outcome, "user"
    return dialogue


def make_recording(layout, outcomes, states=3, seed=0, said="words", truth=None) -> Recording:
    """Random log-ratios (S, B, T) on the assistant's tokens, 0 elsewhere."""
    dialogues = [make_dialogue(turns, r, said) for turns, r in zip(layout, outcomes, strict=True)]
    width = max(len(d.completion_ids) for d in dialogues)
    ratios = np.random.default_rng(seed).normal(0, 3, (states, len(dialogues), width)).astype(np.float32)
    for b, d in enumerate(dialogues):
        ratios[:, b] *= np.array([k > 0 for k in d.turn_ids] + [False] * (width - len(d.turn_ids)))
    goals = [{f"fact {said}": said} for _ in dialogues]
    tokens = [[said] * len(d.completion_ids) for d in dialogues]
    return Recording(
        dialogues, [0, 4, 8][:states], ratios, tokens, beta=0.05, temperature=0.4, goals=goals, truth=truth
    )


LAYOUT, OUTCOMES = [[3, 2], [1], [2, 4, 1]], [1.0, 0.0, 0.5]
TRUTH = [[0.4, 0.1], [-0.3], [0.0, 0.5, -0.2]]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return make_recording(LAYOUT, OUTCOMES, truth=TRUTH)


# -- the inspector's numbers -----------------------------------------------------------------------


def reference_rewards(recording, state, method, beta, eta):
    """Turn rewards in float64, one dialogue and one turn at a time."""
    rows = []
    for b, dialogue in enumerate(recording.dialogues):
        ids = np.array(dialogue.turn_ids)
        ratios = recording.log_ratios[state, b, : len(ids)].astype(np.float64)
        sums = [
            beta * sum(x for x, k in zip(ratios, ids, strict=True) if k == turn) for turn in range(1, ids.max() + 1)
        ]
        last = [0.0] * (len(sums) - 1) + [dialogue.outcome]
        weights = [math.exp(s / eta) for s in sums]
        rows.append(
            {
                "itpo": sums,
                "prime": [s + extra for s, extra in zip(sums, last, strict=True)],
                "trajectory": last,
                "norm_itpo": [dialogue.outcome * w / sum(weights) for w in weights],
            }[method]
        )
    return rows


@pytest.mark.parametrize("method", ["norm_itpo", "itpo", "prime", "trajectory"])
@pytest.mark.parametrize("beta, eta", [(0.05, 0.4), (0.5, 2.0)])
def test_turn_rewards_equal_the_reference(recording, method, beta, eta):
    for state in range(3):
        rewards = turn_rewards(recording, state, method, beta, eta)
        assert rewards.shape == (3, 3)
        for row, expected in zip(rewards, reference_rewards(recording, state, method, beta, eta), strict=True):
            assert row[: len(expected)] == pytest.approx(expected, abs=1e-5)
            assert not row[len(expected) :].any()


def test_official_softmax_looks_at_the_whole_batch(recording):
    alone = Recording(recording.dialogues[:1], [0], recording.log_ratios[:1, :1, :7], recording.tokens[:1])
    together = turn_rewards(recording, 0, "norm_itpo", 0.05, 0.4, "official")[0, :2]
    assert together.sum() == pytest.approx(1.0)
    assert np.abs(together - turn_rewards(alone, 0, "norm_itpo", 0.05, 0.4, "official")[0]).max() > 1e-3
    same = turn_rewards(alone, 0, "norm_itpo", 0.05, 0.4)[0]
    assert turn_rewards(recording, 0, "norm_itpo", 0.05, 0.4)[0, :2] == pytest.approx(same)


def test_only_what_changed_is_computed_again(recording, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "itpo_lib.widgets.inspection.turn_rewards", lambda *args: calls.append(args[2:]) or turn_rewards(*args)
    )
    scene = InspectorScene(recording)
    values = scene.settle({})
    scene.view(values)
    assert len(calls) == 3  # one per state
    for change in ({"state": 0}, {"dialogue": 2}, {"tokens": True}, {"show": "longest"}):
        scene.view(scene.settle({**values, **change}))
    assert len(calls) == 3
    scene.view(scene.settle({**values, "compare": "itpo"}))
    scene.view(scene.settle({**values, "beta": 0.5}))
    assert len(calls) == 9


def test_filters():
    scene = InspectorScene(make_recording([[1], [1, 1], [1, 1, 1], [1, 1]], [1.0, 0.0, 0.5, 1.0]))
    assert scene.picked("all", "itpo") == [0, 1, 2, 3]
    assert scene.picked("successes", "itpo") == [0, 3]
    assert scene.picked("failures", "itpo") == [1, 2]
    assert scene.picked("longest", "itpo") == [2, 1, 3, 0]
    assert "disagreement" not in dict(scene.controls({})[2].options)  # no truth to disagree with
    moved = scene.settle({"show": "failures", "dialogue": 0})
    assert moved["dialogue"] == 1, "a dialogue that the filter hides gives way to the first that it shows"


def test_most_at_odds_with_the_truth_comes_first():
    ratios = np.array([[[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]], dtype=np.float32)
    dialogues = [
        Dialogue([1], [], completion_ids=[5] * 3, turn_ids=[1, 2, 3], outcome=1.0, n_turns=3) for _ in range(3)
    ]
    truth = [[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.2, 0.3, 0.1]]
    scene = InspectorScene(Recording(dialogues, [0], ratios, [["a"] * 3] * 3, truth=truth))
    assert scene.picked("disagreement", "itpo") == [1, 2, 0]


@pytest.mark.parametrize(
    "values, truth, expected",
    [
        ([3, 2, 1], [0.3, 0.2, 0.1], 0.0),
        ([1, 2, 3], [0.3, 0.2, 0.1], 1.0),
        ([2, 3, 1], [0.3, 0.2, 0.1], 1 / 3),
        ([1, 1], [0.3, 0.2], 0.5),
        ([1, 2], [0.2, 0.2], 0.0),
        ([1], [0.2], 0.0),
    ],
)
def test_disagreement(values, truth, expected):
    assert disagreement(np.array(values, dtype=float), np.array(truth)) == pytest.approx(expected)


def test_inspector_shows_words_numbers_sums_and_truth(recording):
    scene = InspectorScene(recording)
    page = parse(scene.view(scene.settle({"dialogue": 0, "compare": "itpo", "tokens": True})).html)
    assert [page.text(cell) for cell in page.find("th")] == [
        "What was said",
        "Norm-ITPO",
        "ITPO",
        "True credit",
        "Sum over turns",
    ]
    norm, itpo = (reference_rewards(recording, 2, m, 0.05, 0.4)[0] for m in ("norm_itpo", "itpo"))
    numbers = [page.text(span) for span in page.find("span", "number")]
    rows = [[signed(norm[k]), signed(itpo[k]), signed(TRUTH[0][k])] for k in range(2)]
    assert numbers == [*rows[0], *rows[1], "+1.00", signed(sum(itpo)), "+0.50"]
    assert [page.text(token) for token in page.find("small")] == [
        signed(x) for x, k in zip(recording.log_ratios[2, 0], recording.dialogues[0].turn_ids, strict=False) if k
    ]
    plain = scene.view(scene.settle({"dialogue": 0})).html
    assert "assistant words 1" in plain and "<small>" not in plain
    assert page.text(page.find("details")[0]) == "Show what the user hides fact wordswords"


def test_inspector_says_which_turn_gets_most(recording):
    scene = InspectorScene(recording)
    best = int(np.argmax(reference_rewards(recording, 0, "itpo", 0.05, 0.4)[2])) + 1
    status = scene.view(scene.settle({"dialogue": 2, "state": 0, "credit": "itpo"})).status
    assert status.startswith(f"Dialogue 3, PRM at step 0: ITPO rewards turn {best} most")
    assert "all turns alike, 0.00" in scene.view(scene.settle({"dialogue": 1})).status


def test_a_filter_that_leaves_nothing_says_so():
    panel = TurnInspector(make_recording([[1]], [1.0]), show="failures")
    assert "No dialogue of this recording is like that" in panel.view
    panel.set(show="all")
    assert panel.values["dialogue"] == 0 and "bubble" in panel.view


@given(st.floats(-1e4, 1e4))
def test_signed_numbers(value):
    text = signed(value)
    assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.00501)
    assert (text[0] in "+−") == (abs(float(text.replace("−", "-"))) > 0)


# -- recordings ------------------------------------------------------------------------------------


def test_recording_survives_saving(recording, tmp_path):
    loaded = Recording.load(recording.save(tmp_path / "r.npz"))
    assert loaded.dialogues == recording.dialogues and loaded.truth == TRUTH and loaded.steps == [0, 4, 8]
    assert loaded.tokens == recording.tokens and loaded.goals == recording.goals
    assert (loaded.beta, loaded.temperature, loaded.success_threshold) == (0.05, 0.4, 1.0)
    assert np.abs(loaded.log_ratios - recording.log_ratios).max() < 0.01


@pytest.mark.parametrize("content", [b"", b"no zip at all", None])
def test_a_broken_recording_is_refused(recording, tmp_path, content):
    path = recording.save(tmp_path / "r.npz")
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ItpoError, match=r"r\.npz is no recording"):
        Recording.load(path)


def test_recordings_hold_no_pickle(tmp_path):
    np.savez(tmp_path / "evil.npz", log_ratios=np.zeros(1), rest=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ItpoError, match=r"evil.npz is no recording: .*allow_pickle"):
        Recording.load(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dialogues": []}, "at least one dialogue"),
        ({"steps": []}, "at least one training step"),
        ({"log_ratios": np.zeros((3, 3, 2))}, r"\(steps, dialogues, tokens\) = \(3, 3, 11\), got \(3, 3, 2\)"),
        ({"log_ratios": np.full((3, 3, 11), np.nan)}, "finite"),
        ({"truth": [[1.0], [1.0], [1.0]]}, r"\[2, 1, 3\] turns, got \[1, 1, 1\] numbers"),
        ({"goals": [{}]}, "3 dialogues but 1 goals"),
        ({"tokens": [[], [], []]}, "dialogue 0: tokens and ids differ"),
    ],
)
def test_recordings_are_checked(recording, change, message):
    fields = {name: getattr(recording, name) for name in Recording.__dataclass_fields__}
    with pytest.raises(ItpoError, match=message):
        Recording(**{**fields, **change})


def test_a_failed_dialogue_cannot_be_recorded():
    with pytest.raises(ItpoError, match="dialogue 1 has no outcome"):
        make_recording([[1], [1]], [1.0, None])


def test_the_sample_that_ships():
    sample = Recording.sample()
    assert len(sample.dialogues) == 24 and sample.steps[0] == 0 and sample.steps[-1] == 76
    assert not sample.log_ratios[0].any(), "before training the PRM is the reference"
    assert sample.truth is not None and {d.outcome for d in sample.dialogues} == {0.0, 1.0}


class FakeTrainer(SimpleNamespace):
    """What a recorder needs of a trainer."""

    def add_callback(self, callback):
        self.callback = callback


@pytest.fixture
def trainer(model, frozen_model, chat, task):
    prm = ImplicitPRM.beside(model, beta=0.1, lr=0.05)
    args = SimpleNamespace(prm_beta=0.1, credit_temperature=2.0, credit="norm_itpo")
    return FakeTrainer(prm=prm, frozen=frozen_model, chat=chat, task=task, args=args)


def expert_dialogue(task, chat, index=0) -> Dialogue:
    goal = task.goal(index, "validation")
    messages, outcome = play_scripted(task, goal, task.expert(goal, index), index)
    dialogue = chat.dialogue(messages)
    dialogue.outcome, dialogue.goal_index, dialogue.split = outcome, index, "validation"
    return dialogue


def test_recorder_follows_the_prm(trainer, task, chat):
    dialogues = [expert_dialogue(task, chat, i) for i in range(3)]
    recorder = record_inspection(trainer, dialogues, every=2)
    step = lambda n: SimpleNamespace(global_step=n)  # noqa: E731
    recorder.on_train_begin(None, step(0), None)
    for n in range(1, 6):
        with torch.no_grad():
            for parameter in trainer.prm.model.parameters():
                parameter.mul_(1.01)
        recorder.on_step_end(None, step(n), None)
    recorder.on_train_end(None, step(5), None)
    recording = recorder.recording(truth=[[0.0] * d.n_turns for d in dialogues])
    assert recording.steps == [0, 2, 4, 5] and len(recording.dialogues) == 3
    assert not recording.log_ratios[0].any() and np.abs(recording.log_ratios[3]).max() > 0.01
    scored = score_turns(trainer.prm, trainer.frozen, chat, dialogues, temperature=2.0)
    rewards = turn_rewards(recording, 3, "itpo", recording.beta, recording.temperature)
    for row, turns in zip(rewards, scored, strict=True):
        assert row[: len(turns)] == pytest.approx([t.implicit_reward for t in turns], abs=1e-5)
    goal = task.goal(0, "validation")
    assert recording.goals[0] == {**goal.hidden, "right answer": goal.answer}
    assert " ".join(recording.tokens[0]).startswith(dialogues[0].messages[1]["content"])


def test_recorder_explains_what_is_missing(trainer):
    with pytest.raises(ItpoError, match="no dialogues to record"):
        PRMRecorder([])
    with pytest.raises(ItpoError, match="dialogue 1 has no outcome"):  # before the training, not after it
        PRMRecorder([make_dialogue([1], 1.0), make_dialogue([1], None)])
    with pytest.raises(ItpoError, match="every must be at least 1"):
        PRMRecorder([make_dialogue([1], 1.0)], every=0)
    with pytest.raises(ItpoError, match="never attached"):
        PRMRecorder([make_dialogue([1], 1.0)]).on_train_begin(None, SimpleNamespace(global_step=0), None)
    trainer.prm, trainer.args.credit = None, "uniform"
    with pytest.raises(ItpoError, match="'uniform' trains no PRM"):
        record_inspection(trainer, [make_dialogue([1], 1.0)])


# -- the explorer ----------------------------------------------------------------------------------


def test_explorer_shows_long_dialogues_punished():
    equal = [[0.0] * n for n in (1, 2, 3, 4)]
    first = lambda baseline: explore(equal, [1.0] * 4, "norm_itpo", baseline).advantages[:, 0].tolist()  # noqa: E731
    assert first("official") == pytest.approx([0.6389, -0.0556, -0.75, -1.4444], abs=1e-4)
    assert first("outcome") == pytest.approx([0.0] * 4)
    assert first("turn") == pytest.approx([0.0] * 4)


@pytest.mark.parametrize("credit", ["norm_itpo", "itpo", "trajectory", "uniform"])
@pytest.mark.parametrize("baseline", BASELINE_LABELS)
def test_explorer_is_the_library(credit, baseline):
    ratios, outcomes = [[-9.0], [4.0, -6.0], [7.0, 9.0, 3.0]], [0.0, 0.25, 1.0]
    turn_ids = torch.tensor([[1, 0, 0], [1, 2, 0], [1, 2, 3]])
    token_rewards = 0.1 * torch.tensor([[-9.0, 0, 0], [4.0, -6.0, 0], [7.0, 9.0, 3.0]])
    given_credit = assign_credit(credit, CreditInputs(torch.tensor(outcomes), turn_ids, 3, token_rewards, 2.0))
    if given_credit.shares is None and baseline not in ("turn", "official"):
        with pytest.raises(ItpoError, match="gives none"):
            explore(ratios, outcomes, credit, baseline, 0.1, 2.0)
        return
    steps = explore(ratios, outcomes, credit, baseline, 0.1, 2.0)
    torch.testing.assert_close(steps.advantages, rloo(given_credit, torch.tensor(outcomes), 3, baseline))
    torch.testing.assert_close(steps.rewards, given_credit.rewards)
    assert steps.returns[2, 1] == pytest.approx(float(steps.rewards[2, 1:].sum()), abs=1e-6)
    if steps.taken is not None:
        torch.testing.assert_close(steps.returns - steps.taken, steps.advantages)


def test_explorer_controls_reach_the_picture():
    scene = ExplorerScene()
    assert scene.view(scene.settle({})).status.startswith("Baseline turn")
    equal = scene.press("equal", {})
    status = scene.view(scene.settle({**equal, "baseline": "official"})).status
    assert "A +0.64, B −0.06, C −0.75, D −1.44" in status
    lower = scene.view(scene.settle({**equal, "baseline": "outcome", "outcome_3": 0.0})).status
    assert "A +0.33, B +0.33, C +0.33, D −1.00" in lower
    with pytest.raises(ItpoError, match="ratio_1_0 must be a number from -100 to 100, got 'x'"):
        scene.settle({"ratio_1_0": "x"})


# -- the dashboard ---------------------------------------------------------------------------------


def state(step, last=10):
    return SimpleNamespace(global_step=step, max_steps=last)


def watched(steps=3) -> TrainingWatch:
    watch = TrainingWatch()
    watch.on_train_begin(None, state(0), None)
    for n in range(1, steps + 1):
        logs = {
            "success": n / 10,
            "turns": 2.0,
            "entropy": 0.5,
            "prm/accuracy": 0.7,
            "step_time": 1.0,
            "time/rollout": 0.25,
        }
        watch.on_log(None, state(n), None, logs=logs)
    return watch


def test_dashboard_follows_a_run_and_stops_it():
    watch = watched()
    scene = DashboardScene(watch, ceiling=0.99)
    view = scene.view({})
    assert view.status == "Step 3 of 10, success 0.30: running."
    assert "ceiling 0.99" in view.html and view.html.count("<svg") == 4
    control, args = SimpleNamespace(should_save=False, should_training_stop=False), SimpleNamespace(steps_per_batch=2)
    watch.on_step_end(args, state(4), control)
    assert not control.should_training_stop
    scene.press("stop", {})
    assert scene.view({}).status.endswith("stopping after this batch.") and scene.controls({})[0].disabled
    watch.on_step_end(args, state(5), control)
    assert not control.should_training_stop, "a batch that serves two steps is not left half used"
    watch.on_step_end(args, state(6), control)
    assert control.should_training_stop and control.should_save
    watch.on_train_end(None, state(6), None)
    assert scene.view({}).status.endswith("stopped and saved.")


def test_dashboard_before_after_and_resumed():
    assert DashboardScene(TrainingWatch()).view({}).status == "No run yet."
    watch = watched(10)
    watch.on_train_end(None, state(10), None)
    assert DashboardScene(watch).view({}).status == "Step 10 of 10, success 1.00: finished."
    watch.on_train_begin(None, state(4), None)
    assert [row["step"] for row in watch.rows] == [1, 2, 3, 4], "steps after the checkpoint are made again"
    watch.fail(RuntimeError("out of <b>memory</b>"))
    assert DashboardScene(watch).view({}).status == "The run failed. RuntimeError: out of <b>memory</b>"


def test_time_split_adds_up():
    rows = [{"step_time": 4.0, "time/rollout": 1.0, "time/prm": 0.5}, {"step_time": 1.0}]
    split = {label: (seconds, share) for label, seconds, share in time_split(rows)}
    assert split["playing dialogues"] == (1.0, 0.2) and split["training the PRM"] == (0.5, 0.1)
    assert split["updating the policy, and the rest"] == (3.5, 0.7)
    assert sum(share for _, share in split.values()) == pytest.approx(1.0)
    assert all(share == 0 for _, _, share in time_split([]))


def test_dashboard_runs_work_in_a_thread():
    dashboard = TrainingDashboard()
    with pytest.raises(ItpoError, match="call start first"):
        dashboard.wait()
    dashboard.start(lambda: threading.current_thread().name)
    assert dashboard.wait() == "training"

    def broken():
        raise ValueError("no luck")

    dashboard.start(broken)
    with pytest.raises(ValueError, match="no luck"):
        dashboard.wait()
    dashboard.callback.on_train_begin(None, state(0), None)
    with pytest.raises(ItpoError, match="already watches a run"):
        dashboard.start(broken)


def test_interrupting_wait_asks_for_a_stop():
    dashboard = TrainingDashboard()

    def work():
        threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
        for _ in range(2000):
            if dashboard.callback.asked:
                return "saved"
            time.sleep(0.01)
        return "never asked"

    dashboard.start(work)
    try:
        assert dashboard.wait() == "saved"
    except KeyboardInterrupt:
        pytest.fail("the interrupt was not taken as a wish to stop")


def test_dashboard_draws_rarely_but_never_misses_the_end(monkeypatch):
    dashboard, drawn = TrainingDashboard(), []
    monkeypatch.setattr(dashboard, "refresh", lambda: drawn.append(dashboard.callback.step))
    clock = iter(range(100))
    monkeypatch.setattr("itpo_lib.widgets.panel.time.monotonic", lambda: next(clock) * 0.1 + 100)
    dashboard.callback.on_train_begin(None, state(0), None)
    for n in range(1, 8):
        dashboard.callback.on_log(None, state(n), None, logs={"success": 0.5})
    dashboard.callback.on_train_end(None, state(7), None)
    assert drawn == [0, 3, 6, 7]


# -- the play room ---------------------------------------------------------------------------------


def test_the_goal_stays_hidden_from_the_assistant(task, chat):
    scene = PlayScene(task)
    goal = task.goal(0, "validation")
    answer = f"right answer</dt><dd>{goal.answer}"
    before = scene.view(scene.settle({})).html
    assert answer not in before and "You want" not in before and "<dl>" not in before
    assert [c.disabled for c in scene.controls({}) if c.name == "say"] == [False]
    expert = task.expert(goal, 0)
    while not scene.session.ended:
        scene.press("say", scene.settle({"text": expert.act(scene.session.messages)}))
    view = scene.view(scene.settle({}))
    assert answer in view.html and "✓ success, R = 1.00" in view.html
    assert view.status.startswith("Over after") and view.status.endswith("R = 1.00")
    assert [c.disabled for c in scene.controls({}) if c.name == "say"] == [True]


def test_finished_turns_are_scored_by_prm_and_truth(task, chat, trainer):
    with torch.no_grad():
        for parameter in trainer.prm.model.parameters():
            parameter.mul_(1.05)
    scene = PlayScene(task, chat=chat, prm=trainer.prm, frozen=trainer.frozen, truth=lambda d: [0.25] * d.n_turns)
    for text in ("hello there .", "the answer is 11 minus 7 stones ."):
        scene.press("say", scene.settle({"text": text}))
    page = parse(scene.view(scene.settle({})).html)
    scores = score_turns(trainer.prm, trainer.frozen, chat, [scene.session.to_dialogue(chat)])[0]
    numbers = [page.text(span) for span in page.find("span", "number")]
    outcome = scene.session.outcome
    assert numbers[:6] == [
        text for t in scores for text in (signed(t.share * outcome), signed(t.implicit_reward), "+0.25")
    ]


def test_a_person_can_be_the_user(task, chat, frozen_model):
    scene = PlayScene(task, model=frozen_model, chat=chat)
    scene.press("new", scene.settle({"role": "user", "goal": 3}))
    view = scene.view(scene.settle({"role": "user"}))
    assert "You want:" in view.html and task.goal(3, "validation").answer in view.html
    assert view.status == "Assistant turn 1 of at most 6. You are the user: it is your turn to speak."
    assert dict(PlayScene(task).controls({})[0].options) == {"assistant": "the assistant"}, "no policy, no user role"


def test_play_room_saves_and_explains(task, tmp_path):
    room = PlayRoom(task, folder=tmp_path)
    room.press("say", text=XSS[1])
    room.press("save")
    saved = json.loads((tmp_path / "math_tutoring-assistant-0.json").read_text())
    assert saved["messages"][1]["content"] == XSS[1]
    assert room.status.startswith("Saved as math_tutoring-assistant-0.json.")
    with pytest.raises(ItpoError, match="say something"):
        room.press("say", text="  ")
    room.press("end")
    assert room.status.startswith("Over after 1 assistant turns (ended by: assistant)")
    with pytest.raises(ItpoError, match="pass chat as well"):
        PlayScene(task, prm=SimpleNamespace())


# -- what every scene has to hold ------------------------------------------------------------------


class Page(HTMLParser):
    """HTML as a browser would read it: elements with their attributes, and the text inside."""

    VOID = {"input", "meta", "br", "img", "link"}

    def __init__(self):
        super().__init__()
        self.elements, self.stack = [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append(SimpleNamespace(tag=tag, attributes=dict(attributes), words=[]))
        if tag not in self.VOID:
            self.stack.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop().tag == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        for element in self.stack:
            element.words.append(data)

    def find(self, tag, css_class=""):
        return [
            e
            for e in self.elements
            if e.tag == tag and (not css_class or css_class in e.attributes.get("class", "").split())
        ]

    @staticmethod
    def text(element):
        return " ".join("".join(element.words).split())


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert not page.stack, f"{page.stack[-1].tag} is never closed"
    return page


ALLOWED = re.compile(
    "html|head|meta|title|style|body|main|section|div|p|span|b|br|h1|h2|small|sub|dl|dt|dd|details|summary|table|thead|"
    "tbody|tfoot|tr|th|td|figure|svg|text|line|g|circle|polyline|path|label|input|select|option|button|fieldset|legend"
)


def assert_inert(html: str) -> Page:
    """Only the elements that our templates use, and nothing that could run or load anything."""
    page = parse(html)
    for element in page.elements:
        assert ALLOWED.fullmatch(element.tag), element.tag
        for name in element.attributes:
            assert not name.startswith("on") and name not in ("src", "href", "srcdoc", "action"), (element.tag, name)
    return page


def scenes_that_say(text: str, task) -> dict[str, tuple[Scene, dict]]:
    """Each scene with `text` wherever text can come from outside."""
    watch = watched()
    watch.dialogue = make_dialogue([1, 1], 1.0, text)
    play = PlayScene(task)
    play.session.messages += [{"role": "assistant", "content": text}, {"role": "user", "content": text}]
    inspected = make_recording([[2, 1]], [1.0], said=text, truth=[[0.1, 0.2]])
    return {
        "inspector": (InspectorScene(inspected), {"tokens": True, "compare": "prime"}),
        "inspector words": (InspectorScene(inspected), {}),
        "play room": (play, {}),
        "dashboard": (DashboardScene(watch), {}),
    }


@pytest.mark.parametrize("text", XSS)
def test_text_from_outside_is_shown_and_never_run(text, task):
    for name, (scene, values) in scenes_that_say(text, task).items():
        for whole in (False, True):
            page = assert_inert(scene.static_html(values, whole))
            shown = [page.text(e) for e in page.elements if e.tag in ("span", "div", "dd", "body", "section")]
            assert any(" ".join(text.split()) in words for words in shown), name
        assert_inert(scene.controls_html(scene.settle(values)))
    error = Panel(ExplorerScene())
    error._on_message(error, {"moves": {text: 1}}, [])
    assert_inert(error.view)
    assert_inert(line_chart(text, [Line(text, [0, 1], [0, 1])], level=(text, 0.5)))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_any_text_survives(text):
    scene = InspectorScene(make_recording([[1]], [1.0], said=text))
    page = assert_inert(scene.view(scene.settle({})).html)
    bubbles = [e for e in page.find("span", "text")]
    assert ["".join(b.words) for b in bubbles] == [f"user {text}", f"assistant {text} 1"]


def largest() -> Recording:
    """64 dialogues of 8 turns, each of a dozen tokens."""
    return make_recording([[12] * 8] * 64, [1.0, 0.0] * 32, truth=[[0.1] * 8] * 64)


def test_static_twins_are_small_and_need_nothing(task, tmp_path):
    scenes = {"inspector": (InspectorScene(largest()), {"tokens": True, "compare": "itpo"})}
    scenes |= {"explorer": (ExplorerScene(), {}), "dashboard": (DashboardScene(watched(10), 0.9), {})}
    scenes |= {"playroom": (PlayScene(task), {})}
    for name, (scene, values) in scenes.items():
        path = scene.to_html(tmp_path / f"{name}.html", **values)
        text = path.read_text(encoding="utf-8")
        assert path.stat().st_size < 300_000, name
        assert not re.search(r"https?://|@import|url\(|<script|<link", text), name
        page = assert_inert(text)
        assert page.text(page.find("h1")[0]) == page.text(page.find("title")[0]) == scene.title
        assert page.find("html")[0].attributes["lang"] == "en"


def test_every_control_is_named_and_keeps_its_arrow_keys(recording, task):
    for scene in (InspectorScene(recording), ExplorerScene(), PlayScene(task), DashboardScene(TrainingWatch())):
        page = assert_inert(scene.controls_html({}))
        controls = [e for e in page.elements if e.tag in ("input", "select", "button")]
        assert len(controls) == len(scene.controls({}))
        assert all(e.attributes["data-lm-suppress-shortcuts"] == "true" for e in controls)
        named = [e for e in page.find("label") if page.text(e)] + [e for e in page.find("button") if page.text(e)]
        assert len(named) == len(controls)


def test_colour_is_never_alone(recording):
    page = parse(InspectorScene(recording).static_html({"tokens": True, "compare": "itpo"}))
    assert len(page.find("span", "bar")) == len([e for e in page.find("td", "reward")]) - 3, "the sums have no bar"
    for cell in page.find("td", "reward"):
        assert re.fullmatch(r"[+−]?\d+\.\d\d", page.text(cell))
    for token in page.find("span", "token"):
        assert re.search(r"[+−]?\d+\.\d\d$", page.text(token))
    chart = line_chart("t", [Line(f"turn {k}", [0, 1], [0, k]) for k in range(6)])
    styles = re.findall(r"stroke-dasharray=\"([^\"]*)\"", chart)
    assert len(set(styles)) == 3 and all(f">turn {k}<" in chart for k in range(6))


# -- contrast --------------------------------------------------------------------------------------


def palette() -> list[dict[str, tuple[float, ...]]]:
    """The colours of the light and of the dark theme, by name, as RGB in [0, 1]."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLE_FILE.read_text())
    rgb = lambda code: tuple(int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))  # noqa: E731
    return [{name: rgb(codes[i]) for name, *codes in pairs} for i in (0, 1)]


def contrast(a, b) -> float:
    """WCAG 2's contrast ratio."""
    linear = lambda c: c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4  # noqa: E731
    bright, dark = sorted(
        (sum(w * linear(c) for w, c in zip((0.2126, 0.7152, 0.0722), x, strict=True)) for x in (a, b)), reverse=True
    )
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_itself():
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast((0x77 / 255,) * 3, (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("colours", palette(), ids=["light", "dark"])
def test_text_contrast_is_at_least_4_5(colours):
    text = [(ink, ground) for ink in ("ink", "soft") for ground in ("paper", "user", "assistant", "system")]
    text += [(ink, "paper") for ink in ("plus", "minus", "good", "error")] + [("ink", "paper")]
    for ink, ground in text:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    strength = {float(x) for x in re.findall(r"var\(--heat\) \* ([.\d]+)\)", STYLE_FILE.read_text())}
    assert len(strength) == 1
    for sign in ("plus", "minus"):  # the hottest token
        hot = tuple(
            strength.copy().pop() * c + (1 - strength.copy().pop()) * g
            for c, g in zip(colours[sign], colours["assistant"], strict=True)
        )
        assert contrast(colours["ink"], hot) >= 4.5, sign


@pytest.mark.parametrize("colours", palette(), ids=["light", "dark"])
def test_graphics_and_focus_contrast_is_at_least_3(colours):
    for name in ("plus", "minus", "control", "focus", *(f"c{i}" for i in range(6))):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    for sign in ("plus", "minus"):
        assert contrast(colours[sign], colours["user"]) >= 3, f"{sign} on the bar's ground"


# -- charts ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(20, 166), min_size=1, max_size=8))
def test_labels_keep_their_distance(heights):
    placed = spread_labels(heights, 20, 166)
    assert all(b - a >= 12.99 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert min(placed) >= 19.99 and max(placed) <= 166.01
    order = np.argsort(heights, kind="stable")
    assert all(np.diff(np.array(placed)[order]) >= 0), "labels stay in the order of their lines"


def test_chart_puts_points_where_they_belong():
    chart = line_chart("t", [Line("a", [0, 10], [0.0, 1.0])], marker=5, width=228, height=154)
    assert re.search(r'd="M44\.0 120\.0L144\.0 20\.0"', chart)
    assert 'x1="94.0" x2="94.0"' in chart
    assert "<svg" in line_chart("nothing yet", [])


# -- the kernel's side -----------------------------------------------------------------------------


def test_scenes_need_no_widget_library():
    names = ["inspection", "exploration", "live", "playing", "recording", "charts", "render"]
    code = "import sys\n" + "\n".join(f"import itpo_lib.widgets.{name}" for name in names)
    code += "\nassert not {'ipywidgets', 'anywidget', 'IPython', 'trl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def panel(recording, monkeypatch):
    """An inspector, and the messages that it sends to the browser."""
    panel = TurnInspector(recording)
    panel.sent = []
    monkeypatch.setattr(panel, "send", panel.sent.append)
    return panel


def test_moves_from_the_browser(panel):
    panel._on_message(panel, {"moves": {"state": 0, "dialogue": "2", "temperature": 2}, "press": None}, [])
    assert panel.values["state"] == 0 and panel.values["dialogue"] == 2
    assert panel.values["temperature"] == 2.0, "JSON has no 2.0"
    assert panel.status.startswith("Dialogue 3, PRM at step 0")
    assert panel.sent == [{"done": True}]


@pytest.mark.parametrize("moves", [{"state": 99}, {"nonsense": 1}, {"credit": "prme"}, {"beta": None}])
def test_impossible_moves_are_explained_and_change_nothing(panel, moves):
    before = dict(panel.values)
    panel._on_message(panel, {"moves": moves, "press": None}, [])
    assert 'role="alert"' in panel.view and panel.values == before
    assert panel.sent == [{"done": True}], "an answer that never came would leave the browser waiting"
    panel._on_message(panel, {"moves": {"tokens": True}, "press": None}, [])
    assert "alert" not in panel.view
    with pytest.raises(ItpoError):
        panel.set(**moves)


def test_unknown_buttons_are_refused(panel):
    panel._on_message(panel, {"press": "explode"}, [])
    assert "has no button &#39;explode&#39;" in panel.view


def test_what_a_notebook_keeps(panel):
    data = panel._repr_mimebundle_()[0]
    assert data["text/plain"] == "TurnInspector()"
    assert "application/vnd.jupyter.widget-view+json" in data
    page = assert_inert(data["text/html"])
    assert "Norm-ITPO" in page.text(page.find("section")[0])
    assert repr(CreditExplorer()) == "CreditExplorer()"


def test_an_update_sends_only_what_changed(panel, monkeypatch):
    sent = []
    monkeypatch.setattr(panel, "send_state", lambda key=None: sent.append(set(key)))
    panel.set(state=1)
    assert sent and set().union(*sent) == {"values", "view", "status"}, "the controls stay as they are"


def test_every_method_has_a_label():
    scene = InspectorScene(make_recording(LAYOUT, OUTCOMES))
    for method in METHODS:
        assert METHODS[method] in scene.view(scene.settle({"credit": method})).html
