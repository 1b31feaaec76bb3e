"""How long grading takes: synthetic submissions of all assignments, good, partial, broken and hostile.

python benchmarks/grading.py                                        # 25 students, 8 assignments: 200 submissions
python benchmarks/grading.py --students 2 --assignments 04_turn_sums 08_projects

Of twenty submissions eleven are the solution, five have half of the answers, two have none, one never ends and one
prints 100 MB, hoards memory or leaves by os._exit. Prints minutes and CPU minutes: a busy machine hurts the former.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from itpo_lib.grading import Limits, grade

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = (
    "print('x' * 10**8)",
    "hoard = []\nwhile True:\n    hoard.append(bytearray(10**7))",
    "import os\nos._exit(0)",
)


def submission(solution: dict[str, Any], number: int) -> tuple[str, dict[str, Any]]:
    """Submission `number` of the mix, and its kind."""
    made, place = copy.deepcopy(solution), number % 20
    cells = [c for c in made["cells"] if c["metadata"].get("nbgrader", {}).get("solution") and c["cell_type"] == "code"]
    if place == 18:
        cells[0]["source"] = "while True:\n    pass"
    elif place == 19:
        cells[0]["source"] = HOSTILE[number // 20 % len(HOSTILE)]
    elif place >= 11:
        for cell in cells[len(cells) // 2 if place < 16 else 0 :]:
            cell["source"] = "raise NotImplementedError()"
    return (*["good"] * 11, *["partial"] * 5, "broken", "broken", "endless", "hostile")[place], made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=25)
    parser.add_argument("--assignments", nargs="*", help="default: all of solutions/")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--cell-seconds", type=float, default=10, help="of wall time: more on a machine with other work"
    )
    args = parser.parse_args()
    names = args.assignments or sorted(path.stem for path in (ROOT / "solutions").glob("*.ipynb"))
    kinds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "solutions").mkdir()
        for i, name in enumerate(names):
            solution = json.loads((ROOT / "solutions" / f"{name}.ipynb").read_text())
            (root / "solutions" / f"{name}.ipynb").write_text(json.dumps(solution))
            for student in range(args.students):
                kind, made = submission(solution, len(names) * student + i)
                kinds[f"student{student:03}", name] = kind
                path = root / "submissions" / f"student{student:03}" / f"{name}.ipynb"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(made))
        began, cpu = time.perf_counter(), sum(os.times()[:4])
        records = grade(
            root / "submissions",
            root / "solutions",
            root / "grades",
            args.jobs,
            Limits(args.cell_seconds, 12 * args.cell_seconds),
        )
        seconds, cpu = time.perf_counter() - began, sum(os.times()[:4]) - cpu
    shares: dict[str, Counter[float]] = defaultdict(Counter)
    for record in records:
        shares[kinds[record["student"], record["assignment"]]][round(record["total"] / record["max"], 2)] += 1
    print(f"{len(records)} submissions, {args.jobs} at a time on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{seconds / 60:.1f} minutes, {cpu / 60:.1f} CPU minutes; {dict(Counter(r['status'] for r in records))}")
    for kind, counts in shares.items():
        print(f"  {kind}: share of the points -> submissions: {dict(sorted(counts.items()))}")


if __name__ == "__main__":
    main()
