"""What the versions of the registry need: by their tags, their source, their runs, and the ledgers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import VerificationFailed
from resprout.infra.proof.ledger import Ledger
from resprout.infra.store.canonical import DIGEST, sha256_hex
from resprout.infra.store.keys import is_stray
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import RECORD

REPORT_RECORD = "resprout.report_record"
IN_SOURCE = re.compile(r"(?<![0-9a-z])[0-9a-f]{64}(?![0-9a-z])")


@dataclass
class Claim:
    """Records and runs that something in the registry names."""

    records: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


class Versions:
    """Reads what versions name; a ledger is read again only when it has grown."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._ledgers: dict[str, tuple[tuple[str, ...], str, dict[str, Claim]]] = {}

    def claim(self, version: Any) -> Claim:
        """What a version of the registry needs, by any of the ways that lead from it."""
        found = self._of_state(version.tags, version.source or "", version.run_id or "")
        return self._with_ledger(found, version.name, str(version.version))

    def removed(self, there: Mapping[str, set[str]]) -> dict[str, Claim]:
        """By reference the versions that a ledger knows and the registry, `there` by name, does not have."""
        found = {}
        for _, name, versions in self._ledgers.values():
            for number in sorted(versions.keys() - there.get(name, set()), key=int):
                found[f"models:/{name}/{number}"] = versions[number]
        return found

    def of_tags(self, tags: Mapping[str, str]) -> set[str]:
        """Records that the tags of a version or a run name."""
        records = {tags[tag] for tag in (RECORD, REPORT_RECORD) if DIGEST.fullmatch(tags.get(tag, ""))}
        for tag, shorter in (("resprout.report", REPORT_RECORD), ("resprout.digest", RECORD)):
            if tags.get(shorter) not in records and DIGEST.fullmatch(tags.get(tag, "")):
                records.update(self.store.records_of(tags[tag]))
        return records

    def _of_state(self, tags: Mapping[str, str], source: str, run: str) -> Claim:
        found = Claim(self.of_tags(tags), {run, tags.get("resprout.run", "")} - {""})
        if not found.records:
            for digest in IN_SOURCE.findall(source):
                found.records.update(self.store.records_of(digest))
        return found

    def _with_ledger(self, found: Claim, name: str, number: str) -> Claim:
        for _, known, versions in self._ledgers.values():
            if known == name and number in versions:
                found.records |= versions[number].records
                found.runs |= versions[number].runs
        return found

    def look(self) -> None:
        """Read the ledgers as they are now; VerificationFailed where one is damaged."""
        grown: dict[str, list[str]] = {}
        for key in self.store.driver.list("registry/"):
            if not is_stray(key):
                grown.setdefault(key.split("/")[1], []).append(key)
        self._ledgers = {
            model: self._ledgers[model]
            if model in self._ledgers and self._ledgers[model][0] == tuple(keys)
            else self._read(model, keys)
            for model, keys in grown.items()
        }

    def _read(self, model: str, keys: list[str]) -> tuple[tuple[str, ...], str, dict[str, Claim]]:
        what = f"ledger entry {self.store.driver.uri(keys[0])}"
        opened = self.store.signer.open(self.store.driver.get_bytes(keys[0]) or b"", what)
        name = str((opened.statement.get("predicate") or {}).get("name"))
        if sha256_hex(name.encode()) != model:
            raise VerificationFailed(f"the {what} is that of another model, {name}")
        versions: dict[str, Claim] = {}
        for entry in Ledger(self.store, name).entries():
            for number, state in (entry.said.get("versions") or {}).items():
                # Every state counts that it ever had, so no entry takes away what an earlier one needs.
                told = self._of_state(state.get("tags", {}), state.get("source", ""), state.get("runId", ""))
                claim = versions.setdefault(number, Claim())
                claim.records |= told.records
                claim.runs |= told.runs
        return tuple(keys), name, versions
