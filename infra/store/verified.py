"""Memory of which local files were hashed in full on this machine, which only its own user can write."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from resprout.configs.errors import VerificationFailed
from resprout.infra.proof.signing import Signer
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.manifest import Manifest
from resprout.infra.store.paths import plain_status

NOTES = "application/vnd.resprout.verified+json"
"""Payload type under which the signing key makes the key of the notes."""
PRIVATE = 0o600

Stamps = dict[str, list[int]]


def stamps(content: Path, manifest: Manifest) -> Stamps | None:
    """Size, mtime, ctime and inode of each file of the artifact; None when one is missing, or is a link."""
    found: Stamps = {}
    for entry in manifest.files:
        try:
            status = plain_status(content.parent, f"{content.name}/{entry.path}")
        except (FileNotFoundError, VerificationFailed):
            return None
        found[entry.path] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


class NotesKey:
    """The key that authenticates the notes of a machine.

    It comes from the signing key; without one it is a random file that nobody but this user can read or make.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self._path = folder / "key"
        self._signer = signer

    @cached_property
    def value(self) -> bytes:
        """32 bytes; made where there are none yet."""
        # Ed25519 signs the same bytes the same way each time, and this signature is shown to nobody.
        signature = self._signer.signature(NOTES, b"")
        if signature is not None:
            return hashlib.sha256(signature).digest()
        own = self._own()
        if own is None:
            self._path.unlink(missing_ok=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside = self._path.with_name(f"key.{uuid.uuid4().hex}")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
                file.write(secrets.token_bytes(32))
            # Of several processes one is first, and the others take its key.
            with suppress(FileExistsError):
                os.link(aside, self._path)
            aside.unlink()
            own = self._own() or secrets.token_bytes(32)
        return own

    def of(self, data: bytes) -> str:
        """The authentication code of a note."""
        return hmac.new(self.value, data, hashlib.sha256).hexdigest()

    def is_there(self) -> bool:
        """Whether there is a key already, so that some note can count."""
        return self._signer.signs or self._own() is not None

    def _own(self) -> bytes | None:
        """The key in the file; None where it is missing, or another user could have made or read it."""
        try:
            status = plain_status(self._path.parent, self._path.name)
        except (FileNotFoundError, VerificationFailed):
            return None
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            return None
        data = self._path.read_bytes()
        return data if len(data) == 32 else None


class VerifiedFiles:
    """One small JSON for each artifact, kept beside the content and never in it."""

    def __init__(self, folder: Path, key: NotesKey) -> None:
        self.folder = folder
        self._key = key

    def holds(self, digest: str, now: Stamps | None) -> bool:
        """Whether the files still are what they were when their hashes were found right."""
        if now is None or not self._key.is_there():
            return False
        try:
            plain_status(self.folder, f"{digest}.json")
            known = json.loads((self.folder / f"{digest}.json").read_bytes())
        except (FileNotFoundError, VerificationFailed, ValueError):
            return False
        return bool(known == self._note(digest, now))

    def remember(self, digest: str, then: Stamps | None) -> None:
        """Note that the files with these stamps, taken before they were hashed, are right."""
        if then is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{digest}.{uuid.uuid4().hex}"
        aside.write_text(json.dumps(self._note(digest, then), sort_keys=True))
        os.replace(aside, self.folder / f"{digest}.json")

    def forget(self, digest: str) -> None:
        (self.folder / f"{digest}.json").unlink(missing_ok=True)

    def _note(self, digest: str, files: Stamps) -> dict[str, Any]:
        return {"files": files, "mac": self._key.of(canonical_json([digest, files]))}
