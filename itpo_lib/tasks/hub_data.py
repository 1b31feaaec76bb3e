"""The paper's data sets as cases: an opening, the full request that it hides, and the truth.

Math tutoring and document writing use collabllm's tables, which hold several rows per conversation
(one per turn and candidate reply). Each row repeats request, truth and the conversation from its
start; so a conversation gives one case, and its opening is the first message. Conversations about
the same request are one case too, so that no validation request was trained on. (The released code
keeps one row per first message, which is the same thing if each problem has one conversation.)

Medicine uses MTMedDialog, which lives in a code repository: `MTMedDialog_RL.parquet` makes train and
validation, `MTMedDialog_test.json` makes test. A training row has no self-report of its own: it
stands in the prompt after "Patient's description:"; without it, the opening is the first sentence of
the description. Which 550 rows the paper took is unknown.

At most 500, 500 and 550 cases (a seeded choice of more), 10% of them validation, drawn with seed 42
by `datasets` as in the released code. The collabllm tables have no test split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ItpoError, require, unknown_name
from .english import SENTENCE_END

N_CASES = {"math_tutoring": 500, "document_writing": 500, "medical_recommendation": 550}
VALIDATION_SHARE, SPLIT_SEED = 0.1, 42
SPLITS = ("train", "validation")  # what `datasets` calls train and test
HUB_NAMES = {
    "math_tutoring": "collabllm/collabllm-multiturn-math-hard-large",
    "document_writing": "collabllm/collabllm-multiturn-medium-large",
}
MEDICAL_FOLDER = "https://github.com/JarvisUSTC/DoctorAgent-RL/raw/refs/heads/main/data"
MEDICAL_FILES = ("MTMedDialog_RL.parquet", "MTMedDialog_test.json")
FORMATS = (".parquet", ".json", ".jsonl")  # none of them can carry code
BULKY = {"completion", "sessions", "rewards", "score", "patient_information", "dialogue"}  # no case needs them
EXPECTED = {
    str: "a text that is not blank",
    int | str: "a number or a text",
    list: "a list of messages",
    dict: "an object",
    dict | None: "an object or null",
}
SELF_REPORT = re.compile(r"Patient's description:\s*(\S.*?)\s*(?:Decide next action|$)", re.S)

Placed = tuple[str, Any]  # where a row stands, for messages, and the row


@dataclass(frozen=True)
class Case:
    """One problem: what the user says first, all that they want, and the right answer."""

    opening: str
    request: str
    truth: str
    data: dict[str, Any]


def load_cases(task_name: str, source: str | None = None) -> dict[str, list[Case]]:
    """The cases of "train", "validation" and "test".

    `source`: a .parquet, .json or .jsonl file, or a folder of them. Without it they are downloaded
    once; `datasets` keeps them and needs no network from then on.
    """
    if task_name not in N_CASES:
        raise unknown_name("task with hub data", task_name, N_CASES)
    rows = published_rows(task_name) if source is None else local_rows(Path(source))
    medical = task_name not in HUB_NAMES
    cases, test = medical_cases(rows) if medical else (collab_cases(rows, task_name == "math_tutoring"), [])
    cases = list({case.request: case for case in reversed(cases)}.values())[::-1]  # the first of each request
    found = f"{source or 'the published data'}: {len(cases)} different training cases are too few to split"
    require(len(cases) >= 2, found + (f" (they are in {MEDICAL_FILES[0]})" if medical else ""))
    return {**split_cases(cases, N_CASES[task_name]), "test": test}


def split_cases(cases: list[Case], limit: int) -> dict[str, list[Case]]:
    """Train and validation from at most `limit` cases."""
    from datasets import Dataset

    table = Dataset.from_dict({"case": range(len(cases))})
    if len(cases) > limit:
        table = table.shuffle(seed=SPLIT_SEED).select(range(limit))
    halves = table.train_test_split(test_size=VALIDATION_SHARE, seed=SPLIT_SEED)
    return {ours: [cases[i] for i in halves[name]["case"]] for ours, name in zip(SPLITS, halves, strict=True)}


def collab_cases(rows: Iterable[Placed], math: bool) -> list[Case]:
    """One case per conversation, in the order of the table."""
    found: dict[int | str, Case] = {}
    for place, row in rows:
        number, prompt = column(place, row, "conv_id", int | str), column(place, row, "prompt", list)
        first = f"{place}, first message of 'prompt'"
        require(prompt and column(first, prompt[0], "role", str) == "user", f"{first}: expected the role 'user'")
        metadata = column(place, row, "single_turn_metadata", dict if math else dict | None)
        if math:
            column(f"{place}, 'single_turn_metadata'", metadata, "level", int | str)
            column(f"{place}, 'single_turn_metadata'", metadata, "type", str)
        case = Case(
            opening=column(first, prompt[0], "content", str),
            request=column(place, row, "single_turn_prompt", str),
            truth=column(place, row, "single_turn_completion", str),
            data={"conv_id": number, "metadata": metadata},
        )
        require(
            found.setdefault(number, case) == case,
            f"{place}: the rows with conv_id {number!r} differ in their first message, single_turn_prompt, "
            "single_turn_completion or single_turn_metadata; expected one conversation",
        )
    return list(found.values())


def medical_cases(rows: Iterable[Placed]) -> tuple[list[Case], list[Case]]:
    """Training cases and test cases, told apart by their columns."""
    cases: list[Case] = []
    test: list[Case] = []
    for place, row in rows:
        if isinstance(row, dict) and {"self_report", "diagnosis", "recommendation"} & set(row):
            data = {name: column(place, row, name, str) for name in ("diagnosis", "recommendation", "category")}
            opening, request, split = column(place, row, "self_report", str), row, test
        else:
            inside = isinstance(row, dict) and "reward_model" in row
            request = column(place, row, "reward_model", dict) if inside else row
            truth = column(place, request, "ground_truth", dict)
            data = {n: column(f"{place}, 'ground_truth'", truth, n, str) for n in ("diagnosis", "recommendation")}
            opening, split = self_report(place, row, column(place, request, "enhanced_description", str)), cases
        split.append(
            Case(
                opening=opening,
                request=column(place, request, "enhanced_description", str),
                truth=f"Diagnosis: {data['diagnosis']}\nRecommendation: {data['recommendation']}",
                data=data,
            )
        )
    return cases, test


def self_report(place: str, row: dict[str, Any], description: str) -> str:
    """The patient's first words: from a prompt (a text, or messages) that holds them, else from the description."""
    prompt = row.get("prompt") or ""
    texts = [prompt] if isinstance(prompt, str) else [column(f"{place}, 'prompt'", m, "content", str) for m in prompt]
    said = SELF_REPORT.search("\n".join(texts))
    return said[1] if said else SENTENCE_END.split(description.strip())[0]


def column(place: str, row: Any, name: str, kind: Any) -> Any:
    """The value of a column, or an error that names place, column, what was expected and what was found."""
    require(isinstance(row, dict), f"{place}: expected an object with named columns, got {row!r:.60}")
    require(name in row, f"{place}: column {name!r} is missing; expected {EXPECTED[kind]}")
    value = row[name]
    right = isinstance(value, kind) and (not isinstance(value, str) or value.strip() != "")
    require(right, f"{place}, column {name!r}: expected {EXPECTED[kind]}, got {value!r:.80}")
    return value


def local_rows(source: Path) -> Iterator[Placed]:
    """The rows of a file, or of every data file in a folder but MTMedDialog's for imitation."""
    require(source.exists(), f"there is no file or folder {str(source)!r}")
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    files = [file for file in files if file.suffix in FORMATS and "_sft_" not in file.name]
    require(bool(files), f"{source}: expected {', '.join(FORMATS)}, found no such file")
    for file in files:
        yield from file_rows(file, file.name)


def published_rows(task_name: str) -> Iterator[Placed]:
    """The rows as published. `datasets` runs no code that comes with data and reads no pickles."""
    import datasets

    name = HUB_NAMES.get(task_name)
    try:
        if name:
            by_hand = f"`hf download {name} --repo-type dataset --local-dir FOLDER`"
            tables = datasets.load_dataset(name)
        else:
            by_hand = f"{' and '.join(MEDICAL_FILES)} from {MEDICAL_FOLDER} into FOLDER"
            paths = datasets.DownloadManager().download([f"{MEDICAL_FOLDER}/{file}" for file in MEDICAL_FILES])
    except Exception as error:  # what a network can raise has no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ItpoError(
            f"cannot get the data of {task_name!r}: {reason}. Where there is a network: {by_hand}; then pass source='FOLDER'"
        ) from error
    if name:
        for split, table in tables.items():
            for number, row in enumerate(table.select_columns(useful(table.column_names)), 1):
                yield f"{name}, {split}, row {number}", row
    else:
        for path, file in zip(paths, MEDICAL_FILES, strict=True):
            yield from file_rows(Path(path), file)


def file_rows(file: Path, name: str) -> Iterator[Placed]:
    """The rows of one file; the ending of `name` tells its format.

    Not read with `datasets`, which wants endings on its own cached files, and one type for all rows of
    a JSON column, or else fails without saying which row differs.
    """
    from pyarrow.parquet import ParquetFile

    try:
        if name.endswith(".parquet"):
            table = ParquetFile(file)
            rows = table.read(useful(table.schema_arrow.names)).to_pylist()
        else:
            text = file.read_text(encoding="utf-8")
            whole = text.lstrip().startswith("[")
            rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line.strip()]
    except Exception as error:
        raise ItpoError(f"{name} cannot be read: {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def useful(columns: Iterable[str]) -> list[str]:
    """All columns but the bulky ones."""
    return [name for name in columns if name not in BULKY]
