"""The licence policy: which source stands under a licence that is refused or told of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from resprout.configs.schema import LicencesConfig

UNKNOWN = "unknown"
"""What a missing licence is called, in patterns as well."""


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
class Finding:
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


def findings(policy: LicencesConfig, credits: Iterable[Credit]) -> list[Finding]:
    """What the policy says of the credits, each at most once: `deny` goes before `warn`."""
    found = []
    for credit in credits:
        named = _names(credit.licence)
        rules: tuple[tuple[Literal["deny", "warn"], tuple[str, ...]], ...] = (
            ("deny", policy.deny),
            ("warn", policy.warn),
        )
        hit = next(
            (
                Finding(rule, pattern, credit)
                for rule, patterns in rules
                for pattern in patterns
                if any(fnmatchcase(name, pattern.strip().lower()) for name in named)
            ),
            None,
        )
        if hit is not None:
            found.append(hit)
    return found


def _names(licence: str | None) -> list[str]:
    """The licence as it stands and, where a source has several, each of them."""
    if licence is None or not licence.strip():
        return [UNKNOWN]
    return [licence.strip().lower(), *(part.strip().lower() for part in licence.split(",") if part.strip())]
