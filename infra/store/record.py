"""How content came to be: one immutable record for each execution of a stage."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import VerificationFailed
from resprout.infra.store.canonical import canonical_json, sha256_hex

SCHEMA_VERSION = 2
KNOWN = (1, 2)
"""Version 1 had no `manifest`."""


class Parent(BaseModel):
    """An input of the stage: the role it played, its content and its own record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    digest: str
    record: str


class Record(BaseModel):
    """One execution: what ran on what, where, when, and the digest of what came out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    stage: str
    key: str
    kind: str
    content: str
    manifest: str | None = None
    """SHA-256 of the manifest's bytes, chunk hashes included; so a signature below the record covers them."""
    config: dict[str, Any]
    parents: tuple[Parent, ...] = ()
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    code: dict[str, Any]
    libraries: dict[str, str]
    machine: dict[str, Any]
    who: str
    started: str
    seconds: float
    origin: dict[str, Any] | None = None
    licence: str | None = None

    def dumps(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_hex(self.dumps())

    @classmethod
    def loads(cls, data: bytes, record_id: str) -> Record:
        """The record with this id; VerificationFailed when its bytes are not those of the id."""
        if sha256_hex(data) != record_id:
            raise VerificationFailed(f"record {record_id} was changed after it was written")
        try:
            version = json.loads(data).get("schema_version")
            if version not in KNOWN:
                raise VerificationFailed(
                    f"record {record_id} has schema version {version}, and {SCHEMA_VERSION} is known here; "
                    "read it with the version that wrote it"
                )
            return cls.model_validate_json(data)
        except (ValidationError, json.JSONDecodeError) as error:
            raise VerificationFailed(f"record {record_id} is not a resprout record") from error
