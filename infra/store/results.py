"""Prefect's results in the artifact store, so that all machines share one cache of finished stages.

Of a stage's result only the digest and the record are kept, in one byte form; all else about it stands in
the record and the manifest, and is read from there.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.filesystems import WritableFileSystem
from prefect.serializers import JSONSerializer
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from resprout.configs.errors import BadInput, StageFailed, Transient, Unreachable, VerificationFailed
from resprout.infra.retry import retry_while_down
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.filesystem import require_safe
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.store import ArtifactStore

DIGEST = r"^[0-9a-f]{64}$"


class Pointer(BaseModel):
    """The part of a stage's result that is kept: digest and record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Annotated[str, Field(pattern=DIGEST)]
    record: Annotated[str, Field(pattern=DIGEST)]


class ArtifactResults(WritableFileSystem):
    """Results under `results/` of a store; one whose content or record is missing reads as absent.

    Only the address is a field, so nothing secret reaches Prefect's server.
    """

    _block_type_name = "Resprout Artifact Results"
    _block_type_slug = "resprout-artifact-results"

    uri: str
    _store: ArtifactStore | None = PrivateAttr(default=None)
    _outage_seconds: float = PrivateAttr(default=0.0)
    _unread: set[str] = PrivateAttr(default_factory=set)
    """Keys at which the store did not answer last."""

    @classmethod
    def of(cls, store: ArtifactStore, outage_seconds: float = 0.0) -> ArtifactResults:
        """Keep results beside the artifacts of `store`, also when it is down for up to `outage_seconds`."""
        results = cls(uri=store.root_uri)
        results._store, results._outage_seconds = store, outage_seconds
        return results

    def read_path(self, path: str, _sync: bool | None = None) -> bytes:  # type: ignore[override]
        """Return the stored result; FileNotFoundError when it, its content or its record is not there.

        Nothing but a pointer is read: in Prefect's own form the bytes say with which code they are decoded.
        """
        result = self._answered(path).model_dump(mode="json")
        metadata = ResultRecordMetadata(storage_key=path, serializer=JSONSerializer())
        return ResultRecord(result=result, metadata=metadata).serialize()

    def _answered(self, path: str) -> ArtifactRef:
        try:
            ref = retry_while_down(lambda: self._read(path), self._outage_seconds)
        except (Transient, Unreachable):
            self._unread.add(path)
            raise
        self._unread.discard(path)
        return ref

    def _read(self, path: str) -> ArtifactRef:
        try:
            data = self._required().driver.get_bytes(_key(path))
            if data is None:
                raise FileNotFoundError(f"there is no result {path}")
            pointer = Pointer.model_validate_json(data)
        except (VerificationFailed, ValidationError) as error:
            raise FileNotFoundError(f"the result cannot be read ({type(error).__name__})") from error
        return self._reference(path, pointer)

    def overlooked(self, key: str) -> ArtifactRef | None:
        """The artifact under a key at which the store did not answer last; None where it did, or has none.

        Prefect takes a store that does not answer for one that has nothing, and would compute it again.

        Raises:
            Transient: it does not answer now.
            Unreachable: nor can it.
        """
        return self.find(key) if key in self._unread else None

    def find(self, key: str) -> ArtifactRef | None:
        """Return the artifact kept under a stage's key, None where a run would compute it again."""
        try:
            return self._answered(key)
        except FileNotFoundError:
            return None

    def write_path(self, path: str, content: bytes, _sync: bool | None = None) -> None:  # type: ignore[override]
        driver = self._required().driver
        kept = _kept(content)
        if kept is not None:
            retry_while_down(lambda: driver.put_bytes(_key(path), kept), self._outage_seconds)

    def _reference(self, path: str, pointer: Pointer) -> ArtifactRef:
        """Follow a pointer; FileNotFoundError where it leads to no artifact of this key that counts."""
        store = self._required()
        store.rely_on(pointer.digest)
        try:
            record = store.get_record(pointer.record)
            if (record.key, record.content) != (path, pointer.digest):
                raise VerificationFailed(f"record {pointer.record} is of another key or artifact")
            if record.key != record.own_key:
                raise VerificationFailed(f"record {pointer.record} does not say what its key is made of")
            if store.signer.required and not store.signed_by(pointer.record, record.dumps()):
                raise VerificationFailed(f"record {pointer.record} has no signature that counts")
            if not store.check(pointer.digest):
                raise VerificationFailed(f"artifact {pointer.digest} is not complete")
            size = store.manifest(pointer.digest).total_bytes
        except (BadInput, VerificationFailed) as error:
            raise FileNotFoundError(f"result {path} is of no use: {error}") from error
        return ArtifactRef(
            kind=record.kind,
            digest=pointer.digest,
            key=path,
            record=pointer.record,
            uri=store.uri(pointer.digest),
            bytes=size,
        )

    async def aread_path(self, path: str) -> bytes:
        return await asyncio.to_thread(self.read_path, path)

    async def awrite_path(self, path: str, content: bytes) -> None:
        await asyncio.to_thread(self.write_path, path, content)

    def _resolve_path(self, path: str) -> None:
        """Prefect asks for a local path; keys are used as they are."""

    def _required(self) -> ArtifactStore:
        if self._store is None:
            raise StageFailed(
                f"the result storage of {self.uri} has no open store in this process; run stages in "
                "threads, or open the store in each process"
            )
        return self._store


def _key(path: str) -> str:
    return f"results/{require_safe(path)}"


def _kept(content: bytes) -> bytes | None:
    """Return the bytes to keep of what Prefect wants to write; None for what is no artifact."""
    result = ResultRecord[Any].deserialize(content).result
    try:
        ref = ArtifactRef.model_validate(result)
    except ValidationError:
        return None
    return canonical_json(Pointer(digest=ref.digest, record=ref.record).model_dump())
