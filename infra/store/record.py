"""Records of how content came to be, one for each execution of a stage, and references to results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import VerificationFailed
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.stored_json import parse_json

SCHEMA_VERSION = 4
KNOWN = (1, 2, 3, 4)
SINCE = {"manifest": 2, "keyed": 3, "files": 4}
"""Fields that earlier versions did not have, with the first that has them."""


def stage_key(parts: Mapping[str, Any]) -> str:
    """Return the cache key of these parts: the stage's name and the SHA-256 over all of them."""
    text = json.dumps(parts, sort_keys=True)
    return f"{parts['stage']}-{sha256_hex(text.encode())}"


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
    keyed: dict[str, Any] | None = None
    """Parts of the key beside the other fields: by role the digest of each input and the path in it; the
    hardware."""
    files: dict[str, str] | None = None
    """Short hashes of the source files behind the code in the key, by their paths in the project."""

    def dumps(self) -> bytes:
        """Canonical JSON."""
        later = {name for name, version in SINCE.items() if version > self.schema_version}
        return canonical_json(self.model_dump(mode="json", exclude=later))

    def with_key_of(self, parts: Mapping[str, Any]) -> Record:
        """Return the record with its key, and with the parts of that key that are no fields of the record."""
        own = self._key_parts()
        keyed = {name: value for name, value in parts.items() if name not in own}
        return self.model_copy(update={"key": stage_key(parts), "keyed": keyed})

    @property
    def own_key(self) -> str | None:
        """Compute the key from the record; None where it does not hold enough, as before version 3."""
        given = {parent.role: parent.digest for parent in self.parents}
        keyed = self.keyed or {}
        inputs = keyed.get("parents")
        own = self._key_parts()
        if not isinstance(inputs, dict) or own.keys() & keyed.keys():
            return None
        named = {role: one[0] if isinstance(one, list) and one else None for role, one in inputs.items()}
        # Shards of the work are parents too, and decide no byte.
        if not named.items() <= given.items():
            return None
        return stage_key({**own, **keyed})

    def _key_parts(self) -> dict[str, Any]:
        """Return the parts of the key that are fields of the record."""
        parts: dict[str, Any] = {
            "stage": self.stage,
            "config": self.config,
            "libraries": self.libraries,
            "code": self.code.get("reached"),
        }
        if self.seed is not None:
            parts["seed"] = self.seed
        if self.device is not None:
            parts["dtype"], parts["device"] = self.dtype, self.device
        return parts

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_hex(self.dumps())

    @classmethod
    def loads(cls, data: bytes, record_id: str) -> Record:
        """Read the record with this id; VerificationFailed when its bytes are not those of the id."""
        if sha256_hex(data) != record_id:
            raise VerificationFailed(f"record {record_id} was changed after it was written")
        try:
            found = parse_json(data, f"record {record_id}")
            version = found.get("schema_version") if isinstance(found, dict) else None
            if version not in KNOWN:
                raise VerificationFailed(
                    f"record {record_id} has schema version {version}, and {SCHEMA_VERSION} is known here; "
                    "read it with the version that wrote it"
                )
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise VerificationFailed(f"record {record_id} is not a resprout record") from error


class ArtifactRef(BaseModel):
    """A stage's result by reference: content `digest`, the stage's `key`, and the id of its `record`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    key: str
    record: str
    uri: str
    bytes: int
