"""What seals and MLflow say of how runs ended, held against each other."""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from resprout.flows.place import Place
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import GATE, REPORT_RECORD
from resprout.infra.provenance.seal import seal_key
from resprout.infra.store.store import ArtifactStore

THREADS = 8


@dataclass
class Ended:
    """How one run ended."""

    run: str
    name: str
    verdict: str
    """passed, failed, or none where no gate was asked for."""
    at: int
    """When it began, by MLflow, in milliseconds; where MLflow does not know it, when it was sealed."""
    report: str
    """Record of its report, empty where nothing names one."""
    sealed: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Told:
    """The few words of a seal that an audit needs; whether its signature holds is `verify`'s to say."""

    name: str
    verdict: str
    report: str
    sealed: int


def ended(place: Place, seals: Iterable[str]) -> dict[str, Ended]:
    """Every run that came to a verdict, by its id; `seals` are the ids of the runs that have one.

    Runs of all experiments count, since a config may name another one by now, and deleted ones. The seal's
    word goes before MLflow's, which everybody can edit who may write there.
    """
    found = {}
    for run in search.runs(place.tracker, f"tags.`{GATE}` LIKE '%'"):
        tags, info = run.data.tags, run.info
        found[info.run_id] = one = Ended(
            info.run_id, str(info.run_name), tags[GATE], int(info.start_time), tags.get(REPORT_RECORD, "")
        )
        if info.lifecycle_stage != "active":
            one.problems.append(f"run {info.run_id} was deleted in MLflow")
    ids = sorted(seals)
    with ThreadPoolExecutor(THREADS) as pool:
        for identity, told in zip(ids, pool.map(lambda one: _told(place.store, one), ids), strict=True):
            _merge(found, identity, told)
    return found


def _merge(found: dict[str, Ended], identity: str, told: _Told | str) -> None:
    if isinstance(told, str):
        run = found.setdefault(identity, Ended(identity, "", "unknown", 0, ""))
        run.problems.append(told)
    elif identity not in found:
        found[identity] = run = Ended(identity, told.name, told.verdict, told.sealed, told.report)
        run.problems.append(f"run {identity} is sealed as {told.verdict}, but MLflow shows no verdict of it")
    else:
        run = found[identity]
        if run.verdict != told.verdict:
            run.problems.append(
                f"tag {GATE} of run {identity} says {run.verdict}, but its seal says {told.verdict}"
            )
        run.verdict, run.report = told.verdict, told.report
    run.sealed = True


def _told(store: ArtifactStore, run: str) -> _Told | str:
    """What a seal says; a sentence where it cannot be read. Its envelope is not canonicalised or verified."""
    data = store.driver.get_bytes(seal_key(run))
    try:
        statement = json.loads(base64.b64decode(json.loads(data or b"")["payload"], validate=True))
        said = statement["predicate"]
        if said["run"] != run:
            return f"the seal of run {run} is that of run {said['run']}"
        when = datetime.datetime.fromisoformat(said["sealed"])
        return _Told(
            str(said.get("name") or ""),
            str(said.get("verdict") or "unknown"),
            str(said.get("report") or ""),
            int(when.timestamp() * 1000),
        )
    except (ValueError, KeyError, TypeError) as error:
        return f"the seal of run {run} cannot be read ({type(error).__name__})"
