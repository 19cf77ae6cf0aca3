"""Exports by their weights: bytes that come back under another name, from any place, are known again."""

from __future__ import annotations

import json
from collections.abc import Iterable

from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.manifest import FileEntry
from resprout.infra.store.store import ArtifactStore

WEIGHTS = ".safetensors"


def note(store: ArtifactStore, digest: str) -> None:
    """Make the weights in each folder of an exported artifact known."""
    files = store.manifest(digest).files
    for folder in sorted({entry.path.partition("/")[0] for entry in files}):
        name = _name(entry for entry in files if entry.path.startswith(f"{folder}/"))
        if name is not None:
            # Another export may hold the same weights beside another tokenizer; one of them will do.
            store.driver.put_if_absent(name, canonical_json({"digest": digest, "folder": folder}))


def holder(store: ArtifactStore, digest: str) -> str | None:
    """Digest of an export that has the same weight files as this artifact; None where there is none."""
    name = _name(store.manifest(digest).files)
    found = store.driver.get_bytes(name) if name is not None else None
    return None if found is None else str(json.loads(found)["digest"])


def _name(files: Iterable[FileEntry]) -> str | None:
    """Key of the note on these weights, whatever the files are called; None where there are none."""
    hashes = sorted(entry.sha256 for entry in files if entry.path.endswith(WEIGHTS))
    return f"exports/{sha256_hex(canonical_json(hashes))}.json" if hashes else None
