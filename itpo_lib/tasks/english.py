"""How a scripted user understands free English: which fact does a turn ask for?

Nothing here is clever: word stems are compared, and a few phrases count as asking for anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache

SENTENCE_END = re.compile(r"(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bProf\.)(?<=[.?!])\s+|\n+")
ASKING = re.compile(r"^(what|how|which|who|why|is|are|does|did|can|could|would|please)\b", re.I)
REQUEST = re.compile(r"\b(tell|give|show) (me|us)\b|\b(let me|need to|want to|like to) know\b|\b(please|share)\b", re.I)
GENERIC = re.compile(
    r"\b(details?|information|info|context|facts|figures|numbers|values|amounts|given|everything|clarify|specify)\b"
    r"|\b(clarification|specifics|what you know|tell me more)\b|\b(what|anything|something) (else|more)\b"
    r"|\bwhat do (you|we) (already )?know\b"
    r"|\b(problem|story|text|exercise|it) (say|tell us|give|state|mention)s?\s*[.?]",
    re.I,
)
_STOPS = """
a about all also am an and any are as at be been but by can could did do does each every exactly for from
get give had has have he her here him his how i if in into is it its just know last let like many me more
much my need no number numbers of on one or other our out per please problem question s say says she should
so some tell than that the their them then there these they thing this those to total up us was we were what
when where which who why will with would you your
"""
STOP_WORDS = frozenset(_STOPS.split())
ENDING = re.compile(r"(?<=..)(ings?|ed|es|(?<!s)s|e|ys?|ies|ied)$")


def asked_fact(
    question: str,
    facts: Sequence[str],
    told: AbstractSet[str],
    names: frozenset[str] = frozenset(),
    topics: Mapping[str, str] | None = None,
) -> str | None:
    """The fact a question is about: best overlap of word stems, untold facts first; None if there is none.

    A request for anything at all gets an untold fact. A name alone does not make a question about a
    fact ("how old is Ann?"), unless the question holds nothing else ("what about Ann?"). `topics`:
    further words that mean a fact ("tone style" for "I want it warm."); they count twice.
    """
    words, topics = stems(question), topics or {}
    scores = {fact: sum(0.25 if w in names else 1.0 for w in words & stems(fact)) for fact in facts}
    for fact in topics.keys() & scores:
        scores[fact] += 2.0 * len(words & stems(topics[fact]))
    untold = [fact for fact in facts if fact not in told]
    if GENERIC.search(question):
        return max(untold, key=scores.__getitem__, default=None)
    best = max([*untold, *(fact for fact in facts if fact in told)], key=scores.__getitem__)
    enough = 0.25 if words <= names else 1.0
    return best if scores[best] >= enough else None


def asking_part(text: str) -> str:
    """The sentences of a turn that ask for something; empty if none does."""
    parts = [part for part in SENTENCE_END.split(text) if part]
    return " ".join(p for p in parts if p.endswith("?") or ASKING.search(p) or REQUEST.search(p))


@lru_cache(maxsize=4096)
def stems(text: str) -> frozenset[str]:
    """Content words of a text without their endings."""
    words = re.findall(r"[a-z]+|\d+", text.lower())
    return frozenset(ENDING.sub("", word) for word in words if word not in STOP_WORDS)


def name_stems(text: str) -> frozenset[str]:
    """Stems of the words that a text only ever writes with a capital."""
    words = re.findall(r"[A-Za-z]+", text)
    return stems(" ".join(w for w in words if w[0].isupper())) - stems(" ".join(w for w in words if w[0].islower()))
