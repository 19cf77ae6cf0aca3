"""Index of exported weights by hash: our own export is recognised under any name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.manifest import FileEntry
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.stored_json import parse_json

WEIGHTS = ".safetensors"


def note(store: ArtifactStore, digest: str) -> None:
    """Write a note on the weights in each folder of an exported artifact."""
    for name, folder in names(store.manifest(digest).files).items():
        # Another export may hold the same weights beside another tokenizer; one of them will do.
        if not store.driver.put_if_absent(name, noted(digest, folder)):
            data = store.driver.get_bytes(name)
            if data is None or not _leads_back(store, name, data):
                store.driver.put_bytes(name, noted(digest, folder))


def names(files: Sequence[FileEntry]) -> dict[str, str]:
    """Return the keys of the notes on an artifact's weights, with the folder of each."""
    found = {}
    for folder in sorted({entry.path.partition("/")[0] for entry in files}):
        name = _name(entry for entry in files if entry.path.startswith(f"{folder}/"))
        if name is not None:
            found[name] = folder
    return found


def noted(digest: str, folder: str) -> bytes:
    """Return a note that leads to a folder of an artifact."""
    return canonical_json({"digest": digest, "folder": folder})


def holder(store: ArtifactStore, digest: str) -> str | None:
    """Return the digest of an export with the same weight files as this artifact, or None."""
    name = _name(store.manifest(digest).files)
    found = store.driver.get_bytes(name) if name is not None else None
    try:
        return None if found is None else str(parse_json(found, str(name))["digest"])
    except (ValueError, KeyError, TypeError):
        # `verify` reports it.
        return None


def problems(store: ArtifactStore, digest: str) -> Iterator[str]:
    """Yield what is wrong with the notes on the weights of an exported artifact."""
    try:
        files = store.manifest(digest).files
    except (BadInput, VerificationFailed):
        # Hashing the artifact reports it.
        return
    for name in names(files):
        data = store.driver.get_bytes(name)
        if data is None:
            yield f"{store.driver.uri(name)} was removed"
        elif not _leads_back(store, name, data):
            yield f"{store.driver.uri(name)} was changed: it leads to no export of these weights"


def _leads_back(store: ArtifactStore, name: str, data: bytes) -> bool:
    try:
        noted = parse_json(data, name)
        held = store.manifest(noted["digest"]).files
        inside = [entry for entry in held if entry.path.startswith(f"{noted['folder']}/")]
        return canonical_json(noted) == data and _name(inside) == name
    except (ValueError, KeyError, TypeError, BadInput, VerificationFailed):
        return False


def _name(files: Iterable[FileEntry]) -> str | None:
    """Return the key of the note on these weights, whatever their files' names; None where there are none."""
    hashes = sorted(entry.sha256 for entry in files if entry.path.endswith(WEIGHTS))
    return f"exports/{sha256_hex(canonical_json(hashes))}.json" if hashes else None
