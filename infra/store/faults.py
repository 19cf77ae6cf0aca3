"""What the operating system's disk errors mean to a user."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resprout.configs.errors import BadInput, StageFailed


def megabytes(count: int) -> str:
    """`count` bytes as text, say '12.3 MB'."""
    return f"{count / 1e6:,.1f} MB"


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds `folder` or its nearest existing parent."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def disk(folder: Path, need: int = 0) -> Iterator[None]:
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
                f"{error.filename or folder} cannot be written or read by this user ({error.strerror}); mend "
                "its permissions or give another infra.home or infra.store.uri"
            ) from error
        raise
