"""What differs between the machine and libraries that a record tells of and those that are here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from resprout.infra import identity
from resprout.infra.store.record import Record
from resprout.tasks.measure.hardware import fingerprint

CODE = ("resprout", "commit", "dirty")
UNCOMMITTED = "true, so the commit does not say what ran"


@dataclass(frozen=True)
class Change:
    """A property of the surroundings that was `recorded` and is now `here`."""

    name: str
    recorded: str
    here: str

    def __str__(self) -> str:
        return f"{self.name}: {self.recorded} then, {self.here} now"


def changes(records: Iterable[Record], device: str, hardware: Mapping[str, Any]) -> list[Change]:
    """Differences in code, libraries, machine, `hardware` and device, each once, in that order.

    A checkout with uncommitted changes counts as a difference, whatever its commit.
    """
    found: dict[str, list[Change]] = {"code": [], "library": [], "machine": [], "hardware": [], "device": []}

    def note(kind: str, name: str, recorded: str, here: str) -> None:
        change = Change(f"{kind} {name}".strip(), recorded, here)
        if recorded != here and change not in found[kind]:
            found[kind].append(change)

    code, machine = identity.code_identity(), identity.machine()
    for record in records:
        for name in CODE:
            here = code.get(name, "none")
            note("code", name, str(record.code.get(name, "none")), UNCOMMITTED if here == "true" else here)
        for name, version in sorted(record.libraries.items()):
            note("library", name, version, identity.library_version(name))
        for name, value in sorted(record.machine.items()):
            note("machine", name, str(value), machine.get(name, "none"))
        if record.device is not None:
            note("device", "", record.device, device)
    present = fingerprint()
    for name, value in sorted(hardware.items()):
        note("hardware", name, str(value), str(present.get(name, "none")))
    return [one for kind in found.values() for one in kind]
