"""Stored answers to the exercises: wrong ones that a check must refuse, right ones that it must accept.

Each module has WRONG and RIGHT: the check's name (without `check_`) -> a label -> the answer. A label
"what is wrong | word" also demands that the check's message contains the word after the bar.
"""

from . import a01, a02, a03, a04, a05, a06, a07, a08

MODULES = (a01, a02, a03, a04, a05, a06, a07, a08)
WRONG = {check: answers for module in MODULES for check, answers in module.WRONG.items()}
RIGHT = {check: answers for module in MODULES for check, answers in module.RIGHT.items()}
