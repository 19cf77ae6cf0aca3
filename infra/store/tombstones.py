"""What was erased on request: a statement in place of the bytes, so that their absence is explained.

Manifest and record stay. `verify` takes a file that is missing and listed for erased; what is missing and not
listed, or listed and still there, is a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.proof.signing import Signer
from resprout.infra.store import keys
from resprout.infra.store.canonical import canonical_json, check_digest, sha256_hex
from resprout.infra.store.driver import Driver

PREDICATE = "urn:resprout:tombstone:v1"


class _Form(BaseModel):
    """Types of what a tombstone says."""

    model_config = ConfigDict(strict=True)

    files: dict[str, str]
    tracked: dict[str, str]
    reason: str
    who: str
    when: str
    key: str | None


@dataclass(frozen=True)
class Tombstone:
    """The erased files of an artifact with the SHA-256 that each had, why, by whom and when.

    `tracked`: files in MLflow that held the same bytes, by "<run id>/<path>". `signed_by`: known keys.
    """

    digest: str
    files: Mapping[str, str]
    tracked: Mapping[str, str]
    reason: str
    who: str
    when: str
    signed_by: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What to say to somebody who wants the bytes."""
        return f"erased on {self.when[:10]}: {self.reason}"


def of(driver: Driver, signer: Signer, digest: str) -> Tombstone | None:
    """The tombstone of an artifact, None where nothing of it was erased.

    Raises:
        VerificationFailed: it is damaged, or unsigned where signatures are required.
    """
    data = driver.get_bytes(tombstone_key(digest))
    if data is None:
        return None
    what = f"tombstone {driver.uri(tombstone_key(digest))}"
    opened = signer.open(data, what)
    said = opened.statement.get("predicate")
    if not isinstance(said, dict) or said.get("digest") != digest or opened.statement != _statement(said):
        raise VerificationFailed(f"the {what} is that of another artifact, or none")
    try:
        _Form.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise VerificationFailed(
            f"the {what} lacks what a tombstone says ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from error
    if said["key"] is not None and not (opened.signed_by or opened.unknown):
        raise VerificationFailed(f"the {what} had a signature of key {said['key']}, which was removed")
    if not signer.excuses(opened):
        raise VerificationFailed(f"the {what} has no signature that counts")
    return Tombstone(
        digest,
        said["files"],
        said["tracked"],
        said["reason"],
        said["who"],
        said["when"],
        opened.signed_by,
    )


def put(driver: Driver, signer: Signer, stone: Tombstone) -> None:
    """Write a tombstone, signed where there is a key; it takes the place of an earlier one."""
    said: dict[str, Any] = {
        "digest": stone.digest,
        "files": dict(stone.files),
        "tracked": dict(stone.tracked),
        "reason": stone.reason,
        "who": stone.who,
        "when": stone.when,
        "key": signer.own_id,
    }
    driver.put_bytes(tombstone_key(stone.digest), signer.envelope(_statement(said)))


def erased(driver: Driver) -> Iterator[str]:
    """Digests of all artifacts of which something was erased."""
    return (digest for (digest,) in keys.own(driver, "tombstones"))


def tracked(driver: Driver, signer: Signer) -> dict[str, str]:
    """All files of MLflow runs that were erased, "<run id>/<path>", with the SHA-256 that each had."""
    found: dict[str, str] = {}
    for digest in erased(driver):
        stone = of(driver, signer, digest)
        found |= stone.tracked if stone is not None else {}
    return found


def refuse(driver: Driver, signer: Signer, digest: str) -> None:
    """BadInput with the tombstone's sentence where something of the artifact was erased."""
    if (stone := of(driver, signer, digest)) is not None:
        raise BadInput(f"artifact {digest} was {stone.sentence}; its bytes are gone and are not kept again")


def tombstone_key(digest: str) -> str:
    """Key of the object that says what was erased of an artifact."""
    return f"tombstones/{check_digest(digest)}.json"


def _statement(said: dict[str, Any]) -> dict[str, Any]:
    """An in-toto statement whose subject is what is said of the artifact, by its hash."""
    subject = {"name": f"artifact:{said['digest']}", "digest": {"sha256": sha256_hex(canonical_json(said))}}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [subject],
        "predicateType": PREDICATE,
        "predicate": said,
    }
