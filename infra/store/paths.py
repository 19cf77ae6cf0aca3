"""Which relative paths may stand in an artifact or a store key."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from resprout.configs.errors import BadInput, VerificationFailed


def unsafe(path: str) -> str | None:
    """Why `path` cannot be a path inside an artifact, or None where it can."""
    if not path:
        return "is empty"
    if "\\" in path or "\x00" in path:
        return "holds a backslash or a NUL"
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "leaves its folder or is not in normal form"
    return None


def require_safe(path: str) -> str:
    """`path` itself; BadInput when it could lead outside the folder it is joined to."""
    if reason := unsafe(path):
        raise BadInput(f"the path '{path[:200]}' {reason}; give a relative path of plain names joined by '/'")
    return path


def require_no_links(root: Path, folders: str) -> None:
    """VerificationFailed where one of the folders below `root` is a link: its files may be anybody's."""
    at = str(root)
    for part in folders.split("/") if folders else ():
        at = f"{at}/{part}"
        try:
            linked = stat.S_ISLNK(os.lstat(at).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return
        if linked:
            raise VerificationFailed(
                f"{at} is a link; a store and its artifacts hold plain files and folders"
            )


def plain_status(root: Path, path: str) -> os.stat_result:
    """Status of the regular file at `path` below `root`.

    Raises:
        FileNotFoundError: nothing is there.
        VerificationFailed: it, or a folder on the way, is a link, or it is no file but a pipe or a device.
    """
    require_no_links(root, path.rpartition("/")[0])
    try:
        status = os.lstat(root / path)
    except NotADirectoryError as error:
        raise FileNotFoundError(str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise VerificationFailed(f"{root / path} is a link, a pipe or a folder where a plain file belongs")
    return status


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative and full path of each regular file under `folder`; links and devices raise BadInput."""
    if folder.is_symlink() or not folder.is_dir():
        raise BadInput(f"{folder} is not a folder of files; give a folder that is not a link")
    for parent, directories, names in os.walk(folder, onerror=_refuse):
        directories.sort()
        for name in directories:
            if (Path(parent) / name).is_symlink():
                raise BadInput(f"{Path(parent) / name} is a link; an artifact holds plain files only")
        for name in sorted(names):
            full = Path(parent) / name
            if full.is_symlink() or not full.is_file():
                raise BadInput(f"{full} is a link or a device; an artifact holds plain files only")
            relative = full.relative_to(folder).as_posix()
            yield require_safe(relative), full


def _refuse(error: OSError) -> None:
    raise error
