"""Empty folders to work in, beside the data folder or where the user says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from resprout.configs.errors import BadInput


def beside(into: Path | None, home: Path) -> Path:
    """An existing folder on the disk on which `new_folder` will lie."""
    wanted = into.expanduser().absolute() if into else home.resolve().parent
    return next(place for place in (wanted, *wanted.parents) if place.is_dir())


def new_folder(into: Path | None, home: Path) -> Path:
    """The empty folder to work in: `into`, else a new one beside the data folder."""
    if into is None:
        beside = home.resolve().parent
        try:
            return Path(tempfile.mkdtemp(prefix=f"{home.name.lstrip('.')}-reproduced-", dir=beside))
        except OSError as error:
            raise BadInput(
                f"no folder can be made in {beside} ({error.strerror}); give one with --into FOLDER"
            ) from None
    folder = into.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise BadInput(f"{folder} cannot be used ({error.strerror}); give an empty folder") from None
    if taken:
        raise BadInput(f"{folder} is not empty; give a new or an empty one, so that nothing is found there")
    return folder
