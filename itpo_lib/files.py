"""Files of a run: folders that can be written to, and files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ItpoError, require


def make_folder(folder: Path) -> None:
    """Make a folder, or say why nothing could be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ItpoError(f"cannot write to {folder}: {error.strerror}; name a folder that can be made") from error
    require(os.access(folder, os.W_OK), f"cannot write to {folder}: permission denied")


def make_room(file: Path | None) -> None:
    """Make the folder of a file that will be written once the work is done."""
    if file is not None:
        require(not file.is_dir(), f"cannot write to {file}: it is a folder; name a file")
        make_folder(file.parent)


def write_whole(file: Path, text: str) -> None:
    """Write beside, then rename: a crash leaves the old file or the new one."""
    beside = file.with_name(f"{file.name}.partial{os.getpid()}")
    beside.write_text(text)
    beside.replace(file)
