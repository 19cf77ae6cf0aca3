"""`verify` and `audit` run the same checks: what one finds at a shallow depth, the other finds as well."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audited import World

from resprout.configs.infrastructure import LicencesConfig
from resprout.flows.audit.checks import CHECKS
from resprout.flows.audit.verification import Verification, examine, examine_all
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.seal import collection_key, seal_key

SECOND, STRAY = "models:/small/2", "signatures/stray"
DENY = LicencesConfig(deny=("apache*",))


def run_of(world: World, reference: str = SECOND) -> str:
    return str(world.place.tracker.version(reference).run_id)


def elsewhere(world: World) -> None:
    with sqlite3.connect(world.place.home / "mlflow.db") as database:
        database.execute("update model_versions set source = 'file:///elsewhere' where version = 2")


def changed(world: World, key: str) -> None:
    path = world.path(key)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"ada", b"eve"))


def put(world: World, key: str) -> None:
    world.place.store.driver.put_bytes(key, b"{}")


FAULTS: dict[str, tuple[Callable[[World], Any], str]] = {
    "registered": (
        lambda w: w.place.tracker.client.delete_model_version_tag("small", "2", "resprout.record"), SECOND,
    ),
    "ledger": (lambda w: w.place.tracker.tag_version("small", "2", {"team": "a"}), SECOND),
    "aliases": (
        lambda w: w.place.tracker.client.set_registered_model_alias("small", "champion", "2"),
        "alias of small champion",
    ),
    "tags": (lambda w: w.place.tracker.tag_version("small", "2", {"resprout.method": "other"}), SECOND),
    "source": (elsewhere, SECOND),
    "version of the seal": (lambda w: w.seal(run_of(w), registered="models:/small/1"), SECOND),
    "licences": (lambda w: None, SECOND),
    "seal": (lambda w: w.path(seal_key(run_of(w))).unlink(), "{run}"),
    "verdict": (lambda w: w.place.tracker.client.set_tag(run_of(w), "resprout.gate", "failed"), "{run}"),
    "report": (lambda w: w.seal(run_of(w), report=None, registered=SECOND), "{run}"),
    "collection": (lambda w: put(w, collection_key(run_of(w))), "{run}"),
    "licences of the run": (lambda w: None, "{refused}"),
    "record": (lambda w: changed(w, f"records/{w.writer.made['plan'][1]}.json"), "{plan}"),
    "signed": (lambda w: shutil.rmtree(w.path(f"signatures/{w.writer.made['plan'][1]}")), "{plan}"),
    "artifact": (lambda w: w.path(f"manifests/{w.writer.made['plan'][0]}.json").unlink(), "{digest}"),
    "ledgers": (lambda w: put(w, f"registry/{'0' * 64}/00000000.json"), "00000000.json"),
    "tombstones": (lambda w: put(w, f"tombstones/{'0' * 64}.json"), "0" * 64),
    "strays in the indexes": (lambda w: put(w, STRAY), STRAY),
}  # fmt: skip
"""For each shallow check a fault that it finds, and what its message must name."""


def test_every_shallow_check_has_a_fault_here() -> None:
    assert list(FAULTS) == [check.name for check in CHECKS if check.depth == "shallow"]
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_a_sound_home_has_no_finding(world: World) -> None:
    looked = examine_all(world.place)
    assert (looked.problems, looked.versions) == ([], [])
    assert (looked.artifacts, looked.records) == (9, 9)


@pytest.mark.parametrize("name", list(FAULTS))
def test_audit_and_verify_report_the_same_versions(world: World, name: str) -> None:
    fault, named = FAULTS[name]
    made, (*_, refused) = world.writer.made, world.rows()
    named = named.format(run=run_of(world), refused=refused.run, plan=made["plan"][1], digest=made["plan"][0])
    fault(world)
    policy = DENY if name.startswith("licences") else LicencesConfig()
    rows = world.rows(policy)
    found = {}
    for depth in ("shallow", "deep"):
        verification = Verification(world.place, depth, policy)  # type: ignore[arg-type]
        list(verification.everything())
        shallow = {check.name for check in CHECKS if check.depth == "shallow"}
        found[depth] = {one for one in verification.findings() if one[2].check in shallow}
        versions = verification.result().versions
        at_odds = [row for row in rows if row.kind == "version" and row.problems]
        audited = [f"models:/{row.name}/{row.version}" for row in at_odds]
        assert versions == audited, depth
    assert found["shallow"] == found["deep"]
    messages = [one.message for _, _, one in found["deep"] if one.check == name]
    assert messages
    assert all(
        named in message or (name == "licences" and "models:/small/1" in message) for message in messages
    )
    assert set(messages) <= set(examine_all(world.place, policy=policy).problems)


def test_verify_of_one_version_says_what_verify_of_all_says_of_it(world: World) -> None:
    world.place.tracker.tag_version("small", "2", {"resprout.method": "other"})
    (one, other) = examine(world.place, SECOND).problems
    assert one.startswith(f"{SECOND}: tags resprout.method was changed")
    assert other.startswith(f"{SECOND}: tag resprout.method says other, but")
    assert examine(world.place, "models:/small/1").problems == []
    assert examine_all(world.place).problems == [one, other]


def test_what_verify_finds_at_odds_audit_shows(copied: Path, resprout: Callable[..., Any]) -> None:
    """The registry was edited by hand: `verify --all` ends with 4, and so `audit` may not say 0 at odds."""
    from resprout.configs.infrastructure import MlflowConfig

    tracker = Tracker(MlflowConfig(), copied)
    tracker.connect()
    tracker.tag_version("tiny-pruned", "1", {"resprout.method": "other"})
    looked = resprout("verify", "--all", "--json", home=copied)
    assert looked.code == 4
    assert "models:/tiny-pruned/1: tag resprout.method says other, but" in looked.err
    assert looked.result["versions"] == ["models:/tiny-pruned/1"]
    audited = resprout("audit", "--strict", home=copied)
    assert audited.code == 4
    assert "1 version, 0 runs that failed their gate, 1 at odds" in audited.out
