"""`resprout audit`: a sound registry has nothing at odds; each thing that is at odds is named on its row."""

from __future__ import annotations

import csv
import datetime
import io
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audited import NO_RULES, World, furnish, sealed, signer

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import LicencesConfig, MlflowConfig, StoreConfig
from resprout.flows.audit.descendants import descendants_of
from resprout.flows.audit.table import AuditRow, audit_rows
from resprout.flows.cli import audit as verb
from resprout.flows.workspace import Workspace
from resprout.infra.provenance.ledger import Ledger
from resprout.infra.provenance.seal import collection_key, seal_key, write_collection
from resprout.infra.store import tombstones
from resprout.infra.store.store import ArtifactStore


def test_a_sound_registry_has_nothing_at_odds(world: World) -> None:
    rows = world.rows()
    assert [(row.kind, row.name, row.version, row.verdict) for row in rows] == [
        ("version", "small", "1", "passed"),
        ("version", "small", "2", "none"),
        ("run", "refused", "", "failed"),
    ]
    assert world.problems() == []
    assert {row.signed for row in rows} == {"yes"}
    assert all(row.sealed for row in rows)
    assert rows[1].aliases == ["candidate"]
    assert rows[0].licences == ["apache-2.0", "cc-by-4.0", "unknown"]


def test_what_is_older_is_left_out(world: World) -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert len(world.rows(since=now - datetime.timedelta(hours=1))) == 3
    assert world.rows(since=now + datetime.timedelta(hours=1)) == []


def test_a_record_an_artifact_and_a_seal_that_are_gone(world: World) -> None:
    made = world.writer.made
    world.path(f"records/{made['text'][1]}.json").unlink()
    world.path(f"manifests/{made['pruned'][0]}.json").unlink()
    row = world.rows()[0]
    world.path(seal_key(row.run)).unlink()
    found = world.rows()[0].problems
    assert f"record {made['text'][1]} is missing" in found
    assert any(f"there is no artifact {made['pruned'][0]} in " in problem for problem in found)
    assert any(f"MLflow run {row.run} has no seal" in problem for problem in found)
    assert len(found) == 3


def test_a_changed_record_and_an_erased_artifact(world: World) -> None:
    made = world.writer.made
    path = world.path(f"records/{made['plan'][1]}.json")
    path.write_bytes(path.read_bytes().replace(b"ada", b"eve"))
    world.path(f"manifests/{made['text'][0]}.json").unlink()
    gone = {
        "digest": made["text"][0],
        "files": {},
        "tracked": {},
        "reason": "asked",
        "who": "eve",
        "when": "now",
    }
    tombstones.put(world.place.store.driver, world.signer, tombstones.Tombstone(**gone))
    row = world.rows()[0]
    assert any(f"record {made['plan'][1]} was changed" in problem for problem in row.problems)
    assert row.remarks == [f"artifact {made['text'][0]} was erased"]
    assert not any(made["text"][0] in problem for problem in row.problems)


@pytest.mark.parametrize(
    ("tag", "value", "says"),
    [
        ("resprout.digest", "0" * 64, "tag resprout.digest says 000"),
        ("resprout.source_digest", "0" * 64, "tag resprout.source_digest says 000"),
        ("resprout.plan", "0" * 64, "tag resprout.plan says 000"),
        ("resprout.record", "nonsense", "'nonsense' is no record id"),
        ("resprout.report_record", None, "which is no report on record"),
    ],
)
def test_tags_that_say_something_else_than_the_records(
    world: World, tag: str, value: str | None, says: str
) -> None:
    world.place.tracker.tag_version("small", "1", {tag: value or world.writer.made["gate"][1]})
    first, second = world.rows()[:2]
    assert any(says in problem for problem in first.problems), first.problems
    assert second.problems == []


def test_verdicts_that_seal_and_mlflow_do_not_agree_on(world: World) -> None:
    first, second, refused = world.rows()
    client = world.place.tracker.client
    client.set_tag(first.run, "resprout.gate", "failed")
    client.delete_run(second.run)
    client.set_tag(refused.run, "resprout.gate", "passed")
    rows = world.rows()
    assert [row.verdict for row in rows] == ["passed", "none", "failed"]
    assert [row.problems for row in rows] == [
        [f"tag resprout.gate of run {first.run} says failed, but its seal says passed"],
        [f"run {second.run} was deleted in MLflow"],
        [f"tag resprout.gate of run {refused.run} says passed, but its seal says failed"],
    ]


def test_a_version_whose_gate_failed_or_of_which_nothing_is_known(world: World) -> None:
    first, second = world.rows()[:2]
    client = world.place.tracker.client
    client.set_tag(first.run, "resprout.gate", "failed")
    client.delete_run(second.run)
    for run in (first.run, second.run):
        world.path(seal_key(run)).unlink()
    rows = world.rows()
    assert rows[0].problems == [
        f"the gate of run {first.run} failed, and yet models:/small/1 is registered",
        unsealed(first.run),
    ]
    assert rows[1].problems == [unsealed(second.run), f"run {second.run} was deleted in MLflow"]
    client.restore_run(second.run)
    client.delete_tag(second.run, "resprout.gate")
    assert world.rows()[1].problems == [
        unsealed(second.run),
        f"neither MLflow nor a seal has a verdict of run {second.run}",
    ]


def unsealed(run: str) -> str:
    why = "it never ended well, an old version of resprout made it, or the seal was removed"
    return f"MLflow run {run} has no seal: {why}"


def test_a_sealed_run_that_mlflow_does_not_have_is_told_of_without_a_version(world: World) -> None:
    run = uuid.uuid4().hex
    seal = sealed(world.signer, run, "gone", "passed", world.writer.made["report"][1])
    world.place.store.driver.put_bytes(seal_key(run), seal)
    (row,) = [row for row in world.rows() if row.name == "gone"]
    assert row.problems == [f"run {run} is sealed as passed, but MLflow shows no verdict of it"]


def test_a_version_that_lost_its_tags_is_known_by_the_ledger(world: World) -> None:
    for tag in list(world.place.tracker.version("models:/small/1").tags):
        world.place.tracker.client.delete_model_version_tag("small", "1", tag)
    row = world.rows()[0]
    assert (row.name, row.version, row.verdict, row.signed) == ("small", "1", "passed", "yes")
    assert any("has no resprout.record or resprout.digest tag" in problem for problem in row.problems)


def test_what_was_deleted_from_the_registry_is_known_by_the_ledger(world: World) -> None:
    client = world.place.tracker.client
    first, second = world.rows()[:2]
    client.delete_registered_model_alias("small", "candidate")
    client.delete_model_version("small", "1")
    rows = {(row.kind, row.version): row for row in world.rows()}
    gone = rows["version", "1"]
    assert gone.problems == [removed("1")]
    assert (gone.at, gone.digest, gone.run, gone.verdict) == (first.at, first.digest, first.run, "passed")
    assert rows["version", "2"].problems == ["alias of small candidate was removed"]
    client.delete_registered_model("small")
    assert [row.problems[:1] for row in world.rows()[:2]] == [[removed("1")], [removed("2")]]
    assert second.problems == []


def removed(number: str) -> str:
    return f"models:/small/{number} was removed from the registry: the ledger knows it as version {number}"


def test_aliases_that_were_moved_or_set_by_hand(world: World) -> None:
    world.place.tracker.point_alias("small", "candidate", "1")
    world.place.tracker.point_alias("small", "champion", "2")
    first, second = world.rows()[:2]
    moved = "alias of small candidate was changed: it was '2' and is '1'"
    assert first.problems == [moved], "who asks for the candidate gets this one"
    assert second.problems == [moved, "alias of small champion was added"]


def test_a_version_that_no_ledger_knows(world: World) -> None:
    client, inside = world.place.tracker.client, world.place.store.uri(world.writer.made["export"][0])
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", "file:///elsewhere/model")
    client.create_model_version("by-hand", inside)
    client.create_model_version("by-hand", "file:///elsewhere/model", run_id=world.rows()[0].run)
    rows = [row for row in world.rows() if row.name == "by-hand"]
    assert sorted(row.version for row in rows) == ["2", "3"]
    assert all(any("is not in the ledger" in problem for problem in row.problems) for row in rows)


def test_a_damaged_ledger_is_at_odds_as_are_strays_in_the_store(world: World) -> None:
    driver, ledger = world.place.store.driver, Ledger(world.place.store, "small")
    for key in ("signatures/stray", "used/a/b/c", f"made/{'0' * 64}/notes.txt", "registry/stray"):
        driver.put_bytes(key, b"x")
    first = driver.get_bytes(f"{ledger.prefix}00000000.json") or b""
    driver.put_bytes(f"{ledger.prefix}00000001.json", first)
    whole = world.rows(since=datetime.datetime.now(datetime.UTC))[0]
    assert (whole.kind, whole.name) == ("store", world.place.store.root_uri)
    for key in ("signatures/stray", "used/a/b/c", "notes.txt", "registry/stray", "00000001.json"):
        assert sum(key in problem for problem in whole.problems) == 1, (key, whole.problems)
    assert len(descendants_of(world.place, "s3://data/b").order) == 5


def test_verdicts_are_found_under_any_experiment(world: World) -> None:
    from resprout.infra.mlflow.tracking import Tracker

    tracker = Tracker(MlflowConfig(experiment="other"), world.place.home)
    tracker.connect()
    world.place.tracker.client.delete_experiment(world.place.tracker.experiment_id)
    place = Workspace(world.place.store, tracker, world.place.home)
    rows = audit_rows(place, NO_RULES, None)
    assert [row.verdict for row in rows] == ["passed", "none", "failed"]
    assert all("shows no verdict" not in problem for row in rows for problem in row.problems)


@pytest.mark.parametrize("data", [b"{}", b"no json", b'{"payload": "bm8="}', b'{"payload": "e30="}'])
def test_a_seal_that_cannot_be_read(world: World, data: bytes) -> None:
    first = world.rows()[0]
    world.place.store.driver.put_bytes(seal_key(first.run), data)
    (problem,) = world.rows()[0].problems
    assert problem.startswith(f"the seal of run {first.run} does not hold: ")


def test_a_failed_run_of_which_gc_left_nothing_is_told_of_without_alarm(world: World) -> None:
    refused, report = world.rows()[2], world.writer.made["report"][1]
    world.path(f"records/{report}.json").unlink()
    assert world.rows()[2].problems == [f"record {report} is missing"]
    write_collection(world.place.store, refused.run, [report])
    row = world.rows()[2]
    assert (row.verdict, row.problems) == ("failed", [])
    assert row.remarks[0].startswith(f"gc collected 1 records of run {refused.run} on 20")
    # Here signatures are required, and anybody can write a statement without one.
    world.place.store.driver.delete(collection_key(refused.run))
    world.place.store.signer = signer(required=False)
    write_collection(world.place.store, refused.run, [report])
    world.place.store.signer = world.signer
    unsigned, missing = world.rows()[2].problems
    assert "has no signature that counts" in unsigned
    assert missing == f"record {report} is missing"


def test_a_seal_of_another_run(world: World) -> None:
    first, second = world.rows()[:2]
    other = world.path(seal_key(second.run)).read_bytes()
    world.place.store.driver.put_bytes(seal_key(first.run), other)
    (problem,) = world.rows()[0].problems
    assert problem.startswith(f"the seal of run {first.run} does not hold: ")
    assert problem.endswith(f"is that of run {second.run}")


def test_signatures_count_by_their_keys(world: World) -> None:
    shutil.rmtree(world.path(f"signatures/{world.writer.made['model'][1]}"))
    row = world.rows()[0]
    assert row.signed == "8 of 9"
    assert row.problems == ["1 of 9 records carry no signature that counts"]
    world.place.store.signer = signer(required=False)
    row = world.rows()[0]
    assert row.signed == "no"
    assert row.problems == []
    assert row.remarks == [f"signed by keys that are not known here: {world.signer.own_id}"]


def test_licences_are_held_against_the_policy(world: World) -> None:
    row = world.rows(LicencesConfig(deny=("apache*",), warn=("unknown",)))[0]
    (problem,) = row.problems
    assert problem.startswith("source model hf://acme/tiny@")
    assert problem.endswith("has licence apache-2.0, which infra.licences.deny names ('apache*')")
    assert row.remarks == [
        "data s3://data/b has no known licence, which infra.licences.warn names ('unknown')"
    ]


def test_csv_and_json_hold_every_row_and_strict_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setattr("resprout.flows.workspace.open_workspace", lambda *_, **__: world.place)
    monkeypatch.setenv("RESPROUT_HOME", str(world.place.home))
    verb.audit(as_csv=True)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["name"] for row in rows] == ["small", "small", "refused"]
    assert rows[0]["licences"] == "apache-2.0; cc-by-4.0; unknown"
    verb.audit(as_json=True, strict=True)
    found = json.loads(capsys.readouterr().out)
    assert found["at_odds"] == 0
    assert [row["verdict"] for row in found["rows"]] == ["passed", "none", "failed"]
    world.path(f"manifests/{world.writer.made['model'][0]}.json").unlink()
    verb.audit()
    shown = capsys.readouterr().out
    assert "2 versions, 1 run that failed their gate, 3 at odds" in shown
    assert "small 2 (candidate)" in shown
    with pytest.raises(VerificationFailed, match="3 of 3 rows are at odds"):
        verb.audit(strict=True)


def test_a_cell_is_no_formula() -> None:
    row = AuditRow("run", "=HYPERLINK(1)", "", "", "failed", "", "", problems=["@x", "y"])
    cells = dict(zip(verb.COLUMNS, verb._cells(row), strict=True))
    assert cells["name"] == "'=HYPERLINK(1)"
    assert cells["problems"] == "'@x; y"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"since": "yesterday"}, "give a date as 2026-01-31"),
        ({"as_csv": True, "as_json": True}, "ask for one form at a time"),
    ],
)
def test_bad_input(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        verb.audit(**arguments)


def test_a_finished_run_is_sound(finished: Any, resprout: Callable[..., Any]) -> None:
    done = resprout("audit", "--strict", "--json", "--since", "2020-01-01", home=finished.home)
    assert done.code == 0, done.err
    (row,) = [row for row in done.result["rows"] if row["name"] == "tiny-pruned"]
    assert row["verdict"] == "passed"
    assert row["sealed"]
    assert row["licences"] == ["unknown"]


def test_a_bucket_is_listed_as_a_folder_is(s3: Any, tmp_path: Path, mlflow_template: Path) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    config = StoreConfig(**s3.settings(uuid.uuid4().hex))
    place, writer = furnish(tmp_path, ArtifactStore.from_config(config, tmp_path), signer())
    rows = audit_rows(place, NO_RULES, None)
    assert [row.problems for row in rows] == [[], [], []]
    assert {row.signed for row in rows} == {"yes"}
    found = descendants_of(place, "s3://data/b")
    assert found.roots == [writer.made["text"][1]]
    assert len(found.order) == 5
    place.store.driver.delete(f"manifests/{writer.made['text'][0]}.json")
    assert [len(row.problems) for row in audit_rows(place, NO_RULES, None)] == [1, 1, 1]
