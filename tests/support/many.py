"""A large store made quickly: runs of small artifacts with records and indexes, and registered versions.

The bytes are those that the store itself writes (a test compares), without the syncs that make them last.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineages import keyed
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.manifest import FileEntry, Manifest, content_digest
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.store import index_keys

STAGES = (
    "acquire_model",
    "calibrate",
    "plan",
    "prune",
    "select",
    "recover",
    "evaluate",
    "gate",
    "export",
    "report",
)


@dataclass(frozen=True)
class Made:
    """One artifact: its stage, content digest and record id."""

    stage: str
    digest: str
    record: str


def write(root: Path, key: str, data: bytes) -> None:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def artifact(
    root: Path,
    stage: str,
    text: str,
    parents: tuple[Parent, ...],
    files: Mapping[str, str] | None = None,
    key: str = "",
    config: Mapping[str, Any] | None = None,
) -> Made:
    """Write an artifact of one file, or of `files`, with all around it into the store at `root`."""
    given = {path: one.encode() for path, one in (files or {"out.txt": text}).items()}
    entries = tuple(_entry(path, data) for path, data in sorted(given.items()))
    manifest = Manifest(digest=content_digest(entries), files=entries)
    record = Record(
        stage=stage,
        key=key,
        kind="text",
        content=manifest.digest,
        manifest=manifest.sha256,
        config=dict(config or {"text": text}),
        parents=parents,
        code={"resprout": "0"},
        libraries={},
        machine={},
        who="many",
        started="2026-01-01T00:00:00+00:00",
        seconds=0.1,
        licence="apache-2.0",
    )
    if not key:
        record = keyed(record, text)
    for path, data in given.items():
        write(root, f"content/{manifest.digest}/{path}", data)
    write(root, f"manifests/{manifest.digest}.json", manifest.dumps())
    write(root, f"records/{record.id}.json", record.dumps())
    for index in index_keys(record.id, record):
        write(root, index, b"")
    write(root, f"results/{record.key}", canonical_json({"digest": manifest.digest, "record": record.id}))
    return Made(stage, manifest.digest, record.id)


def _entry(path: str, data: bytes) -> FileEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(path=path, size=len(data), sha256=sha256, chunks=(sha256,))


def chain(root: Path, name: str, stages: tuple[str, ...] = STAGES) -> list[Made]:
    """A run: each stage is made from the one before, and every third from the first as well."""
    made: list[Made] = []
    for index, stage in enumerate(stages):
        before = made[-1:] + (made[:1] if index % 3 == 0 and index > 1 else [])
        parents = tuple(
            Parent(role=f"input{place}", digest=one.digest, record=one.record)
            for place, one in enumerate(before)
        )
        made.append(artifact(root, stage, f"{name} {stage}", parents))
    return made


def build(root: Path, artifacts: int) -> list[list[Made]]:
    """A store of `artifacts` small artifacts below `root`, in runs of ten."""
    return [chain(root, f"run {index}") for index in range(artifacts // len(STAGES))]


def register(
    database: str,
    name: str,
    runs: list[list[Made]],
    experiment: str = "0",
    store: str = "file:///nowhere",
    said: Mapping[str, str] | None = None,
) -> None:
    """One MLflow run and one version of `name` for each of the runs, all at once into MLflow's own tables.

    `database` is the address of a migrated MLflow database, `store` that of the store; `said` are more tags
    of both.
    """
    import sqlalchemy

    from resprout.flows.stages import tagged

    engine = sqlalchemy.create_engine(database)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    now = int(time.time() * 1000)
    rows: dict[str, list[dict[str, Any]]] = {
        "registered_models": [
            {"name": name, "creation_time": now, "last_updated_time": now, "workspace": "default"}
        ],
        "runs": [],
        "tags": [],
        "model_versions": [],
        "model_version_tags": [],
    }
    for number, made in enumerate(runs, 1):
        run_id, exported, report = f"{number:032x}", made[-2], made[-1]
        digests = {one.stage: one.digest for one in made}
        tags = {
            "resprout.digest": exported.digest,
            "resprout.record": exported.record,
            "resprout.report": report.digest,
            "resprout.report_record": report.record,
            "resprout.run": run_id,
            "resprout.commit": "none",
            **(said or {}),
            **{f"resprout.{tag}": digests[stage] for tag, stage in tagged().items() if stage in digests},
        }
        rows["runs"].append(
            {
                "run_uuid": run_id,
                "name": f"run {number}",
                "experiment_id": int(experiment),
                "status": "FINISHED",
                "lifecycle_stage": "active",
                "start_time": now,
                "end_time": now,
                "user_id": "many",
                "artifact_uri": f"file:///nowhere/{run_id}/artifacts",
                "source_type": "LOCAL",
            }
        )
        named = {"resprout.gate": "passed", "resprout.model_source": tags.get("resprout.source", "")}
        named |= {key: tags[key] for key in ("resprout.report", "resprout.report_record")}
        named |= {key: value for key, value in (said or {}).items() if key != "resprout.source"}
        rows["tags"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in named.items()]
        rows["model_versions"].append(
            {
                "name": name,
                "version": number,
                "creation_time": now,
                "last_updated_time": now,
                "current_stage": "None",
                "source": f"{store}/content/{exported.digest}/hf",
                "run_id": run_id,
                "status": "READY",
                "workspace": "default",
            }
        )
        rows["model_version_tags"] += [
            {"name": name, "version": number, "key": key, "value": value, "workspace": "default"}
            for key, value in tags.items()
        ]
    with engine.begin() as connection:
        for table, values in rows.items():
            known = tables.tables[table].columns.keys()
            kept = [{key: value for key, value in row.items() if key in known} for row in values]
            connection.execute(sqlalchemy.insert(tables.tables[table]), kept)
    engine.dispose()
