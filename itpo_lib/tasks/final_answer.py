"""The final answer of an assistant's turn: found by convention, compared by math-verify."""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from ..errors import ItpoError

STATED = re.compile(
    r"final answer\W{0,4}?\s*(?:is\b|[:=])\s*((?:(?!final answer)[^\n]){0,120})"
    r"|\\boxed\s*\{((?:[^{}]|\{[^{}]*\}){1,80})\}",
    re.I,
)
VALUE = r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
LEADING_VALUE = re.compile(rf"[\s:*_`$(\[~]*({VALUE}(?:\s*[-+*/]\s*{VALUE})*)")


def stated_answer(text: str) -> str | None:
    """The number that a turn states as its final answer, the last one if there are several; None without.

    The number follows "Final answer:" (or "Final answer is") directly, up to marks such as $ or **,
    or stands in \\boxed{}. After "12 x 5 = 60" the answer is 60. So "Final answer: it depends on 2
    things" states nothing.
    """
    found = None
    for match in STATED.finditer(text):
        said = re.split(r"[.!?](?:\s|$)", plain_math(match[1] or match[2] or ""))[0]
        if first := LEADING_VALUE.match(said):
            value = LEADING_VALUE.match(said.rsplit("=", 1)[-1]) or first
            found = value[1].replace(",", "") if len(value[1]) <= 30 else found
    return found


def plain_math(text: str) -> str:
    """A little LaTeX and typography rewritten as digits and + - * /."""
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\boxed|\\(text|mathrm|textbf)\b|\\[,;!()\[\]]|[{}€£¥]", "", text)
    text = re.sub(r"\\(times|cdot)|×|(?<=\d)\s*x\s*(?=\d)", "*", text).replace("−", "-").replace("÷", "/")
    return text.replace("\\", "")


@lru_cache(maxsize=4096)
def equal_numbers(truth: str, stated: str) -> bool:
    """Whether math-verify finds two numbers equal; False for whatever it cannot read.

    Its time limits are signals, which fail outside the main thread, so they are off: `stated_answer`
    lets only short sums and products of numbers through, which cannot hang.
    """
    try:
        from math_verify import ExprExtractionConfig, parse, verify
    except ImportError as error:
        raise ItpoError("checking answers needs math-verify: pip install math-verify") from error
    for module in ("parser", "grader"):  # it would warn about the time limits
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    gold, answer = (parse(text, [ExprExtractionConfig()], parsing_timeout=None) for text in (truth, stated))
    return bool(verify(gold, answer, timeout_seconds=None))
