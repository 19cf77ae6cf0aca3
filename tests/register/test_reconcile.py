"""Registering on a real SQLite registry: which version is taken again, and what is set on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from resprout.configs.infrastructure import MlflowConfig
from resprout.configs.schema import RegisterConfig
from resprout.flows.session import NoDisplay
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.ledger import Registrar
from resprout.infra.provenance.seal import SealHashes
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.core.run import Run
from resprout.tasks.register.reconcile import register

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    made = Tracker(MlflowConfig(experiment="tests"), tmp_path_factory.mktemp("home"))
    made.connect()
    return made


def run_in(home: Path, tracker: Tracker) -> Run:
    store = ArtifactStore(LocalDriver(home / "store"), home, 0)
    locks, results = LeaseLockManager(store.driver), ArtifactResults.of(store)
    return Run(store, tracker, locks, results, NoDisplay(), home, tracker.start("r", {}))


def registrar(run: Run, name: str) -> Registrar:
    return Registrar(run.store, run.tracker, name, run.mlflow_run_id)


def exported(uri: str) -> ArtifactRef:
    return ArtifactRef(kind="export", digest=DIGEST, key="k", record="cd" * 32, uri=uri, bytes=1)


def test_a_version_is_taken_again_only_where_its_source_is_here(tracker: Tracker, tmp_path: Path) -> None:
    config = RegisterConfig(name="moved")
    here, there = run_in(tmp_path / "a", tracker), run_in(tmp_path / "b", tracker)
    ref = exported(here.store.uri(DIGEST))
    assert register(here, config, ref, "hf", {}, "", registrar(here, "moved")).version == "1"
    assert register(here, config, ref, "hf", {}, "", registrar(here, "moved")).version == "1"
    # The reference came out of a cache and still has the first address.
    assert register(there, config, ref, "hf", {}, "", registrar(there, "moved")).version == "2"
    assert register(there, config, ref, "hf", {}, "", registrar(there, "moved")).version == "2"
    found = tracker.version("models:/moved@candidate")
    assert found.source == f"{there.store.uri(DIGEST)}/hf"


def test_changed_tags_are_set_on_the_version_that_is_there(tracker: Tracker, tmp_path: Path) -> None:
    run = run_in(tmp_path, tracker)
    ref = exported(run.store.uri(DIGEST))
    ours = registrar(run, "tagged")
    register(run, RegisterConfig(name="tagged", tags={"team": "a", "kept": "x"}), ref, "hf", {}, "", ours)
    ours.enter("1", SealHashes("x", None), {}, None)
    changed = RegisterConfig(name="tagged", tags={"team": "b", "new": "y"})
    again = register(run, changed, ref, "hf", {}, "", ours)
    assert again.version == "1"
    tags = tracker.version("models:/tagged/1").tags
    assert {name: tags[name] for name in ("team", "kept", "new")} == {"team": "b", "kept": "x", "new": "y"}


def test_a_version_that_only_says_that_it_is_ours_is_not_taken(tracker: Tracker, tmp_path: Path) -> None:
    run = run_in(tmp_path, tracker)
    ref, config = exported(run.store.uri(DIGEST)), RegisterConfig(name="claimed")
    forged = {"resprout.digest": DIGEST, "resprout.record": ref.record, "approved": "yes"}
    tracker.make_version("claimed", f"{run.store.uri(DIGEST)}/hf", run.mlflow_run_id, forged, "")
    assert register(run, config, ref, "hf", {}, "", registrar(run, "claimed")).version == "2"
    # What a run announced before it died is known again, by whoever comes next.
    later = run_in(tmp_path, tracker)
    assert register(later, config, ref, "hf", {}, "", registrar(later, "claimed")).version == "2"
    tracker.tag_version("claimed", "2", {"approved": "yes"})
    assert register(later, config, ref, "hf", {}, "", registrar(later, "claimed")).version == "3"


def test_tags_of_our_own_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"resprout\.digest is written by resprout itself"):
        RegisterConfig(name="m", tags={"resprout.digest": "x"})
