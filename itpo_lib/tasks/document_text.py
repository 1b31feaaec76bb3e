"""Document writing at text scale: a short article whose pieces must be asked for.

The articles were written for this project. The opening names kind and topic; the user tells one wish
per turn: what the text says, where it begins and ends, its order, its tone, its readers. A line that
starts with "Document:" ends the dialogue. The outcome is the word-level BLEU of what follows it
against the article that the user has in mind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..dialogue import Message
from ..errors import unknown_name
from .base import Goal, ScriptedAssistant, User
from .bleu import character_bleu, word_bleu
from .disclosure import DisclosingUser, DisclosureNovice, DisclosureTask, choice, said_by_user, split_indices
from .english import asking_part, stems
from .slots import Noise

N_VALIDATION = 6
LEVELS: dict[str, dict[str, Any]] = {
    "easy": {"most_hidden": 2, "max_turns": 6, "noise": Noise(vague=0.05, chatter=0.1)},
    "normal": {"most_hidden": None, "max_turns": 8, "noise": Noise(vague=0.1, chatter=0.2)},
    "stress": {"most_hidden": None, "max_turns": 10, "noise": Noise(vague=0.3, chatter=0.4)},
}
METRICS: dict[str, Callable[[str, str], float]] = {"word": word_bleu, "official": character_bleu}
PARTS = {  # what a wish is about: words by which one may mean it, and questions of the novice
    "beginning": ("beginning begin start opening open intro first", "How should it begin?", "How shall I open it?"),
    "content": ("", "Which facts should I mention?", "What is the main content?"),
    "order": ("order structure sequence steps next follow", "In which order should I tell it?", "What comes next?"),
    "tone": ("tone style sound voice mood feel feeling formal", "Which tone do you want?", "How should it sound?"),
    "audience": ("audience reader read", "Who is it for?", "Who will read it?"),
    "ending": ("ending end close closing conclusion finish final", "How should it end?", "How shall I close it?"),
}
OPENINGS = (
    "Can you help me write {kind} about {topic}?",
    "I need {kind} about {topic}. Please write it for me.",
    "Please help me with {kind}. It is about {topic}.",
)
ASK_ALL = (
    *("What else should it say?", "Can you give me more details?"),
    *("What do you want the text to include?", "Please tell me what you have in mind."),
)
FILLER = "There is much to say about {topic}. It is interesting, and many people like it."
DOCUMENT = "Document: {document}"

MARKER = re.compile(r"^[ \t#>*_`]*document[ \t*_`]*:[ \t*_`]*", re.I | re.M)
MEANT = (  # stop words that mean a part of the text after all
    (re.compile(r"\bwho\b(?=.{0,60}\b(for|reads?|reading)\b)|\bfor whom\b", re.I), "audience"),
    (re.compile(r"\blast (sentence|line|words?|part|paragraph)\b", re.I), "ending"),
)
IDLE = stems(  # words of a question that name no part of a text; "d" and "ll" are left of "you'd" and "I'll"
    "document article text piece draft write writing written want wish include contain cover mention describe talk "
    "idea content point topic subject main key important thing mind think something anything kind specific particular "
    "preferences d ll"
)


class Client(DisclosingUser):
    """Somebody who wants a text; ends when the document is there."""

    leads = ("{fact}", "Let me think. {fact}", "Oh yes, I know. {fact}", "Good that you ask. {fact}")
    repeats = ("I told you already. {fact}", "As I said before: {fact}")
    vague = ("Hmm, I have to think about that.", "I am not sure how to put it.", "Something nice, I suppose.")
    absent = ("I do not mind, really.", "I have no idea, you decide.")
    finished = ("That is all I have.", "Nothing more, please write it now.")
    puzzled = ("All right. What do you need to know from me?", "I am not sure what you want me to tell you.")
    chatter = ("I am bad at writing.", "I have put this off for weeks.", "I hope that we get it done.")

    def is_final(self, text: str) -> bool:
        return written_document(text) is not None

    def heard(self, text: str) -> str:
        """A question that names nothing in particular ("what should it say?") asks for any wish."""
        question = asking_part(text)
        for pattern, word in MEANT:
            question = pattern.sub(word, question)
        words = stems(question)
        idle = words <= IDLE and (words or "what" in question.lower())
        return f"{question} Details?" if idle else question


class TextDocumentWriting(DisclosureTask):
    """The writing assistant in English. `metric`: "word", or "official" to reproduce the released code's reward.

    `difficulty`: "easy" hides two wishes, "normal" all, "stress" all from a vaguer user, with more
    turns. Success (0.6) is what one reaches by putting down all wishes as they were told (52 of the 53
    articles), mostly still with one wish missing (80%), hardly with two (11%).
    """

    name = "document_writing"
    outcome_name = "BLEU"
    system_prompt = (
        "You are a writing assistant. The user wants a short text but tells you little about it. Each of your turns is "
        "one of two things: one short question about the text (what it says, how it begins and ends, its tone, its "
        "readers), or, once you know enough, the whole text, in 60 to 120 words that are close to the user's own, "
        "after the word Document and a colon, like this:\nDocument: The text."
    )
    success_threshold = 0.6
    levels, max_turn_tokens, tokens_per_turn = LEVELS, 176, 128
    ask_all = ASK_ALL
    wander = ("How is your cousin?", "Writing is a lot of fun.", "I am glad to help you.", "No need to worry.")

    def __init__(
        self, difficulty: str = "normal", revealed: bool = False, noise: Noise | None = None, metric: str = "word"
    ):
        super().__init__(difficulty, revealed, noise)
        if metric not in METRICS:
            raise unknown_name(f"metric of task {self.name!r}", metric, METRICS)
        self.metric = METRICS[metric]

    def size(self, split: str) -> int:
        return len(split_indices(split, len(articles()), N_VALIDATION))

    def goal(self, index: int, split: str = "train") -> Goal:
        indices = split_indices(split, len(articles()), N_VALIDATION)
        source = indices[index % len(indices)]
        article = articles()[source]
        wishes, most_hidden = [wish["words"] for wish in article["wishes"]], self.level["most_hidden"]
        n_shown = max(0, len(wishes) - most_hidden) if most_hidden else 0
        kind = f"{'an' if article['kind'][0] in 'aeiou' else 'a'} {article['kind']}"
        asked = OPENINGS[source % len(OPENINGS)].format(kind=kind, topic=article["topic"])
        return Goal(
            index=index,
            split=split,
            opening=" ".join([asked, *(wishes if self.revealed else wishes[:n_shown])]),
            hidden={f"wish{i}": wish for i, wish in enumerate(wishes, 1) if i > n_shown},
            answer=article["text"],
            data={
                **{name: article[name] for name in ("title", "kind", "topic")},
                "source": source,
                "wishes": wishes,
                "about": {f"wish{i}": wish["about"] for i, wish in enumerate(article["wishes"], 1)},
            },
        )

    def user(self, goal: Goal, seed: int) -> User:
        topics = {name: PARTS[about][0] for name, about in goal.data["about"].items()}
        return Client(goal.hidden, self.noise, seed, topics)

    def outcome(self, goal: Goal, messages: Sequence[Message]) -> float:
        """BLEU, from 0 to 1, of the document in the last turn, if that is the assistant's; 0 without one."""
        document = written_document(messages[-1]["content"]) if messages[-1]["role"] == "assistant" else None
        return self.metric(document, goal.answer) if document else 0.0

    def final_turn(self, goal: Goal, rng: np.random.Generator) -> str:
        return DOCUMENT.format(document=goal.answer)

    def guess(self, goal: Goal, messages: Sequence[Message], rng: np.random.Generator) -> str:
        return DOCUMENT.format(document=" ".join([FILLER.format(topic=goal.data["topic"]), *notes(goal, messages)]))

    def concede(self, goal: Goal, messages: Sequence[Message]) -> str:
        return DOCUMENT.format(document=" ".join(notes(goal, messages)) or FILLER.format(topic=goal.data["topic"]))

    def question(self, goal: Goal, wanted: Iterable[str], rng: np.random.Generator) -> str:
        about = goal.data["about"][choice(rng, list(wanted))]
        return choice(rng, PARTS[about][1:] if rng.random() < 0.6 else ASK_ALL)

    def novice(self, goal: Goal, seed: int) -> ScriptedAssistant:
        return DocumentNovice(self, goal, np.random.default_rng([8, seed]))


class DocumentNovice(DisclosureNovice):
    """Once informed, it writes down the wishes as they were told."""

    def finish(self, messages: Sequence[Message]) -> str:
        return self.task.concede(self.goal, messages)


def written_document(text: str) -> str | None:
    """What follows the last "Document:" that begins a line; None where nothing does."""
    parts = MARKER.split(text)
    return parts[-1].strip() or None if len(parts) > 1 else None


def notes(goal: Goal, messages: Sequence[Message]) -> list[str]:
    """The wishes that the user has told, in the article's order."""
    said = said_by_user(messages)
    return [wish for wish in goal.data["wishes"] if wish in said]


@lru_cache(maxsize=1)
def articles() -> tuple[dict[str, Any], ...]:
    """All articles: title, kind, topic, text, and wishes (what each is about, and its words)."""
    return tuple(json.loads((Path(__file__).parent / "data" / "articles.json").read_text(encoding="utf-8")))
