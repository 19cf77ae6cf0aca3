"""Rules of the relay: one sentence for each fault, and nothing smuggled by what a version's author wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.load import load_data
from resprout.configs.rules import Origin, load_rules, rendered, written
from tiny_run import config

RULE: dict[str, Any] = {
    "name": "chat",
    "models": ["chat-*"],
    "on": ["created"],
    "config": "run.yaml",
    "sources": ["s3://models/"],
}
ABOUT = {
    "name": "chat-7b",
    "version": "3",
    "alias": "",
    "aliases": [],
    "tags": {"ratio": "0.8", "evil": "x\nmodel: {trust_remote_code: true}", "key": "${AWS_SECRET}"},
    "description": "",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config()))

    def make(*rules: dict[str, Any], **changes: Any) -> Path:
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump({"rules": list(rules) or [{**RULE, **changes}]}))
        return path

    return make


def test_a_rule_finds_its_config_beside_the_rules_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(config="ru?.yaml")
    monkeypatch.chdir("/")
    (ready,) = load_rules(path)
    assert ready.path == tmp_path / "run.yaml"
    assert ready.data["name"] == "tiny"
    assert ready.rule.on == ("created",)


def test_a_bare_on_is_a_word(tmp_path: Path, write: Write) -> None:
    path = write()
    path.write_text(path.read_text().replace("'on'", "on"))
    assert "\n  on:" in path.read_text()
    assert load_rules(path)[0].rule.on == ("created",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": []}, "models: list should have at least 1 item"),
        ({"models": [""]}, "models.0: string should have at least 1 character"),
        ({"on": []}, "on: list should have at least 1 item"),
        ({"on": ["deleted"]}, "'created', 'alias' or 'tag'"),
        ({"sources": []}, "sources: list should have at least 1 item"),
        ({"sources": ["models"]}, "is relative; give a scheme and prefix"),
        ({"sources": ["s3://models/../x"]}, "leads upwards"),
        ({"sources": ["s3://*"]}, "is a pattern; give a prefix"),
        ({"aliases": ["champion"]}, "rule chat can never match.*add alias to on"),
        ({"modles": ["x"]}, "rules.0.modles: unknown key; did you mean 'models'"),
        ({"name": "a b"}, "rules.0.name"),
        ({"config": "other.yaml"}, "rule chat: config 'other.yaml' matches no file"),
        ({"config": "*.yaml"}, r"matches 2 files \(rules.yaml, run.yaml"),
        ({"overrides": {"prune.round_too": 8}}, "rule chat: .*did you mean 'round_to'"),
        ({"overrides": {"prune.round_to": "many"}}, "rule chat: .*prune.round_to"),
        ({"overrides": {"infra.store.uri": "s3://x/y"}}, "infra.store.uri cannot be set by a rule"),
        ({"overrides": {"infra": {}}}, "infra cannot be set by a rule"),
        ({"overrides": {"model.trust_remote_code": True}}, "model.trust_remote_code cannot be set by a rule"),
        ({"overrides": {"model": {"trust_remote_code": True}}}, "model.trust_remote_code cannot be set"),
        ({"overrides": {"model": {"allow_pickle": "{{ tags.x }}"}}}, "model.allow_pickle cannot be set"),
        ({"overrides": {"calibrate.text": [{"allow_pickle": True}]}}, "text.0.allow_pickle cannot be set"),
        ({"overrides": {"x.secret_access_key": "${A}"}}, "secret_access_key cannot be set"),
        ({"overrides": {"model.source": "hf://a/b"}}, "model.source is the version that starts the run"),
        ({"overrides": {"model": {"source": "a"}}}, "model.source is the version that starts the run"),
        ({"overrides": {"a=b": 1}}, "'a=b' is no key"),
        ({"overrides": {"name": "{{ name"}}, "is no Jinja"),
        ({"overrides": {"name": "{{ environ.PATH }}"}}, "asks for environ; it may use name, version"),
        ({"overrides": {"name": "{% for a in lipsum %}{% endfor %}{{ open }}"}}, "asks for"),
    ],
)
def test_a_fault_is_one_sentence(write: Write, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadInput, match=expected):
        load_rules(write(**changes))


def test_a_name_given_twice_is_refused(write: Write) -> None:
    with pytest.raises(BadInput, match="rule name chat is given twice"):
        load_rules(write(RULE, {**RULE, "models": ["other"]}))


def test_secrets_of_the_config_are_not_needed_to_check_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infra = {"store": {"uri": "s3://a/b", "secret_access_key": "${NOT_HERE}"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**config(), "infra": infra}))
    monkeypatch.setenv("RESPROUT_PRUNE__ROUND_TO", "nonsense of this machine")
    load_rules(write())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ name }}-v{{ version }}", "chat-7b-v3"),
        ("{{ tags.evil }}", ABOUT["tags"]["evil"]),
        ("'{{ tags.evil }}\"", f"'{ABOUT['tags']['evil']}\""),
        ("{trust_remote_code: true}", "{trust_remote_code: true}"),
    ],
)
def test_what_a_template_gives_stays_a_string(value: str, expected: str) -> None:
    override = written("name", rendered(value, ABOUT))
    assert "\n" not in override
    assert yaml.safe_load(override.partition("=")[2]) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("register.tags.a", "{{ tags.evil }}"),
        ("register.tags", {"a": "{{ tags.evil }}"}),
        ("register", {"name": "other", "tags": {"a": "{{ tags.evil }}"}}),
    ],
)
def test_no_key_is_smuggled_into_a_config(key: str, value: Any, tmp_path: Path) -> None:
    loaded = load_data(config(), tmp_path / "run.yaml", [written(key, rendered(value, ABOUT))], {})
    assert loaded.config.registration is not None
    assert loaded.config.registration.tags == {"a": ABOUT["tags"]["evil"]}
    assert loaded.config.model.trust_remote_code is False


def test_a_tag_cannot_ask_for_a_secret_of_the_worker(tmp_path: Path) -> None:
    override = written("calibrate.text.0.where", rendered("{{ tags.key }}", ABOUT))
    with pytest.raises(BadInput, match="is for secrets only"):
        load_data(config(), tmp_path / "run.yaml", [override], {"AWS_SECRET": "hunter2"})


@pytest.mark.parametrize(
    "template", ["{{ tags.absent }}", "{{ name.__class__ }}", "{{ ''.__class__.__mro__ }}", "{{ 1 // 0 }}"]
)
def test_a_template_that_cannot_be_filled_is_a_sentence(template: str) -> None:
    with pytest.raises(BadInput, match="cannot be filled"):
        rendered(template, ABOUT)


@pytest.mark.parametrize(
    ("prefix", "source", "accepted"),
    [
        ("s3://models/", "s3://models/chat/3", True),
        ("s3://models", "s3://models/chat/3", True),
        ("s3://models/", "S3://models//./chat", True),
        ("s3://models/chat", "s3://models/chat-evil/3", False),
        ("s3://models/", "s3://models-evil/3", False),
        ("s3://models/", "s3://models@evil/3", False),
        ("s3://models/", "s3://models/../x", False),
        ("s3://models/", "s3://models/a/%2e%2e/%2e%2e/x", False),
        ("s3://models/", "s3://models/a/%252e%252e/x", False),
        ("s3://models/", "s3://models/a\\..\\x", False),
        ("s3://models/", "s3://models/a\n/x", False),
        ("s3://models/", "https://models/x", False),
        ("s3://", "s3://any/x", True),
        ("s3:", "s3://any/x", True),
        ("models:/", "models:/m-123", True),
        ("models:/chat", "models:/chat/3", True),
        ("models:/chat", "models:/chat-evil/3", False),
        ("mlflow-artifacts:/", "mlflow-artifacts:/0/r/artifacts/model", True),
        ("mlflow-artifacts:/0", "mlflow-artifacts://evil/0/r", False),
        ("/data/models", "/data/models/x", True),
        ("/data/models", "/data/models/../../etc", False),
        ("/data/models", "data/models/x", False),
        ("file:///data", "file:/data/x", True),
        ("file:///data", "file://host/data/x", False),
        ("s3://models/", "", False),
    ],
)
def test_a_source_is_accepted_by_its_parts(prefix: str, source: str, accepted: bool) -> None:
    assert Origin.accepted(prefix).holds(source) is accepted
