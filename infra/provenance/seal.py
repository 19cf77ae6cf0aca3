"""The seal of a run: all that MLflow holds about it and all that it made, stated and signed at its end.

A seal stays when gc frees what the run made; a second statement beside it then explains the gap.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from resprout.configs.errors import VerificationFailed
from resprout.infra import identity
from resprout.infra.lineage import trees
from resprout.infra.mlflow.tracking import RECORD, Tracker
from resprout.infra.provenance.mlflow_state import (
    locations,
    mask_locations,
    run_states,
    stage_run_problems,
)
from resprout.infra.provenance.statement import Form, PlacesForm, predicate_of, provenance_key, statement
from resprout.infra.provenance.timestamp import Authority, token_key
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.record import Record
from resprout.infra.store.signing import ADOPT, Opened, signed_only_by
from resprout.infra.store.store import ArtifactStore

PREDICATE = "urn:resprout:seal:v1"
COLLECTION = "urn:resprout:collected:v1"
"""Predicate type of the statement on what gc freed of a run."""
THREADS = 8
COPY = "model"
"""Folder of a run's files that holds a copy of the export, where versions cannot point into the store."""


class FileForm(Form):
    """A file of a run."""

    size: int
    sha256: str


class RunForm(Form):
    """The state of a run in MLflow."""

    info: dict[str, Any]
    tags: dict[str, str]
    metrics: dict[str, dict[str, Any]]
    files: dict[str, FileForm]


class SealForm(Form):
    """Types of a seal."""

    run: str
    key: str | None
    records: dict[str, list[str]]
    runs: dict[str, RunForm]
    provenance: list[str]
    sealed: str
    statement: str | None
    resprout: str
    places: PlacesForm
    report: str | None = None
    export: str | None = None
    registered: str | None = None
    sealed_by: str | None = None
    name: str | None = None

    @field_validator("sealed")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        if datetime.datetime.fromisoformat(text).tzinfo is None:
            raise ValueError("the time has no zone")
        return text


@dataclass(frozen=True)
class Seal:
    """A seal as read: the bytes that its run wrote, their hash, the signatures, and the predicate.

    Signatures that `resprout sign` put beside the run's own later are no part of these bytes, which ledgers
    and timestamps name.
    """

    data: bytes
    sha256: str
    opened: Opened
    predicate: dict[str, Any]

    @property
    def adopted_by(self) -> tuple[str, ...]:
        """Ids of the keys that signed it later, which signed the records that it names as well."""
        return tuple(
            key for key in (*self.opened.signed_by, *self.opened.unknown) if key != self.predicate["key"]
        )


def seal_key(run_id: str) -> str:
    """Key of the object that holds the seal of an MLflow run."""
    return f"seals/{run_id}.json"


@dataclass(frozen=True)
class SealHashes:
    """Hashes of a seal that was written, and of the timestamp on it where there is one."""

    seal: str
    timestamp: str | None


def write_seal(
    store: ArtifactStore, tracker: Tracker, run_id: str, authority: Authority | None = None, **about: Any
) -> SealHashes:
    """Write the signed seal of an ended run, and have it dated by the authority.

    `about` says more: report, verdict, registered version.

    Raises:
        VerificationFailed: a record behind it carries no signature that counts, and one is required; or
            MLflow shows a metric or a tag of a stage that is not its artifact's.
    """
    now = locations(tracker, store.root_uri)
    states = run_states(tracker, run_id, COPY)
    # Someone may have written there since a stage's run ended, and the seal would vouch for it.
    if wrong := next(stage_run_problems(store, run_id, states), None):
        raise VerificationFailed(f"run {run_id} is not sealed: {wrong}; run again")
    named = sorted({state["tags"][RECORD] for state in states.values() if RECORD in state["tags"]})
    behind = {node.record_id: node.record for node in trees(store, named)}
    with ThreadPoolExecutor(THREADS) as pool:
        held = pool.map(lambda item: _signatures(store, *item), sorted(behind.items()))
        signed = dict(zip(sorted(behind), held, strict=True))
    stated = about.get("report") and store.driver.get_bytes(provenance_key(about["report"]))
    opened = store.signer.open(stated, "provenance statement") if stated else None
    predicate = {
        **about,
        "provenance": [*opened.signed_by, *opened.unknown] if opened else [],
        "statement": sha256_hex(canonical_json(opened.statement)) if opened else None,
        "resprout": identity.library_version("resprout"),
        "run": run_id,
        "sealed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "key": store.signer.own_id,
        "places": now.as_dict(),
        "records": signed,
        "runs": mask_locations(states, now),
    }
    data = store.signer.envelope(statement(f"mlflow-run:{run_id}", PREDICATE, predicate))
    # A run that was sealed and restarted by its scheduler ends again, and so does its seal.
    store.driver.put_bytes(seal_key(run_id), data)
    token = authority.stamp(data) if authority else None
    if token is not None:
        store.driver.put_bytes(token_key(run_id), token)
    return SealHashes(sha256_hex(data), sha256_hex(token) if token is not None else None)


def _signatures(store: ArtifactStore, identity: str, record: Record) -> list[str]:
    """Ids of the keys that signed a record: of the known ones those whose signatures hold.

    VerificationFailed where signatures are required and none counts: a seal vouches for all it names.
    """
    good = store.signed_by(identity, record.dumps())
    if store.signer.required and not good:
        raise VerificationFailed(
            f"record {identity} of stage {record.stage} has no signature that counts, so the run is not "
            f"sealed; run again, or, {ADOPT}"
        )
    return [one for one in store.signatures_of(identity) if one in good or one not in store.signer.key_ids]


def read_seal(store: ArtifactStore, run_id: str) -> Seal | None:
    """The seal of a run, None where it has none; VerificationFailed where it is damaged."""
    data = store.driver.get_bytes(seal_key(run_id))
    if data is None:
        return None
    what = f"seal {store.driver.uri(seal_key(run_id))}"
    opened = store.signer.open(data, what)
    predicate = predicate_of(opened, PREDICATE, what, SealForm)
    if predicate.get("run") != run_id:
        raise VerificationFailed(f"the {what} is that of run {predicate.get('run')}")
    others = {*opened.signed_by, *opened.unknown} - {predicate["key"]}
    own = signed_only_by(data, predicate["key"]) if others else data
    return Seal(own, sha256_hex(own), opened, predicate)


class CollectionForm(Form):
    """Types of a collection statement."""

    run: str
    records: list[str]
    who: str
    when: str
    key: str | None


@dataclass(frozen=True)
class CollectionStatement:
    """The records of a sealed run that gc freed, or whose bytes it freed; when last, and by whom."""

    run: str
    records: frozenset[str]
    who: str
    when: str

    @property
    def sentence(self) -> str:
        """Explanation for someone who misses them."""
        return f"gc collected {len(self.records)} records of run {self.run} on {self.when[:10]} ({self.who})"


def read_collection(store: ArtifactStore, run_id: str) -> CollectionStatement | None:
    """Return the statement on what gc freed of a sealed run; None where there is none.

    Raises:
        VerificationFailed: the statement is damaged, or unsigned where signatures are required.
    """
    key = collection_key(run_id)
    data = store.driver.get_bytes(key)
    if data is None:
        return None
    what = f"statement {store.driver.uri(key)}"
    opened = store.signer.open(data, what)
    predicate = predicate_of(opened, COLLECTION, what, CollectionForm)
    if predicate.get("run") != run_id:
        raise VerificationFailed(f"the {what} is that of run {predicate.get('run')}")
    if not store.signer.excuses(opened):
        raise VerificationFailed(f"the {what} has no signature that counts")
    return CollectionStatement(run_id, frozenset(predicate["records"]), predicate["who"], predicate["when"])


def write_collection(store: ArtifactStore, run_id: str, records: Collection[str]) -> None:
    """State that these records are collected too; to be called before they are."""
    before = None
    # What does not count is not vouched for, and holds no one up.
    with suppress(VerificationFailed):
        before = read_collection(store, run_id)
    if before is not None and before.records.issuperset(records):
        return
    predicate = {
        "run": run_id,
        "records": sorted({*records, *(before.records if before is not None else ())}),
        "who": identity.who(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "key": store.signer.own_id,
    }
    data = store.signer.envelope(statement(f"mlflow-run:{run_id}", COLLECTION, predicate))
    store.driver.put_bytes(collection_key(run_id), data)


def collection_key(run_id: str) -> str:
    """Key of the object that holds the statement about a run."""
    return f"collected/{run_id}.json"
