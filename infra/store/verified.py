"""Memory of which local files were hashed in full on this machine."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from resprout.infra.store.manifest import Manifest

Stamps = dict[str, list[int]]


def stamps(content: Path, manifest: Manifest) -> Stamps | None:
    """Size, mtime, ctime and inode of each file of the artifact; None when one is missing."""
    found: Stamps = {}
    for entry in manifest.files:
        try:
            status = (content / entry.path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        found[entry.path] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


class VerifiedFiles:
    """One small JSON for each artifact, kept beside the content and never in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, digest: str, now: Stamps | None) -> bool:
        """Whether the files still are what they were when their hashes were found right."""
        try:
            known = json.loads((self.folder / f"{digest}.json").read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return now is not None and bool(known == now)

    def remember(self, digest: str, then: Stamps | None) -> None:
        """Note that the files with these stamps, taken before they were hashed, are right."""
        if then is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{digest}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(then, sort_keys=True))
        os.replace(aside, self.folder / f"{digest}.json")

    def forget(self, digest: str) -> None:
        (self.folder / f"{digest}.json").unlink(missing_ok=True)
