"""What a backup is: objects under keys, a list of them with hashes, and a signed statement about the list.

store/<key of the store>             all that a store keeps, but for leases, pins, marks and scratch
mlflow/tables/<table>.jsonl          every row of MLflow's database
mlflow/files/<run id>/<path>         the files of runs
mlflow/models/<model id>/<path>      the files of MLflow's logged models
mlflow/traces/<trace id>/<path>      the files of traces
objects.jsonl                        key, size and hashes of each of the above, a line each
backup.json                          DSSE envelope: hash of the list, places, versions; written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.proof.ledger import predicate_of, statement
from resprout.infra.proof.signing import Signer
from resprout.infra.store.driver import Driver
from resprout.infra.store.manifest import CHUNK_BYTES, FileEntry, Manifest, content_digest

PREDICATE = "urn:resprout:backup:v1"
STATEMENT, LIST = "backup.json", "objects.jsonl"
STORE, TABLES = "store/", "mlflow/tables/"
FILES, MODELS, TRACES = "mlflow/files/", "mlflow/models/", "mlflow/traces/"


@dataclass(frozen=True)
class Described:
    """What the statement says, and the known keys that signed it."""

    said: dict[str, Any]
    signed_by: tuple[str, ...]


def describe(driver: Driver, signer: Signer, said: dict[str, Any]) -> None:
    """Write the statement, which makes the backup count."""
    predicate = {**said, "key": signer.own_id}
    driver.put_bytes(STATEMENT, signer.envelope(statement("resprout backup", PREDICATE, predicate)))


def described(driver: Driver, signer: Signer) -> Described:
    """The statement of a backup.

    Raises:
        BadInput: there is no backup, or one that was not finished.
        VerificationFailed: it is damaged, or unsigned where signatures are required.
    """
    data = driver.get_bytes(STATEMENT)
    where = driver.uri(STATEMENT)
    if data is None:
        raise BadInput(f"there is no finished backup at {where}; give its place, or run the backup again")
    opened = signer.open(data, f"statement {where}")
    said = predicate_of(opened, PREDICATE, f"statement {where}")
    if signer.required and not opened.signed_by:
        raise VerificationFailed(f"the statement {where} has no signature that counts")
    return Described(said, opened.signed_by)


def write_list(path: Path, entries: Iterable[FileEntry]) -> str:
    """Write the list of a backup's objects, sorted; its SHA-256."""
    found = hashlib.sha256()
    with path.open("wb") as file:
        for entry in sorted(entries, key=lambda one: one.path):
            line = entry.model_dump_json().encode() + b"\n"
            found.update(line)
            file.write(line)
    return found.hexdigest()


def read_list(driver: Driver, sha256: str | None = None) -> Iterator[FileEntry]:
    """The listed objects; VerificationFailed where the list is not the one with this hash, or unsafe."""
    found, left = hashlib.sha256(), b""
    where = driver.uri(LIST)
    try:
        for piece in driver.read(LIST):
            found.update(piece)
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                yield FileEntry.model_validate_json(line)
    except FileNotFoundError as error:
        raise VerificationFailed(f"{where} is missing; run the backup again") from error
    except ValidationError as error:
        raise VerificationFailed(f"{where} is damaged: {error.errors()[0]['msg']}") from error
    if left or (sha256 is not None and found.hexdigest() != sha256):
        raise VerificationFailed(f"{where} was changed: it is not the list that {STATEMENT} names")


def entry_of(key: str, data: bytes) -> FileEntry:
    """The entry of a small object."""
    chunks = [
        hashlib.sha256(data[start : start + CHUNK_BYTES]).hexdigest()
        for start in range(0, len(data), CHUNK_BYTES)
    ]
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(path=key, size=len(data), sha256=sha256, chunks=tuple(chunks))


def inside(prefix: str, entries: Iterable[FileEntry]) -> Manifest:
    """Entries below a prefix as a manifest of what is in that folder."""
    cut = [entry.model_copy(update={"path": entry.path.removeprefix(prefix)}) for entry in entries]
    files = tuple(sorted(cut, key=lambda one: one.path))
    return Manifest(digest=content_digest(files), files=files)


def below(prefix: str, manifest: Manifest) -> list[FileEntry]:
    """The files of a folder as entries of the backup."""
    return [entry.model_copy(update={"path": f"{prefix}{entry.path}"}) for entry in manifest.files]
