"""Point every Colab badge and every install cell at the repository where your copy of the course lives.

python notebooks/repository.py you/your-course            # in the three folders of notebooks
python notebooks/repository.py you/your-course --folder F  # in another folder instead

The course is written with OWNER/itpo in those places. A repository of your own takes its place, and another one later
takes the place of that.
"""

import argparse
import re
from pathlib import Path

FOLDERS = ("notebooks", "exercises", "solutions")
BADGE = re.compile(r"(colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(/blob/)")
INSTALL = re.compile(r"(itpo-lib(?:\[\w+\])? @ git\+https://github\.com/)[\w.-]+/[\w.-]+?(\.git)?(?=\\?\")")
NAME = re.compile(r"[\w.-]+/[\w.-]+")


def point_at(text: str, repository: str) -> str:
    """The text of a notebook file with `repository` in its badge and its install cell."""
    text = BADGE.sub(lambda found: f"{found[1]}{repository}{found[2]}", text)
    return INSTALL.sub(lambda found: f"{found[1]}{repository}", text)


def main() -> None:
    """Rewrite the notebooks that change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="as on GitHub: owner/name")
    parser.add_argument("--folder", type=Path, action="append", help="default: notebooks, exercises, solutions")
    choice = parser.parse_args()
    if not NAME.fullmatch(choice.repository):
        parser.error(f"repository must be owner/name, got {choice.repository!r}")
    root = Path(__file__).resolve().parents[1]
    for path in (p for folder in choice.folder or map(root.joinpath, FOLDERS) for p in sorted(folder.glob("*.ipynb"))):
        old = path.read_text()
        new = point_at(old, choice.repository)
        if new != old:
            path.write_text(new)
            print(path.name)


if __name__ == "__main__":
    main()
