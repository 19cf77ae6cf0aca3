"""What one run states in the ledger of a registered model: before it acts in the registry, and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import MAX_TAG_CHARS, REGISTRATION, Tracker
from resprout.infra.proof.ledger import Expected, Ledger, folded
from resprout.infra.proof.seal import Sealed, read_seal, write_seal
from resprout.infra.proof.snapshot import model_state, placed, places, version_state
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


class Registrar:
    """The ledger of one model, as one run writes it.

    What the registry shows beyond what runs said of themselves is never taken over, so a change by hand does
    not become what is expected.
    """

    def __init__(self, store: ArtifactStore, tracker: Tracker, name: str, run_id: str) -> None:
        self.store = store
        self.tracker = tracker
        self.name = name
        self.run_id = run_id
        self._ledger = Ledger(store, name)
        self._now = places(tracker, store.root_uri)

    def takes(self, version: ModelVersion) -> bool:
        """Whether a version is one that the ledger knows, or just as a run announced it that then died."""
        expected = self._expected()
        known = expected.versions.get(str(version.version))
        if known is not None and known.get("runId", "") == (version.run_id or ""):
            # A twin that was made by hand after the first was deleted is another version.
            return known.get("creationTimestamp", str(version.creation_timestamp)) == str(
                version.creation_timestamp
            )
        said = self._said(version.source or "", version.tags, version.description or "", version.run_id)
        return known is None and placed(said, self._now, *expected.places) in expected.intents

    def is_at(self, source: str, here: str) -> bool:
        """Whether an address is `here`, or was that by the ledger before the store moved."""
        return bool(placed(source, self._now, *self._expected().places) == placed(here, self._now))

    def announce(self, source: str, tags: Mapping[str, str], description: str) -> None:
        """State a version before it is made, so that it is known again should this process die."""
        intent, expected = self._said(source, tags, description, self.run_id), self._expected()
        self.tracker.announce(self.run_id, REGISTRATION)
        if self._was_made_anew(expected):
            self._ledger.append(self.run_id, self._now, anew=True, intent=intent)
        elif placed(intent, self._now) not in expected.intents:
            self._ledger.append(self.run_id, self._now, intent=intent)

    def announce_change(self, version: str, tags: Mapping[str, str], alias: str | None) -> None:
        """State what is about to be set on a version, where the ledger does not say so already."""
        expected = self._expected()
        meant = expected.meant_tags.get(version, {})
        new = {key: value for key, value in tags.items() if meant.get(key) != value}
        moves = alias is not None and expected.aliases.get(alias) != version
        moves = moves and version not in expected.meant_aliases.get(alias or "", ())
        if new or moves:
            change = {"version": version, "tags": new, "alias": alias if moves else None}
            self.tracker.announce(self.run_id, REGISTRATION)
            self._ledger.append(self.run_id, self._now, change=change)

    def _was_made_anew(self, expected: Expected) -> bool:
        """Whether the registered model is another than the one of which the ledger tells, or is gone."""
        if not expected.model:
            return False
        if not search.is_registered(self.tracker, self.name):
            return True
        shown = model_state(self.tracker, self.name)[0]
        return bool(shown.get("creationTimestamp") != expected.model.get("creationTimestamp"))

    def enter(self, version: str, sealed: Sealed, tags: Mapping[str, str], alias: str | None) -> None:
        """State what was done: a version that is new to the ledger, `tags` that were set, the alias."""
        expected = self._expected()
        said: dict[str, Any] = {}
        if self._was_made_anew(expected):
            # As runs of an earlier resprout left it, which made the model again and did not say so.
            said["anew"], expected = True, Expected(seals=expected.seals)
        known = expected.versions.get(version)
        shown = version_state(self.tracker, self.name, version)
        owner = shown.get("runId", "")
        # A model that was deleted and made again begins with version 1 again.
        if known is None or (known.get("runId") != owner and owner == self.run_id):
            said["versions"] = {version: shown}
            if owner != self.run_id and owner not in expected.seals and read_seal(self.store, owner) is None:
                # It died after it registered; this run found its version as it was announced.
                self.tracker.end(owner, "KILLED")
                made = f"models:/{self.name}/{version}"
                write_seal(self.store, self.tracker, owner, sealed_by=self.run_id, registered=made)
        elif any(known.get("tags", {}).get(key) != value for key, value in tags.items()):
            set_now = placed(dict(tags), self._now)
            said["restated"] = {version: {**known, "tags": {**known.get("tags", {}), **set_now}}}
        if owner == self.run_id and expected.seals.get(owner) != sealed.seal:
            said["seal"], said["timestamp"] = sealed.seal, sealed.timestamp
        if not expected.model:
            said["model"] = model_state(self.tracker, self.name)[0]
        if alias is not None and expected.aliases.get(alias) != version:
            said["aliases"] = {alias: version}
        if said:
            self._ledger.append(self.run_id, self._now, **said)
        # From now on a ledger without this entry is one whose end was cut off.
        others = expected.meant_by.get(version, set()) | expected.meant_by.get(f"alias:{alias}", set())
        for run_id in {owner, self.run_id, *others} - {""}:
            self.tracker.has_done(run_id, REGISTRATION)

    def _expected(self) -> Expected:
        return folded(self._ledger.writable())

    def _said(
        self, source: str, tags: Mapping[str, str], description: str, run_id: str | None
    ) -> dict[str, Any]:
        cut = {key: value[:MAX_TAG_CHARS] for key, value in tags.items()}
        return {"source": source, "tags": cut, "description": description, "runId": run_id or ""}
