"""Each widget in a real JupyterLab: run, moved by mouse and by keyboard, photographed, checked with axe."""

from __future__ import annotations

import re

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]  # one worker starts one JupyterLab
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=20_000)

XSS = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'><svg onload=alert(3)>{{ 7*7 }} &lt;i&gt;"
INSPECTOR = """
from itpo_lib.widgets import Recording, TurnInspector
inspector = TurnInspector(Recording.sample(), dialogue=4)
inspector
"""
HOSTILE = f"""
from itpo_lib.widgets import Recording, TurnInspector
sample, xss = Recording.sample(), {XSS!r}
for dialogue in sample.dialogues:
    for message in dialogue.messages:
        message["content"] = xss
sample.goals[:] = [{{xss: xss}} for _ in sample.goals]
sample.tokens[:] = [[xss] * len(tokens) for tokens in sample.tokens]
inspector = TurnInspector(sample, dialogue=4)
inspector.to_html("hostile.html")
inspector
"""


def assert_accessible(book) -> None:
    """No violation of any rule that axe-core knows, in the light and in the dark theme."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for theme in ("Light", "Dark"):
        book.theme(theme)
        found = axe.run(book.page, context=".itpo").response["violations"]
        assert not [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found], theme


def assert_focus_is_seen(page) -> None:
    """Tab reaches every control that is not switched off, in order, and each then has the outline of three pixels."""
    controls = page.locator(".itpo-controls").locator("input, select, button")
    wanted = controls.evaluate_all("found => found.filter(c => !c.disabled).map(c => c.name)")
    reached = []
    page.locator(".itpo-controls").locator("input:enabled, select:enabled, button:enabled").first.focus()
    for _ in wanted:
        look = "() => [document.activeElement.name, getComputedStyle(document.activeElement).outlineWidth]"
        reached.append(tuple(page.evaluate(look)))
        page.keyboard.press("Tab")
    assert reached == [(name, "3px") for name in wanted]


def test_turn_inspector(notebook):
    book = notebook("inspector", INSPECTOR)
    page = book.page
    status, view = page.get_by_role("status"), page.locator(".itpo-view")
    expect(status).to_contain_text("Dialogue 5, PRM at step 76")
    expect(view.locator(".bubble.assistant")).to_have_count(4)

    slider = page.get_by_role("slider", name=re.compile("training step"))
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(status).to_contain_text("PRM at step 72")
    page.keyboard.press("ArrowDown")
    expect(status).to_contain_text("PRM at step 68")
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    expect(status).to_contain_text("PRM at step 0")
    expect(slider).to_have_attribute("aria-valuetext", "0")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    expect(status).to_contain_text("PRM at step 76")

    page.get_by_label("Compare with").select_option("itpo")
    expect(view.locator("thead th")).to_have_text(["What was said", "Norm-ITPO", "ITPO", "True credit"])
    page.get_by_label("Show tokens").press("Space")
    expect(view.locator(".token").first).to_be_visible()

    hidden = view.locator("dl")
    expect(hidden).not_to_be_visible()
    page.get_by_text("Show what the user hides").click()
    expect(hidden).to_contain_text("right answer")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(status).to_contain_text("PRM at step 72")
    expect(hidden).to_be_visible()  # an update does not hide it again

    for theme in ("Light", "Dark"):
        book.theme(theme)
        book.picture(f"inspector-{theme.lower()}")
    page.get_by_role("combobox", name="Dialogues", exact=True).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # from "all" to "failures"
    expect(status).to_contain_text("Dialogue 3,")
    expect(page.get_by_role("combobox", name="Dialogue", exact=True).locator("option")).to_have_count(12)
    assert_focus_is_seen(page)
    assert_accessible(book)


def test_credit_explorer(notebook):
    book = notebook("explorer", "from itpo_lib.widgets import CreditExplorer", "CreditExplorer()")
    page = book.page
    status, view = page.get_by_role("status"), page.locator(".itpo-view")
    load = page.get_by_role("button", name="Load: All succeed alike")
    page.get_by_label("Baseline of RLOO").select_option("official")
    load.press("Enter")
    expect(status).to_contain_text("A +0.64, B −0.06, C −0.75, D −1.44")
    page.get_by_role("button", name="Load: Asking pays").click()
    expect(status).not_to_contain_text("A +0.64")
    load.click()
    expect(status).to_contain_text("A +0.64, B −0.06, C −0.75, D −1.44")  # long dialogues are punished
    for theme in ("Light", "Dark"):
        book.theme(theme)
        book.picture(f"explorer-{theme.lower()}")
    page.get_by_label("Baseline of RLOO").select_option("outcome")
    expect(status).to_contain_text("A 0.00, B 0.00, C 0.00, D 0.00")

    outcome = page.get_by_role("group", name=re.compile("Dialogue D")).get_by_label("R", exact=True)
    outcome.fill("0")
    expect(status).to_contain_text("A +0.33, B +0.33, C +0.33, D −1.00")
    outcome.press("ArrowUp")
    expect(outcome).to_have_value("0.25")
    expect(status).to_contain_text("D −0.75")
    outcome.fill("7")
    expect(view.get_by_role("alert")).to_contain_text("outcome_3 must be a number from 0 to 1, got 7")
    outcome.fill("1")
    expect(view.get_by_role("alert")).to_have_count(0)
    page.get_by_label("Credit method").select_option("itpo")
    expect(view.get_by_role("alert")).to_contain_text("gives none; use baseline 'turn'")
    page.get_by_label("Baseline of RLOO").select_option("turn")
    expect(view.get_by_role("alert")).to_have_count(0)
    assert_focus_is_seen(page)
    assert_accessible(book)


PLAYROOM = """
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.true_credit import true_values
from itpo_lib.widgets import PlayRoom
trainer = build_trainer(RunSettings(out="room", device="cpu", options={"max_steps": 12, "save_strategy": "no"}))
trainer.train()
task, policy, chat = trainer.task, trainer.model.eval(), trainer.chat
truth = lambda dialogue: true_values(policy, chat, task, [dialogue]).credit[0, :dialogue.n_turns].tolist()
PlayRoom(task, model=policy, chat=chat, prm=trainer.prm, frozen=trainer.frozen, truth=truth)
"""


def test_play_room(notebook, lab):
    book = notebook("playroom", PLAYROOM)
    page, status, view = book.page, book.page.get_by_role("status"), book.page.locator(".itpo-view")
    words = page.get_by_role("textbox", name="Your words")
    expect(status).to_contain_text("Assistant turn 1 of at most 6. You are the assistant")
    words.press_sequentially("how many stones ?")  # every letter reaches the box, none is a shortcut
    words.press("Enter")
    expect(view.locator(".bubble.assistant").first).to_contain_text("how many stones ?")
    expect(status).to_contain_text("Assistant turn 2")
    expect(words).to_have_value("")
    expect(words).to_be_focused()
    words.fill("what happens to the stones ?")
    page.get_by_role("button", name="Say", exact=True).click()
    expect(status).to_contain_text("Assistant turn 3")
    words.fill("the answer is 11 minus 7 stones .")
    words.press("Enter")
    expect(status).to_contain_text("Over after 3 assistant turns (ended by: user). R = 1.00")
    expect(view.locator("thead th")).to_have_text(["What was said", "Norm-ITPO", "ITPO", "True credit"])
    for theme in ("Light", "Dark"):
        book.theme(theme)
        book.picture(f"playroom-{theme.lower()}")
    page.get_by_role("button", name="Save transcript").click()
    expect(status).to_contain_text("Saved as math_tutoring-assistant-0.json")
    assert (lab[1] / "math_tutoring-assistant-0.json").exists()

    page.get_by_label("You are").select_option("user")
    page.get_by_role("button", name="New dialogue").click()
    expect(view).to_contain_text("You want:")
    words.fill(XSS)
    words.press("Enter")
    expect(status).to_contain_text("Assistant turn 2")
    expect(view).to_contain_text(XSS)
    assert_accessible(book)


def test_hostile_text_is_shown_and_never_run(notebook, lab, browser):
    book = notebook("hostile", HOSTILE)
    live, twin = book.page, browser.new_page()
    twin.on("dialog", lambda dialog: book.complaints.append(f"dialog in the twin: {dialog.message}"))
    twin.goto((lab[1] / "hostile.html").as_uri())
    for page in (live, twin):
        expect(page.locator(".bubble").first).to_contain_text(XSS)
        assert page.locator(".itpo-view").locator("script, img, iframe, svg[onload]").count() == 0
    live.get_by_label("Show tokens").press("Space")
    expect(live.locator(".token").first).to_contain_text(XSS)
    live.get_by_text("Show what the user hides").press("Enter")
    expect(live.locator("dd").first).to_have_text(XSS)
    live.wait_for_timeout(500)  # an alert would have come by now
    twin.close()


DASHBOARD = """
import pathlib, time
from itpo_lib.run import RunSettings, build_trainer
from itpo_lib.widgets import TrainingDashboard
trainer = build_trainer(RunSettings(out="run", device="cpu", options={"max_steps": 120, "save_strategy": "no"}))
dashboard = TrainingDashboard(ceiling=0.99)
dashboard.watch(trainer)


def train_twice():  # the second time when the test says so
    trainer.train()
    while not pathlib.Path("again").exists():
        time.sleep(0.05)
    trainer.train()


dashboard
"""


def test_training_dashboard(notebook, lab):
    book = notebook("dashboard", DASHBOARD, "dashboard.start(train_twice)", "print('free', 6 * 7)")
    page, status = book.page, book.page.get_by_role("status")
    stop = page.get_by_role("button", name="Stop and save")
    expect(status).to_contain_text(
        re.compile(r"Step (1[2-9]|[2-9]\d) of 120, success 0\.\d\d: running"), timeout=240_000
    )
    expect(page.locator(".itpo-view .bubble").first).to_be_visible()
    expect(page.get_by_text("free 42")).to_be_visible()  # other cells run meanwhile
    stop.press("Enter")
    expect(status).to_contain_text("stopped and saved", timeout=60_000)
    expect(stop).to_be_disabled()
    saved = list((lab[1] / "run").glob("checkpoint-*/model.safetensors"))
    assert len(saved) == 1 and int(saved[0].parent.name.partition("-")[2]) >= 12
    (lab[1] / "again").touch()  # now by mouse
    expect(status).to_contain_text(re.compile(r"Step [1-9]\d* of 120, success 0\.\d\d: running"), timeout=120_000)
    stop.click()
    expect(status).to_contain_text("stopped and saved", timeout=60_000)
    expect(stop).to_be_disabled()
    for theme in ("Light", "Dark"):
        book.theme(theme)
        book.picture(f"dashboard-{theme.lower()}")
    assert_accessible(book)


TWINS = {
    "inspector": "from itpo_lib.widgets.inspection import InspectorScene; from itpo_lib.widgets import Recording; "
    "scene, values = InspectorScene(Recording.sample()), {'dialogue': 4, 'compare': 'itpo', 'tokens': True}",
    "explorer": "from itpo_lib.widgets.exploration import ExplorerScene; scene, values = ExplorerScene(), {}",
}


@pytest.mark.parametrize("name", TWINS)
def test_static_twin(name, browser, tmp_path):
    """It loads nothing, opens what it hides without a kernel, and is accessible in both colour schemes."""
    made = {}
    exec(TWINS[name], made)
    path = made["scene"].to_html(tmp_path / "twin.html", **made["values"])
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        if name == "inspector":
            page.get_by_text("Show what the user hides").press("Enter")
            expect(page.locator("dl").last).to_be_visible()
        assert asked == [path.as_uri()]
        found = axe.run(page).response["violations"]
        assert not [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found], scheme
        page.close()
