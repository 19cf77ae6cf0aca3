"""Check a run's tags and metrics in MLflow against its records and artifacts.

A seal states what MLflow showed when a run ended; what somebody wrote there while the run was at work would
be sealed with it, but not borne out by the artifacts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import RECORD

METRICS = "metrics.json"
FINISHED = "FINISHED"
SHOWN_ABOVE = ("scores", "measurement")
"""Kinds of artifacts whose metrics the whole run shows as well."""


def told_wrongly(store: ArtifactStore, run_id: str, states: Mapping[str, Any]) -> Iterator[str]:
    """Tags and metrics of a run and its nested runs that are not those of record and artifact."""
    for identity, state in states.items():
        tags, name = state["tags"], state["info"].get("runName", "")
        if RECORD not in tags:
            continue
        try:
            record = store.get_record(tags[RECORD])
            held = metrics_of(store, record.content)
        except (BadInput, VerificationFailed):
            # Looking at the artifact itself tells of it.
            continue
        except (ValueError, TypeError):
            yield f"{METRICS} of artifact {record.content} holds no metrics"
            continue
        what = f"MLflow run {identity} ({name})"
        for tag, said in (("digest", record.content), ("key", record.key), ("stage", record.stage)):
            if tags.get(f"resprout.{tag}") != said:
                yield f"{what}: tag resprout.{tag} is not that of record {tags[RECORD]}"
        above = _prefix(record, tags, name) if record.kind in SHOWN_ABOVE else None
        # An outage ended this run before all metrics were logged; a later run of the stage has them.
        cut_off = state["info"].get("status", FINISHED) != FINISHED
        for key, value in held.items():
            logged = state["metrics"].get(key)
            missing = cut_off and logged is None
            if not missing and not _same(logged, value):
                yield f"{what}: metric {key} is not that of artifact {record.content}, which says {value}"
            shown = states[run_id]["metrics"].get(f"{above}{key}")
            if above is not None and shown is not None and not _same(shown, value):
                yield f"MLflow run {run_id}: metric {above}{key} is not that of artifact {record.content}"


def _prefix(record: Record, tags: Mapping[str, str], name: str) -> str:
    """What the whole run puts before the metrics of a stage's run: the model, where they do not name it."""
    # Runs of earlier versions name their role in the run's name only.
    role = tags.get("resprout.role", name.removeprefix(record.stage).strip())
    return f"{role}." if role else ""


def metrics_of(store: ArtifactStore, digest: str) -> dict[str, float]:
    """The metrics that an artifact holds; none where it has no such file, or it was erased."""
    if all(entry.path != METRICS for entry in store.manifest(digest).files):
        return {}
    return {key: float(value) for key, value in dict(json.loads(store.read(digest, METRICS))).items()}


def _same(shown: Mapping[str, Any] | None, value: float) -> bool:
    if shown is None:
        return False
    # What is no number is written as a word.
    return shown.get("value", 0.0) == value or not math.isfinite(value)
