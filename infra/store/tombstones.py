"""Tombstones: statements in place of bytes that were erased on request, so that their absence is explained.

Manifest and record stay. `verify` accepts a missing file that is listed; one that is missing and not listed,
or listed and still there, is a problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store import keys
from resprout.infra.store.canonical import canonical_json, check_digest, sha256_hex
from resprout.infra.store.driver import Driver
from resprout.infra.store.signing import Signer

PREDICATE = "urn:resprout:tombstone:v1"


class Tombstone(BaseModel):
    """The erased files of an artifact with the SHA-256 that each had, why, by whom and when.

    `tracked`: files in MLflow that held the same bytes, by "<run id>/<path>". `key`: the key that signed it;
    `signed_by`: the known keys whose signature holds.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    digest: str
    files: dict[str, str]
    tracked: dict[str, str]
    reason: str
    who: str
    when: str
    key: str | None = None
    signed_by: tuple[str, ...] = Field(default=(), exclude=True)

    @property
    def sentence(self) -> str:
        """Explanation for someone who wants the bytes."""
        return f"erased on {self.when[:10]}: {self.reason}"


def of(driver: Driver, signer: Signer, digest: str) -> Tombstone | None:
    """Return the tombstone of an artifact, None where nothing of it was erased.

    Raises:
        VerificationFailed: it is damaged, or unsigned where signatures are required.
    """
    data = driver.get_bytes(tombstone_key(digest))
    if data is None:
        return None
    what = f"tombstone {driver.uri(tombstone_key(digest))}"
    opened = signer.open(data, what)
    body = opened.statement.get("predicate")
    if not isinstance(body, dict) or body.get("digest") != digest or opened.statement != _statement(body):
        raise VerificationFailed(f"the {what} is that of another artifact, or none")
    try:
        stone = Tombstone.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise VerificationFailed(
            f"the {what} lacks what a tombstone says ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        ) from error
    if stone.key is not None and not (opened.signed_by or opened.unknown):
        raise VerificationFailed(f"the {what} had a signature of key {stone.key}, which was removed")
    if not signer.excuses(opened):
        raise VerificationFailed(f"the {what} has no signature that counts")
    return stone.model_copy(update={"signed_by": opened.signed_by})


def put(driver: Driver, signer: Signer, stone: Tombstone) -> None:
    """Write a tombstone, signed where there is a key; it replaces an earlier one."""
    body = {**stone.model_dump(), "key": signer.own_id}
    driver.put_bytes(tombstone_key(stone.digest), signer.envelope(_statement(body)))


def erased(driver: Driver) -> Iterator[str]:
    """Return the digests of all artifacts of which something was erased."""
    return (digest for (digest,) in keys.own(driver, "tombstones"))


def tracked(driver: Driver, signer: Signer) -> dict[str, str]:
    """Return all erased files of MLflow runs, "<run id>/<path>", with the SHA-256 that each had."""
    found: dict[str, str] = {}
    for digest in erased(driver):
        stone = of(driver, signer, digest)
        found |= stone.tracked if stone is not None else {}
    return found


def refuse(driver: Driver, signer: Signer, digest: str) -> None:
    """BadInput with the tombstone's explanation where something of the artifact was erased."""
    if (stone := of(driver, signer, digest)) is not None:
        raise BadInput(f"artifact {digest} was {stone.sentence}; its bytes are gone and are not kept again")


def tombstone_key(digest: str) -> str:
    """Return the key of an artifact's tombstone."""
    return f"tombstones/{check_digest(digest)}.json"


def _statement(body: dict[str, Any]) -> dict[str, Any]:
    """Return an in-toto statement whose subject is the tombstone, by its hash."""
    subject = {"name": f"artifact:{body['digest']}", "digest": {"sha256": sha256_hex(canonical_json(body))}}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [subject],
        "predicateType": PREDICATE,
        "predicate": body,
    }
