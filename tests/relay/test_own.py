"""What resprout registered is known by its artifact: with its tags taken away, copied, and moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relaying import add_version
from resprout.infra.relay.own import own
from resprout.infra.relay.registry import Registry
from resprout.infra.store import exports
from resprout.infra.store.store import ArtifactStore


@pytest.fixture
def exported(store: ArtifactStore, tmp_path: Path) -> str:
    """Digest of an export."""
    folder = tmp_path / "export"
    (folder / "hf").mkdir(parents=True)
    (folder / "hf" / "model.safetensors").write_bytes(b"weights")
    (folder / "hf" / "config.json").write_text("{}")
    (folder / "exports.json").write_text("[]")
    digest = store.publish(folder).digest
    exports.note(store, digest)
    return digest


def why(registry: Registry, store: ArtifactStore, name: str, number: str) -> str | None:
    trail = registry.trail(registry.version(name, number))
    return own(trail, registry, store)


def test_it_is_known_in_its_store_without_tags(
    registry: Registry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    number = add_version(mlflow, "tiny", f"{store.uri(exported)}/hf")
    assert "points into resprout's store" in str(why(registry, store, "tiny", number))


def test_it_is_known_by_its_digest_in_a_store_that_was_moved(
    registry: Registry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    number = add_version(mlflow, "tiny", f"s3://moved/elsewhere/content/{exported}/hf")
    assert f"points at artifact {exported}" in str(why(registry, store, "tiny", number))
    other = add_version(mlflow, "tiny", f"s3://moved/elsewhere/content/{'0' * 64}/hf")
    assert why(registry, store, "tiny", other) is None


def test_it_is_known_by_its_tag(registry: Registry, store: ArtifactStore, mlflow: Any) -> None:
    number = add_version(mlflow, "tiny", "s3://models/x", tags={"resprout.digest": "0" * 64})
    assert "has the tag resprout.digest" in str(why(registry, store, "tiny", number))


def test_a_copy_under_another_name_is_known_without_tags(
    registry: Registry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    add_version(mlflow, "tiny", f"{store.uri(exported)}/hf", tags={"resprout.digest": exported})
    once = mlflow.copy_model_version("models:/tiny/1", "chat-copy")
    twice = mlflow.copy_model_version(f"models:/chat-copy/{once.version}", "chat-again")
    for name, number in (("tiny", "1"), ("chat-copy", str(once.version)), ("chat-again", str(twice.version))):
        for tag in mlflow.get_model_version(name, number).tags:
            mlflow.delete_model_version_tag(name, number, tag)
    assert twice.source == f"models:/chat-copy/{once.version}"
    assert "points into resprout's store" in str(why(registry, store, "chat-again", str(twice.version)))


def test_the_copy_among_a_runs_artifacts_is_known(
    registry: Registry, store: ArtifactStore, mlflow: Any
) -> None:
    experiment = mlflow.create_experiment("any")
    ours = mlflow.create_run(experiment, tags={"resprout.config_digest": "0" * 64}).info
    theirs = mlflow.create_run(experiment).info
    found = [
        add_version(mlflow, "tiny", f"mlflow-artifacts:/1/{run.run_id}/artifacts/model", run_id=run.run_id)
        for run in (ours, theirs)
    ]
    elsewhere = add_version(mlflow, "tiny", "s3://models/tuned", run_id=ours.run_id)
    assert f"resprout's run {ours.run_id}" in str(why(registry, store, "tiny", found[0]))
    assert why(registry, store, "tiny", found[1]) is None
    assert why(registry, store, "tiny", elsewhere) is None


def test_anothers_version_is_not_ours(registry: Registry, store: ArtifactStore, mlflow: Any) -> None:
    assert why(registry, store, "chat", add_version(mlflow, "chat", "s3://models/chat")) is None


def test_weights_that_come_back_are_known_whatever_lies_beside_them(
    store: ArtifactStore, exported: str, tmp_path: Path
) -> None:
    for index, (name, data, expected) in enumerate(
        [("model.safetensors", b"weights", exported), ("x.safetensors", b"weights", exported),
         ("model.safetensors", b"other weights", None), ("weights.txt", b"weights", None)]
    ):  # fmt: skip
        folder = tmp_path / f"acquired{index}"
        folder.mkdir()
        (folder / name).write_bytes(data)
        (folder / "source.json").write_text(str(index))
        assert exports.holder(store, store.publish(folder).digest) == expected
