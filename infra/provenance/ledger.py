"""The ledger of a registered model: an append-only chain of statements about what resprout did to it.

Each entry names the hash of the one before. Together they say which versions there are, what is written on
them, and where each alias points, so that whatever else the registry shows was done by hand.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed
from resprout.infra import identity
from resprout.infra.mlflow import search
from resprout.infra.mlflow.tracking import MAX_TAG_CHARS, REGISTRATION, Tracker
from resprout.infra.provenance.mlflow_state import (
    Locations,
    State,
    locations,
    mask_locations,
    model_state,
    version_state,
)
from resprout.infra.provenance.seal import SealHashes, read_seal, write_seal
from resprout.infra.provenance.statement import Form, PlacesForm, predicate_of, statement
from resprout.infra.store.canonical import sha256_hex
from resprout.infra.store.signing import ADOPT, Opened
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREDICATE = "urn:resprout:registry-entry:v1"
TRIES = 20
THREADS = 8


class StateForm(Form):
    """A model version, or what is meant to become one."""

    model_config = ConfigDict(strict=True, extra="allow")

    tags: dict[str, str] = Field(default={})
    source: str = ""
    runId: str = ""


class ChangeForm(Form):
    """An announced change: tags of a version, and the alias that is to point at it, or at none."""

    version: str | None
    tags: dict[str, str]
    alias: str | None


class AdoptionForm(Form):
    """Key with which `resprout sign --adopt` signed older history, and how much of it."""

    key: str
    records: int
    seals: int


class EntryForm(Form):
    """A ledger entry."""

    name: str
    sequence: int
    previous: str | None
    run: str | None
    places: PlacesForm
    anew: bool = False
    adopted: AdoptionForm | None = None
    intent: StateForm | None = None
    change: ChangeForm | None = None
    model: dict[str, Any] | None = None
    versions: dict[str, StateForm] | None = None
    aliases: dict[str, str | None] | None = None
    seal: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class LedgerEntry:
    """One entry with the key of its object, the hash of its bytes and who signed it."""

    key: str
    sha256: str
    opened: Opened

    @property
    def predicate(self) -> dict[str, Any]:
        return dict(self.opened.statement["predicate"])


@dataclass
class RegistryState:
    """The state that the registry should show of one model, by its ledger."""

    model: State = field(default_factory=dict)
    versions: dict[str, State] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)
    """SHA-256 of all entries."""
    intents: list[State] = field(default_factory=list)
    """Versions as they were announced before they were made."""
    seals: dict[str, str] = field(default_factory=dict)
    """By run id the SHA-256 of the seal that an entry names."""
    timestamps: dict[str, str] = field(default_factory=dict)
    """By run id the SHA-256 of the timestamp that an entry names."""
    locations: list[Locations] = field(default_factory=list)
    """Where store and run files were when the entries were written."""
    announced_tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """By version the tags that were announced, and not yet stated as set."""
    announced_aliases: dict[str, list[str | None]] = field(default_factory=dict)
    """By alias the versions to which it was announced to move, and not yet stated as moved."""
    announced_by: dict[str, set[str]] = field(default_factory=dict)
    """By version and by alias:<name> the ids of the runs that announced these tags and moves."""
    former_versions: set[str] = field(default_factory=set)
    """Versions of the same name before the registered model was deleted and made again."""
    restarts: list[str] = field(default_factory=list)
    """A sentence for each time that it was."""
    adoptions: list[str] = field(default_factory=list)
    """A sentence for each time that unsigned history was signed."""


class Ledger:
    """The entries of one registered model in a store."""

    def __init__(self, store: ArtifactStore, name: str) -> None:
        self.store = store
        self.name = name

    @property
    def prefix(self) -> str:
        return f"registry/{sha256_hex(self.name.encode())}/"

    @property
    def uri(self) -> str:
        return self.store.driver.uri(self.prefix.rstrip("/"))

    def entries(self) -> Iterator[LedgerEntry]:
        """Yield all entries in order; VerificationFailed at the first that is damaged or does not follow."""
        keys = list(self.store.driver.list(self.prefix))
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(self.store.driver.get_bytes, keys))
        before = None
        for sequence, (key, data) in enumerate(zip(keys, read, strict=True)):
            what = f"ledger entry {self.store.driver.uri(key)}"
            opened = self.store.signer.open(data or b"", what)
            predicate = predicate_of(opened, PREDICATE, what, EntryForm)
            if key != f"{self.prefix}{sequence:08d}.json" or predicate["sequence"] != sequence:
                raise VerificationFailed(f"the {what} is not number {sequence}: one was removed or added")
            if predicate["name"] != self.name or predicate["previous"] != before:
                raise VerificationFailed(f"the {what} does not follow the one before it")
            before = sha256_hex(data or b"")
            yield LedgerEntry(key, before, opened)

    def writable(self) -> list[LedgerEntry]:
        """Return the entries; refuse where this process must not add one, as unsigned to a signed ledger.

        Raises:
            BadInput: the ledger is signed, and there is no key here.
            VerificationFailed: the chain is damaged, or ends with an entry that no known key signed.
        """
        entries = list(self.entries())
        signed = any(entry.opened.signed_by or entry.opened.unknown for entry in entries)
        if signed and not self.store.signer.signs:
            raise BadInput(
                f"the ledger of {self.name} is signed, and infra.proof names no signing key here; set "
                "signing_key or signing_key_file"
            )
        # The entry that comes next vouches for all before it.
        require_signed(self.name, entries, required=signed or self.store.signer.required)
        return entries

    def append(
        self, run: str | None, places: Locations, restated: Mapping[str, State] | None = None, **changes: Any
    ) -> None:
        """Add an entry that says `intent`, `change`, `model`, `versions`, `aliases` (None: removed), `seal`.

        `adopted` states that what was unsigned until then is signed.
        `restated` are versions copied from earlier entries, whose addresses are already masked.
        With `anew` it begins a new chain of entries, for a registered model that was deleted and recreated.

        Raises:
            BadInput: the ledger is signed, and there is no key here.
            VerificationFailed: the chain is damaged; `resprout verify` says where.
            StageFailed: other writers were first each time.
        """
        for _ in range(TRIES):
            entries = self.writable()
            predicate = {
                **mask_locations(changes, places),
                **({"versions": dict(restated)} if restated else {}),
                "name": self.name,
                "sequence": len(entries),
                "previous": entries[-1].sha256 if entries else None,
                "run": run,
                "who": identity.who(),
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "places": places.as_dict(),
                "key": self.store.signer.own_id,
            }
            data = self.store.signer.envelope(statement(f"models:/{self.name}", PREDICATE, predicate))
            if self.store.driver.put_if_absent(f"{self.prefix}{len(entries):08d}.json", data):
                return
        raise StageFailed(f"{TRIES} times another writer was first in the ledger of {self.name}; run again")


def require_signed(name: str, entries: list[LedgerEntry], required: bool) -> None:
    """Raise VerificationFailed where a chain with signed entries ends with some that no known key signed.

    An entry vouches for all before it, so what was written before there was a key is covered by what came
    after.
    """
    signed = [index for index, entry in enumerate(entries) if entry.opened.signed_by]
    after = entries[signed[-1] + 1 :] if signed else entries
    if after and (signed or required):
        raise VerificationFailed(
            f"ledger entry {after[0].key} of {name} has no signature that counts, nor has any after it; "
            f"{ADOPT}"
        )


def ledgers(store: ArtifactStore, problems: list[str]) -> Iterator[str]:
    """Yield the names of the registered models that have a ledger; report unreadable keys to `problems`."""
    seen: dict[str, str] = {}
    for key in store.driver.list("registry/"):
        prefix = key.rpartition("/")[0]
        if prefix in seen:
            continue
        try:
            what = f"ledger entry {store.driver.uri(key)}"
            opened = store.signer.open(store.driver.get_bytes(key) or b"", what)
            name = str(predicate_of(opened, PREDICATE, what, EntryForm)["name"])
            if Ledger(store, name).prefix != f"{prefix}/":
                raise VerificationFailed(f"the {what} is that of {name}")
        except VerificationFailed as error:
            problems.append(str(error))
            continue
        seen[prefix] = name
        yield name


def replay(entries: list[LedgerEntry]) -> RegistryState:
    """Return the state of the registry after all these entries."""
    expected = RegistryState()
    for entry in entries:
        predicate = entry.predicate
        expected.hashes.add(entry.sha256)
        if predicate.get("anew"):
            _restart(expected, predicate)
        if (adopted := predicate.get("adopted")) is not None:
            expected.adoptions.append(
                f"ledger of {predicate['name']}: key {adopted['key']} signed {adopted['records']} records "
                f"and {adopted['seals']} seals that were unsigned, after a full verification on "
                f"{str(predicate.get('at'))[:10]} ({predicate.get('who')})"
            )
        expected.model = predicate.get("model") or expected.model
        if (then := Locations(**predicate["places"])) not in expected.locations:
            expected.locations.append(then)
        if predicate.get("intent") is not None:
            expected.intents.append(predicate["intent"])
        if (change := predicate.get("change")) is not None:
            by = {predicate["run"]} - {None}
            if change["version"] is not None:
                expected.announced_tags.setdefault(change["version"], {}).update(change["tags"])
                expected.announced_by.setdefault(change["version"], set()).update(by)
            if change["alias"] is not None:
                expected.announced_aliases.setdefault(change["alias"], []).append(change["version"])
                expected.announced_by.setdefault(f"alias:{change['alias']}", set()).update(by)
        expected.versions.update(predicate.get("versions") or {})
        for version in predicate.get("versions") or {}:
            expected.announced_tags.pop(version, None)
            expected.announced_by.pop(version, None)
        for alias, version in (predicate.get("aliases") or {}).items():
            expected.announced_aliases.pop(alias, None)
            expected.announced_by.pop(f"alias:{alias}", None)
            if version is None:
                expected.aliases.pop(alias, None)
            else:
                expected.aliases[alias] = version
        if predicate.get("seal") is not None and predicate["run"] is not None:
            expected.seals[predicate["run"]] = predicate["seal"]
            if predicate.get("timestamp") is not None:
                expected.timestamps[predicate["run"]] = predicate["timestamp"]
    return expected


def _restart(expected: RegistryState, predicate: dict[str, Any]) -> None:
    """Reset the state: the registered model was deleted and created again."""
    expected.former_versions |= {*expected.versions}
    expected.model = {}
    for stated in (expected.versions, expected.aliases):
        stated.clear()
    for meant in (expected.announced_tags, expected.announced_aliases, expected.announced_by):
        meant.clear()
    expected.intents.clear()
    expected.restarts.append(
        f"registered model {predicate['name']} was deleted and made again: run {predicate['run']} began "
        f"anew in its ledger on {str(predicate.get('at'))[:10]}"
    )


class Registrar:
    """Writer of one run to the ledger of a model: before it acts in the registry, and after.

    What the registry shows beyond what runs stated is never taken over, so a change by hand does not become
    what is expected.
    """

    def __init__(self, store: ArtifactStore, tracker: Tracker, name: str, run_id: str) -> None:
        self.store = store
        self.tracker = tracker
        self.name = name
        self.run_id = run_id
        self._ledger = Ledger(store, name)
        self._here = locations(tracker, store.root_uri)

    def takes(self, version: ModelVersion) -> bool:
        """Whether a version is one that the ledger knows, or just as a run announced it that then died."""
        expected = self._state()
        known = expected.versions.get(str(version.version))
        if known is not None and known.get("runId", "") == (version.run_id or ""):
            # A twin that was made by hand after the first was deleted is another version.
            return known.get("creationTimestamp", str(version.creation_timestamp)) == str(
                version.creation_timestamp
            )
        intent = self._intent(version.source or "", version.tags, version.description or "", version.run_id)
        return known is None and mask_locations(intent, self._here, *expected.locations) in expected.intents

    def is_at(self, source: str, here: str) -> bool:
        """Whether an address is `here`, or was that by the ledger before the store moved."""
        return bool(
            mask_locations(source, self._here, *self._state().locations) == mask_locations(here, self._here)
        )

    def announce(self, source: str, tags: Mapping[str, str], description: str) -> None:
        """State a version before it is made, so that it is known again should this process die."""
        intent, expected = self._intent(source, tags, description, self.run_id), self._state()
        self.tracker.announce(self.run_id, REGISTRATION)
        if self._was_recreated(expected):
            self._ledger.append(self.run_id, self._here, anew=True, intent=intent)
        elif mask_locations(intent, self._here) not in expected.intents:
            self._ledger.append(self.run_id, self._here, intent=intent)

    def announce_change(self, version: str, tags: Mapping[str, str], alias: str | None) -> None:
        """State what is about to be set on a version, where the ledger does not say so already."""
        expected = self._state()
        meant = expected.announced_tags.get(version, {})
        new = {key: value for key, value in tags.items() if meant.get(key) != value}
        moves = alias is not None and expected.aliases.get(alias) != version
        moves = moves and version not in expected.announced_aliases.get(alias or "", ())
        if new or moves:
            change = {"version": version, "tags": new, "alias": alias if moves else None}
            self.tracker.announce(self.run_id, REGISTRATION)
            self._ledger.append(self.run_id, self._here, change=change)

    def _was_recreated(self, expected: RegistryState) -> bool:
        """Whether the registered model in the ledger was deleted, and perhaps created again."""
        if not expected.model:
            return False
        if not search.is_registered(self.tracker, self.name):
            return True
        shown = model_state(self.tracker, self.name)[0]
        return bool(shown.get("creationTimestamp") != expected.model.get("creationTimestamp"))

    def enter(self, version: str, sealed: SealHashes, tags: Mapping[str, str], alias: str | None) -> None:
        """State what was done: a version that is new to the ledger, `tags` that were set, the alias."""
        expected = self._state()
        changes: dict[str, Any] = {}
        if self._was_recreated(expected):
            # As runs of an earlier resprout left it, which made the model again and did not record it.
            changes["anew"], expected = True, RegistryState(seals=expected.seals)
        known = expected.versions.get(version)
        shown = version_state(self.tracker, self.name, version)
        owner = shown.get("runId", "")
        # A model that was deleted and made again begins with version 1 again.
        if known is None or (known.get("runId") != owner and owner == self.run_id):
            changes["versions"] = {version: shown}
            if owner != self.run_id and owner not in expected.seals and read_seal(self.store, owner) is None:
                # It died after it registered; this run found its version as it was announced.
                self.tracker.end(owner, "KILLED")
                made = f"models:/{self.name}/{version}"
                write_seal(self.store, self.tracker, owner, sealed_by=self.run_id, registered=made)
        elif any(known.get("tags", {}).get(key) != value for key, value in tags.items()):
            set_now = mask_locations(dict(tags), self._here)
            changes["restated"] = {version: {**known, "tags": {**known.get("tags", {}), **set_now}}}
        if owner == self.run_id and expected.seals.get(owner) != sealed.seal:
            changes["seal"], changes["timestamp"] = sealed.seal, sealed.timestamp
        if not expected.model:
            changes["model"] = model_state(self.tracker, self.name)[0]
        if alias is not None and expected.aliases.get(alias) != version:
            changes["aliases"] = {alias: version}
        if changes:
            self._ledger.append(self.run_id, self._here, **changes)
        # From now on a ledger without this entry is one whose end was cut off.
        others = expected.announced_by.get(version, set()) | expected.announced_by.get(
            f"alias:{alias}", set()
        )
        for run_id in {owner, self.run_id, *others} - {""}:
            self.tracker.has_done(run_id, REGISTRATION)

    def _state(self) -> RegistryState:
        return replay(self._ledger.writable())

    def _intent(
        self, source: str, tags: Mapping[str, str], description: str, run_id: str | None
    ) -> dict[str, Any]:
        cut = {key: value[:MAX_TAG_CHARS] for key, value in tags.items()}
        return {"source": source, "tags": cut, "description": description, "runId": run_id or ""}
