"""What a version starts, by rules alone; what resprout registered is known without tags, copied and moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relaying import add_version, rule, write_rules
from resprout.configs.rules import LoadedRule, load_rules
from resprout.infra.store import exports
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.decision import aliases_for, decide, key_of, mismatch, own_export
from resprout.infra.triggers.model_registry import ModelRegistry, RegisteredVersion

One = Callable[..., LoadedRule]


@pytest.fixture
def one(tmp_path: Path) -> One:
    def make(**changes: Any) -> LoadedRule:
        return load_rules(write_rules(tmp_path, rule(**changes)))[0]

    return make


def version(**changes: Any) -> RegisteredVersion:
    return RegisteredVersion("chat-7b", "3", **{"source": "s3://models/chat", **changes})


def why(
    ready: LoadedRule, found: RegisteredVersion, *trail: RegisteredVersion, own: str | None = None
) -> str:
    alias = next(iter(aliases_for(ready.rule, found)), "")
    return decide(ready, found, alias, (found, *trail), lambda: own).why


@pytest.mark.parametrize(
    ("changes", "kind", "name", "heard"),
    [
        ({}, "created", "chat-7b", True),
        ({}, "created", "Chat-7b", False),
        ({}, "created", "chat-7b\nforged line", False),
        ({}, "created", "my-chat-7b", False),
        ({}, "alias", "chat-7b", False),
        ({"on": ["alias", "tag"]}, "tag", "chat-7b", True),
        ({"models": ["a", "ch?t-*"]}, "created", "chat-7b", True),
        ({}, "backfill", "chat-7b", False),
        ({"backfill": True}, "backfill", "chat-7b", True),
        ({"backfill": True, "on": ["tag"]}, "created", "chat-7b", False),
    ],
)
def test_a_rule_hears_of_its_models_and_happenings(
    one: One, changes: dict[str, Any], kind: str, name: str, heard: bool
) -> None:
    assert (not mismatch(one(**changes).rule, {kind}, name)) is heard


@pytest.mark.parametrize(
    ("changes", "facts", "expected"),
    [
        ({}, {}, ""),
        ({"tags": {"stage": "prod*"}}, {"tags": {"stage": "production"}}, ""),
        (
            {"tags": {"stage": "prod*"}},
            {"tags": {"stage": "dev"}},
            "its tag stage is 'dev', which does",
        ),
        ({"tags": {"stage": "prod*"}}, {}, "it has no tag stage"),
        ({"on": ["alias"], "aliases": ["champ*"]}, {"aliases": ("champion",)}, ""),
        (
            {"on": ["alias"], "aliases": ["champ*"]},
            {"aliases": ("x",)},
            r"none of its aliases \(x\) fits",
        ),
        ({"on": ["alias"], "aliases": ["champ*"]}, {}, r"none of its aliases \(none\)"),
        ({"on": ["alias"]}, {}, "it has no alias any more"),
        (
            {"sources": ["s3://models/"]},
            {"source": "s3://other/x"},
            "does not accept its source s3://other/x; its sources are s3://models/$",
        ),
        ({"sources": ["models:/"]}, {"source": "models:/m-0a1b"}, ""),
        ({"sources": ["models:/"]}, {"source": "models:/chat@champion"}, "does not accept its source"),
        ({"sources": ["s3://"]}, {"source": ""}, "does not accept its source"),
    ],
)
def test_a_rule_starts_for_what_it_asks_for(
    one: One, changes: dict[str, Any], facts: dict[str, Any], expected: str
) -> None:
    import re

    found = why(one(**changes), version(**facts))
    assert re.search(expected, found) if expected else found == ""


def test_a_copy_is_accepted_by_where_its_bytes_lie(one: One) -> None:
    copy = version(source="models:/base/1")
    good, evil = (
        RegisteredVersion("base", "1", "s3://models/x"),
        RegisteredVersion("base", "1", "s3://evil/x"),
    )
    for sources in (["s3://models/"], ["s3://models/", "models:/"]):
        ready = one(sources=sources)
        assert why(ready, copy, good) == ""
        assert "s3://evil/x" in why(ready, copy, evil)
    assert "s3://models/x" in why(one(sources=["models:/"]), copy, good)


def test_a_version_of_resprout_starts_only_a_rule_that_says_so(one: One) -> None:
    assert why(one(), version(), own="it has the tag") == "resprout registered it: it has the tag"
    assert why(one(own=True), version(), own="it has the tag") == ""


def test_the_source_is_the_version_whatever_the_overrides_say(one: One) -> None:
    found = version(aliases=("b", "a"), description="as is")
    ready = one(
        on=["alias"],
        aliases=["a", "b"],
        overrides={
            "model": {"dtype": "float32"},
            "register.tags.d": "{{ alias }}{{ aliases }}{{ description }}",
        },
    )
    for alias in ("a", "b"):
        decision = decide(ready, found, alias, (found,), lambda: None)
        assert decision.why == ""
        assert decision.overrides[-1] == 'model.source="models:/chat-7b/3"'
        assert f"register.tags.d=\"{alias}['b', 'a']as is\"" in decision.overrides


def test_each_alias_that_a_rule_names_starts_a_run_of_its_own(one: One) -> None:
    found = version(aliases=("champion", "prod-eu", "prod-us"), created=5)
    assert aliases_for(one().rule, found) == [""]
    named = one(on=["alias"], aliases=["prod-*"]).rule
    assert aliases_for(named, found) == ["prod-eu", "prod-us"]
    assert aliases_for(named, version()) == []
    keys = [key_of("chat", found, alias, attempt) for alias in ("", "prod-eu") for attempt in (0, 2)]
    assert keys == [
        "chat chat-7b 3 5",
        "chat chat-7b 3 5 again-2",
        "chat chat-7b 3 5 @prod-eu",
        "chat chat-7b 3 5 @prod-eu again-2",
    ]


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


def owned(registry: ModelRegistry, store: ArtifactStore, name: str, number: str) -> str | None:
    trail = registry.trail(registry.version(name, number))
    return own_export(trail, registry, store)


def test_it_is_known_in_its_store_without_tags(
    registry: ModelRegistry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    number = add_version(mlflow, "tiny", f"{store.uri(exported)}/hf")
    assert "points into resprout's store" in str(owned(registry, store, "tiny", number))


def test_it_is_known_by_its_digest_in_a_store_that_was_moved(
    registry: ModelRegistry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    number = add_version(mlflow, "tiny", f"s3://moved/elsewhere/content/{exported}/hf")
    assert f"points at artifact {exported}" in str(owned(registry, store, "tiny", number))
    other = add_version(mlflow, "tiny", f"s3://moved/elsewhere/content/{'0' * 64}/hf")
    assert owned(registry, store, "tiny", other) is None


def test_it_is_known_by_its_tag(registry: ModelRegistry, store: ArtifactStore, mlflow: Any) -> None:
    number = add_version(mlflow, "tiny", "s3://models/x", tags={"resprout.digest": "0" * 64})
    assert "has the tag resprout.digest" in str(owned(registry, store, "tiny", number))


def test_a_copy_under_another_name_is_known_without_tags(
    registry: ModelRegistry, store: ArtifactStore, mlflow: Any, exported: str
) -> None:
    add_version(mlflow, "tiny", f"{store.uri(exported)}/hf", tags={"resprout.digest": exported})
    once = mlflow.copy_model_version("models:/tiny/1", "chat-copy")
    twice = mlflow.copy_model_version(f"models:/chat-copy/{once.version}", "chat-again")
    for name, number in (("tiny", "1"), ("chat-copy", str(once.version)), ("chat-again", str(twice.version))):
        for tag in mlflow.get_model_version(name, number).tags:
            mlflow.delete_model_version_tag(name, number, tag)
    assert twice.source == f"models:/chat-copy/{once.version}"
    assert "points into resprout's store" in str(owned(registry, store, "chat-again", str(twice.version)))


def test_the_copy_among_a_runs_artifacts_is_known(
    registry: ModelRegistry, store: ArtifactStore, mlflow: Any
) -> None:
    experiment = mlflow.create_experiment("any")
    ours = mlflow.create_run(experiment, tags={"resprout.config_digest": "0" * 64}).info
    theirs = mlflow.create_run(experiment).info
    found = [
        add_version(mlflow, "tiny", f"mlflow-artifacts:/1/{run.run_id}/artifacts/model", run_id=run.run_id)
        for run in (ours, theirs)
    ]
    elsewhere = add_version(mlflow, "tiny", "s3://models/tuned", run_id=ours.run_id)
    assert f"resprout's run {ours.run_id}" in str(owned(registry, store, "tiny", found[0]))
    assert owned(registry, store, "tiny", found[1]) is None
    assert owned(registry, store, "tiny", elsewhere) is None


def test_anothers_version_is_not_ours(registry: ModelRegistry, store: ArtifactStore, mlflow: Any) -> None:
    assert owned(registry, store, "chat", add_version(mlflow, "chat", "s3://models/chat")) is None


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
