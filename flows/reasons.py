"""Why a stage is not found in the cache: where its key differs from that of the record nearest to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resprout.infra.store.record import Record
from resprout.tasks.run import Forecast
from resprout.tasks.share import SHARD_ROLE
from resprout.tasks.track import flat

MOST = 3
"""Differences that are named."""
LONG = 24


def reason(one: Forecast, records: Sequence[Record]) -> str:
    """The differences from the nearest of the store's records, in short; `one` is not in the cache."""
    if one.waits_for:
        *others, last = one.waits_for
        return f"its {', '.join(others)} and {last} are made first" if others else f"its {last} is made first"
    latest = sorted((r for r in records if r.stage == one.stage), key=lambda r: r.started, reverse=True)
    if not latest:
        return "it never ran here"
    found = min(([*_differences(one.parts, record)] for record in latest), key=len)
    if not found:
        return "it ran on other hardware" if "hardware" in one.parts else "the store no longer has it whole"
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more


def _differences(parts: Mapping[str, Any], record: Record) -> Iterator[str]:
    then, now = flat(record.config), flat(parts["config"])
    for key in dict.fromkeys([*now, *then]):
        if then.get(key) != now.get(key):
            yield f"{key} {_short(then.get(key))} -> {_short(now.get(key))}"
    for key in ("seed", "dtype", "device"):
        if getattr(record, key) != parts.get(key):
            yield f"{key} {getattr(record, key)} -> {parts.get(key)}"
    inputs = {one.role: one.digest for one in record.parents if not one.role.startswith(SHARD_ROLE)}
    given = {role: digest for role, (digest, _) in parts["parents"].items()}
    for role in dict.fromkeys([*given, *inputs]):
        if inputs.get(role) != given.get(role):
            yield f"another {role}"
    for name, version in parts["libraries"].items():
        if record.libraries.get(name) != version:
            yield f"{name} {record.libraries.get(name)} -> {version}"
    if record.code.get("reached") != parts["code"]:
        yield "its code"


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONG else text[: LONG - 3] + "..."
