"""Homes that an earlier version wrote go on: tests/support/old_home.py made the one that is unpacked here."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKED = Path(__file__).with_name("old_home.tar.xz")
PRUNED, SLICED = "models:/tiny-pruned/1", "models:/tiny-sliced/1"
KEY = "RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, configs and home of an earlier version, in a place of their own."""
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(PACKED) as archive:
        archive.extractall(root, filter="data")
    return root


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of it for a test that changes it."""
    shutil.copytree(unpacked, tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings with a signing key."""
    path = tmp_path_factory.mktemp("key") / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    return {KEY: str(path)}


def entries(home: Path) -> dict[str, list[dict[str, Any]]]:
    """What the ledgers say, by model, in their order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((home / "store" / "registry").rglob("*.json")):
        said = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))["predicate"]
        found.setdefault(said["name"], []).append(said)
    return found


def files(home: Path) -> dict[str, bytes]:
    """All of a store that is no content."""
    store = home / "store"
    rooms = [one for one in store.iterdir() if one.name != "content"]
    return {str(one): one.read_bytes() for room in rooms for one in room.rglob("*") if one.is_file()}


def test_an_old_home_verifies_and_lists(unpacked: Path, resprout: Callable[..., Any]) -> None:
    home = unpacked / "home"
    verified = resprout("verify", "--all", home=home)
    assert verified.code == 0, verified.err
    audited = resprout("audit", "--strict", "--json", home=home)
    assert audited.code == 0, audited.err
    rows = json.loads(audited.out)
    assert "tiny-pruned" in audited.out
    assert "tiny-sliced" in audited.out
    assert rows
    for version, stages in ((PRUNED, ("recover", "gate", "paser")), (SLICED, ("calibrate", "export"))):
        lineage = resprout("lineage", version, "--json", home=home)
        assert lineage.code == 0, lineage.err
        assert all(stage in lineage.out for stage in stages)
        report = resprout("report", version, "--output", unpacked / "report", home=home)
        assert report.code == 0, report.err


def test_an_old_run_is_made_again(old: Path, resprout: Callable[..., Any]) -> None:
    again = resprout("reproduce", PRUNED, "--into", old / "again", home=old / "home")
    assert again.code == 0, again.err
    assert "reproduced" in again.out + again.err


def test_an_old_run_of_a_name_that_means_another_method_says_which_version_is_needed(
    old: Path, resprout: Callable[..., Any]
) -> None:
    refused = resprout("reproduce", SLICED, "--into", old / "again", home=old / "home")
    assert refused.code == 2, refused.err
    (line,) = [line for line in refused.err.splitlines() if "error" in line]
    assert "slicegpt" in line
    assert "shared_rotation" in line
    assert "made by resprout 0" in line
    assert not (old / "again").exists()


@pytest.mark.parametrize("verb", ["run", "plan", "validate"])
def test_an_old_config_with_that_name_is_refused_once_with_both_presets(
    old: Path, resprout: Callable[..., Any], verb: str
) -> None:
    refused = resprout(verb, old / "sliced.yaml", home=old / "home")
    assert refused.code == 2, refused.err
    assert refused.err.count("slicegpt now gives each block a rotation of its own") == 1
    assert refused.err.count("prune.method: shared_rotation") == 1


def test_a_run_goes_on_in_an_old_home(old: Path, resprout: Callable[..., Any]) -> None:
    ran = resprout("run", old / "run.yaml", "--json", home=old / "home")
    assert ran.code == 0, ran.err
    assert len(entries(old / "home")["tiny-pruned"]) > 2
    verified = resprout("verify", "--all", home=old / "home")
    assert verified.code == 0, verified.err


def test_an_unsigned_history_is_signed_after_a_full_verification(
    old: Path, resprout: Callable[..., Any], key: dict[str, str]
) -> None:
    home = old / "home"
    unsigned = resprout("verify", "--all", home=home, env=key)
    assert unsigned.code == 4
    assert "`resprout sign --adopt` signs it" in unsigned.err
    before, chains = files(home), entries(home)
    looked = resprout("sign", home=home, env=key)
    assert looked.code == 0, looked.err
    assert files(home) == before, "without --adopt nothing is written"
    signed = resprout("sign", "--adopt", "--json", home=home, env=key)
    assert signed.code == 0, signed.err
    assert sorted(signed.result["models"]) == ["tiny-pruned", "tiny-sliced"]
    assert len(signed.result["seals"]) == 2
    for name, chain in entries(home).items():
        assert chain[:-1] == chains[name]
        said = chain[-1]["adopted"]
        assert said == {
            "key": signed.result["key"],
            "records": len(signed.result["records"]),
            "seals": 2,
        }
    verified = resprout("verify", "--all", home=home, env=key)
    assert verified.code == 0, verified.err
    assert "after a full verification" in verified.out
    assert "records are unsigned" not in verified.out
    for version in (PRUNED, SLICED):
        assert resprout("verify", version, home=home, env=key).code == 0
    # Who knows no key verifies what contradicts itself, as before.
    plain = resprout("verify", "--all", home=home)
    assert plain.code == 0, plain.err
    again = resprout("sign", "--adopt", "--json", home=home, env=key)
    assert again.code == 0, again.err
    assert (again.result["records"], again.result["seals"], again.result["models"]) == ([], [], [])


@pytest.mark.parametrize("fault", ["content", "seal", "tag"])
def test_nothing_is_signed_where_verification_finds_a_fault(
    old: Path, resprout: Callable[..., Any], key: dict[str, str], fault: str
) -> None:
    home = old / "home"
    if fault == "content":
        path = max((home / "store" / "content").rglob("*.safetensors"), key=lambda one: one.stat().st_size)
    elif fault == "seal":
        path = next((home / "store" / "seals").iterdir())
    else:
        path = home / "mlflow.db"
    path.chmod(0o644)
    data = path.read_bytes()
    if fault == "tag":
        assert b"resprout.gatepassed" in data
        path.write_bytes(data.replace(b"resprout.gatepassed", b"resprout.gatefailed"))
    else:
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    before = files(home)
    refused = resprout("sign", "--adopt", home=home, env=key)
    assert refused.code == 4, refused.err
    assert "nothing was signed" in refused.err
    after = files(home)
    assert {name: after[name] for name in after if "quarantine" not in name} == before


def test_what_was_signed_later_is_a_fault_once_it_is_taken_away(
    old: Path, resprout: Callable[..., Any], key: dict[str, str]
) -> None:
    home = old / "home"
    assert resprout("sign", "--adopt", home=home, env=key).code == 0
    lost = next((home / "store" / "signatures").rglob("*/*"))
    lost.unlink()
    for env in (key, {}):
        found = resprout("verify", "--all", home=home, env=env)
        assert found.code == 4
        assert lost.parent.name in found.err


def test_a_key_is_needed_to_sign(unpacked: Path, resprout: Callable[..., Any]) -> None:
    refused = resprout("sign", "--adopt", home=unpacked / "home")
    assert refused.code == 2
    assert "give infra.proof.signing_key" in refused.err


def test_a_signed_history_is_a_cache_for_runs_with_the_key(
    copied: Path, finished: Any, resprout: Callable[..., Any], key: dict[str, str]
) -> None:
    signed = resprout("sign", "--adopt", home=copied, env=key)
    assert signed.code == 0, signed.err
    ran = resprout("run", finished.config, "--json", home=copied, env=key)
    assert ran.code == 0, ran.err
    assert [one["name"] for one in ran.result["stages"] if not one["cached"]] == []
    assert resprout("verify", "--all", home=copied, env=key).code == 0
