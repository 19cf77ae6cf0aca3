"""The provenance statement: what the two specifications want, all that a record knows, equal when rebuilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from lineages import CONFIG, Writer, nodes, write_lineage
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.provenance.statement import ARTIFACT, provenance
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    store = ArtifactStore.from_config(StoreConfig(), tmp_path / "home")
    return write_lineage(store, tmp_path / "scratch")


def statement(writer: Writer, report: bool = True) -> dict[str, Any]:
    made, reported = nodes(writer)
    return provenance(made, writer.store.manifest(made.record.content).files, reported if report else None)


def test_it_is_a_statement_and_a_predicate_of_the_specifications(writer: Writer) -> None:
    made = statement(writer)
    Statement.copy_from_pb(
        json_format.ParseDict(made, statement_pb2.Statement(), ignore_unknown_fields=False)
    ).validate()
    # Unknown or misspelt fields of the predicate raise here.
    predicate = json_format.ParseDict(made["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type == "urn:resprout:compress:v1"
    assert predicate.run_details.metadata.started_on.ToJsonString() == "2026-01-02T03:01:00Z"
    assert predicate.run_details.metadata.finished_on.ToJsonString() == "2026-01-02T03:09:01.500Z"


def test_every_file_of_the_export_is_a_subject(writer: Writer) -> None:
    digest, _ = writer.made["export"]
    subjects = statement(writer)["subject"]
    assert subjects[0] == {"name": f"artifact {digest}", "digest": {ARTIFACT: digest}}
    with writer.store.open(digest) as folder:
        files = {
            path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes())
            for path in folder.rglob("*")
            if path.is_file()
        }
    assert {one["name"]: one["digest"]["sha256"] for one in subjects[1:]} == files
    assert len(files) == 3


def test_it_names_config_seeds_sources_licences_code_and_libraries(writer: Writer) -> None:
    definition = statement(writer)["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"config": CONFIG}
    stages = {one["stage"]: one for one in definition["internalParameters"]["stages"]}
    assert (stages["prune"]["seed"], stages["prune"]["dtype"], stages["prune"]["device"]) == (
        17,
        "float32",
        "cpu",
    )
    assert {one["record"] for one in definition["internalParameters"]["stages"]} == {
        record for _, record in writer.made.values()
    }
    named = {one["uri"]: one for one in definition["resolvedDependencies"]}
    model = named["hf://acme/tiny@" + "1" * 40]
    assert model["digest"] == {ARTIFACT: writer.made["model"][0], "gitCommit": "1" * 40}
    assert model["annotations"]["licence"] == "apache-2.0"
    assert named["file:///data/a.jsonl"]["digest"]["sha256"] == "aa" * 32
    assert named["file:///data/a.jsonl"]["annotations"]["licence"] == "cc-by-4.0"
    assert named["s3://data/b"]["annotations"]["licence"] == "unknown"
    assert named["pkg:pypi/resprout@0.1.0"]["annotations"]["uncommitted_changes"] == "false"
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in named
    assert "pkg:generic/python@3.11.7" in named
    produced = {
        one["name"]: one["digest"][ARTIFACT]
        for one in statement(writer)["predicate"]["runDetails"]["byproducts"]
    }
    assert produced == {name: writer.made[name][0] for name in ("plan", "gate", "report")}


def test_it_is_the_same_when_it_is_built_again(writer: Writer) -> None:
    again = json.loads(canonical_json(statement(writer)))
    assert canonical_json(again) == canonical_json(statement(writer))


def test_another_record_makes_another_statement(writer: Writer, tmp_path: Path) -> None:
    other = ArtifactStore.from_config(StoreConfig(), tmp_path / "other")
    changed = write_lineage(other, tmp_path / "again", {"prune": {"method": "wanda_sp"}})
    assert canonical_json(statement(changed)) != canonical_json(statement(writer))


def test_without_a_report_it_tells_of_the_artifact_alone(writer: Writer) -> None:
    made = statement(writer, report=False)["predicate"]
    stages = [one["stage"] for one in made["buildDefinition"]["internalParameters"]["stages"]]
    assert sorted(stages) == ["acquire_model", "export", "plan", "prune"]
    assert [one["name"] for one in made["runDetails"]["byproducts"]] == ["plan"]
