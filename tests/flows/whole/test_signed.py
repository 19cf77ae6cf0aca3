"""With a key set and nothing else, what somebody without the key wrote into the store is taken by nobody."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attacks import Forger, brought_back, kept, versions
from resprout.infra.store.canonical import canonical_json
from tiny_run import write_run

VERSION = "models:/tiny-pruned/1"


@dataclass(frozen=True)
class Signed:
    """A finished run whose config names a key, and commands under the same settings."""

    root: Path
    config: Path
    env: dict[str, str]
    resprout: Callable[..., Any]

    @property
    def home(self) -> Path:
        return self.root / "home"

    def call(self, *arguments: str | Path, **more: str) -> Any:
        return self.resprout(*arguments, home=self.home, env={**self.env, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Signed:
    root = tmp_path_factory.mktemp("keyed")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", root / "key.pem"], check=True)
    env = {"RESPROUT_INFRA__PROOF__SIGNING_KEY_FILE": str(root / "key.pem")}
    config = write_run(root, select=None, recover=None, measure=None)
    found = Signed(root, config, env, resprout)
    done = found.call("run", config, "--json")
    assert done.code == 0, done.err
    kept(found.home, root / "aside")
    return found


@pytest.fixture
def signed(made: Signed) -> Iterator[Signed]:
    yield made
    brought_back(made.home, made.root / "aside")


def test_a_forged_export_under_its_key_is_neither_registered_nor_vouched_for(
    signed: Signed, tmp_path: Path
) -> None:
    before = versions(signed.home)
    forger = Forger(signed.home)
    _, export = forger.record("export")
    forged = forger.point("export", forger.tampered(export, tmp_path / "tampered"))
    looked = signed.call("verify", "--all")
    assert looked.code == 4, "a record that no known key signed is a fault"
    assert forged in looked.err
    again = signed.call("run", signed.config, "--json")
    assert again.code == 0, again.err
    assert {one["name"]: one["cached"] for one in again.result["stages"]}["export"] is False
    assert versions(signed.home) == before
    seals = [path.read_bytes() for path in (signed.home / "store" / "seals").iterdir()]
    assert not any(forged.encode() in base64.b64decode(json.loads(seal)["payload"]) for seal in seals)


def test_a_forged_record_below_the_export_is_no_hit_either(signed: Signed, tmp_path: Path) -> None:
    forger = Forger(signed.home)
    _, plan = forger.record("prune")
    forger.point("prune", forger.tampered(plan, tmp_path / "tampered"))
    again = signed.call("run", signed.config, "--json")
    assert again.code == 0, again.err
    cached = {one["name"]: one["cached"] for one in again.result["stages"]}
    assert (cached["prune"], cached["export"]) == (False, True)
    assert signed.call("verify", VERSION).code == 0


def test_an_unsigned_ledger_in_the_place_of_a_signed_one_is_not_gone_on_with(signed: Signed) -> None:
    for path in (signed.home / "store" / "registry").rglob("*.json"):
        envelope = json.loads(path.read_bytes())
        statement = json.loads(base64.b64decode(envelope["payload"]))
        said = {**statement["predicate"], "key": None}
        from resprout.infra.provenance.ledger import PREDICATE
        from resprout.infra.provenance.statement import statement as stated
        from resprout.infra.store.signing import UNSIGNED

        path.chmod(0o644)
        path.write_bytes(UNSIGNED.envelope(stated("models:/tiny-pruned", PREDICATE, said)))
    for path in sorted((signed.home / "store" / "registry").rglob("*.json"))[1:]:
        path.unlink()
    again = signed.call("run", signed.config, "--json")
    assert again.code == 4, again.out
    assert "has no signature that counts" in again.err


def test_the_config_may_take_what_nobody_signed(signed: Signed) -> None:
    for path in (signed.home / "store" / "signatures").rglob("*"):
        if path.is_file():
            path.unlink()
    loose = {"RESPROUT_INFRA__PROOF__REQUIRE_SIGNATURES": "false"}
    again = signed.call("run", signed.config, "--json", **loose)
    assert again.code == 0, again.err
    assert all(one["cached"] for one in again.result["stages"])


def test_a_run_with_verification_keys_alone_is_refused_before_it_begins(signed: Signed) -> None:
    public = subprocess.run(
        ["openssl", "pkey", "-in", signed.root / "key.pem", "-pubout", "-out", signed.root / "public.pem"]
    )
    assert public.returncode == 0
    keys = json.dumps([str(signed.root / "public.pem")])
    plain = {"RESPROUT_INFRA__PROOF__VERIFICATION_KEYS": keys}
    refused = signed.resprout("run", signed.config, home=signed.home, env=plain)
    assert refused.code == 2
    assert "give signing_key or signing_key_file, or set require_signatures: false" in refused.err
    assert signed.resprout("verify", VERSION, home=signed.home, env=plain).code == 0


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


def test_a_result_in_prefects_own_form_is_never_decoded(signed: Signed, tmp_path: Path) -> None:
    forger = Forger(signed.home)
    key = forger.pointer("export")
    payload = base64.b64encode(pickle.dumps(Planted(tmp_path / "touched"))).decode()
    planted = {
        "metadata": {
            "storage_key": key.removeprefix("results/"),
            "serializer": {"type": "pickle", "picklelib": "pickle"},
            "prefect_version": "3",
        },
        "result": payload,
    }
    forger.store.driver.put_bytes(key, json.dumps(planted).encode())
    again = signed.call("run", signed.config, "--json")
    assert not (tmp_path / "touched").exists(), "bytes from the store ran as code"
    assert again.code == 0, again.err
    assert {one["name"]: one["cached"] for one in again.result["stages"]}["export"] is False


def test_a_whole_reference_in_prefects_own_form_is_no_way_around_the_signature(
    signed: Signed, tmp_path: Path
) -> None:
    before, forger = versions(signed.home), Forger(signed.home)
    identity, export = forger.record("export")
    forged = forger.tampered(export, tmp_path / "tampered")
    reference = {
        "kind": "export", "digest": forged.content, "key": forged.key, "record": identity, "uri": "",
        "bytes": 1,
    }  # fmt: skip
    key = forger.pointer("export")
    metadata = {"storage_key": forged.key, "serializer": {"type": "json"}, "prefect_version": "3"}
    text = json.dumps({"metadata": metadata, "result": json.dumps(reference)}).encode()
    forger.store.driver.put_bytes(key, text)
    assert signed.call("run", signed.config, "--json").code == 0
    assert versions(signed.home) == before


def test_a_pointer_to_the_record_of_another_config_does_not_count(signed: Signed) -> None:
    forger = Forger(signed.home)
    _, export = forger.record("export")
    (signature,) = (signed.home / "store" / "signatures" / forger.record("export")[0]).iterdir()
    shutil.copy(signature, signed.root / "signature")
    other = export.model_copy(update={"config": {**export.config, "greedy_tokens": 99}})
    identity = forger.store.put_record(other)
    pointer = canonical_json({"digest": other.content, "record": identity})
    forger.store.driver.put_bytes(forger.pointer("export"), pointer)
    loose = {"RESPROUT_INFRA__PROOF__REQUIRE_SIGNATURES": "false"}
    again = signed.call("run", signed.config, "--json", **loose)
    assert again.code == 0, again.err
    assert {one["name"]: one["cached"] for one in again.result["stages"]}["export"] is False
