"""What MLflow shows, held against the seal of a run and the ledger of a registered model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from resprout.configs.errors import BadInput, StageFailed, VerificationFailed
from resprout.infra.proof.ledger import Expected, Ledger, folded
from resprout.infra.proof.seal import COPY, Seal, read_seal
from resprout.infra.proof.snapshot import (
    Places,
    differences,
    model_state,
    placed,
    places,
    run_states,
    version_state,
)
from resprout.infra.proof.timestamp import Authority, token_key
from resprout.infra.store import tombstones
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import HOLD, Tracker, named


class Shown:
    """Checks of runs and registered models; each once."""

    def __init__(self, store: ArtifactStore, tracker: Tracker, authority: Authority | None = None) -> None:
        self.authority = authority
        self.dated: dict[str, datetime] = {}
        self.others: set[str] = set()
        """Versions of the models that were looked at which no ledger knows."""
        self.store = store
        self.tracker = tracker
        self.now = places(tracker, store.root_uri)
        self._expected: dict[str, Expected] = {}
        self._done: set[str] = set()
        self._gone: dict[str, str] | None = None

    def seal(self, run_id: str, problems: list[str]) -> Seal | None:
        """The seal of a run; None, and a problem, where it is missing or damaged."""
        try:
            seal = read_seal(self.store, run_id)
        except VerificationFailed as error:
            problems.append(str(error))
            return None
        if seal is None:
            problems.append(
                f"MLflow run {run_id} has no seal: it never ended well, an old version of resprout made it, "
                "or the seal was removed"
            )
        return seal

    def run(self, seal: Seal) -> Iterator[str]:
        """What MLflow shows of a sealed run and its nested runs otherwise than when it ended."""
        run_id = seal.said["run"]
        if run_id in self._done:
            return
        self._done.add(run_id)
        then = Places(**seal.said["places"])
        try:
            states = placed(run_states(self.tracker, run_id, COPY), self.now, then)
        except (BadInput, VerificationFailed) as error:
            yield f"MLflow run {run_id} cannot be read: {error}"
            return
        yield from self._timestamp(seal)
        if self.store.signer.required and not seal.opened.signed_by:
            yield f"the seal of run {run_id} has no signature that counts"
        for one in sorted({*seal.said["runs"], *states}):
            sealed, shown = seal.said["runs"].get(one), states.get(one)
            name = (sealed or shown)["info"].get("runName", "")
            what = f"MLflow run {one} ({name})"
            if sealed is None or shown is None:
                yield f"{what} was {'added' if sealed is None else 'removed'} below run {run_id}"
            else:
                sealed = _without_erased(sealed, shown, one, self._erased())
                yield from differences(_without_hold(sealed), _without_hold(shown), f"{what}:")

    def _erased(self) -> dict[str, str]:
        """Files of runs that tombstones name, with their hashes."""
        if self._gone is None:
            self._gone = tombstones.tracked(self.store.driver, self.store.signer)
        return self._gone

    def model(self, name: str) -> Expected:
        """What the ledger expects of a registered model; VerificationFailed where the chain is damaged."""
        if name not in self._expected:
            entries = list(Ledger(self.store, name).entries())
            if self.store.signer.required and any(not entry.opened.signed_by for entry in entries):
                raise VerificationFailed(f"an entry in the ledger of {name} has no signature that counts")
            self._expected[name] = folded(entries)
        return self._expected[name]

    def version(self, name: str, version: str) -> Iterator[str]:
        """What the registry shows of a version, its model and the model's aliases otherwise than expected."""
        try:
            expected = self.model(name)
        except VerificationFailed as error:
            yield str(error)
            return
        if version not in expected.versions:
            yield (
                f"models:/{name}/{version} is not in the ledger {Ledger(self.store, name).uri}: an old "
                "version of resprout registered it, or its entry was removed"
            )
            return
        try:
            yield from self._registered(name, version, expected)
        except StageFailed as error:
            yield f"models:/{name}/{version} cannot be read: {error}"

    def _registered(self, name: str, version: str, expected: Expected) -> Iterator[str]:
        what = f"models:/{name}/{version}:"
        state = placed(version_state(self.tracker, name, version), self.now, *expected.places)
        yield from differences(_without_hold(expected.versions[version]), _without_hold(state), what)
        if name in self._done:
            return
        self._done.add(name)
        there = {str(one.version) for one in self.tracker.versions(named(name))}
        self.others.update(f"models:/{name}/{other}" for other in there - {*expected.versions})
        model, aliases = model_state(self.tracker, name)
        sealed, shown = (
            _without_hold(expected.model),
            _without_hold(placed(model, self.now, *expected.places)),
        )
        yield from differences(sealed, shown, f"registered model {name}:")
        yield from differences(expected.aliases, aliases, f"alias of {name}")

    def named_seal(self, name: str, seal: Seal) -> Iterator[str]:
        """Whether the ledger names these bytes as the seal of the run that registered."""
        run_id = seal.said["run"]
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
        key = token_key(seal.said["run"])
        token = self.store.driver.get_bytes(key)
        if token is None or self.authority is None:
            return
        try:
            self.dated[seal.said["run"]] = self.authority.dated(seal.data, token)
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
