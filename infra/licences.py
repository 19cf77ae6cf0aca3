"""The licence policy: refuse a source by its licence, or warn of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import LicencesConfig

FORBIDDING = (
    "*-nd-*",
    "*-nd",
    "all rights reserved",
    "all-rights-reserved",
    "proprietary*",
    "confidential*",
    "evaluation-only*",
    "research-only*",
    "no-redistribution*",
    "licenseref-proprietary*",
)
"""Licences under which a changed model must not be given to others: those without derivatives (Creative
Commons ND), and what owners write where they keep all rights."""
UNKNOWN = "unknown"
"""Name of a missing licence, in patterns as well."""
OPERATORS = ("and", "or", "with")
DEEPEST = 50
"""Brackets in an expression; what has more is none."""


@dataclass(frozen=True)
class Credit:
    """Something that a model is made from: the part it plays, its name, and the licence it stands under.

    The name is the same on every machine: an address, or a file's or folder's own name.
    """

    role: str
    name: str
    licence: str | None

    @property
    def shown_licence(self) -> str:
        return self.licence or UNKNOWN


@dataclass(frozen=True)
class PolicyFinding:
    """A credit whose licence a rule of the policy names."""

    rule: Literal["deny", "warn"]
    pattern: str
    credit: Credit

    def __str__(self) -> str:
        credit = self.credit
        licence = f"licence {credit.licence}" if credit.licence else "no known licence"
        return (
            f"{credit.role} {credit.name} has {licence}, which infra.licences.{self.rule} names "
            f"('{self.pattern}')"
        )


def check_licences(policy: LicencesConfig, credits: Iterable[Credit]) -> list[str]:
    """Return a sentence for each source that the policy warns of; BadInput names all that it denies."""
    found = findings(policy, credits)
    denied = [str(one) for one in found if one.rule == "deny"]
    if denied:
        raise BadInput(
            f"{'; '.join(denied)}: give another source, state its licence by `licence:` beside the source "
            "where the files do not name it, or change infra.licences"
        )
    return [str(one) for one in found]


def check_redistribution(credits: Iterable[Credit]) -> None:
    """Raise BadInput where a licence behind a model forbids to pass it on, or is not known."""
    found = findings(LicencesConfig(deny=FORBIDDING, warn=(UNKNOWN,)), credits)
    named: dict[str, list[str]] = {"deny": [], "warn": []}
    for one in found:
        named[one.rule].append(f"{one.credit.role} {one.credit.name} ({one.credit.shown_licence})")
    if named["deny"]:
        raise BadInput(
            f"the licence of {' and of '.join(named['deny'])} forbids to pass on what is made of it, so "
            "nothing may be pushed; give another source, or leave push out"
        )
    if named["warn"]:
        raise BadInput(
            f"no licence is known of {' and of '.join(named['warn'])}, so nothing may be pushed; state it by "
            "`licence:` beside the source and run again, which makes no more than the export anew"
        )


def findings(policy: LicencesConfig, credits: Iterable[Credit]) -> list[PolicyFinding]:
    """Return the credits whose licence a rule of the policy names, each once: `deny` goes before `warn`.

    Licences may be SPDX expressions (spdx.github.io/spdx-spec, annex D). Of what AND, WITH, a comma or a
    semicolon join each part counts; of alternatives, joined by OR, one that no pattern names is enough.
    """
    found: list[PolicyFinding] = []
    for credit in credits:
        licence = credit.licence or ""
        if (pattern := _naming(licence, policy.deny)) is not None:
            found.append(PolicyFinding("deny", pattern, credit))
        elif (pattern := _naming(licence, policy.warn)) is not None:
            found.append(PolicyFinding("warn", pattern, credit))
    return found


def _naming(licence: str, patterns: Iterable[str]) -> str | None:
    """The pattern that names the licence, of several that do so together the last; None where none does."""
    used: list[str | None] = []

    def is_named(name: str) -> bool:
        hit = next((one for one in patterns if fnmatchcase(name, one.strip().lower())), None)
        used.append(hit)
        return hit is not None

    whole = " ".join(licence.lower().split())
    if "or" not in re.findall(r"\w+", whole) and is_named(whole):
        return used[-1]
    for part in [part for part in re.split("[;,]", whole) if part.strip()] or [UNKNOWN]:
        tokens = re.findall(r"[()]|[^\s()]+", part)
        expression = _is_expression(tokens)
        if not (expression and "or" in tokens) and is_named(part.strip()):
            return used[-1]
        if expression and _is_denied(tokens[::-1], is_named):
            return next(one for one in reversed(used) if one is not None)
        if not expression and any(is_named(token) for token in tokens):
            return used[-1]
    return None


def _is_expression(tokens: list[str]) -> bool:
    """Whether names and operators follow each other as they should; else it is a licence in plain words."""
    if tokens.count("(") > DEEPEST:
        return False
    kinds = "".join(one if one in "()" else "o" if one in OPERATORS else "a" for one in tokens)
    shorter = ""
    while kinds != shorter:
        kinds, shorter = re.sub(r"aoa|\(a\)", "a", kinds), kinds
    return kinds == "a"


def _is_denied(tokens: list[str], is_named: Callable[[str], bool]) -> bool:
    """Whether each alternative has a part that is named; takes the tokens from the end up to a bracket."""
    alternatives = [False]
    while tokens and (token := tokens.pop()) != ")":
        if token == "or":
            alternatives.append(False)
        elif token == "(":
            alternatives[-1] |= _is_denied(tokens, is_named)
        elif token not in OPERATORS:
            alternatives[-1] |= is_named(token)
    return all(alternatives)
