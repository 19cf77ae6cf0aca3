"""Prefect's results in the artifact store, so that all machines share one cache of finished stages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from prefect._internal.result_records import ResultRecord
from prefect.filesystems import WritableFileSystem
from pydantic import PrivateAttr, ValidationError

from resprout.configs.errors import StageFailed
from resprout.infra.patience import patiently
from resprout.infra.store.paths import require_safe
from resprout.infra.store.reference import ArtifactRef
from resprout.infra.store.store import ArtifactStore


class ArtifactResults(WritableFileSystem):
    """Results under `results/` of a store; one whose content or record is gone reads as absent.

    Only the address is a field, so nothing secret reaches Prefect's server.
    """

    _block_type_name = "Resprout Artifact Results"
    _block_type_slug = "resprout-artifact-results"

    uri: str
    _store: ArtifactStore | None = PrivateAttr(default=None)
    _outage_seconds: float = PrivateAttr(default=0.0)

    @classmethod
    def of(cls, store: ArtifactStore, outage_seconds: float = 0.0) -> ArtifactResults:
        """Results beside the artifacts of `store`, which are kept even if it is down for a while."""
        results = cls(uri=store.root_uri)
        results._store, results._outage_seconds = store, outage_seconds
        return results

    def read_path(self, path: str, _sync: bool | None = None) -> bytes:  # type: ignore[override]
        """The stored result; FileNotFoundError when it, its content or its record is not there."""
        store = self._required()
        data = store.driver.get_bytes(_key(path))
        if data is None:
            raise FileNotFoundError(f"there is no result {path}")
        if problem := _problem(store, data):
            raise FileNotFoundError(f"result {path} is of no use: {problem}")
        return data

    def find(self, key: str) -> ArtifactRef | None:
        """The artifact kept under a stage's key, None where a run would make it anew."""
        try:
            data = self.read_path(key)
        except FileNotFoundError:
            return None
        return ArtifactRef.model_validate(ResultRecord[Any].deserialize(data).result)

    def write_path(self, path: str, content: bytes, _sync: bool | None = None) -> None:  # type: ignore[override]
        driver = self._required().driver
        patiently(lambda: driver.put_bytes(_key(path), content), self._outage_seconds)

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


def _problem(store: ArtifactStore, data: bytes) -> str | None:
    try:
        result = ResultRecord[Any].deserialize(data).result
    except (ValidationError, ValueError) as error:
        return f"it cannot be read ({type(error).__name__})"
    if isinstance(result, Mapping):
        try:
            result = ArtifactRef.model_validate(result)
        except ValidationError:
            return None
    if not isinstance(result, ArtifactRef):
        return None
    if not store.check(result.digest):
        return f"artifact {result.digest} is not complete"
    if not store.has_record(result.record):
        return f"record {result.record} is missing"
    return None
