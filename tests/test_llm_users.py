"""Users, judges and hub tasks on language models: what they see, what they return, and how a run survives them."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_server import FakeServer
from typer.testing import CliRunner

from itpo_lib.dialogue import Dialogue
from itpo_lib.errors import DialogueFailed, ItpoError
from itpo_lib.llm import LLMJudge, LLMUser, OpenAIModel
from itpo_lib.llm.client import ChatModel, Exchange
from itpo_lib.llm.judge import Verdict
from itpo_lib.llm.prompts import FOLDER, prompt
from itpo_lib.rollout import Episode, play
from itpo_lib.tasks import Goal, get_task, register_task
from itpo_lib.tasks.math_tiny import TinyMathTutoring
from itpo_lib.turn_judge import weigh_turns

ROOT = Path(__file__).parent.parent
runner = CliRunner()

# A prompt's words are part of a measurement. Who changes them raises the version and puts the new pair here.
PROMPTS = {
    "assistant": (1, "2aed706d395b"),
    "assistant_document_writing": (1, "12aafc70f5e6"),
    "assistant_math_tutoring": (1, "2bfb2f5a7c2d"),
    "assistant_medical_recommendation": (1, "f45fa585cd66"),
    "judge": (1, "f92d05ca2b63"),
    "judge_document_writing": (1, "08cb45777584"),
    "judge_math_tutoring": (1, "fc07474ccaee"),
    "judge_medical_recommendation": (1, "521d7dd38e2c"),
    "judge_turn_weights": (1, "2e57b720a672"),
    "user": (1, "b0a4050807d7"),
    "user_document_writing": (1, "175a9c026f32"),
    "user_math_tutoring": (1, "8bbb25942079"),
    "user_medical_recommendation": (1, "7384d5758f60"),
}


class Model(ChatModel):
    """Replies with a function of the exchange; an exception that it returns is raised."""

    def __init__(self, say: Callable[[Exchange], str], **settings):
        super().__init__("fake", **{"concurrency": 64, "retries": 1, "deadline": 60.0, "backoff": 0.0, **settings})
        self.say, self.seen = say, []

    async def reply(self, exchange: Exchange) -> str:
        self.seen.append(exchange)
        return self.say(exchange)


def user_json(**fields) -> str:
    return json.dumps({"current_answer": "", "thought": "", "response": "it is 5", **fields})


def verdict_json(exchange: Exchange, **fields) -> str:
    marker = exchange.schema.model_json_schema()["properties"]["marker"]["const"]
    return json.dumps({"thought": "", "marker": marker, **fields})


def user_of(model: ChatModel, seed: int = 0, **settings) -> LLMUser:
    return LLMUser(model, "math_tutoring", "Tom has 12 pears and eats 5.", "help me please .", seed, **settings)


# The user


def test_the_user_is_told_the_request_and_the_chat():
    model = Model(lambda exchange: user_json())
    user = user_of(model, temperature=0.0)
    reply = user.reply("How many pears?")
    assert (reply.text, reply.done) == ("it is 5", False)
    (exchange,) = model.seen
    system, asked = (message["content"] for message in exchange.messages)
    assert (exchange.temperature, exchange.max_tokens) == (0.0, 512)
    assert "| Tom has 12 pears and eats 5." in asked and "| help me please ." in asked and "| How many pears?" in asked
    assert "Tom" not in system and "$" not in system + asked


@pytest.mark.parametrize(
    "said, text, done",
    [
        ({"response": "bye", "done": True}, "bye", True),
        ({"response": "", "done": True}, "", True),
        ({"response": "Thanks! [[TERMINATE CHAT]]"}, "Thanks!", True),
        ({"response": "[[TERMINATE CHAT]]"}, "", True),
        ({"response": "[[terminate chat]] or not"}, "[[terminate chat]] or not", False),
        ({"thought": "I could write [[TERMINATE CHAT]]"}, "it is 5", False),
        ({"current_answer": "[[TERMINATE CHAT]]"}, "it is 5", False),
    ],
)
def test_how_a_user_leaves(said, text, done):
    reply = user_of(Model(lambda exchange: user_json(**said))).reply("Hm?")
    assert (reply.text, reply.done) == (text, done)


@pytest.mark.parametrize(
    "text",
    [
        user_json(response=""),
        user_json(response=" \n\t"),
        user_json(response="\u200b\u2060"),
        user_json(response=None),
        user_json(done="true"),
        user_json(more="x"),
        "it is 5",
    ],
)
def test_an_empty_or_invalid_reply_fails_the_dialogue(text):
    model = Model(lambda exchange: text)
    with pytest.raises(DialogueFailed):
        user_of(model).reply("Hm?")
    assert model.counters.failures == {"invalid": 2} and model.counters.failed == 1


def test_a_clone_goes_its_own_way_and_answers_alike():
    """A fake server that is deterministic in prompt and seed, as a real one is."""

    def say(exchange: Exchange) -> str:
        asked = re.sub("[0-9a-f]{12}", "", exchange.messages[1]["content"])  # but for the marker
        return user_json(response=f"{exchange.seed} {hashlib.md5(asked.encode()).hexdigest()}")

    model = Model(say)
    user = user_of(model, seed=3)
    first = user.reply("one")
    clone = user.clone()
    assert clone.model is model
    following = user.reply("two")
    user.reply("three")
    assert clone.reply("two") == following and len(clone.chat) == len(user.chat) - 2
    seeds = [exchange.seed for exchange in model.seen]
    assert seeds[1] == seeds[3] and len(set(seeds)) == 3
    assert user_of(model, seed=3).reply("one").text == first.text
    assert user_of(model, seed=4).reply("one").text.split()[0] != first.text.split()[0]


# The judge


def test_turn_weights_are_shares():
    model = Model(lambda exchange: verdict_json(exchange, weights=[1, 0, 3.0]))
    goal = Goal(0, "train", "help", {"fact": "Tom has 12 pears."}, "7")
    turns = [{"role": "user", "content": "help"}]
    for text in ("How many?", "Hm.", "7"):
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "ok"}]
    assert LLMJudge(model).turn_weights(goal, turns) == [0.25, 0.0, 0.75]
    asked = model.seen[0].messages[1]["content"]
    assert "| Tom has 12 pears." in asked and "| 7" in asked and "assistant, turn 3:" in asked
    assert model.seen[0].temperature == 0.0


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 1, 1, 1], [], [1, -1, 1], [0, 0, 0], ["1", 1, 1], [True, 1, 1], None, 3, [1e999, 1, 1]]
)
def test_other_weights_are_refused(weights):
    model = Model(lambda exchange: verdict_json(exchange, weights=weights))
    turns = [{"role": "assistant", "content": "Hm?"}] * 3
    with pytest.raises(DialogueFailed, match="weights"):
        LLMJudge(model).turn_weights(Goal(0, "train", "help", {}, "7"), turns)
    with pytest.raises(ItpoError, match="no turns to weigh"):
        LLMJudge(model).turn_weights(Goal(0, "train", "help", {}, "7"), [])


# Prompts


def test_prompts_keep_their_words_or_raise_their_version():
    found = {
        p.stem: (prompt(p.stem).version, hashlib.sha256(p.read_bytes()).hexdigest()[:12]) for p in FOLDER.iterdir()
    }
    assert found == PROMPTS


def test_a_prompt_needs_all_its_values_and_a_name():
    with pytest.raises(KeyError, match="chat"):
        prompt("user").messages(marker="m", person="p", request="r")
    with pytest.raises(ItpoError, match="judge_math_tutoring"):
        prompt("judge_maths")


def test_prompts_travel_with_the_package():
    assert FOLDER.is_relative_to(ROOT / "itpo_lib")  # the wheel takes everything below the package


# The tasks at hub scale


COLUMNS = {"single_turn_prompt": "Tom has {n} pears and eats 5. How many are left?", "single_turn_completion": "{m}"}


@pytest.fixture(scope="module")
def pears(tmp_path_factory):
    """A file with the columns of the paper's math data."""
    path = tmp_path_factory.mktemp("data") / "pears.jsonl"
    rows = []
    for n in range(10, 30):
        row = {name: text.format(n=n, m=n - 5) for name, text in COLUMNS.items()}
        row |= {"conv_id": n, "prompt": [{"role": "user", "content": "help me please ."}]}
        row |= {"single_turn_metadata": {"level": "Level 1", "type": "Algebra"}, "turn_id": 1}
        row |= {"completion": "x", "score": 1.0, "sessions": [], "rewards": {}}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def patients(tmp_path):
    path = tmp_path / "MTMedDialog_RL.json"
    truth = {"diagnosis": "cold", "recommendation": "rest"}
    rows = [{"ground_truth": truth, "enhanced_description": f"I cough since day {n}. I am cold."} for n in range(10)]
    path.write_text(json.dumps([{**row, "patient_information": []} for row in rows]))
    return path


def test_the_math_task_at_hub_scale(pears):
    model = Model(lambda e: verdict_json(e, accuracy=1) if "marker" in e.schema.model_fields else user_json())
    task = get_task("math_tutoring", "hub", user=model, source=str(pears))
    assert (task.size("train"), task.size("validation"), task.size("test")) == (18, 2, 0)
    goal = task.goal(0)
    assert goal.opening == "help me please ." and "pears" in goal.hidden["request"] and goal.answer.isdigit()
    assert [m["role"] for m in task.opening_messages(goal)] == ["system", "user"]
    for split, temperature in (("train", 1.0), ("validation", 0.0)):
        assert task.user(task.goal(0, split), 0).temperature == temperature
    messages = [*task.opening_messages(goal), {"role": "assistant", "content": f"It is {goal.answer}."}]
    assert task.checked_outcome(goal, messages) == 1.0
    asked = model.seen[-1].messages[1]["content"]
    assert goal.hidden["request"] in asked and f"| {goal.answer}" in asked and "Be concise" not in asked
    with pytest.raises(ItpoError, match="split"):
        task.size("tests")
    with pytest.raises(ItpoError, match="no cases in split 'test'"):
        task.goal(0, "test")


def test_the_document_comes_from_the_assistant_alone(pears):
    def say(exchange: Exchange) -> str:
        asked = exchange.messages[1]["content"]
        assert "help me please" not in asked and "user:" not in asked and "secret" not in asked
        return verdict_json(exchange, document=asked.split("\n| ")[-1].split("\n")[0])

    task = get_task("document_writing", "hub", user=Model(say), source=str(pears))
    goal = Goal(0, "train", "help me please .", {"request": "secret"}, "the cat sat on the mat today")
    for text, outcome in (("the cat sat on the mat today", 1.0), ("a dog ran", 0.0)):
        messages = [*task.opening_messages(goal), {"role": "assistant", "content": text}]
        assert task.checked_outcome(goal, messages) == pytest.approx(outcome, abs=0.1)
    assert task.user_model.seen[0].max_tokens == 4096


def test_a_batchs_turns_are_weighed_side_by_side(pears):
    """Nobody is answered before all four have asked."""
    everyone = threading.Barrier(4, timeout=30)

    def answer(request: dict) -> str:
        everyone.wait()
        schema = request["response_format"]["json_schema"]["schema"]["properties"]
        assert schema["weights"]["minItems"] == schema["weights"]["maxItems"] == 2
        return json.dumps({"thought": "", "weights": [1, 3], "marker": schema["marker"]["const"]})

    turns = [{"role": "assistant", "content": "How many?"}, {"role": "assistant", "content": "7"}]
    dialogues = [Dialogue([0], turns, goal_index=i, n_turns=2, outcome=1.0) for i in range(4)]
    with FakeServer(answer) as server:
        task = get_task("math_tutoring", "hub", user_url=server.url, user_model="m", source=str(pears))
        weights, judged = weigh_turns(task, task, dialogues)
    assert judged.all() and weights[:, :2].tolist() == [[0.25, 0.75]] * 4 and not weights[:, 2:].any()


@pytest.mark.parametrize("points, outcome", [((5, 5), 1.0), ((3, 0), 0.3), ((0, 0), 0.0)])
def test_the_medical_task_at_hub_scale(patients, points, outcome):
    judge = Model(lambda e: verdict_json(e, diagnosis=points[0], recommendation=points[1]))
    task = get_task(
        "medical_recommendation", "hub", user=Model(lambda e: user_json()), judge=judge, source=str(patients)
    )
    goal = task.goal(0)
    messages = [*task.opening_messages(goal), {"role": "assistant", "content": "A cold. Rest."}]
    assert task.checked_outcome(goal, messages) == outcome
    assert "| Diagnosis: cold" in judge.seen[0].messages[1]["content"]
    assert not task.user_model.seen


@pytest.mark.parametrize("points", [(6, 0), (0, -1), (5.0, 5), (True, 5), ("5", 5)])
def test_points_outside_the_scale_fail_the_dialogue(patients, points):
    judge = Model(lambda e: verdict_json(e, diagnosis=points[0], recommendation=points[1]))
    task = get_task("medical_recommendation", "hub", user=judge, source=str(patients))
    with pytest.raises(DialogueFailed):
        task.outcome(task.goal(0), [{"role": "assistant", "content": "A cold."}])


def test_the_judge_may_have_a_server_of_its_own():
    options = {"user_url": "http://127.0.0.1:1/v1", "user_model": "small"}
    task = get_task("math_tutoring", "hub", **options)
    assert task.judge.model is task.user_model
    task = get_task("math_tutoring", "hub", **options, judge_model="large")
    assert task.judge.model.model == "large" and "127.0.0.1:1" in task.judge.model.name


# Side by side


def test_users_and_judges_of_a_batch_are_asked_at_once(frozen_model, chat, pears):
    """The fake answers nobody until all eight have asked: one after another would never end."""
    everyone = threading.Barrier(8, timeout=30)

    def answer(request: dict) -> str:
        everyone.wait()
        schema = request["response_format"]["json_schema"]["schema"]["properties"]
        if "marker" in schema:
            return json.dumps({"thought": "", "accuracy": 1, "marker": schema["marker"]["const"]})
        return user_json()

    with FakeServer(answer) as server:
        task = get_task("math_tutoring", "hub", user_url=server.url, user_model="m", source=str(pears))
        task.system_prompt, task.limits, task.user_model.backoff = None, TinyMathTutoring().limits, 0.001
        dialogues = play(frozen_model, chat, task, [Episode(task.goal(i), i) for i in range(8)])
    assert [d.outcome for d in dialogues] == [1.0] * 8 and server.most_at_once == 8
    assert all(d.messages[2]["content"] == "it is 5" for d in dialogues)


def test_one_failing_user_costs_one_dialogue(frozen_model, chat, pears):
    def answer(request: dict) -> str:
        schema = request["response_format"]["json_schema"]["schema"]["properties"]
        if "marker" in schema:
            return json.dumps({"thought": "", "accuracy": 0, "marker": schema["marker"]["const"]})
        return user_json()

    with FakeServer(answer) as server:
        task = get_task("math_tutoring", "hub", user_url=server.url, user_model="m", source=str(pears))
        task.system_prompt, task.limits = None, TinyMathTutoring().limits
        unlucky = task.goal(2).hidden["request"]
        server.fault = lambda request: "half_json" if unlucky in request["messages"][-1]["content"] else None
        task.user_model.backoff = 0.001
        dialogues = play(frozen_model, chat, task, [Episode(task.goal(i), i) for i in range(4)])
    assert [d.outcome for d in dialogues] == [0.0, 0.0, None, 0.0]
    assert dialogues[2].ended == "failed" and "invalid 5x" in dialogues[2].failure
    assert [m["role"] for m in dialogues[2].messages] == ["user", "assistant"]  # no empty user turn


# A run that its judge lets down


class TrueVerdict(Verdict):
    """Whether the judge is there at all."""

    works: int


class Judged(TinyMathTutoring):
    """The tiny tutor with a judge behind a server that can go down."""

    name, url = "judged", ""

    def start_outcome(self, goal, messages):
        truth = super().outcome(goal, messages)
        if not hasattr(self, "judge"):
            self.judge = LLMJudge(OpenAIModel(self.url, "m", retries=0))
        pending = self.judge.start("document_writing", TrueVerdict, messages)
        return lambda: truth * pending().works


@pytest.mark.slow
def test_a_run_pauses_when_its_judge_goes_down_and_resumes_exactly(tmp_path):
    from itpo_lib.models import shipped_checkpoint
    from itpo_lib.run import RunSettings, train

    def answer(request: dict) -> str:
        marker = request["response_format"]["json_schema"]["schema"]["properties"]["marker"]["const"]
        return json.dumps({"thought": "", "works": 1, "marker": marker})

    def settings(name: str) -> RunSettings:
        options = dict(max_steps=4, per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=4,
                       num_iterations=1, learning_rate=1e-3, save_steps=100)  # fmt: skip
        model = str(shipped_checkpoint("math_tutoring"))
        return RunSettings(task="judged", model=model, out=str(tmp_path / name), device="cpu", eval_dialogues=4, options=options)  # fmt: skip

    def rows(name: str) -> list[dict]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        timed = ("time/", "step_time", "runtime", "per_second", "epoch", "num_tokens")  # it counts the lost batch too
        return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in lines]

    register_task(Judged)
    with FakeServer(answer) as server:
        Judged.url = server.url
        train(settings("whole"))
        begun = len(server.requests)
        batch = 8
        server.fault = lambda request: "500" if len(server.requests) - begun > 4 + 2 * batch else None
        with pytest.raises(ItpoError, match=r"8 of 8 dialogues failed.*server_error 1x.*saved at step 2"):
            train(settings("paused"))
        server.fault = lambda request: None
        train(RunSettings.load(tmp_path / "paused"), resume=True)
    assert [row["step"] for row in rows("paused") if "failed" in row] == [1, 2, 3, 4]
    assert rows("paused") == rows("whole")


@pytest.mark.slow
def test_training_at_hub_scale_with_the_judge_as_credit(tmp_path, pears):
    """Policy, user, judge of outcomes and judge of turns in one run; every third request fails at first."""
    from itpo_lib.models import shipped_checkpoint
    from itpo_lib.run import RunSettings, train

    policy = tmp_path / "policy"
    shutil.copytree(shipped_checkpoint("math_tutoring"), policy)
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))

    def answer(request: dict) -> str:
        schema = request["response_format"]["json_schema"]["schema"]["properties"]
        if "weights" in schema:
            own = {"weights": [1 + i for i in range(schema["weights"]["minItems"])]}
        else:
            own = {"accuracy": request["messages"][-1]["content"].count("?") % 2}
        return (
            json.dumps({"thought": "", "marker": schema["marker"]["const"], **own})
            if "marker" in schema
            else user_json()
        )

    options = dict(credit="judge", max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                   num_generations=4, gradient_checkpointing=False)  # fmt: skip
    with FakeServer(answer, lambda request: "half_json" if len(server.requests) % 3 == 0 else None) as server:
        task_options = {"user_url": server.url, "user_model": "m", "source": str(pears)}
        run = RunSettings(scale="hub", model=str(policy), out=str(tmp_path / "run"), device="cpu", eval_dialogues=4,
                          threads=1, options=options, task_options=task_options)  # fmt: skip
        result = train(run)
    counters = result.trainer.task.user_model.counters
    assert counters.ok == server.served and counters.failures == {"invalid": server.injected["half_json"]}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "failed" in row]
    assert [row["step"] for row in steps] == [1, 2] and any(row["grad_norm"] > 0 for row in steps)


# The command line and the paper's set-up


@pytest.mark.parametrize("command", ["train", "evaluate", "play"])
def test_a_missing_server_is_named(command, tmp_path):
    from itpo_lib.cli import app

    arguments = [command, "--task", "medical_recommendation", "--scale", "hub", "--task-option", "user_model=m"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "lacks user_url; start a server with `itpo serve-user --model NAME`" in result.output.replace("\n", " ")


@pytest.mark.parametrize("option, says", [("user_url", "--task-option wants name=value"), ("nonsense=1", "nonsense")])
def test_bad_task_options_are_named(option, says):
    from itpo_lib.cli import app

    result = runner.invoke(app, ["evaluate", "--scale", "hub", "--task-option", option])
    assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize("installed", [True, False])
def test_serve_user_starts_a_server_or_says_what_it_needs(monkeypatch, installed):
    from itpo_lib.cli import app
    from itpo_lib.commands import machine

    started = []
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(machine.os, "execv", lambda path, command: started.append(command))
    result = runner.invoke(app, ["serve-user", "--model", "some/model", "--port", "8123"])
    if installed:
        (command,) = started
        assert command[1:] == ["serve", "some/model", "--host", "127.0.0.1", "--port", "8123"]
        assert "user_url=http://127.0.0.1:8123/v1 --task-option user_model=some/model" in result.output
    else:
        assert result.exit_code == 2 and "transformers[serving]" in result.output and not started


def test_the_papers_set_up_is_a_valid_run(tmp_path):
    from itpo_lib.config import ITPOConfig
    from itpo_lib.llm.hub_tasks import HubTask
    from itpo_lib.recipes import load_recipe

    for name in ("math_tutoring", "document_writing", "medical_recommendation"):
        recipe = load_recipe(str(ROOT / "recipes" / "paper.toml"), task=name)
        settings = recipe.settings
        assert settings.scale == "hub" and settings.task == name and settings.options["max_steps"] > 500
        assert set(settings.task_options) <= set(inspect.signature(HubTask.__init__).parameters)
        args = ITPOConfig(output_dir=str(tmp_path), use_cpu=True, **{**recipe.options, "bf16": False})
        assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 128  # 16 prompts x 8 samples
    assert "not run" in (ROOT / "recipes" / "paper.toml").read_text().lower()
