"""Whatever single thing is changed behind a registered version, `verify` finds it and names it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from red_team import RedTeam, replaced, write
from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import MlflowConfig, ProofConfig, StoreConfig
from resprout.flows.audit.verification import examine, examine_all
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore
from seeds import first_seed, seed_of
from tiny_run import write_run

VERSION = "models:/tiny-pruned/1"
CHANGES = 50
STRANGER = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Path:
    """The home of a run whose records, seal and ledger are signed."""
    root = tmp_path_factory.mktemp("signed")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", root / "key.pem"], check=True)
    env = {"RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE": str(root / "key.pem")}
    found = resprout("run", write_run(root), "--json", home=root / "home", env=env)
    assert found.code == 0, found.err
    return root / "home"


@pytest.fixture(scope="module")
def place(home: Path) -> Workspace:
    return opened(home, home.parent / "key.pem")


def opened(home: Path, key: Path) -> Workspace:
    tracker = Tracker(MlflowConfig(), home)
    tracker.connect()
    proof = ProofConfig(signing_key_file=str(key), require_signatures=True)
    return Workspace(ArtifactStore.from_config(StoreConfig(), home, proof), tracker, home)


def missed(team: RedTeam, look: Callable[[], list[str]], changes: int) -> list[str]:
    """Changes that were not found, or not named."""
    found = []
    for number in range(changes):
        with team.change() as change:
            problems = look()
        if not any(word in problem for word in change.names for problem in problems):
            found.append(f"{number}: {change.what}: {problems}")
    return found


@pytest.fixture
def found(place: Workspace) -> Iterator[Callable[[], list[str]]]:
    """What `verify` finds now; at the end everything must be as it was."""

    yield lambda: problems_of(place)
    assert problems_of(place) == []


def problems_of(place: Workspace) -> list[str]:
    try:
        return examine(place, VERSION).problems
    except VerificationFailed as error:
        return [str(error)]


@pytest.mark.random
def test_fifty_changes_are_found_and_named(home: Path, found: Callable[[], list[str]]) -> None:
    team = RedTeam(home, seed_of("fifty changes"))
    assert missed(team, found, CHANGES) == [], first_seed()
    print(f"{team.unseen} changes were drawn again: MLflow serves them to nobody")


@pytest.mark.random
def test_after_gc_backup_and_restore_all_is_as_it_was_and_changes_are_found(
    home: Path, found: Callable[[], list[str]], resprout: Callable[..., Any], tmp_path: Path
) -> None:
    env = {
        "RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE": str(home.parent / "key.pem"),
        "RESPROUT_INFRA__RETENTION__KEEP_DAYS": "0",
        "RESPROUT_INFRA__RETENTION__GRACE_HOURS": "0",
    }
    for verb, at in ((("gc", "--delete"), home), (("backup", tmp_path / "kept"), home)):
        done = resprout(*verb, home=at, env=env)
        assert done.code == 0, done.err
        assert found() == []
    back = resprout("restore", tmp_path / "kept", home=tmp_path / "new", env=env)
    assert back.code == 0, back.err
    place = opened(tmp_path / "new", home.parent / "key.pem")
    assert examine(place, VERSION).problems == []
    team = RedTeam(tmp_path / "new", seed_of("ten changes"))
    assert missed(team, lambda: examine_all(place).problems, 10) == [], first_seed()


KINDS = [
    "store/content", "store/manifests", "store/records", "store/results", "store/signatures", "store/seals",
    "store/registry", "store/exports", "mlartifacts",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_byte_in_each_kind_of_file(home: Path, found: Callable[[], list[str]], kind: str) -> None:
    path = max((one for one in (home / kind).rglob("*") if one.is_file()), key=lambda one: one.stat().st_size)
    data = path.read_bytes()
    middle = len(data) // 2
    with replaced(path):
        write(path, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        assert any(path.name.partition(".")[0] in problem for problem in found()), path


def test_any_end_of_the_ledger_that_was_cut_off(home: Path, found: Callable[[], list[str]]) -> None:
    entries = sorted((home / "store" / "registry").rglob("*.json"))
    assert len(entries) == 3, "announced, about to be named by an alias, and done"
    with ExitStack() as cut:
        for entry in reversed(entries):
            cut.enter_context(replaced(entry))
            entry.unlink()
            assert any("models:/tiny-pruned/1" in problem for problem in found()), entry.name


def test_a_manifest_replaced_by_a_valid_one_of_another_artifact(
    home: Path, found: Callable[[], list[str]]
) -> None:
    one, other = sorted((home / "store" / "manifests").iterdir())[:2]
    with replaced(one):
        write(one, other.read_bytes())
        assert f"the manifest kept for artifact {one.stem} is that of {other.stem}" in found()


def test_an_artifact_that_was_deleted(home: Path, found: Callable[[], list[str]]) -> None:
    manifest = sorted((home / "store" / "manifests").iterdir())[0]
    with replaced(manifest):
        manifest.unlink()
        assert any(f"there is no artifact {manifest.stem}" in problem for problem in found())


def test_an_alias_moved_by_hand_one_added_and_one_taken_away(
    place: Workspace, found: Callable[[], list[str]]
) -> None:
    client = place.tracker.client
    other = client.create_model_version("tiny-pruned", "file:///elsewhere")
    client.set_registered_model_alias("tiny-pruned", "candidate", other.version)
    client.set_registered_model_alias("tiny-pruned", "champion", "1")
    moved = found()
    client.delete_registered_model_alias("tiny-pruned", "champion")
    client.delete_registered_model_alias("tiny-pruned", "candidate")
    gone = found()
    client.set_registered_model_alias("tiny-pruned", "candidate", "1")
    client.delete_model_version("tiny-pruned", other.version)
    assert f"alias of tiny-pruned candidate was changed: it was '1' and is '{other.version}'" in moved
    assert "alias of tiny-pruned champion was added" in moved
    assert "alias of tiny-pruned candidate was removed" in gone


def test_an_alias_moved_with_the_command_is_stated(
    place: Workspace, home: Path, found: Callable[[], list[str]], resprout: Callable[..., Any]
) -> None:
    env = {"RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE": str(home.parent / "key.pem")}
    moved = resprout("alias", VERSION, "champion", home=home, env=env)
    assert moved.code == 0, moved.err
    assert str(place.tracker.version("models:/tiny-pruned@champion").version) == "1"
    assert found() == []
    assert resprout("alias", VERSION, "nothing", "--remove", home=home, env=env).code == 2
    gone = resprout("alias", VERSION, "champion", "--remove", home=home, env=env)
    assert gone.code == 0, gone.err
    assert set(place.tracker.client.get_registered_model("tiny-pruned").aliases) == {"candidate"}


def test_a_tag_and_a_metric_edited_in_mlflow(place: Workspace, found: Callable[[], list[str]]) -> None:
    client = place.tracker.client
    run_id = client.get_model_version("tiny-pruned", "1").run_id
    with RedTeam(place.home, "0").kept_database():
        client.set_model_version_tag("tiny-pruned", "1", "reviewed", "yes")
        client.log_metric(run_id, "recovered.own_acc", 0.99)
        client.set_tag(run_id, "resprout.gate", "failed")
        problems = found()
    assert "models:/tiny-pruned/1: tags reviewed was added" in problems
    run = f"MLflow run {run_id} (tiny):"
    assert f"{run} tags resprout.gate was changed: it was 'passed' and is 'failed'" in problems
    assert any(one.startswith(f"{run} metrics recovered.own_acc value was changed") for one in problems)
    assert any(one.startswith(f"{run} histories recovered.own_acc values was changed") for one in problems)


def test_a_legal_hold_is_no_fault(place: Workspace, found: Callable[[], list[str]]) -> None:
    place.tracker.client.set_model_version_tag("tiny-pruned", "1", "resprout.hold", "case 7")
    held = found()
    place.tracker.client.delete_model_version_tag("tiny-pruned", "1", "resprout.hold")
    assert held == []


def test_a_signature_by_an_unknown_key_counts_for_nothing(home: Path, place: Workspace) -> None:
    stranger = ProofConfig(verification_keys=(f"ed25519:{STRANGER}",), require_signatures=True)
    elsewhere = Workspace(ArtifactStore.from_config(StoreConfig(), home, stranger), place.tracker, home)
    text = "\n".join(examine(elsewhere, VERSION).problems)
    records = [path.stem for path in (home / "store" / "records").iterdir()]
    assert [one for one in records if f"record {one} has no signature that counts" not in text] == []
    assert f"seal of run {place.tracker.version(VERSION).run_id} has no signature that counts" in text
    assert "00000000.json of tiny-pruned has no signature that counts" in text


def test_without_a_key_it_says_whose_signatures_it_cannot_check(home: Path, place: Workspace) -> None:
    plain = Workspace(ArtifactStore.from_config(StoreConfig(), home), place.tracker, home)
    looked = examine(plain, VERSION)
    assert looked.problems == []
    assert any("signed by keys that are not known here" in note for note in looked.notes)


def test_where_signatures_are_required_a_foreign_record_is_no_cache_hit(home: Path, place: Workspace) -> None:
    pointer = sorted((home / "store" / "results").iterdir())[0]
    assert ArtifactResults.of(place.store).find(pointer.name) is not None
    stranger = ProofConfig(verification_keys=(f"ed25519:{STRANGER}",), require_signatures=True)
    elsewhere = ArtifactStore.from_config(StoreConfig(), home, stranger)
    assert ArtifactResults.of(elsewhere).find(pointer.name) is None
    record = json.loads(pointer.read_bytes())["record"]
    (signature,) = (home / "store" / "signatures" / record).iterdir()
    with replaced(signature):
        signature.unlink()
        assert ArtifactResults.of(place.store).find(pointer.name) is None
    assert ArtifactResults.of(place.store).find(pointer.name) is not None


def test_a_sample_looks_at_each_file_and_hashes_some(home: Path, place: Workspace) -> None:
    looked = examine(place, VERSION, share=0.05)
    assert looked.problems == []
    assert "a sample: 5% of the files were hashed, the others only looked up" in looked.notes
    gone = next(path for path in (home / "store" / "content").rglob("*") if path.is_file())
    with replaced(gone):
        gone.unlink()
        assert any(gone.name in problem for problem in examine(place, VERSION, share=0.05).problems)


def test_everything_in_the_registry_at_once(place: Workspace) -> None:
    looked = examine_all(place)
    assert (looked.problems, looked.artifacts) == ([], examine(place, VERSION).artifacts)


def test_the_command(home: Path, resprout: Callable[..., Any]) -> None:
    env = {"RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE": str(home.parent / "key.pem")}
    good = resprout("verify", VERSION, "--sample", "50%", home=home, env=env)
    assert good.code == 0, good.err
    assert "every byte as published, every link holds\n" in good.out
    assert "\nsigned by " in good.out
    for wrong in (
        (),
        (VERSION, "--all"),
        ("--all", "--head", "0" * 64),
        (VERSION, "--sample", "0.5"),
        (VERSION, "--sample", "0%"),
    ):
        assert resprout("verify", *wrong, home=home, env=env).code == 2


def test_a_version_and_a_run_taken_out_of_the_registry(
    place: Workspace, found: Callable[[], list[str]]
) -> None:
    run_id = place.tracker.version(VERSION).run_id
    with RedTeam(place.home, "0").kept_database():
        place.tracker.client.delete_model_version("tiny-pruned", "1")
        assert found() == [f"{VERSION} was removed from the registry: the ledger knows it as version 1"]
        alias = examine(place, "models:/tiny-pruned@candidate").problems
        assert alias == [
            "models:/tiny-pruned@candidate was removed from the registry: the ledger knows it as version 1"
        ]
        assert found()[0] in examine_all(place).problems
        with pytest.raises(BadInput, match="no model version"):
            examine(place, "models:/tiny-pruned/7")
    with RedTeam(place.home, "0").kept_database():
        place.tracker.client.delete_model_version_tag("tiny-pruned", "1", "resprout.record")
        assert any("no resprout.record or resprout.digest tag" in one for one in examine_all(place).problems)
    with RedTeam(place.home, "0").kept_database():
        place.tracker.client.delete_registered_model("tiny-pruned")
        assert found()[0] in examine_all(place).problems
    with RedTeam(place.home, "0").kept_database(), sqlite3.connect(place.home / "mlflow.db") as database:
        database.execute("delete from runs where run_uuid = ?", (run_id,))
        database.commit()
        assert any(f"MLflow run {run_id} cannot be read: no run {run_id}" in one for one in found())


def test_a_ledger_whose_end_was_cut_off_does_not_hold_the_head_that_was_noted(
    place: Workspace, home: Path, found: Callable[[], list[str]]
) -> None:
    ledger = sorted((home / "store" / "registry").rglob("*.json"))
    head = hashlib.sha256(ledger[-1].read_bytes()).hexdigest()
    looked = examine(place, VERSION, head=head)
    assert looked.problems == []
    assert any(note.endswith(f"{len(ledger)} entries, the last with SHA-256 {head}") for note in looked.notes)
    (problem,) = examine(place, VERSION, head="0" * 64).problems
    assert problem.startswith("the ledger of tiny-pruned has no entry 000")
