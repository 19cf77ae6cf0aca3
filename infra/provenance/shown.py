"""What MLflow shows, held against the seal of a run and the ledger of a registered model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from resprout.configs.errors import BadInput, StageFailed, Transient, VerificationFailed
from resprout.infra.mlflow.search import named
from resprout.infra.mlflow.tracking import HOLD, REGISTRATION, Tracker
from resprout.infra.provenance.ledger import Ledger, RegistryState, replay, require_signed
from resprout.infra.provenance.mlflow_state import (
    Locations,
    differences,
    locations,
    mask_locations,
    model_state,
    run_states,
    version_state,
)
from resprout.infra.provenance.seal import COPY, Seal, read_seal
from resprout.infra.provenance.timestamp import Authority, token_key
from resprout.infra.store import tombstones
from resprout.infra.store.store import ArtifactStore

LATE = timedelta(hours=1)
"""A timestamp follows its seal at once; more apart, the seal was written anew or a clock was wrong."""


class Shown:
    """Checks of runs and registered models; each once."""

    def __init__(self, store: ArtifactStore, tracker: Tracker, authority: Authority | None = None) -> None:
        self.authority = authority
        self.dated: dict[str, datetime] = {}
        self.others: set[str] = set()
        """Versions of the models that were looked at which no ledger knows."""
        self.store = store
        self.tracker = tracker
        self.now = locations(tracker, store.root_uri)
        self._expected: dict[str, RegistryState] = {}
        self._done: set[str] = set()
        self._gone: dict[str, str] | None = None
        self.unfinished: dict[str, str] = {}
        """What runs announced in the registry and have not stated as done, with a sentence for each."""
        self.anew: list[str] = []
        """A sentence for each registered model that was deleted and made again."""
        self.adopted: list[str] = []
        """A sentence for each time that unsigned history was signed."""
        self.heads: dict[str, str] = {}
        """Length and last hash of each ledger that was read; who keeps them notices when its end is cut."""

    def seal(self, run_id: str, problems: list[str], ended: bool = True) -> Seal | None:
        """The seal of a run; None, and a problem, where it is damaged, or missing though the run `ended`."""
        try:
            seal = read_seal(self.store, run_id)
        except VerificationFailed as error:
            problems.append(str(error))
            return None
        if seal is None and ended:
            problems.append(
                f"MLflow run {run_id} has no seal: it never ended well, an old version of resprout made it, "
                "or the seal was removed"
            )
        return seal

    def run(self, seal: Seal) -> Iterator[str]:
        """What MLflow shows of a sealed run and its nested runs otherwise than when it ended."""
        run_id = seal.predicate["run"]
        if run_id in self._done:
            return
        self._done.add(run_id)
        then = Locations(**seal.predicate["places"])
        try:
            states = mask_locations(run_states(self.tracker, run_id, COPY), self.now, then)
        except (BadInput, StageFailed, VerificationFailed, Transient) as error:
            if isinstance(error, Transient) and not self.tracker.is_up():
                raise
            yield f"MLflow run {run_id} cannot be read: {error}"
            return
        yield from self._timestamp(seal)
        if self.store.signer.required and not seal.opened.signed_by:
            yield f"the seal of run {run_id} has no signature that counts"
        yield from self._registered_there(seal)
        yield from self._erased()
        for one in sorted({*seal.predicate["runs"], *states}):
            sealed, shown = seal.predicate["runs"].get(one), states.get(one)
            name = (sealed or shown)["info"].get("runName", "")
            what = f"MLflow run {one} ({name})"
            if sealed is None or shown is None:
                yield f"{what} was {'added' if sealed is None else 'removed'} below run {run_id}"
            else:
                sealed = _without_erased(sealed, shown, one, self._gone or {})
                yield from differences(_without_hold(sealed), _without_hold(shown), f"{what}:")

    def concluded(self) -> set[str]:
        """Ids of the runs that came to a verdict and ended well: each must have a seal."""
        return {run.info.run_id for run in self.tracker.concluded() if run.info.lifecycle_stage == "active"}

    def _registered_there(self, seal: Seal) -> Iterator[str]:
        """Whether the version that a seal names is in the ledger of its model."""
        name, _, number = str(seal.predicate.get("registered") or "").removeprefix("models:/").rpartition("/")
        try:
            expected = self.model(name) if name else None
            known = expected is None or number in expected.versions.keys() | expected.former_versions
            if expected is not None and not known and not self._is_announced(name, number, expected):
                what = f"models:/{name}/{number}"
                yield f"the seal of run {seal.predicate['run']} names {what}, which no ledger knows"
        except (StageFailed, VerificationFailed) as error:
            yield str(error)

    def _erased(self) -> Iterator[str]:
        """Read, once, which files of runs tombstones name; what is wrong with a tombstone."""
        if self._gone is not None:
            return
        self._gone = {}
        for digest in tombstones.erased(self.store.driver):
            try:
                stone = tombstones.of(self.store.driver, self.store.signer, digest)
            except (BadInput, VerificationFailed) as error:
                yield str(error)
                continue
            self._gone |= stone.tracked if stone is not None else {}

    def model(self, name: str) -> RegistryState:
        """What the ledger expects of a registered model; VerificationFailed where the chain is damaged."""
        if name not in self._expected:
            entries = list(Ledger(self.store, name).entries())
            require_signed(name, entries, self.store.signer.required)
            self._expected[name] = replay(entries)
            if entries:
                self.heads[name] = f"{len(entries)} entries, the last with SHA-256 {entries[-1].sha256}"
        return self._expected[name]

    def version(self, name: str, version: str) -> Iterator[str]:
        """What the registry shows of a version, its model and the model's aliases otherwise than expected."""
        try:
            expected = self.model(name)
        except VerificationFailed as error:
            yield str(error)
            return
        try:
            if version in expected.versions:
                yield from self._registered(name, version, expected)
            elif self._is_announced(name, version, expected):
                self.unfinished[f"models:/{name}/{version}"] = (
                    f"models:/{name}/{version} is unfinished: its run announced it and has not entered it in "
                    "the ledger; where that run was killed, the next run of its config does"
                )
            else:
                yield (
                    f"models:/{name}/{version} is not in the ledger {Ledger(self.store, name).uri}: an old "
                    "version of resprout registered it, or its entry was removed"
                )
                return
            yield from self._model(name, expected)
        except (StageFailed, VerificationFailed) as error:
            yield f"models:/{name}/{version} cannot be read: {error}"

    def _registered(self, name: str, version: str, expected: RegistryState) -> Iterator[str]:
        what = f"models:/{name}/{version}"
        state = _without_hold(
            mask_locations(version_state(self.tracker, name, version), self.now, *expected.locations)
        )
        meant = expected.announced_tags.get(version, {})
        set_already = {key: value for key, value in meant.items() if state["tags"].get(key) == value}
        stated = _without_hold(expected.versions[version])
        if not self._is_at_work(expected.announced_by.get(version)):
            set_already = {}
        if {*set_already.items()} - {*stated["tags"].items()}:
            self.unfinished[f"tags of {what}"] = f"{what}: tags were announced and set, and not stated as set"
        stated["tags"] = {**stated["tags"], **set_already}
        yield from differences(stated, state, f"{what}:")

    def _is_announced(self, name: str, version: str, expected: RegistryState) -> bool:
        """Whether a version is as its run announced it, and that run has not said that it entered it."""
        state = _without_hold(
            mask_locations(version_state(self.tracker, name, version), self.now, *expected.locations)
        )
        meant = expected.announced_tags.get(version, {})

        def fits(intent: dict[str, Any]) -> bool:
            tags = _without_hold(intent)["tags"]
            same = all(
                intent.get(key, "") == state.get(key, "") for key in ("source", "description", "runId")
            )
            return same and state["tags"] in (tags, {**tags, **meant})

        return any(map(fits, expected.intents)) and self._is_at_work({str(state.get("runId"))})

    def _is_at_work(self, runs: set[str] | None) -> bool:
        """Whether what these runs announced in the registry may not be in the ledger yet.

        A run takes its announcement back once its entry is there; then an entry that is missing was removed.
        What no run announced, a person did, of whom nothing more is known.
        """
        return not runs or any(self.tracker.announced(REGISTRATION, run) for run in runs)

    def _model(self, name: str, expected: RegistryState) -> Iterator[str]:
        """What the registry shows of a model and its aliases otherwise than expected."""
        if name in self._done:
            return
        self._done.add(name)
        there = {str(one.version) for one in self.tracker.versions(named(name))}
        self.others.update(
            f"models:/{name}/{other}"
            for other in there - {*expected.versions}
            if not self._is_announced(name, other, expected)
        )
        self.anew += expected.restarts
        self.adopted += expected.adoptions
        model, aliases = model_state(self.tracker, name)
        # An alias is on its way where the run that announced the move has not said that it is done.
        moved = {
            alias: aliases.get(alias)
            for alias, meant in expected.announced_aliases.items()
            if aliases.get(alias) in meant and aliases.get(alias) != expected.aliases.get(alias)
            if self._is_at_work(expected.announced_by.get(f"alias:{alias}"))
        }
        for alias in moved:
            self.unfinished[f"alias {alias} of {name}"] = (
                f"alias {alias} of {name} was announced and moved, and not stated as moved: its run is at "
                "work, or was killed"
            )
        wanted = {**expected.aliases, **{alias: at for alias, at in moved.items() if at is not None}}
        wanted = {alias: at for alias, at in wanted.items() if moved.get(alias, at) is not None}
        sealed, shown = (
            _without_hold(expected.model),
            _without_hold(mask_locations(model, self.now, *expected.locations)),
        )
        # Before its first version is entered nothing is stated of the model.
        yield from differences(sealed, shown if expected.model else sealed, f"registered model {name}:")
        yield from differences(wanted, aliases, f"alias of {name}")

    def named_seal(self, name: str, seal: Seal) -> Iterator[str]:
        """Whether the ledger names these bytes as the seal of the run that registered."""
        run_id = seal.predicate["run"]
        try:
            expected = self.model(name)
        except VerificationFailed:
            return
        if expected.seals.get(run_id, seal.sha256) != seal.sha256:
            yield f"the seal of run {run_id} was changed: the ledger of {name} names another"
        token = self.store.driver.get_bytes(token_key(run_id))
        if token is None and run_id in expected.timestamps:
            yield f"the timestamp {self.store.driver.uri(token_key(run_id))} was removed"

    def _timestamp(self, seal: Seal) -> Iterator[str]:
        """Whether the timestamp on a seal, where there is one, is the authority's word on these bytes."""
        key = token_key(seal.predicate["run"])
        token = self.store.driver.get_bytes(key)
        if token is None or self.authority is None:
            return
        try:
            when = self.authority.dated(seal.data, token)
            self.dated[seal.predicate["run"]] = when
            if abs(when - datetime.fromisoformat(seal.predicate["sealed"])) > LATE:
                yield (
                    f"the seal of run {seal.predicate['run']} says {seal.predicate['sealed']}, but was dated "
                    f"{when}"
                )
        except VerificationFailed as error:
            yield f"{self.store.driver.uri(key)}: {error}"


def _without_erased(
    sealed: dict[str, Any], shown: dict[str, Any], run_id: str, erased: dict[str, str]
) -> dict[str, Any]:
    """What was sealed, but for files that were erased on request: missing, they are as they should be."""
    files = {
        path: entry
        for path, entry in sealed["files"].items()
        if path in shown["files"] or erased.get(f"{run_id}/{path}") != entry["sha256"]
    }
    return {**sealed, "files": files}


def _without_hold(state: dict[str, Any]) -> dict[str, Any]:
    """A legal hold may be set and lifted at any time by whoever keeps the registry."""
    tags = {key: value for key, value in state.get("tags", {}).items() if key != HOLD}
    return {**state, "tags": tags}
