"""What resprout did to a registered model: an append-only chain of statements beside the artifacts.

Each entry names the hash of the one before. Folded together they say which versions there are, what is
written on them, and where each alias points, so that whatever else the registry shows was done by hand.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed
from resprout.infra import identity
from resprout.infra.proof.snapshot import Places, State, placed
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.signing import ADOPT, Opened
from resprout.infra.store.store import ArtifactStore

PREDICATE = "urn:resprout:registry-entry:v1"
TRIES = 20
THREADS = 8


class Form(BaseModel):
    """Types of what a statement must say; what else it says is free."""

    model_config = ConfigDict(strict=True)


class PlacesForm(Form):
    """Where store and run files were."""

    model_config = ConfigDict(strict=True, extra="forbid")

    store: str
    artifacts: str


class StateForm(Form):
    """A model version, or what is meant to become one."""

    model_config = ConfigDict(strict=True, extra="allow")

    tags: dict[str, str] = {}
    source: str = ""
    runId: str = ""


class ChangeForm(Form):
    """What is about to be set: tags of a version, and the alias that is to point at it, or at none."""

    version: str | None
    tags: dict[str, str]
    alias: str | None


class AdoptedForm(Form):
    """What `resprout sign --adopt` signed beside the ledger, with which key, by whom and when."""

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
    adopted: AdoptedForm | None = None
    intent: StateForm | None = None
    change: ChangeForm | None = None
    model: dict[str, Any] | None = None
    versions: dict[str, StateForm] | None = None
    aliases: dict[str, str | None] | None = None
    seal: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class Entry:
    """One entry with the key of its object, the hash of its bytes and who signed it."""

    key: str
    sha256: str
    opened: Opened

    @property
    def said(self) -> dict[str, Any]:
        return dict(self.opened.statement["predicate"])


@dataclass
class Expected:
    """What the registry should show of one model, by the ledger."""

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
    places: list[Places] = field(default_factory=list)
    """Where store and run files were when the entries were written."""
    meant_tags: dict[str, dict[str, str]] = field(default_factory=dict)
    """By version the tags that were announced, and not yet stated as set."""
    meant_aliases: dict[str, list[str | None]] = field(default_factory=dict)
    """By alias the versions to which it was announced to move, and not yet stated as moved."""
    meant_by: dict[str, set[str]] = field(default_factory=dict)
    """By version and by alias:<name> the ids of the runs that announced these tags and moves."""
    former: set[str] = field(default_factory=set)
    """Versions of the same name before the registered model was deleted and made again."""
    anew: list[str] = field(default_factory=list)
    """A sentence for each time that it was."""
    adopted: list[str] = field(default_factory=list)
    """A sentence for each time that unsigned history was signed."""


def statement(subject: str, predicate_type: str, predicate: dict[str, Any]) -> dict[str, Any]:
    """An in-toto Statement v1 about something that is no file: its digest is that of what is said of it."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": subject, "digest": {"sha256": sha256_hex(canonical_json(predicate))}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def predicate_of(
    opened: Opened, predicate_type: str, what: str, form: type[BaseModel] = Form
) -> dict[str, Any]:
    """What a statement says; VerificationFailed where it is of another kind, or lacks its `form`."""
    predicate = opened.statement.get("predicate")
    subject = opened.statement.get("subject")
    name = subject[0].get("name") if isinstance(subject, list) and len(subject) == 1 else None
    if not isinstance(predicate, dict) or opened.statement != statement(str(name), predicate_type, predicate):
        raise VerificationFailed(f"the {what} is no statement of the kind {predicate_type}")
    require_form(predicate, what, form)
    if predicate.get("key") is not None and not (opened.signed_by or opened.unknown):
        raise VerificationFailed(f"the {what} had a signature of key {predicate['key']}, which was removed")
    return predicate


def require_form(said: dict[str, Any], what: str, form: type[BaseModel]) -> None:
    """VerificationFailed where a statement lacks a field of its kind, or has one of another type."""
    try:
        form.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationFailed(
            f"the {what} lacks what such a statement says ({where}: {first['msg']})"
        ) from error


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

    def entries(self) -> Iterator[Entry]:
        """All entries in their order; VerificationFailed at the first that is damaged or does not follow."""
        keys = list(self.store.driver.list(self.prefix))
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(self.store.driver.get_bytes, keys))
        before = None
        for sequence, (key, data) in enumerate(zip(keys, read, strict=True)):
            what = f"ledger entry {self.store.driver.uri(key)}"
            opened = self.store.signer.open(data or b"", what)
            said = predicate_of(opened, PREDICATE, what, EntryForm)
            if key != f"{self.prefix}{sequence:08d}.json" or said["sequence"] != sequence:
                raise VerificationFailed(f"the {what} is not number {sequence}: one was removed or added")
            if said["name"] != self.name or said["previous"] != before:
                raise VerificationFailed(f"the {what} does not follow the one before it")
            before = sha256_hex(data or b"")
            yield Entry(key, before, opened)

    def writable(self) -> list[Entry]:
        """The entries, where this process can add one: a signed ledger is not gone on with unsigned.

        Raises:
            BadInput: the ledger is signed, and there is no key here.
            VerificationFailed: the chain is damaged, or ends with what nobody known signed.
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
        self, run: str | None, places: Places, restated: Mapping[str, State] | None = None, **said: Any
    ) -> None:
        """Add an entry that says `intent`, `change`, `model`, `versions`, `aliases` (None: removed), `seal`.

        `adopted` states that what was unsigned until then is signed.
        `restated` are versions as earlier entries have them, with placeholders in their addresses already.
        With `anew` it begins a new chain of statements, for a registered model that was made again.

        Raises:
            BadInput: the ledger is signed, and there is no key here.
            VerificationFailed: the chain is damaged; `resprout verify` says where.
            StageFailed: other writers were first each time.
        """
        for _ in range(TRIES):
            entries = self.writable()
            predicate = {
                **placed(said, places),
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


def require_signed(name: str, entries: list[Entry], required: bool) -> None:
    """VerificationFailed where the chain ends with entries that nobody known signed, though others were.

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
    """Names of the registered models that have a ledger; what is none of ours under its keys is a problem."""
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


def folded(entries: list[Entry]) -> Expected:
    """What the entries together say."""
    expected = Expected()
    for entry in entries:
        said = entry.said
        expected.hashes.add(entry.sha256)
        if said.get("anew"):
            _begin_anew(expected, said)
        if (adopted := said.get("adopted")) is not None:
            expected.adopted.append(
                f"ledger of {said['name']}: key {adopted['key']} signed {adopted['records']} records and "
                f"{adopted['seals']} seals that were unsigned, after a full verification on "
                f"{str(said.get('at'))[:10]} ({said.get('who')})"
            )
        expected.model = said.get("model") or expected.model
        if (then := Places(**said["places"])) not in expected.places:
            expected.places.append(then)
        if said.get("intent") is not None:
            expected.intents.append(said["intent"])
        if (change := said.get("change")) is not None:
            by = {said["run"]} - {None}
            if change["version"] is not None:
                expected.meant_tags.setdefault(change["version"], {}).update(change["tags"])
                expected.meant_by.setdefault(change["version"], set()).update(by)
            if change["alias"] is not None:
                expected.meant_aliases.setdefault(change["alias"], []).append(change["version"])
                expected.meant_by.setdefault(f"alias:{change['alias']}", set()).update(by)
        expected.versions.update(said.get("versions") or {})
        for version in said.get("versions") or {}:
            expected.meant_tags.pop(version, None)
            expected.meant_by.pop(version, None)
        for alias, version in (said.get("aliases") or {}).items():
            expected.meant_aliases.pop(alias, None)
            expected.meant_by.pop(f"alias:{alias}", None)
            if version is None:
                expected.aliases.pop(alias, None)
            else:
                expected.aliases[alias] = version
        if said.get("seal") is not None and said["run"] is not None:
            expected.seals[said["run"]] = said["seal"]
            if said.get("timestamp") is not None:
                expected.timestamps[said["run"]] = said["timestamp"]
    return expected


def _begin_anew(expected: Expected, said: dict[str, Any]) -> None:
    """Forget what the registry showed of a registered model that is there no more."""
    expected.former |= {*expected.versions}
    expected.model = {}
    for stated in (expected.versions, expected.aliases):
        stated.clear()
    for meant in (expected.meant_tags, expected.meant_aliases, expected.meant_by):
        meant.clear()
    expected.intents.clear()
    expected.anew.append(
        f"registered model {said['name']} was deleted and made again: run {said['run']} began anew in its "
        f"ledger on {str(said.get('at'))[:10]}"
    )
