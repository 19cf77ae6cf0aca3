"""In-toto statements, and the one on how an artifact was built: provenance as SLSA v1 defines it.

Everything in a provenance statement comes from records and one manifest, so whoever holds those builds the
same statement again: no clock is asked, nothing is looked up, and the order of all lists is fixed.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.licences import UNKNOWN
from resprout.infra.lineage import Node, sources_behind, tree
from resprout.infra.store.canonical import canonical_json, check_digest, sha256_hex
from resprout.infra.store.manifest import FileEntry
from resprout.infra.store.record import Record
from resprout.infra.store.signing import Opened
from resprout.infra.store.store import ArtifactStore

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:resprout:compress:v1"
BUILDER = "urn:resprout:builder:v1"
ARTIFACT = "resproutArtifact"
"""Name of the digest of a whole artifact: SHA-256 over the sorted (path, size, SHA-256) of its files."""
BYPRODUCTS = ("plan", "gate", "report")


class Form(BaseModel):
    """Types of the fields that a statement must have; others are free."""

    model_config = ConfigDict(strict=True)


class PlacesForm(Form):
    """Where store and run files were."""

    model_config = ConfigDict(strict=True, extra="forbid")

    store: str
    artifacts: str


def statement(subject: str, predicate_type: str, predicate: dict[str, Any]) -> dict[str, Any]:
    """Return an in-toto Statement v1 about something that is no file: its digest is that of the predicate."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": subject, "digest": {"sha256": sha256_hex(canonical_json(predicate))}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def predicate_of(
    opened: Opened, predicate_type: str, what: str, form: type[BaseModel] = Form
) -> dict[str, Any]:
    """Return a statement's predicate; VerificationFailed where it is of another kind, or lacks its `form`."""
    predicate = opened.statement.get("predicate")
    subject = opened.statement.get("subject")
    name = subject[0].get("name") if isinstance(subject, list) and len(subject) == 1 else None
    if not isinstance(predicate, dict) or opened.statement != statement(str(name), predicate_type, predicate):
        raise VerificationFailed(f"the {what} is no statement of the kind {predicate_type}")
    require_form(predicate, what, form)
    if predicate.get("key") is not None and not (opened.signed_by or opened.unknown):
        raise VerificationFailed(f"the {what} had a signature of key {predicate['key']}, which was removed")
    return predicate


def require_form(predicate: dict[str, Any], what: str, form: type[BaseModel]) -> None:
    """VerificationFailed where a statement lacks a field of its kind, or has one of another type."""
    try:
        form.model_validate(predicate)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationFailed(
            f"the {what} lacks what such a statement says ({where}: {first['msg']})"
        ) from error


def provenance(made: Node, files: Iterable[FileEntry], report: Node | None = None) -> dict[str, Any]:
    """Return the statement on the artifact of `made`, whose manifest lists `files`.

    `report` is the record of the run's report, which holds the run's config and leads to plan, scores and
    gate; without it the statement covers what `made` alone was built from.
    """
    nodes = {node.record_id: node for top in (made, report) if top is not None for node in top.walk()}
    records = sorted((node.record.started, node.record_id, node.record) for node in nodes.values())
    last = report or made
    config = last.record.config
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": f"artifact {made.record.content}", "digest": {ARTIFACT: made.record.content}},
            *({"name": one.path, "digest": {"sha256": one.sha256}} for one in _by_path(files)),
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"config": config.get("config", config) if report else config},
                "internalParameters": {"stages": [_stage(identity, one) for _, identity, one in records]},
                "resolvedDependencies": [
                    *_sources(nodes),
                    *_code([one for _, _, one in records]),
                    *_libraries([one for _, _, one in records]),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"resprout": str(last.record.code.get("resprout"))}},
                "metadata": {
                    "invocationId": f"urn:resprout:record:{last.record_id}",
                    "startedOn": _time(min(_start(one) for _, _, one in records)),
                    "finishedOn": _time(max(_end(one) for _, _, one in records)),
                },
                "byproducts": [
                    _artifact(one.stage, one, identity)
                    for _, identity, one in records
                    if one.stage in BYPRODUCTS
                ],
            },
        },
    }


def provenance_key(report: str) -> str:
    """Key of the object that holds the statement on what a run made, by the record of its report."""
    return f"provenance/{check_digest(report, 'record id')}.json"


def write_provenance(store: ArtifactStore, made: str, report: str) -> bytes:
    """Keep the statement on the artifact of record `made`, and return its envelope.

    A run that finds all of an earlier one says the same, and signs beside it where keys were rotated.
    """
    statement = rebuild_provenance(store, made, report)
    key = provenance_key(report)
    kept = store.driver.get_bytes(key)
    data = store.signer.envelope(statement)
    if kept is not None:
        try:
            if store.signer.open(kept, "provenance statement").statement == statement:
                data = store.signer.countersigned(kept)
        except VerificationFailed:
            # A damaged statement is rewritten; until now `verify` reported it.
            pass
    if data != kept:
        store.driver.put_bytes(key, data)
    return data


def rebuild_provenance(store: ArtifactStore, made: str, report: str) -> dict[str, Any]:
    """Build the statement from the records."""
    top = tree(store, made)
    return provenance(top, store.manifest(top.record.content).files, tree(store, report))


def provenance_problems(
    store: ArtifactStore,
    made: str,
    report: str,
    signed: Iterable[str],
    sealed: str | None = None,
    rebuild: bool = True,
) -> Iterator[str]:
    """Yield what is wrong with the kept statement, which the keys `signed` had signed when it was sealed.

    `sealed` is its hash then. With `rebuild` the records must still make the same statement, which another
    version of this code may word differently.
    """
    key = provenance_key(report)
    data = store.driver.get_bytes(key)
    what = f"provenance statement {store.driver.uri(key)}"
    if data is None:
        yield f"the {what} was removed"
        return
    try:
        opened = store.signer.open(data, what)
        if sealed is not None and sha256_hex(canonical_json(opened.statement)) != sealed:
            yield f"the {what} was changed: the seal names another"
        elif rebuild and opened.statement != rebuild_provenance(store, made, report):
            yield f"the {what} was changed: the records differ"
    except (BadInput, VerificationFailed) as error:
        yield str(error)
        return
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        yield f"the records behind the {what} make no statement ({type(error).__name__})"
        return
    for key_id in sorted({*signed} - {*opened.signed_by, *opened.unknown}):
        yield f"the signature of key {key_id} on the {what} was removed"
    if store.signer.required and not opened.signed_by:
        yield f"the {what} has no signature that counts"


def _by_path(files: Iterable[FileEntry]) -> list[FileEntry]:
    return sorted(files, key=lambda one: one.path)


def _artifact(name: str, record: Record, identity: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "digest": {ARTIFACT: record.content},
        "annotations": {"record": identity, **more},
    }


def _stage(identity: str, record: Record) -> dict[str, Any]:
    """Return what decided the bytes of one stage beside its inputs, who ran it, and where."""
    return {
        "record": identity,
        "stage": record.stage,
        "artifact": record.content,
        "key": record.key,
        "config": record.config,
        "seed": record.seed,
        "dtype": record.dtype,
        "device": record.device,
        "machine": record.machine,
        "who": record.who,
        "inputs": [{"role": one.role, "record": one.record} for one in record.parents],
    }


def _sources(nodes: dict[str, Node]) -> list[dict[str, Any]]:
    """The source model and every data set: where it was, what pins it, and its licence."""
    found = []
    for identity, source in sources_behind(nodes):
        hashes = source.sha256
        digest = {"sha256": next(iter(hashes.values()))} if len(hashes) == 1 else {}
        if source.commit:
            digest["gitCommit"] = source.commit
        files = {"files": hashes} if len(hashes) > 1 else {}
        licence = source.licence or UNKNOWN
        artifact = _artifact(source.what, nodes[identity].record, identity, licence=licence, **files)
        artifact["digest"] |= digest
        found.append({**artifact, "uri": source.uri})
    return found


def _code(records: list[Record]) -> list[dict[str, Any]]:
    """Each state of the code that ran, with the stages it ran and the hash of what they reach of it."""
    states: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in records:
        code = {key: str(value) for key, value in record.code.items()}
        state = (code.get("resprout", ""), code.get("commit", ""), code.get("dirty", ""))
        states.setdefault(state, {})[record.stage] = code.get("reached", "")
    return [
        {
            "name": "code",
            "uri": f"pkg:pypi/resprout@{quote(version, safe='')}",
            **({"digest": {"gitCommit": commit}} if commit else {}),
            "annotations": {"reached": reached, **({"uncommitted_changes": dirty} if dirty else {})},
        }
        for (version, commit, dirty), reached in sorted(states.items())
    ]


def _libraries(records: list[Record]) -> list[dict[str, Any]]:
    used = {
        *(item for record in records for item in record.libraries.items()),
        *(("python", str(record.machine["python"])) for record in records if "python" in record.machine),
    }
    return [
        {
            "name": name,
            "uri": f"pkg:{'generic' if name == 'python' else 'pypi'}/{name}@{quote(version, safe='')}",
        }
        for name, version in sorted(used)
    ]


def _start(record: Record) -> datetime.datetime:
    return datetime.datetime.fromisoformat(record.started).astimezone(datetime.UTC)


def _end(record: Record) -> datetime.datetime:
    return _start(record) + datetime.timedelta(seconds=record.seconds)


def _time(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
