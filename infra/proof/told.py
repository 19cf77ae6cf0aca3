"""What MLflow was told of a run's artifacts, held against what these hold.

A seal states what MLflow showed when a run ended; what somebody wrote there while the run was at work would
be sealed with it, but not borne out by the artifacts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import RECORD

METRICS = "metrics.json"
FINISHED = "FINISHED"
SHOWN_ABOVE = ("evaluate ", "measure ")
"""Stage runs whose metrics their parent run shows as well, under the name that follows.

There was a stage run for each model's speeds before one measured them all.
"""
SPEEDS = "measure"
"""The stage run whose metrics begin with their model's name already."""


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
        above = _above(name)
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


def _above(name: str) -> str | None:
    """What the parent run puts before a stage run's metrics; None where it shows none of them."""
    if name == SPEEDS:
        return ""
    return next((f"{name.removeprefix(start)}." for start in SHOWN_ABOVE if name.startswith(start)), None)


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
