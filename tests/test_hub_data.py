"""The paper's data: cases from small files with the true columns, and an error for each way of being wrong."""

import json
import sys

import datasets
import pytest

from itpo_lib.errors import ItpoError
from itpo_lib.tasks.hub_data import HUB_NAMES, MEDICAL_FOLDER, Case, load_cases

VERDICT = {"diagnosis": "A sprained ankle.", "recommendation": "Rest it and keep it cool."}


def collab_rows(conversations=20, turns=2, candidates=2):
    """A collabllm table: several turns per conversation and several candidate replies per turn."""
    rows = []
    for conv in range(conversations):
        opening = {"role": "user", "content": f"I need help with problem {conv}."}
        for turn in range(1, turns + 1):
            later = [{"role": "assistant", "content": "What do you know?"}, {"role": "user", "content": "Two numbers."}]
            for candidate in range(candidates):
                rows.append(
                    {
                        "prompt": [opening, *later * (turn - 1)],
                        "completion": f"Candidate {candidate}.",
                        "conv_id": conv,
                        "score": 0.25 * candidate,
                        "single_turn_prompt": f"Add {conv} and 4, then halve it.",
                        "single_turn_completion": f"Half of {conv} + 4 is {(conv + 4) / 2}.",
                        "single_turn_metadata": {"level": "Level 5", "type": "Prealgebra"},
                        "turn_id": turn,
                        "sessions": [[{"role": "user", "content": "..."}]],
                        "rewards": {"accuracy": [1.0], "interactivity": [0.5]},
                    }
                )
    return rows


def training_rows(n=20):
    """MTMedDialog_RL as published: everything inside `reward_model`, the self-report inside the prompt."""
    return [
        {
            "data_source": "medical",
            "prompt": [
                {
                    "role": "user",
                    "content": f"You are a doctor.\nPatient's description: My foot hurts, case {i}.\n   Decide next action:\n",
                }
            ],
            "reward_model": {
                "ground_truth": VERDICT,
                "patient_information": [{"doctor_question": ["Since when?"], "patient_response": ["Since Monday."]}],
                "enhanced_description": f"My foot hurts, Dr. Ito. I slipped on step {i} on Monday.",
            },
            "extra_info": {"index": i},
        }
        for i in range(n)
    ]


def flat_rows(n=20):
    """The same without prompts, and with the columns on the top level."""
    return [row["reward_model"] for row in training_rows(n)]


def held_out_rows(n=3):
    """MTMedDialog_test."""
    return [
        {
            "self_report": f"My hand is numb, case {i}.",
            "dialogue": [{"doctor_question": ["Both hands?"], "patient_response": ["Only the left one."]}],
            **VERDICT,
            "enhanced_description": f"My left hand is numb since {i} days, mostly at night.",
            "category": "Neurology",
        }
        for i in range(n)
    ]


def write(path, rows):
    """Rows as parquet, a JSON list or JSON lines, by the ending of `path`."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return str(path)


every_format = pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])


@every_format
@pytest.mark.parametrize("name", HUB_NAMES)
def test_one_case_per_conversation(tmp_path, name, ending):
    cases = load_cases(name, write(tmp_path / f"table.{ending}", collab_rows()))
    assert [len(cases[split]) for split in ("train", "validation", "test")] == [18, 2, 0]
    numbers = sorted(case.data["conv_id"] for split in cases.values() for case in split)
    assert numbers == list(range(20))
    assert next(case for split in cases.values() for case in split if case.data["conv_id"] == 7) == Case(
        opening="I need help with problem 7.",
        request="Add 7 and 4, then halve it.",
        truth="Half of 7 + 4 is 5.5.",
        data={"conv_id": 7, "metadata": {"level": "Level 5", "type": "Prealgebra"}},
    )


def test_formats_and_folders_give_the_same_splits(tmp_path):
    rows = collab_rows()
    expected = load_cases("math_tutoring", write(tmp_path / "all.json", rows))
    for ending in ("parquet", "jsonl"):
        assert load_cases("math_tutoring", write(tmp_path / f"table.{ending}", rows)) == expected
    folder = tmp_path / "snapshot" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "snapshot" / "README.md").write_text("not data")
    write(folder / "train-0.parquet", rows[:40])
    write(folder / "train-1.parquet", rows[40:])
    assert load_cases("math_tutoring", str(tmp_path / "snapshot")) == expected


def test_splits_are_those_of_datasets_with_seed_42(tmp_path):
    """The released code's call, on a table of one row per case."""
    cases = load_cases(
        "math_tutoring", write(tmp_path / "t.jsonl", collab_rows(conversations=50, turns=1, candidates=1))
    )
    halves = datasets.Dataset.from_dict({"i": range(50)}).train_test_split(test_size=0.1, seed=42, shuffle=True)
    assert [case.data["conv_id"] for case in cases["validation"]] == halves["test"]["i"]
    assert [case.data["conv_id"] for case in cases["train"]] == halves["train"]["i"]


def load_first(name, rows, folder):
    """The cases of a table of these rows."""
    cases = load_cases(name, write(folder / "first.jsonl", rows))
    return cases["train"] + cases["validation"]


@pytest.mark.parametrize(
    ("name", "total"), [("math_tutoring", 500), ("document_writing", 500), ("medical_recommendation", 550)]
)
def test_no_more_cases_than_the_paper_has(tmp_path, name, total):
    medical = name == "medical_recommendation"
    rows = training_rows(700) if medical else collab_rows(conversations=700, turns=1, candidates=1)
    cases = load_cases(name, write(tmp_path / "many.jsonl", rows))
    assert (len(cases["train"]), len(cases["validation"])) == (total * 9 // 10, total // 10)
    requests = {case.request for case in cases["train"] + cases["validation"]}
    assert len(requests) == total
    assert not requests <= {case.request for case in load_first(name, rows[:total], tmp_path)}  # a draw, not the first


def test_a_request_never_lands_in_both_splits(tmp_path):
    rows = collab_rows(conversations=60, turns=1, candidates=1)
    for i, row in enumerate(rows):
        row["single_turn_prompt"] = f"Request {i % 20}."
    cases = load_cases("document_writing", write(tmp_path / "t.jsonl", rows))
    assert sum(map(len, cases.values())) == 20
    assert {case.data["conv_id"] for split in cases.values() for case in split} == set(range(20))  # the first of each


def test_documents_may_lack_metadata(tmp_path):
    rows = collab_rows()
    for row in rows:
        row["single_turn_metadata"] = None
    path = write(tmp_path / "t.jsonl", rows)
    assert load_cases("document_writing", path)["train"][0].data["metadata"] is None
    with pytest.raises(ItpoError, match=r"row 1, column 'single_turn_metadata': expected an object, got None"):
        load_cases("math_tutoring", path)


@pytest.mark.parametrize("training", [training_rows, flat_rows])
def test_medical_folder(tmp_path, training):
    write(tmp_path / "MTMedDialog_RL.parquet", training())
    write(tmp_path / "MTMedDialog_test.json", held_out_rows())
    write(tmp_path / "MTMedDialog_sft_train.parquet", [{"prompt": "x", "response": "y"}])  # lies beside them
    cases = load_cases("medical_recommendation", str(tmp_path))
    assert [len(cases[split]) for split in ("train", "validation", "test")] == [18, 2, 3]
    first = next(case for case in cases["train"] + cases["validation"] if "step 11 " in case.request)
    assert first.opening == ("My foot hurts, case 11." if training is training_rows else "My foot hurts, Dr. Ito.")
    assert first.request == "My foot hurts, Dr. Ito. I slipped on step 11 on Monday."
    assert first.truth == "Diagnosis: A sprained ankle.\nRecommendation: Rest it and keep it cool."
    assert first.data == VERDICT
    assert cases["test"][2] == Case(
        opening="My hand is numb, case 2.",
        request="My left hand is numb since 2 days, mostly at night.",
        truth=first.truth,
        data={**VERDICT, "category": "Neurology"},
    )


def spoilt(rows, number, path, value=KeyError):
    """The rows with one value of row `number` (from 1) replaced, or removed."""
    rows = json.loads(json.dumps(rows))  # a copy that shares nothing between rows
    inner = rows[number - 1]
    for step in path[:-1]:
        inner = inner[step]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return rows


WRONG_COLLAB = [
    (["conv_id"], KeyError, "column 'conv_id' is missing; expected a number or a text"),
    (["conv_id"], 1.5, "column 'conv_id': expected a number or a text, got 1.5"),
    (["prompt"], KeyError, "column 'prompt' is missing; expected a list of messages"),
    (["prompt"], "hello", "column 'prompt': expected a list of messages, got 'hello'"),
    (["prompt"], [], "first message of 'prompt': expected the role 'user'"),
    (["prompt", 0], "hello", "first message of 'prompt': expected an object with named columns, got 'hello'"),
    (["prompt", 0, "role"], "assistant", "first message of 'prompt': expected the role 'user'"),
    (["prompt", 0, "content"], KeyError, "first message of 'prompt': column 'content' is missing; expected a text"),
    (["prompt", 0, "content"], " ", "first message of 'prompt', column 'content': expected a text that is not blank"),
    (["single_turn_prompt"], KeyError, "column 'single_turn_prompt' is missing; expected a text that is not blank"),
    (["single_turn_prompt"], 12, "column 'single_turn_prompt': expected a text that is not blank, got 12"),
    (["single_turn_completion"], None, "column 'single_turn_completion': expected a text that is not blank, got None"),
    (["single_turn_metadata"], KeyError, "column 'single_turn_metadata' is missing; expected an object"),
    (["single_turn_metadata"], "hard", "column 'single_turn_metadata': expected an object, got 'hard'"),
    (
        ["single_turn_metadata", "level"],
        KeyError,
        "'single_turn_metadata': column 'level' is missing; expected a number",
    ),
    (
        ["single_turn_metadata", "type"],
        3,
        "'single_turn_metadata', column 'type': expected a text that is not blank, got 3",
    ),
    (["single_turn_prompt"], "Something else.", "the rows with conv_id 0 differ"),
    (["prompt", 0, "content"], "Another start.", "the rows with conv_id 0 differ"),
]


@pytest.mark.parametrize(("path", "value", "says"), WRONG_COLLAB)
def test_wrong_collab_rows(tmp_path, path, value, says):
    file = write(tmp_path / "table.jsonl", spoilt(collab_rows(), 3, path, value))
    with pytest.raises(ItpoError) as error:
        load_cases("math_tutoring", file)
    assert says in str(error.value) and "table.jsonl, row 3" in str(error.value)


WRONG_MEDICAL = [
    (training_rows, ["reward_model"], "x", "column 'reward_model': expected an object, got 'x'"),
    (training_rows, ["reward_model", "ground_truth"], KeyError, "column 'ground_truth' is missing; expected an object"),
    (
        training_rows,
        ["reward_model", "ground_truth", "diagnosis"],
        "",
        "'ground_truth', column 'diagnosis': expected a text",
    ),
    (flat_rows, ["ground_truth", "recommendation"], KeyError, "'ground_truth': column 'recommendation' is missing"),
    (flat_rows, ["enhanced_description"], 5, "column 'enhanced_description': expected a text that is not blank, got 5"),
    (training_rows, ["prompt", 0], "x", "'prompt': expected an object with named columns, got 'x'"),
    (held_out_rows, ["self_report"], KeyError, "column 'self_report' is missing; expected a text"),
    (held_out_rows, ["diagnosis"], None, "column 'diagnosis': expected a text that is not blank, got None"),
    (held_out_rows, ["category"], KeyError, "column 'category' is missing; expected a text"),
]


@pytest.mark.parametrize(("rows", "path", "value", "says"), WRONG_MEDICAL)
def test_wrong_medical_rows(tmp_path, rows, path, value, says):
    file = write(tmp_path / "table.json", spoilt(rows(), 2, path, value))
    with pytest.raises(ItpoError) as error:
        load_cases("medical_recommendation", file)
    assert says in str(error.value) and "table.json, row 2" in str(error.value)


def test_a_whole_column_missing_from_parquet(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "single_turn_metadata"} for row in collab_rows()]
    with pytest.raises(ItpoError, match=r"t\.parquet, row 1: column 'single_turn_metadata' is missing"):
        load_cases("math_tutoring", write(tmp_path / "t.parquet", rows))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("broken.json", '[{"conv_id": 1', "broken.json cannot be read"),
        ("broken.jsonl", '{"conv_id": 1}\n{"conv', "broken.jsonl cannot be read"),
        ("broken.parquet", "PAR1 nothing else", "broken.parquet cannot be read"),
        ("numbers.json", "[1, 2]", "numbers.json, row 1: expected an object with named columns, got 1"),
        ("empty.jsonl", "", "0 different training cases are too few"),
        ("rows.pkl", "x", "expected .parquet, .json, .jsonl, found no such file"),
        ("rows.csv", "conv_id", "expected .parquet, .json, .jsonl, found no such file"),
    ],
)
def test_wrong_files(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ItpoError) as error:
        load_cases("math_tutoring", str(tmp_path / name))
    assert says in str(error.value)


def test_a_pickle_is_not_opened(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (sys.exit, ("the pickle was run",))

    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Trap()))
    write(tmp_path / "train.jsonl", collab_rows())
    assert load_cases("math_tutoring", str(tmp_path))["train"]


def test_wrong_names_and_missing_sources(tmp_path):
    with pytest.raises(ItpoError, match=r"unknown task with hub data 'maths'.*math_tutoring"):
        load_cases("maths")
    with pytest.raises(ItpoError, match=r"there is no file or folder '.*nowhere'"):
        load_cases("math_tutoring", str(tmp_path / "nowhere"))
    with pytest.raises(ItpoError, match="found no such file"):
        load_cases("math_tutoring", str(tmp_path))
    with pytest.raises(ItpoError, match=r"0 different training cases .*MTMedDialog_RL\.parquet"):
        load_cases("medical_recommendation", write(tmp_path / "MTMedDialog_test.json", held_out_rows()))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *((task, f"hf download {hub} --repo-type dataset --local-dir FOLDER") for task, hub in HUB_NAMES.items()),
        ("medical_recommendation", f"MTMedDialog_RL.parquet and MTMedDialog_test.json from {MEDICAL_FOLDER}"),
    ],
)
def test_offline_says_what_to_download_and_how(name, what):
    with pytest.raises(ItpoError) as error:  # the test session is offline
        load_cases(name)
    assert what in str(error.value) and "pass source='FOLDER'" in str(error.value)


def test_hub_tables_are_read_without_code_and_without_bulk(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        rows = collab_rows()
        parts = {"train": rows[:40], "extra": rows[40:]}
        return datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert sum(map(len, load_cases("math_tutoring").values())) == 20
    assert asked == [((HUB_NAMES["math_tutoring"],), {})]


def test_medical_downloads_are_read_by_their_published_names(monkeypatch, tmp_path):
    paths = {
        "MTMedDialog_RL.parquet": write(tmp_path / "a.parquet", training_rows()),
        "MTMedDialog_test.json": write(tmp_path / "b.json", held_out_rows()),
    }
    for name in ("a.parquet", "b.json"):
        (tmp_path / name).rename(tmp_path / name.split(".")[0])  # the cache's names have no ending

    def download(self, urls):
        return [paths[url.removeprefix(MEDICAL_FOLDER + "/")].rsplit(".", 1)[0] for url in urls]

    monkeypatch.setattr(datasets.DownloadManager, "download", download)
    assert [len(split) for split in load_cases("medical_recommendation").values()] == [18, 2, 3]
