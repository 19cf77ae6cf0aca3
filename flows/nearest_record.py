"""The earlier record nearest to a stage's cache key, and the parts of the two keys that differ, in words.

`plan` asks before a run why a stage is not in the cache, `why` asks afterwards why it ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from resprout.configs.schema import RunConfig
from resprout.flows.inputs import DATA, MODELS
from resprout.flows.stages import section_of
from resprout.infra.store.record import Record
from resprout.tasks.core.job import SHARD_ROLE
from resprout.tasks.core.stage import StepId

LONG = 32
"""Characters of a value that are shown."""
MOST_FILES = 3
"""Source files that are named."""
CODE, INPUT = "code", "input "
"""Parts of a key that are no path in a config, inputs with their role."""
HASH = re.compile(r"[0-9a-f]{64}")
ROOM = "tasks/"
"""Folder of all stages; files in it are named by the rest of their path."""


@dataclass(frozen=True)
class Difference:
    """A part of the key, by the path that it has in a run config, with its value in both keys."""

    part: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.part == CODE:
            return self._files()
        before, after = _short(self.before), _short(self.after)
        if before == after:
            return f"{self.part} has another content"
        return f"{self.part} {before} -> {after}"

    def _files(self) -> str:
        """The source files that were changed, added or removed; a record of an earlier version has none."""
        if not isinstance(self.before, Mapping):
            return "its code"
        named = [self._file(file) for file in sorted({*self.before, *self.after})]
        more = len(named) - MOST_FILES
        return f"code: {', '.join(named[:MOST_FILES])}{f' and {more} more' if more > 0 else ''}"

    def _file(self, file: str) -> str:
        note = (
            ""
            if file in self.before and file in self.after
            else " (new)"
            if file in self.after
            else " (gone)"
        )
        return file.removeprefix(ROOM) + note

    def as_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {"part": self.part, "before": self.before, "after": self.after, "words": str(self)}


@dataclass(frozen=True)
class Nearest:
    """A record of the stage, and what of its key differs; of several the newest."""

    record_id: str
    record: Record
    differences: tuple[Difference, ...]


def parts_of(record: Record) -> dict[str, Any]:
    """The parts of a record's key as a stage gives its own (`Stage.key_parts`), with the source files."""
    inputs = {one.role: [one.digest, ""] for one in record.parents if not one.role.startswith(SHARD_ROLE)}
    return {
        "config": record.config,
        "parents": inputs,
        "libraries": record.libraries,
        "code": record.code.get("reached"),
        "files": record.files,
        **{name: getattr(record, name) for name in ("seed", "dtype", "device")},
        **(record.keyed or {}),
    }


def nearest(
    step: StepId,
    parts: Mapping[str, Any],
    records: Iterable[tuple[str, Record]],
    waits_for: Collection[str] = (),
) -> Nearest | None:
    """The record of this stage that differs in the fewest parts; None where there is none.

    Inputs in the roles `waits_for` are still to be made, so they are left out of the comparison.
    """
    found = [
        Nearest(identity, one, tuple(differences(step, parts, parts_of(one), waits_for)))
        for identity, one in records
        if one.stage == step.stage
    ]
    found.sort(key=lambda one: one.record.started, reverse=True)
    return min(found, key=lambda one: len(one.differences), default=None)


def differences(
    step: StepId, now: Mapping[str, Any], then: Mapping[str, Any], waits_for: Collection[str] = ()
) -> Iterator[Difference]:
    """What differs between two keys of one stage."""
    for key, before, after in _differing(_flat(then["config"]), _flat(now["config"])):
        yield Difference(config_path(step, key), before, after)
    for key in ("seed", "dtype", "device"):
        if then.get(key) != now.get(key):
            name = key if key == "seed" else f"model.{key}"
            yield Difference(name, then.get(key), now.get(key))
    for name in now["parents"]:
        digest, path = now["parents"][name]
        before, place = then["parents"].get(name, (None, path))
        if (digest, path) != (before, place):
            yield Difference(f"{INPUT}{name}", before, digest)
    for name in then["parents"].keys() - now["parents"].keys() - set(waits_for):
        yield Difference(f"{INPUT}{name}", then["parents"][name][0], None)
    for key, before, after in _differing(_flat(then.get("hardware")), _flat(now.get("hardware"))):
        yield Difference(f"hardware.{key}", before, after)
    for key, before, after in _differing(then["libraries"], now["libraries"]):
        yield Difference(key, before, after)
    if then["code"] != now["code"]:
        yield _code(then.get("files"), now.get("files"))


def _code(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> Difference:
    """The files whose reached code differs, of both keys; no files where a record of old knows none."""
    if then is None or now is None:
        return Difference(CODE, None, None)
    changed = [file for file, _, _ in _differing(then, now)]
    return Difference(
        CODE,
        {file: then[file] for file in changed if file in then},
        {file: now[file] for file in changed if file in now},
    )


def config_path(step: StepId, key: str) -> str:
    """The path in a run config of a key of a step's settings; the key itself where it has no such place."""
    first = re.split(r"[.\[]", key)[0]
    section = section_of(step.stage)
    if section:
        return f"{section}.{key}" if first in _keys(section) else key
    data = next((one.key for one in DATA if one.role == step.role), None)
    if data is not None and first == "sources":
        return data + key.removeprefix("sources")
    model = next((one.key.rpartition(".")[0] for one in MODELS if one.role == step.role), "")
    return f"{model}.{key}" if model else key


def _keys(section: str) -> set[str]:
    """Keys of a section of the run config."""
    annotation = RunConfig.model_fields[section].annotation
    models = [annotation, *get_args(annotation)]
    return {
        key
        for one in models
        if isinstance(one, type) and issubclass(one, BaseModel)
        for key in one.model_fields
    }


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*now, *then]):
        if then.get(key) != now.get(key):
            yield key, then.get(key), now.get(key)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data under paths; lists of sections too, other lists as values."""
    if isinstance(data, Mapping):
        inner = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in data.items()]
    elif isinstance(data, list) and data and all(isinstance(one, Mapping) for one in data):
        inner = [(f"{prefix}[{index}]", value) for index, value in enumerate(data)]
    else:
        return {prefix: data} if prefix else {}
    return {path: value for name, one in inner for path, value in _flat(one, name).items()}


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value) if isinstance(value, str) else json.dumps(value)
    if HASH.fullmatch(text):
        return text[:8]
    return text if len(text) <= LONG else text[: LONG - 3] + "..."
