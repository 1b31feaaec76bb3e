"""Small pictures of the notebooks' own figures for the README, in docs/pictures/.

python notebooks/thumbnails.py
"""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
# Notebook -> which of its figures, counted from 0. A notebook without an entry is left out.
CHOSEN = {"00": 0, "01": 1, "02": 4, "03": 9, "04": 6, "05": 5, "06": 7, "07": 7}
CHOSEN |= {"08": 3, "09": 2, "10": 0, "11": 2, "12": 0}
WIDTH, COLOURS = 560, 128


def figures(path: Path) -> list[bytes]:
    """The PNG outputs of a notebook, in order."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


def main() -> None:
    """Write one picture for each chosen figure."""
    for number, which in CHOSEN.items():
        book = next(HERE.glob(f"{number}_*.ipynb"))
        picture = Image.open(io.BytesIO(figures(book)[which])).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS).quantize(
            COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        target = HERE.parent / "docs" / "pictures" / f"nb{number}.png"
        small.save(target, optimize=True)
        print(f"{target.name}: {small.width} x {small.height}, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
