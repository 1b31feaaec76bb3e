"""`itpo grade`: points that are right, and submissions that attack, break, hang or lie."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import grading_course as course
import pytest
from grading_course import DOUBLE, GOOD, LOSS, TURN_SUMS, cell, save, student
from typer.testing import CliRunner

from itpo_lib.cli import app
from itpo_lib.errors import ItpoError
from itpo_lib.grading import Limits, grade, judge, sandbox
from itpo_lib.grading.grader import Assignment, find
from itpo_lib.grading.notebook import join, parse, read_solution
from itpo_lib.grading.remote import Gone

pytestmark = pytest.mark.slow
LIMITS = Limits(cell_seconds=4, seconds=20, memory_mb=256)
FULL = course.POINTS["good"]
ONLY_DOUBLE = {"double": 3, "turn_sums": 0, "quadruple": 0, "loss": 0}


def edited(change, **answers):
    """A good submission after `change(cells by grade id, all cells)`."""
    made = student(**{**GOOD, **answers})
    change({c["metadata"].get("nbgrader", {}).get("grade_id"): c for c in made["cells"]}, made["cells"])
    return made


def extra(source: str, at: int = 1):
    """A good submission with a cell of the student's own."""
    return edited(lambda named, cells: cells.insert(at, cell("code", source)))


def without_marks(named, cells):
    for c in cells:
        c["metadata"] = {}


def in_all_tests(named, cells):
    for name in ("double", "turn_sums", "quadruple", "loss"):
        named[f"{name}-check"]["source"] = named[f"{name}-hidden"]["source"] = "pass"
        named[f"{name}-check"]["metadata"]["nbgrader"]["points"] = 100


LIES = """
import builtins, gc, sys, torch
from itpo_lib.checks import core
core.Check.__call__ = lambda *args, **kwargs: None
core.same = lambda *args: True
checks.check_turn_sums = lambda *args, **kwargs: print("✓ turn sums: right in 20 cases")
torch.allclose = lambda *args, **kwargs: True
builtins.print = builtins.assert_ = lambda *args, **kwargs: None
sys.modules["itpo_lib.checks"] = checks
"""
SABOTAGE = """
import itpo_lib.grading.remote as remote
for end in (remote.Channel, remote.WorkerEnd):
    end.encode = lambda self, *args: None
"""
EQUAL = """
class Equal(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def double(x):
    return Equal(7)
"""
GARBAGE = """
import gc
from itpo_lib.grading.remote import WorkerEnd
def double(x):
    end = next(o for o in gc.get_objects() if isinstance(o, WorkerEnd))
    for message in MESSAGES:
        end.connection.send_bytes(message)
    return 2 * x
"""
SPY = """
import os, signal, socket
def quadruple(x):
    found = []
    def attempt(name, action):
        try:
            action()
            found.append(name)
        except BaseException:
            pass
    attempt("wrote", lambda: open("{out}/grades.csv", "w").write("forged"))
    attempt("made", lambda: os.mkdir("{out}/results/spy"))
    attempt("deleted", lambda: os.remove("{submissions}/good/tiny.ipynb"))
    attempt("read a solution", lambda: open("{solutions}/tiny.ipynb").read())
    attempt("read a fellow student", lambda: open("{submissions}/good/tiny.ipynb").read())
    attempt("connected", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
    attempt("reached a network", lambda: socket.socket(type=socket.SOCK_DGRAM).connect(("127.0.0.1", {port})))
    attempt("not the first", lambda: 1 / (os.getpid() != 1))
    attempt("signalled", lambda: os.kill({pid}, 0))
    attempt("traced", lambda: open("/proc/{pid}/mem", "rb").close())
    attempt("secret", lambda: [] if "SECRET" in os.environ else 1 / 0)
    attempt("secret memory", lambda: 1 / (b"SECRET" in open("/proc/self/environ", "rb").read()))
    attempt("called a neighbour", lambda: socket.socket(socket.AF_UNIX).connect("{stream}"))
    attempt("wrote to a neighbour", lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", "{datagram}"))
    attempt("listed the system", lambda: os.listdir("/etc"))
    attempt("listed the devices", lambda: os.listdir("/dev"))
    attempt("a pair", lambda: socket.socketpair())
    attempt("own folder", lambda: open("mine.txt", "w").write("x"))
    return found
"""
ATEXIT = """
import atexit, os, sys, threading
atexit.register(lambda: print("total 10 of 10", flush=True))
threading.Thread(target=lambda: os.write(1, b'{"tests": {}}'), daemon=True).start()
"""
HOME = """
import os, tempfile
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.savefig("figure.png")
tempfile.NamedTemporaryFile().close()
os.makedirs(os.path.expanduser("~/.cache/x"))
"""
REVERSED = """
import numpy as np
def turn_sums(values, turn_ids, n_turns):
    values, ids = values.numpy(), turn_ids.numpy()
    return np.stack([(values * (ids == k)).sum(1) for k in range(n_turns, 0, -1)], 1)[:, ::-1]
"""
IN_A_DEQUE = """
from collections import deque
def turn_sums(values, turn_ids, n_turns):
    rows = zip(values.tolist(), turn_ids.tolist())
    return deque([sum(v for v, i in zip(*row) if i == k) for k in range(1, n_turns + 1)] for row in rows)
"""
HAZARDS = {
    "good": (student(**GOOD), FULL),
    "stub": (student(), dict.fromkeys(FULL, 0)),
    "partial": (student(**course.PARTIAL), course.POINTS["partial"]),
    "broken": (student(**course.BROKEN), course.POINTS["broken"]),
    "endless": (
        student(**{**GOOD, "double": "def double(x):\n    while True: pass"}),
        FULL | {"double": 0, "quadruple": 0},
    ),
    "endless cell": (extra("while True: pass"), FULL),
    "memory": (extra("hoard = []\nwhile True: hoard.append(bytearray(10**7))"), FULL),
    "memory in C": (
        student(**{**GOOD, "loss": "def loss(x):\n    torch.zeros(2 * 10**8)\n    return (x**2).sum()"}),
        FULL | {"loss": 0},
    ),
    "sys.exit": (extra("import sys\nprint('10 of 10 points')\nsys.exit(0)"), FULL),
    "os._exit": (
        student(**{**GOOD, "turn_sums": "import os\ndef turn_sums(*args):\n    print('✓')\n    os._exit(0)"}),
        FULL | {"turn_sums": 0},
    ),
    "os._exit in a cell": (extra("import os\nos._exit(0)"), FULL),
    "crash": (extra("import ctypes\nctypes.string_at(0)"), FULL),
    "prints": (extra("print('x' * 10**8)"), FULL),
    "prints later": (student(**{**GOOD, "double": "def double(x):\n    print('x' * 10**7)\n    return 2 * x"}), FULL),
    "returns 20 MB": (
        student(**{**GOOD, "double": "def double(x):\n    return 'x' * 2 * 10**7"}),
        FULL | {"double": 0, "quadruple": 0},
    ),
    "lies": (student(double=LIES + DOUBLE, turn_sums="def turn_sums(*args):\n    return 0"), ONLY_DOUBLE),
    "sabotage": (student(double=SABOTAGE + DOUBLE), dict.fromkeys(FULL, 0)),
    "equal to all": (student(double=EQUAL), dict.fromkeys(FULL, 0)),
    "stops iterations": (student(double="def double(x):\n    raise StopIteration"), dict.fromkeys(FULL, 0)),
    "own tests": (edited(in_all_tests, loss="def loss(x):\n    return 0 * x.sum()"), FULL | {"loss": 1}),
    "in place": (
        student(**{**GOOD, "loss": "def loss(x):\n    x.data.mul_(1.5)\n    return x.sum()"}),
        FULL | {"loss": 0},
    ),
    "atexit": (extra(ATEXIT), FULL),
    "missing cell": (edited(lambda named, cells: cells.remove(named["loss"])), FULL | {"loss": 0}),
    "missing tests": (edited(lambda named, cells: [cells.remove(c) for n, c in named.items() if n and "-" in n]), FULL),
    "lost metadata": (edited(without_marks), FULL),
    "lost id": (edited(lambda named, cells: named["loss"]["metadata"].clear()), FULL),
    "odd metadata": (
        edited(lambda named, cells: named["loss"].update(metadata=[1], source=LOSS.splitlines(True))),
        FULL,
    ),
    "helper cell": (
        edited(
            lambda named, cells: cells.insert(2, cell("code", "def helper(x):\n    return x + x")),
            double="def double(x):\n    return helper(x)",
        ),
        FULL,
    ),
    "duplicate": (
        edited(
            lambda named, cells: cells.insert(3, {**copy.deepcopy(named["double"]), "source": DOUBLE.replace("2", "3")})
        ),
        FULL | {"double": 0, "quadruple": 0},
    ),
    "magic": (student(**{**GOOD, "loss": f"%matplotlib inline\n!echo hello\n%pip --version\n{LOSS}"}), FULL),
    "home": (student(**{**GOOD, "double": HOME + DOUBLE}), FULL),
    "reversed": (student(**{**GOOD, "turn_sums": REVERSED}), FULL),
    "deque": (student(**{**GOOD, "turn_sums": IN_A_DEQUE}), FULL),
    "generator": (student(**{**GOOD, "turn_sums": "def turn_sums(*args):\n    yield 1"}), FULL | {"turn_sums": 0}),
    "first error": (
        edited(lambda named, cells: cells.insert(3, cell("code", "nothing")), double=f"1 / 0\n{DOUBLE}"),
        FULL | {"double": 0, "quadruple": 0},
    ),
    "null byte": (student(**{**GOOD, "loss": "def loss(x):\n    return '\0'"}), FULL | {"loss": 0}),
    "surrogate": (
        student(**{**GOOD, "loss": "def loss(x):\n    raise ValueError('\\ud800 <script>alert(1)</script>')"}),
        FULL | {"loss": 0},
    ),
    "garbage": (student(double=GARBAGE.replace("MESSAGES", "(b'garbage', b'[1]', b'{}')")), dict.fromkeys(FULL, 0)),
    "endless requests": (
        student(double=GARBAGE.replace("MESSAGES", '[b\'{"do": "call", "args": [0, ""]}\'] * 999')),
        dict.fromkeys(FULL, 0),
    ),
    "forged end": (
        student(double=GARBAGE.replace("MESSAGES", '[b\'{"error": ["SystemExit", "0", 1, ""]}\']')),
        dict.fromkeys(FULL, 0),
    ),
    "latin-1": (
        json.dumps(
            edited(lambda named, cells: named["loss"].update(source="# caf\xe9\n" + LOSS)), ensure_ascii=False
        ).encode("latin-1"),
        FULL,
    ),
    "utf-16": (json.dumps(student(**GOOD)).encode("utf-16"), FULL),
    "<img src=x onerror=alert(1)>": (student(**{**GOOD, "why": "<script>alert(1)</script>"}), FULL),
    "=1+1": (student(**GOOD), FULL),
    "José 张": (student(**GOOD), FULL),
    os.fsdecode(b"\xff\xfe"): (student(**GOOD), FULL),
    "empty": (b"", "is empty"),
    "truncated": (json.dumps(student(**GOOD))[:500], "is not a notebook"),
    "old format": ({"nbformat": 3, "worksheets": []}, "nbformat 3"),
    "a list": ([1, 2], "is not a notebook"),
    "nested": ("[" * 100_000, "is not a notebook"),
    "binary": (bytes(range(256)), "is not a notebook"),
    "huge": (b" " * (21 * 2**20), "is larger than 20 MB"),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One run of the grader over all hazards: the folder, and the records by student."""
    root = tmp_path_factory.mktemp("course")
    submissions, out = root / "submissions", root / "grades"
    save(root / "solutions" / "tiny.ipynb", course.solution())
    for name, (notebook, _) in HAZARDS.items():
        save(submissions / name / "tiny.ipynb", notebook)
    os.environ["SECRET"] = "SECRET"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        tempfile.TemporaryDirectory() as short,  # pytest's are too long for a socket's name on some systems
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
    ):
        stream.bind(f"{short}/stream")
        stream.listen()
        datagram.bind(f"{short}/datagram")
        threading.Thread(target=lambda: server.accept(), daemon=True).start()
        places = {"out": out, "submissions": submissions, "solutions": root / "solutions"}
        places |= {"stream": f"{short}/stream", "datagram": f"{short}/datagram"}
        spy = SPY.format(**places, port=server.getsockname()[1], pid=os.getpid())
        save(submissions / "spy" / "tiny.ipynb", student(**{**GOOD, "quadruple": spy}))
        save(root / "elsewhere.ipynb", student(**GOOD))
        for name in ("a link", "behind a link"):
            (submissions / name).mkdir(exist_ok=True)
        (submissions / "a link" / "tiny.ipynb").symlink_to(root / "elsewhere.ipynb")
        (submissions / "linked").symlink_to(submissions / "good")
        os.mkfifo(submissions / "behind a link" / "tiny.ipynb")
        save(submissions / "flat__tiny.ipynb", student(**GOOD))
        save(submissions / "nbgrader" / "tiny" / "tiny.ipynb", student(**GOOD))
        save(submissions / "twice" / "tiny.ipynb", student(**GOOD))
        save(submissions / "twice" / "more" / "tiny.ipynb", student())
        save(submissions / "deep" / "a" / "b" / "tiny.ipynb", student(**GOOD))
        save(submissions / "misnamed" / "tyni.ipynb", student(**GOOD))
        save(submissions / "absent" / "notes.txt", "")
        save(submissions / "good" / ".ipynb_checkpoints" / "tiny.ipynb", student())
        records = grade(submissions, root / "solutions", out, jobs=2, limits=LIMITS)
    del os.environ["SECRET"]
    return root, {record["student"]: record for record in records if record["status"] != "unknown assignment"}, records


def points(record):
    return {e["id"]: e["points"] for e in record["exercises"] if e["points"] is not None}


def messages(record):
    return " ".join(t["message"] or "" for e in record["exercises"] for t in e["tests"])


@pytest.mark.parametrize("name", [name for name, (_, wanted) in HAZARDS.items() if isinstance(wanted, dict)])
def test_points(graded, name):
    record = graded[1][name]
    assert (record["status"], points(record)) == ("graded", HAZARDS[name][1]), (record["notes"], messages(record))
    assert record["total"] == sum(HAZARDS[name][1].values()) and record["max"] == 10 and record["by_hand"] == 4


@pytest.mark.parametrize("name", [name for name, (_, wanted) in HAZARDS.items() if isinstance(wanted, str)])
def test_what_is_no_notebook_is_named(graded, name):
    record = graded[1][name]
    assert record["status"] == "unreadable" and HAZARDS[name][1] in record["notes"][0] and record["total"] == 0
    assert HAZARDS[name][1] in (graded[0] / "grades" / "feedback" / name / "tiny.html").read_text()


@pytest.mark.parametrize("name", ["a link", "linked"])
def test_links_are_not_followed(graded, name):
    assert graded[1][name]["status"] == "unreadable" and "is a link" in graded[1][name]["notes"][0]


def test_a_pipe_does_not_block(graded):
    assert "not a regular file" in graded[1]["behind a link"]["notes"][0]


@pytest.mark.parametrize("name", ["flat", "nbgrader", "twice", "deep"])
def test_layouts(graded, name):
    assert points(graded[1][name]) == FULL
    assert graded[1][name]["notes"] == (
        ["not graded: twice/more/tiny.ipynb; what counts is twice/tiny.ipynb"] if name == "twice" else []
    )


def test_nobody_is_forgotten(graded):
    assert graded[1]["absent"]["status"] == graded[1]["misnamed"]["status"] == "missing"
    (unknown,) = [record for record in graded[2] if record["status"] == "unknown assignment"]
    assert unknown["student"] == "misnamed" and "choose one of tiny" in unknown["notes"][0]


def test_what_confined_code_can_do(graded):
    """Nothing outside; each part as far as this system offers it."""
    found, offers = messages(graded[1]["spy"]), " ".join(graded[1]["spy"]["isolation"])
    assert "own folder" in found and "a pair" in found and "secret" not in found
    for offer, deeds in (
        ("no network", ["connected", "reached"]),
        ("no sockets", ["connected", "reached", "called", "wrote to a neighbour"]),
        ("processes", ["signalled", "traced", "not the first"]),
        ("installation", ["wrote", "made", "deleted", "read", "traced", "listed"]),
    ):
        assert offer not in offers or not any(f"'{deed}" in found for deed in deeds), found


def test_messages_help(graded):
    assert "you averaged where a sum is asked for" in messages(graded[1]["partial"])
    broken = {e["id"]: e for e in graded[1]["broken"]["exercises"]}
    assert broken["double"]["error"].startswith("SyntaxError")
    assert broken["turn_sums"]["error"] == "ZeroDivisionError: division by zero (line 1: 1 / 0)"
    assert "NameError: name 'undefined' is not defined (line 2: return undefined(x))" in messages(graded[1]["broken"])
    assert "changed in place" in messages(graded[1]["in place"])
    assert "you return a generator, wanted" in messages(graded[1]["generator"])
    first = {e["id"]: e["error"] for e in graded[1]["first error"]["exercises"]}
    assert first["double"] == "ZeroDivisionError: division by zero (line 1: 1 / 0)"
    page = (graded[0] / "grades" / "feedback" / "first error" / "tiny.html").read_text()
    assert "A cell of this exercise stopped with" in page
    assert "a loop that never ends" in messages(graded[1]["endless"])
    assert "ended its process" in messages(graded[1]["os._exit"])


def test_pages_are_escaped(graded):
    """Names, answers and errors stand in the page as text."""
    root = graded[0]
    page = (root / "grades" / "feedback" / "<img src=x onerror=alert(1)>" / "tiny.html").read_text()
    assert "<img" not in page and "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "to be read by a person" in page and "4 points: they add up" in page
    assert "<script" not in (root / "grades" / "feedback" / "surrogate" / "tiny.html").read_text()


def test_table(graded):
    with open(graded[0] / "grades" / "grades.csv", newline="", encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file) if row["assignment"] == "tiny"}
    assert len(rows) == len(graded[1])
    good = rows["good"]
    assert list(good) == [
        "student",
        "assignment",
        "status",
        "total",
        "max",
        "by_hand",
        "double",
        "turn_sums",
        "quadruple",
        "loss",
        "why",
        "notes",
    ]
    assert (good["total"], good["max"], good["by_hand"], good["double"], good["why"]) == ("10", "10", "4", "3", "")
    assert "'=1+1" in rows and "José 张" in rows and rows["absent"]["status"] == "missing"


def small_course(root: Path) -> tuple[Path, Path, Path]:
    save(root / "solutions" / "tiny.ipynb", course.solution())
    for name, answers in course.SUBMISSIONS.items():
        save(root / "submissions" / name / "tiny.ipynb", student(**answers))
    return root / "submissions", root / "solutions", root / "grades"


@pytest.fixture
def unjudged(monkeypatch):
    """What every submission gets without being run, and the list of those that would have been."""
    asked = []
    monkeypatch.setattr(Assignment, "prove", lambda self: None)
    judge = {"exercises": [], "notes": [], "total": 1, "isolation": [], "status": "graded"}
    monkeypatch.setattr(Assignment, "judge", lambda self, cells: asked.append(cells) or dict(judge))
    return judge, asked


def test_a_second_run_only_grades_what_changed(tmp_path, unjudged):
    places, (judge, asked) = small_course(tmp_path), unjudged
    first = grade(*places)
    assert len(asked) == 3 and grade(*places) == first and len(asked) == 3
    save(places[0] / "broken" / "tiny.ipynb", student(**GOOD))
    grade(*places)
    assert len(asked) == 4
    for n, left in enumerate(("{", "{}", "[]"), start=5):  # cut off by a power failure, or somebody's own
        (places[2] / "results" / "good" / "tiny.json").write_text(left)
        grade(*places)
        assert len(asked) == n
    save(places[1] / "tiny.ipynb", {**course.solution(), "metadata": {}})
    grade(*places)
    assert len(asked) == 10
    judge["status"] = "failed"  # the grader's own trouble is no result
    save(places[0] / "good" / "tiny.ipynb", student())
    grade(*places)
    grade(*places)
    assert len(asked) == 12


def test_of_several_files_one_counts_and_a_removed_one_leaves_no_page(tmp_path, unjudged):
    places = small_course(tmp_path)
    save(places[0] / "good__tiny.ipynb", student())
    save(places[0] / "good" / "late" / "tiny.ipynb", student())
    first = grade(*places)
    notes = {record["student"]: record["notes"] for record in first}
    assert notes["good"] == [
        f"not graded: good/{path}; what counts is good__tiny.ipynb" for path in ("tiny.ipynb", "late/tiny.ipynb")
    ]
    assert not notes["broken"] and grade(*places) == first == grade(*places)
    (places[0] / "broken" / "tiny.ipynb").unlink()
    pages = places[2] / "feedback"
    assert (pages / "broken" / "tiny.html").exists()
    grade(*places)
    assert not (pages / "broken" / "tiny.html").exists() and (pages / "good" / "tiny.html").exists()


def test_spellings_of_a_file_and_of_a_student(tmp_path):
    names = ["ada/Tiny (1).ipynb", "bob/tiny-1.ipynb", "cy/tiny-Copy2.IPYNB", "José__TINY (2).ipynb", "dee/tiny.IPYNB"]
    ours = [*names, "Jose\u0301/other.ipynb", "dee/task-1.ipynb", "eve/tinyer.ipynb", "flo/flo__tiny.ipynb"]
    for name in [*ours, "__MACOSX/ada/tiny.ipynb", "ada/__MACOSX/._tiny.ipynb", "ada/.git/tiny.ipynb"]:
        save(tmp_path / name, "")
    rows = find(tmp_path, ["tiny", "task", "task-1", "other"])
    found = {(who, what): [str(path.relative_to(tmp_path)) for path in paths] for who, what, paths in rows if paths}
    students = [(n.split("/")[0].split("__")[0], "tiny") for n in names]
    others = [("José", "other"), ("dee", "task-1"), ("eve", "tinyer"), ("flo", "flo__tiny")]
    assert found == {key: [name] for key, name in zip([*students, *others], ours, strict=True)}
    assert {student for student, *_ in rows} == {"ada", "bob", "cy", "José", "dee", "eve", "flo"}


def test_each_cell_of_a_replay_has_its_own_time(monkeypatch):
    clock = [0.0]

    class SlowEnd:
        open = 0
        deadline = 0.0

        def __init__(self, connection):
            pass

        def ask(self, operation, *args):
            clock[0] += 3 * (operation == "run")
            if clock[0] > self.deadline:
                raise Gone("late")

    monkeypatch.setattr(judge, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(judge, "JudgeEnd", SlowEnd)
    monkeypatch.setattr(judge, "fork_confined", lambda *args: (0, 0, None))
    worker = judge.Worker(SimpleNamespace(user_ns={}), {"cell_seconds": 4, "seconds": 10, "memory_mb": 1})
    worker.ran = ["a", "b", "c"]
    assert worker.ready().deadline == 10  # 9 of 10 seconds are gone
    worker.end, clock[0] = None, 5
    with pytest.raises(Gone, match="late"):
        worker.ready()


def test_without_a_known_processor_there_is_no_filter(monkeypatch):
    monkeypatch.setattr(sandbox.os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    assert not sandbox.refuse_sockets()


def test_a_solution_that_fails_its_own_tests_is_refused(tmp_path):
    places = small_course(tmp_path)
    wrong = course.solution()
    wrong["cells"][2]["source"] = "def double(x):\n    return 3 * x"
    save(places[1] / "tiny.ipynb", wrong)
    with pytest.raises(ItpoError, match=r"'tiny' fails its own tests: double-check: AssertionError"):
        grade(*places, jobs=1, limits=LIMITS)


def test_a_solution_that_is_too_slow_says_what_to_change(tmp_path):
    places = small_course(tmp_path)
    slow = course.solution()
    slow["cells"][2]["source"] = "def double(x):\n    while True: pass"
    save(places[1] / "tiny.ipynb", slow)
    with pytest.raises(ItpoError, match=r"never ends\?.*on a busy machine give more --cell-seconds"):
        grade(*places, jobs=1, limits=LIMITS)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda cells: cells.append(cells[2]), "occur twice: double"),
        (lambda cells: cells.__delitem__(slice(2, None)), "no cell has tests"),
    ],
)
def test_a_solution_without_order_is_refused(tmp_path, change, says):
    notebook = course.solution()
    change(notebook["cells"])
    save(tmp_path / "tiny.ipynb", notebook)
    with pytest.raises(ItpoError, match=says):
        read_solution(tmp_path / "tiny.ipynb")


def test_cells_that_a_student_added_run_with_the_answer_that_they_belong_to():
    def add(named, cells):
        cells.insert(0, cell("code", "first = 1"))
        cells.insert(cells.index(named["double"]) + 1, cell("code", "after_double = 1"))
        cells.insert(cells.index(named["double-hidden"]) + 1, cell("code", "before_turn_sums = 1"))

    steps, notes = join(parse(json.dumps(course.solution()).encode()), parse(json.dumps(edited(add)).encode()))
    sources = {s["id"]: s["sources"] for s in steps if s["kind"] == "answer"}
    assert sources["double"] == ["first = 1", DOUBLE, "after_double = 1"]
    assert sources["turn_sums"] == ["before_turn_sums = 1", TURN_SUMS] and not notes


def joined(change, **answers):
    """The written answer and the notes, as joined from an edited submission."""
    made = json.dumps(edited(change, **answers)).encode()
    steps, notes = join(parse(json.dumps(course.solution()).encode()), parse(made))
    return next(s["source"] for s in steps if s["kind"] == "written"), notes


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_written_answers_are_found_wherever_they_stand(kind):
    def place(at):
        return lambda named, cells: cells.insert(cells.index(named["why"]) + at, cell(kind, "Mine."))

    empty = "YOUR ANSWER HERE"
    assert joined(place(1), why=empty) == (f"{empty}\n\nMine.", [])
    assert joined(place(0), why=empty) == (f"Mine.\n\n{empty}", [])
    lost = "why: no cell with this grade id; the text below the question was taken"
    assert joined(lambda named, cells: cells.__setitem__(-1, cell(kind, "Mine."))) == ("Mine.", [lost])
    assert joined(lambda named, cells: named["why"].update(cell_type=kind)) == (course.WHY, [])
    question = joined(lambda named, cells: cells[-2].update(source="## Why?\n\nMine."), why=empty)
    assert question == (f"## Why?\n\nMine.\n\n{empty}", [])
    noise = joined(lambda named, cells: cells.insert(cells.index(named["double"]) + 1, cell(kind, "Hard!")))
    assert noise == (course.WHY, [])
    assert joined(lambda named, cells: cells.pop()) == ("", ["why: no cell with this grade id"])


def test_notes_say_what_did_not_run():
    def helper(named, cells):
        named["double-check"]["source"] = "helper = 1\n" + named["double-check"]["source"]
        named["loss-check"]["source"] += "\n\n"

    assert joined(helper)[1] == ["double-check: this given cell was changed; what counts is the one handed out"]
    notes = joined(lambda named, cells: named["loss"].update(cell_type="markdown"))[1]
    assert notes == ["loss: its cell is no longer a code cell, and did not run"]


@pytest.mark.parametrize(
    "line, noted",
    [
        ("from itpo_lib import checks, credit", True),
        ("    from itpo_lib.credit import (", True),
        ("import itpo_lib.advantages as a", True),
        ("turn_sums = checks.check_turn_sums.reference", True),
        ("turn_sums = checks.turns.unit_sums", True),
        ("from itpo_lib import checks", False),
        ("checks.check_turn_sums(turn_sums, seeds=[5])", False),
        ("from itpo_lib.tasks import Reply", False),
        ("difference = found - expected", False),
    ],
)
def test_answers_from_the_library_are_noted(line, noted):
    notes = joined(lambda named, cells: cells.insert(6, cell("code", line)), turn_sums=f"{line}\n{TURN_SUMS}")[1]
    assert notes == [f"turn_sums: maybe not their own work: {line.strip()!r}"] * noted


def test_command(tmp_path):
    submissions, solutions, out = small_course(tmp_path)
    result = CliRunner().invoke(
        app, ["grade", str(submissions), "--solutions", str(solutions), "--out", str(out), "--jobs", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "graded" in result.output and "Student code had" in result.output
    assert ("You are root" in result.output) == (os.geteuid() == 0)
    with open(out / "grades.csv", newline="") as file:
        assert {r["student"]: float(r["total"]) for r in csv.DictReader(file)} == {
            "good": 10,
            "partial": 5,
            "broken": 0,
        }
    (tmp_path / "empty" / "ada").mkdir(parents=True)
    for arguments, says in (
        (["nowhere"], "no folder"),
        ([str(submissions), "--solutions", str(out)], "no solution"),
        ([str(tmp_path / "empty"), "--solutions", str(solutions)], "wanted are files STUDENT/ASSIGNMENT.ipynb"),
    ):
        result = CliRunner().invoke(app, ["grade", *arguments])
        assert result.exit_code == 2 and says in result.output


ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / "solutions" / "04_turn_sums.ipynb").exists(), reason="there are no assignments yet")
def test_an_assignment_of_the_course(tmp_path):
    """The solution gets all points, the student's copy none."""
    name = "04_turn_sums.ipynb"
    for student_name, folder in (("expert", "solutions"), ("beginner", "exercises")):
        save(tmp_path / "submissions" / student_name / name, (ROOT / folder / name).read_bytes())
    save(tmp_path / "solutions" / name, (ROOT / "solutions" / name).read_bytes())
    beginner, expert = grade(tmp_path / "submissions", tmp_path / "solutions", tmp_path / "grades", jobs=1)
    assert expert["total"] == expert["max"] > 0 == beginner["total"] and not expert["notes"] + beginner["notes"]


@pytest.mark.skipif(not (ROOT / "solutions").exists(), reason="there are no assignments yet")
def test_the_guide_lists_the_assignments_as_they_are():
    text = (ROOT / "docs" / "instructors.md").read_text()
    listed = re.findall(r"^\| (\d\d) [^|]+\| (\d+) \| (\d+) \| (\d+) \| \d+ \|$", text, re.M)
    found = [Assignment(path, LIMITS, "") for path in sorted((ROOT / "solutions").glob("*.ipynb"))]
    assert listed == [(a.name[:2], str(len(a.exercises)), f"{a.max:g}", f"{a.by_hand:g}") for a in found]
    assert f"{sum(a.max for a in found):g} by tests, {sum(a.by_hand for a in found):g} by hand" in text
