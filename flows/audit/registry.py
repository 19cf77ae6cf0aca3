"""The versions that resprout had to do with: what MLflow shows of them, held against what the ledgers say."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from resprout.configs.errors import VerificationFailed
from resprout.flows.place import Place
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import RECORD, REPORT_RECORD
from resprout.infra.provenance.ledger import Ledger, RegistryState, ledgers, replay
from resprout.infra.provenance.mlflow_state import locations, mask_locations

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

OWN = "resprout."
"""How the tags begin that resprout sets."""


@dataclass
class Registered:
    """A version as MLflow shows it, or as the ledger does where it was deleted there."""

    name: str
    number: str
    at: int
    """When it was made, in milliseconds."""
    run: str
    tags: dict[str, str]
    record: str
    """Record of its export by its tag, by the ledger where the tag was removed; else empty."""
    report: str
    aliases: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def registered(place: Place, runs: Container[str], problems: list[str]) -> list[Registered]:
    """Every version with a tag of resprout, an entry in a ledger, a source in the store, or one of the runs.

    A damaged ledger is a problem of no version, so it goes to `problems`.
    """
    stated = _stated(place, problems)
    aliases = {model.name: dict(model.aliases) for model in search.models(place.tracker)}
    store = f"{place.store.root_uri}/"
    found: dict[tuple[str, str], Registered] = {}
    for one in search.versions(place.tracker):
        is_stated = one.name in stated and str(one.version) in stated[one.name].versions
        is_tagged = any(tag.startswith(OWN) for tag in one.tags)
        if is_stated or is_tagged or (one.source or "").startswith(store) or one.run_id in runs:
            found[one.name, str(one.version)] = _shown(place, one, stated.get(one.name))
    for name, expected in stated.items():
        for number in expected.versions.keys() - {number for known, number in found if known == name}:
            found[name, number] = _deleted(name, number, expected)
        _compare_aliases(name, expected, aliases.get(name, {}), found)
    for version in found.values():
        here = aliases.get(version.name, {})
        version.aliases = sorted(alias for alias, at in here.items() if str(at) == version.number)
    return list(found.values())


def _stated(place: Place, problems: list[str]) -> dict[str, RegistryState]:
    """By model name what its ledger says; whether the signatures count is `verify`'s to say."""
    found = {}
    for name in ledgers(place.store, problems):
        try:
            found[name] = replay(list(Ledger(place.store, name).entries()))
        except VerificationFailed as error:
            problems.append(str(error))
    return found


def _shown(place: Place, one: ModelVersion, expected: RegistryState | None) -> Registered:
    number, tags, problems = str(one.version), dict(one.tags), []
    state = expected.versions.get(number) if expected is not None else None
    source = one.source or ""
    if expected is not None and state is not None and "source" in state:
        now = locations(place.tracker, place.store.root_uri)
        if mask_locations(source, now, *expected.locations) != state["source"]:
            problems.append(f"its source is {source}, but by the ledger it is {state['source']}")
    if state is None:
        problems.append("no ledger knows it: it was not registered by resprout, or its entry was removed")
    then = state.get("tags", {}) if state is not None else {}
    if RECORD not in tags:
        problems.append(f"it has no tag {RECORD}: it was removed, or resprout did not register the version")
    return Registered(
        one.name,
        number,
        int(one.creation_timestamp),
        one.run_id or "",
        tags,
        tags.get(RECORD) or then.get(RECORD, ""),
        tags.get(REPORT_RECORD) or then.get(REPORT_RECORD, ""),
        problems=problems,
    )


def _deleted(name: str, number: str, expected: RegistryState) -> Registered:
    state = expected.versions[number]
    tags = dict(state.get("tags", {}))
    return Registered(
        name,
        number,
        int(state.get("creationTimestamp", 0)),
        state.get("runId", ""),
        tags,
        tags.get(RECORD, ""),
        tags.get(REPORT_RECORD, ""),
        problems=["it was deleted from the registry, but the ledger knows it"],
    )


def _compare_aliases(
    name: str, expected: RegistryState, here: dict[str, str], found: dict[tuple[str, str], Registered]
) -> None:
    for alias in sorted({*expected.aliases, *here}):
        then, now = expected.aliases.get(alias), str(here.get(alias, "")) or None
        row = found.get((name, then or now or ""))
        if then == now or row is None:
            continue
        if then is None:
            row.problems.append(f"alias {alias} was set by hand: the ledger does not say so")
        else:
            now_at = f"points at version {now}" if now else "was removed"
            row.problems.append(f"alias {alias} {now_at}, but by the ledger it points at version {then}")
