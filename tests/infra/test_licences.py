"""The licence policy: patterns, what a missing licence is, which rule goes first."""

from __future__ import annotations

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import LicencesConfig
from resprout.infra.licences import Credit, check_licences, check_redistribution, findings


@pytest.mark.parametrize(
    ("licence", "deny", "warn", "rule"),
    [
        ("CC-BY-NC-4.0", ("cc-by-nc*",), (), "deny"),
        ("cc-by-nc-4.0", ("CC-BY-NC*",), (), "deny"),
        ("cc-by-4.0", ("cc-by-nc*",), (), None),
        (None, ("unknown",), (), "deny"),
        ("  ", ("unknown",), (), "deny"),
        ("mit", ("unknown",), (), None),
        ("apache-2.0, GPL-3.0", ("gpl-*",), (), "deny"),
        ("gpl-3.0", ("gpl-*",), ("gpl-*",), "deny"),
        ("gpl-3.0", (), ("gpl-*",), "warn"),
        (None, ("*",), (), "deny"),
        ("gpl-3.0", (), (), None),
        ("GPL-3.0 AND MIT", ("gpl-3.0",), (), "deny"),
        ("(GPL-3.0)", ("gpl-3.0",), (), "deny"),
        ("gpl-3.0; mit", ("gpl-3.0",), (), "deny"),
        ("Apache-2.0 WITH LLVM-exception", ("apache-2.0",), (), "deny"),
        ("Apache-2.0 WITH LLVM-exception", ("apache-2.0 with llvm*",), (), "deny"),
        ("MIT OR GPL-3.0", ("gpl-3.0",), (), None),
        ("MIT OR GPL-3.0", ("*gpl*",), (), None),
        ("MIT OR GPL-3.0", ("*gpl*", "mit"), (), "deny"),
        ("GPL-3.0 OR AGPL-3.0", ("gpl-*", "agpl-*"), (), "deny"),
        ("MIT AND (GPL-3.0 OR AGPL-3.0)", ("gpl-*", "agpl-*"), (), "deny"),
        ("MIT AND (GPL-3.0 OR ISC)", ("gpl-*",), (), None),
        ("MIT OR ISC AND GPL-3.0", ("gpl-*",), (), None),
        ("(MIT OR ISC) AND GPL-3.0", ("gpl-*",), (), "deny"),
        ("MIT OR ISC, GPL-3.0", ("gpl-*",), (), "deny"),
        ("GPL-3.0 OR", ("gpl-*",), (), "deny"),
        ("OR GPL-3.0", ("gpl-*",), (), "deny"),
        ("MIT OR (GPL-3.0", ("gpl-*",), (), "deny"),
        ("MIT OR () OR GPL-3.0", ("gpl-*",), (), "deny"),
        ("(" * 2000 + "MIT" + ")" * 2000 + " OR GPL-3.0", ("gpl-*",), (), "deny"),
        ("research or other non-commercial use", ("*non-commercial*",), (), "deny"),
        (";", ("unknown",), (), "deny"),
        ("ISC, MIT OR GPL-3.0", ("*gpl*",), (), None),
        ("Acme terms, v2", ("acme terms, v2",), (), "deny"),
    ],
)
def test_a_licence_against_the_rules(
    licence: str | None, deny: tuple[str, ...], warn: tuple[str, ...], rule: str | None
) -> None:
    found = findings(LicencesConfig(deny=deny, warn=warn), [Credit("data", "d", licence)])
    assert [one.rule for one in found] == ([rule] if rule else [])


def test_all_that_is_denied_is_named_at_once_with_what_to_do() -> None:
    policy = LicencesConfig(deny=("gpl*", "unknown"), warn=("mit",))
    credits = [
        Credit("source model", "hf://a/b@1", "gpl-3.0"),
        Credit("task piqa", "piqa.jsonl", None),
        Credit("recovery rows", "pool.jsonl", "mit"),
    ]
    with pytest.raises(BadInput) as error:
        check_licences(policy, credits)
    said = str(error.value)
    assert "source model hf://a/b@1 has licence gpl-3.0, which infra.licences.deny names ('gpl*')" in said
    assert "task piqa piqa.jsonl has no known licence, which infra.licences.deny names ('unknown')" in said
    assert "`licence:`" in said
    assert "pool.jsonl" not in said
    assert check_licences(policy, credits[2:]) == [
        "recovery rows pool.jsonl has licence mit, which infra.licences.warn names ('mit')"
    ]


@pytest.mark.parametrize(
    "licence", ["Apache-2.0", "CC-BY-NC-4.0", "llama3.1", "MIT OR CC-BY-ND-4.0", "other"]
)
def test_what_may_be_changed_and_passed_on_may_be_pushed(licence: str) -> None:
    check_redistribution([Credit("source model", "org/dense", licence)])


@pytest.mark.parametrize(
    "licence",
    ["CC-BY-ND-4.0", "cc-by-nc-nd-4.0", "MIT AND CC-BY-ND-4.0", "All rights reserved", "Proprietary EULA"],
)
def test_what_must_not_be_passed_on_is_named(licence: str) -> None:
    credits = [Credit("source model", "org/dense", "mit"), Credit("pool", "rows.jsonl", licence)]
    with pytest.raises(BadInput, match=f"pool rows.jsonl \\({licence}\\) forbids to pass on"):
        check_redistribution(credits)


def test_an_unknown_licence_has_to_be_stated() -> None:
    with pytest.raises(BadInput, match=r"known of pool rows\.jsonl .*`licence:` beside"):
        check_redistribution([Credit("source model", "a", "mit"), Credit("pool", "rows.jsonl", None)])
