"""What a version starts, by rules alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relaying import rule, write_rules
from resprout.configs.rules import Ready, load_rules
from resprout.infra.relay.decide import concerned, decide
from resprout.infra.relay.registry import Version

One = Callable[..., Ready]


@pytest.fixture
def one(tmp_path: Path) -> One:
    def make(**changes: Any) -> Ready:
        return load_rules(write_rules(tmp_path, rule(**changes)))[0]

    return make


def version(**changes: Any) -> Version:
    return Version("chat-7b", "3", **{"source": "s3://models/chat", **changes})


def why(ready: Ready, found: Version, *trail: Version, own: str | None = None) -> str:
    return decide(ready, found, (found, *trail), lambda: own).why


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
    assert bool(concerned([one(**changes)], {kind}, name)) is heard


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
            "does not accept its source s3://other/x",
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
    good, evil = Version("base", "1", "s3://models/x"), Version("base", "1", "s3://evil/x")
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
    decision = decide(ready, found, (found,), lambda: None)
    assert decision.why == ""
    assert decision.overrides[-1] == 'model.source="models:/chat-7b/3"'
    assert "register.tags.d=\"b['b', 'a']as is\"" in decision.overrides
