"""The local file system: safe paths, file locks, private folders, and what its errors mean to a user."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed

ALIVE = ".alive"
"""Ending of the lock file beside a private folder."""


def unsafe(path: str) -> str | None:
    """Return why `path` cannot be a path inside an artifact, or None where it can."""
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
    """Return `path`; BadInput when it could lead outside the folder it is joined to."""
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
    """Return the status of the regular file at `path` below `root`.

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
    """Yield relative and full path of each regular file under `folder`; links and devices raise BadInput."""
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


def megabytes(count: int) -> str:
    """Format `count` bytes, say as '12.3 MB'."""
    return f"{count / 1e6:,.1f} MB"


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds `folder` or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def disk_errors(folder: Path, need: int = 0) -> Iterator[None]:
    """Turn a full disk into StageFailed and a missing permission into BadInput, each with what to do."""
    free = free_bytes(folder)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            wanted = f"{megabytes(need)} are needed and " if need else ""
            raise StageFailed(
                f"the disk under {folder} is full: {wanted}{megabytes(free)} were free; make "
                "room there or move infra.home or infra.store.uri to a larger disk"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise BadInput(
                f"{error.filename or folder} is a file where a folder is needed, or the other way round; "
                "move it away or give another infra.home or infra.store.uri"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise BadInput(
                f"{error.filename or folder} cannot be written or read by this user ({error.strerror}); fix "
                "its permissions or give another infra.home or infra.store.uri"
            ) from error
        raise


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the file lock at `path` alone; waits for all other holders.

    The kernel drops a lock when its process dies, kill -9 included.
    """
    with _lock(path, fcntl.LOCK_EX):
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold the file lock at `path` together with other sharers; waits for an exclusive holder."""
    with _lock(path, fcntl.LOCK_SH):
        yield


@contextmanager
def try_exclusive_lock(path: Path, create: bool = True) -> Iterator[bool]:
    """Hold the file lock alone and yield True, or yield False at once when another process has it.

    Without `create`, also when there is no such file.
    """
    try:
        with _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, create):
            yield True
    except _NotAvailable:
        yield False


class _NotAvailable(Exception):
    pass


@contextmanager
def _lock(path: Path, mode: int, create: bool = True) -> Iterator[None]:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked_descriptor(path, mode, create)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked_descriptor(path: Path, mode: int, create: bool) -> int:
    """Open and lock the file that is at `path` now.

    Between opening and locking, a holder may have removed the file: then the lock is on a file that no one
    else can see, and the next try takes the one that is there.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        except FileNotFoundError as error:
            if create:
                raise
            raise _NotAvailable from error
        try:
            fcntl.flock(descriptor, mode)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(descriptor)
            raise _NotAvailable from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """Make a folder under `parent`, removed afterwards; first removes those of processes that were killed."""
    folder = parent / f"work-{uuid.uuid4().hex}"
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for mark in parent.glob(f"work-*{ALIVE}"):
            # Creating the mark would make a folder that its owner has just taken look abandoned.
            with try_exclusive_lock(mark, create=False) as dead:
                if dead:
                    _remove(mark.with_name(mark.name.removesuffix(ALIVE)))
    with exclusive_lock(folder.with_name(folder.name + ALIVE)):
        try:
            with disk_errors(parent):
                folder.mkdir()
            yield folder
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(folder.name + ALIVE).unlink(missing_ok=True)
