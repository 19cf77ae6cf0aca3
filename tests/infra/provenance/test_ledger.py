"""The ledger of a registered model: a chain that shows what was removed, added or written by another."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, StoreConfig
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.ledger import (
    PREDICATE,
    Ledger,
    Registrar,
    RegistryState,
    replay,
    require_signed,
    statement,
)
from resprout.infra.provenance.mlflow_state import Locations
from resprout.infra.provenance.seal import SealHashes, read_seal, seal_key, write_seal
from resprout.infra.store.signing import Signer
from resprout.infra.store.store import ArtifactStore

HERE = Locations("file:///home/store", "file:///home/mlartifacts")


@pytest.fixture
def store(home: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), home)


@pytest.fixture
def tracker(home: Path, mlflow_template: Path) -> Tracker:
    shutil.copy(mlflow_template, home / "mlflow.db")
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    return tracker


def expected(store: ArtifactStore, name: str = "m") -> RegistryState:
    return replay(list(Ledger(store, name).entries()))


def keys(store: ArtifactStore) -> list[str]:
    return list(store.driver.list(Ledger(store, "m").prefix))


def filled(store: ArtifactStore) -> Ledger:
    ledger = Ledger(store, "m")
    ledger.append("r1", HERE, versions={"1": {"source": "a"}}, aliases={"candidate": "1"}, seal="s1")
    ledger.append("r2", HERE, versions={"2": {"source": "b"}}, aliases={"candidate": "2"}, seal="s2")
    ledger.append(None, HERE, aliases={"champion": "1"})
    ledger.append(None, HERE, aliases={"champion": None})
    return ledger


def test_the_entries_fold_to_what_was_said_last(store: ArtifactStore) -> None:
    filled(store)
    found = expected(store)
    assert found.versions == {"1": {"source": "a"}, "2": {"source": "b"}}
    assert found.aliases == {"candidate": "2"}
    assert found.seals == {"r1": "s1", "r2": "s2"}
    assert expected(store, "another") == RegistryState()


def test_an_entry_that_is_removed_moved_or_exchanged_breaks_the_chain(store: ArtifactStore) -> None:
    filled(store)
    first, second, third, _ = keys(store)
    kept = {key: store.driver.get_bytes(key) or b"" for key in keys(store)}
    store.driver.delete(second)
    with pytest.raises(VerificationFailed, match="is not number 1"):
        expected(store)
    store.driver.put_bytes(second, kept[third])
    with pytest.raises(VerificationFailed, match="is not number 1"):
        expected(store)
    store.driver.put_bytes(second, kept[second])
    other = Ledger(store, "other")
    other.append("r1", HERE, versions={"1": {"source": "evil"}})
    store.driver.put_bytes(first, store.driver.get_bytes(f"{other.prefix}00000000.json") or b"")
    with pytest.raises(VerificationFailed, match="does not follow"):
        expected(store)
    store.driver.put_bytes(first, kept[first])
    assert expected(store).aliases == {"candidate": "2"}


def test_an_entry_written_anew_does_not_fit_what_follows(store: ArtifactStore) -> None:
    filled(store)
    elsewhere = ArtifactStore.from_config(StoreConfig(uri=str(store.home / "elsewhere")), store.home)
    Ledger(elsewhere, "m").append("r1", HERE, versions={"1": {"source": "evil"}})
    forged = elsewhere.driver.get_bytes(keys(store)[0]) or b""
    store.driver.put_bytes(keys(store)[0], forged)
    with pytest.raises(VerificationFailed, match="does not follow the one before"):
        expected(store)


def test_writers_at_once_lose_no_entry(store: ArtifactStore) -> None:
    def add(number: int) -> None:
        Ledger(store, "m").append(None, HERE, aliases={f"a{number}": "1"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(12)))
    assert expected(store).aliases == {f"a{number}": "1" for number in range(12)}


def test_a_seal_that_the_ledger_names_is_not_written_anew(store: ArtifactStore, tracker: Tracker) -> None:
    run_id = tracker.start("run", {})
    tracker.make_version("m", "file:///x", run_id, {}, "")
    tracker.end(run_id)
    Registrar(store, tracker, "m", run_id).enter("1", write_seal(store, tracker, run_id), {}, None)
    store.driver.delete(seal_key(run_id))
    Registrar(store, tracker, "m", "next").enter("1", SealHashes("x", None), {}, "candidate")
    assert read_seal(store, run_id) is None


def test_a_run_that_begins_again_after_its_end_states_its_new_seal(
    store: ArtifactStore, tracker: Tracker
) -> None:
    run_id = tracker.start("run", {})
    tracker.make_version("m", "file:///x", run_id, {}, "")
    for _ in range(2):
        tracker.end(run_id)
        sealed = write_seal(store, tracker, run_id)
        Registrar(store, tracker, "m", run_id).enter("1", sealed, {}, None)
    assert expected(store).seals[run_id] == sealed.seal


def signed_by(store: ArtifactStore, *keys: Ed25519PrivateKey) -> ArtifactStore:
    own, *known = [CryptoSigner(key) for key in keys]
    signer = Signer(own, tuple(one.public_key for one in known))
    return ArtifactStore(store.driver, store.home, 0, signer)


def test_a_signed_ledger_is_not_gone_on_with_unsigned(store: ArtifactStore) -> None:
    mine = Ed25519PrivateKey.generate()
    Ledger(store, "m").append(None, HERE, aliases={"old": "1"})
    signed = signed_by(store, mine)
    Ledger(signed, "m").append(None, HERE, aliases={"new": "1"})
    assert expected(signed).aliases == {"old": "1", "new": "1"}
    require_signed("m", list(Ledger(signed, "m").entries()), required=True)
    with pytest.raises(BadInput, match="is signed, and infra"):
        Ledger(store, "m").append(None, HERE, aliases={"forged": "1"})
    other = signed_by(store, Ed25519PrivateKey.generate())
    with pytest.raises(VerificationFailed, match="has no signature that counts"):
        Ledger(other, "m").append(None, HERE, aliases={"forged": "1"})
    bare = ArtifactStore.from_config(StoreConfig(uri=str(store.home / "bare")), store.home)
    for key in keys(store):
        bare.driver.put_bytes(key, store.driver.get_bytes(key) or b"")
    entries = list(Ledger(bare, "m").entries())
    predicate = {**entries[0].predicate, "sequence": 2, "previous": entries[1].sha256, "key": None}
    forged = bare.signer.envelope(statement("models:/m", PREDICATE, predicate))
    store.driver.put_bytes(f"{Ledger(store, 'm').prefix}00000002.json", forged)
    with pytest.raises(VerificationFailed, match="of m has no signature that counts"):
        require_signed("m", list(Ledger(signed, "m").entries()), required=False)
