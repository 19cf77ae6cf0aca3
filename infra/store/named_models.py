"""Exported models under the names by which people know them: links in <home>/models to folders of the store.

The store names a folder by 64 hexadecimal digits. A link changes no byte and takes no room; what it leads to
is the store's, and goes with it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FOLDER = "models"


def name_model(home: Path, name: str, version: str, folder: Path) -> Path:
    """Link <home>/models/<name>/<version> to a folder, and return the link.

    Of a folder inside the home the link is relative, so that the home can be moved. Where the file system
    has no links the folder itself is returned.
    """
    link = home / FOLDER / name / version
    inside = folder.resolve().is_relative_to(home.resolve())
    target = os.path.relpath(folder.resolve(), link.parent.resolve()) if inside else str(folder.resolve())
    with suppress(OSError):
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and os.readlink(link) == target:
            return link
        # Replaced in one step: two runs may end at once.
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.symlink_to(target, target_is_directory=True)
        fresh.replace(link)
        return link
    return folder


def drop_dangling(home: Path) -> None:
    """Remove the links whose folder the store no longer has, and folders that are empty then."""
    for link in (home / FOLDER).glob("*/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
            with suppress(OSError):
                link.parent.rmdir()
