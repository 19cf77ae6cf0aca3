"""The bucket policy grants what the S3 store calls, to who needs it, under one team's prefix, and no more."""

from __future__ import annotations

import ast
import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from many import chain
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.provenance.seal import collection_key, seal_key
from resprout.infra.provenance.timestamp import token_key
from resprout.infra.retention.gc import Collector, plan_collection, take_inventory
from resprout.infra.retention.gc_roots import Roots
from resprout.infra.store import in_use
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "infra" / "deploy"
POLICY = json.loads((DEPLOY / "bucket_policy.json").read_text())
ACTIONS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "list_objects_v2": "s3:ListBucket",
    "get_paginator": "s3:ListBucket",
}
"""The IAM action behind each call of the client (AWS, "Actions, resources, and condition keys for S3")."""
PROOF = ("seals", "timestamps", "collected", "registry", "tombstones")
KEPT = ("content", "records", "signatures", "made", "used", "results", *PROOF)
FLEETING = ("tmp", "locks", "pins", "gc", "checkpoints", "manifests", "quarantine")


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def allowed(role: str, action: str, key: str | None, context: dict[str, str] | None = None) -> bool:
    """Whether the policy lets a role do something with a key, None: with the bucket itself."""
    context = {"aws:SecureTransport": "true", **(context or {})}
    resource = "arn:aws:s3:::BUCKET" + (f"/{key}" if key is not None else "")
    effects = set()
    for statement in POLICY["Statement"]:
        who = statement["Principal"]
        named = ["*"] if who == "*" else as_list(who["AWS"])
        if "*" not in named and f"arn:aws:iam::ACCOUNT:role/{role}" not in named:
            continue
        if not any(fnmatch.fnmatchcase(action, one) for one in as_list(statement["Action"])):
            continue
        if not any(fnmatch.fnmatchcase(resource, one) for one in as_list(statement["Resource"])):
            continue
        if all(holds(*one, context) for one in statement.get("Condition", {}).items()):
            effects.add(statement["Effect"])
    return effects == {"Allow"}


def holds(operator: str, condition: dict[str, str], context: dict[str, str]) -> bool:
    for key, pattern in condition.items():
        if key not in context:
            if not operator.endswith("IfExists"):
                return False
        elif not fnmatch.fnmatchcase(context[key], pattern):
            return False
    return True


def called() -> set[str]:
    """Methods of the S3 client that the store calls."""
    tree = ast.parse((ROOT / "infra" / "store" / "s3.py").read_text())
    return {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "client"
    }


def test_a_runner_may_do_all_that_the_store_calls() -> None:
    assert called() <= set(ACTIONS), "a call whose permission nobody has thought about"
    assert called() >= {"get_object", "put_object", "delete_object", "upload_part", "abort_multipart_upload"}
    for action in {ACTIONS[call] for call in called()} - {"s3:ListBucket", "s3:DeleteObject"}:
        for place in (*KEPT, *FLEETING):
            assert allowed("TEAM-runner", action, f"TEAM/{place}/x"), (action, place)
    assert allowed("TEAM-runner", "s3:ListBucket", None, {"s3:prefix": "TEAM/records/"})


def deleted_by_the_store() -> set[str]:
    """First parts of the keys that the code outside retention deletes."""
    tree = ast.parse((ROOT / "infra" / "store" / "store.py").read_text())
    return {
        node.args[0].func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "delete"
        and isinstance(node.args[0], ast.Call)
        and isinstance(node.args[0].func, ast.Name)
    }


def test_a_runner_deletes_only_what_it_puts_up_for_a_while_or_sets_aside() -> None:
    assert deleted_by_the_store() == {"_manifest", "_quarantine"}
    for place in FLEETING:
        assert allowed("TEAM-runner", "s3:DeleteObject", f"TEAM/{place}/x"), place
    for place in KEPT:
        assert not allowed("TEAM-runner", "s3:DeleteObject", f"TEAM/{place}/x"), place


def test_an_auditor_only_reads() -> None:
    for place in (*KEPT, *FLEETING):
        assert allowed("TEAM-auditor", "s3:GetObject", f"TEAM/{place}/x")
        for action in ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
            assert not allowed("TEAM-auditor", action, f"TEAM/{place}/x"), (action, place)


def test_retention_deletes_all_but_the_proof() -> None:
    assert allowed("TEAM-retention", "s3:DeleteObject", "TEAM/content/x")
    for place in PROOF:
        assert not allowed("TEAM-retention", "s3:DeleteObject", f"TEAM/{place}/x")


def test_gc_deletes_nothing_that_retention_may_not_delete(tmp_path: Path) -> None:
    run = "0" * 32
    made = chain(tmp_path / "store", "run")
    store = ArtifactStore.from_config(StoreConfig(), tmp_path)
    for key in (f"signatures/{made[0].record}/key", seal_key(run), token_key(run)):
        store.driver.put_bytes(key, b"{}")
    in_use.mark(store.driver, made[0].digest, "gc-dead")
    store.driver.put_bytes(f"pins/{made[0].digest}/writer-dead", b"")
    before = set(store.driver.list(""))
    locks, inventory = LeaseLockManager(store.driver), take_inventory(store)
    sealed = {run: [one.record for one in made]}
    collector = Collector(store, locks, inventory, Roots, sealed=sealed)
    collector.run(plan_collection(inventory, Roots(), 0.0))
    locks.close()
    after = set(store.driver.list(""))
    assert len(collector.deleted) == len(made)
    assert len(before - after) > 5 * len(made)
    for key in before - after:
        assert allowed("TEAM-retention", "s3:DeleteObject", f"TEAM/{key}"), key
    for key in after - before:
        assert allowed("TEAM-retention", "s3:PutObject", f"TEAM/{key}"), key
    assert {seal_key(run), token_key(run), collection_key(run)} <= after


@pytest.mark.parametrize("role", ["TEAM-runner", "TEAM-auditor", "TEAM-retention"])
def test_nobody_reaches_another_team_old_versions_or_the_policy(role: str) -> None:
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert not allowed(role, action, "OTHER/content/x")
        assert not allowed(role, action, "TEAMS/content/x")
    assert not allowed(role, "s3:ListBucket", None, {"s3:prefix": "OTHER/"})
    assert not allowed(role, "s3:DeleteObjectVersion", "TEAM/content/x")
    assert not allowed(role, "s3:PutBucketPolicy", None)
    assert not allowed(role, "s3:GetObject", "TEAM/content/x", {"aws:SecureTransport": "false"})
    assert not allowed("somebody-else", "s3:GetObject", "TEAM/content/x")


def test_the_store_lists_no_more_than_its_prefix() -> None:
    from resprout.infra.store.s3 import S3Driver

    asked: list[dict[str, Any]] = []

    class Client:
        meta = type("Meta", (), {"endpoint_url": None})

        def list_objects_v2(self, **given: Any) -> dict[str, Any]:
            asked.append(given)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        S3Driver(Client(), "BUCKET", "/TEAM/").ensure_writable()
    assert allowed("TEAM-runner", "s3:ListBucket", None, {"s3:prefix": asked[0]["Prefix"]})


def test_uploads_that_nobody_finished_are_dropped() -> None:
    (rule,) = json.loads((DEPLOY / "bucket_lifecycle.json").read_text())["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule["Filter"] == {"Prefix": "TEAM/"}
    assert rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] >= 1
    # Nothing expires by age: what is kept is `resprout gc`'s to know.
    assert set(rule) == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}
