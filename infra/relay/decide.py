"""What a version starts: for each rule the overrides of its run, or a sentence why it starts none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from resprout.configs.errors import BadInput
from resprout.configs.rules import Ready, Rule
from resprout.configs.templates import rendered, written
from resprout.infra.relay.registry import ANOTHER, Version

BACKFILL = "backfill"
"""What happened to versions that were there before a rule was for them."""
LOGGED = re.compile(r"^models:/m-[0-9a-f]+$")


@dataclass(frozen=True)
class Decision:
    """`overrides` where the rule starts a run; else `why` not, a `fault` where somebody should look at it."""

    rule: Rule
    overrides: tuple[str, ...] = ()
    why: str = ""
    fault: bool = False

    @property
    def starts(self) -> bool:
        return not self.why


def concerned(rules: Iterable[Ready], kinds: Iterable[str], name: str) -> list[Ready]:
    """The rules that one of these happenings to a model of this name can start."""
    kinds = set(kinds)
    return [ready for ready in rules if not deaf(ready.rule, kinds, name)]


def deaf(rule: Rule, kinds: Set[str], name: str) -> str:
    """Why nothing of these kinds that happens to a model of this name starts the rule; empty where it may."""
    if not fits(rule, name):
        return f"the name {name} fits none of {', '.join(rule.models)}"
    if kinds.isdisjoint(rule.on) and not (BACKFILL in kinds and rule.backfill):
        return f"it starts on {', '.join(rule.on)}, not on {', '.join(sorted(kinds))}"
    return ""


def fits(rule: Rule, name: str) -> bool:
    """Whether a rule is for models of this name."""
    # A name with a line break in it would forge lines of the log.
    return name.isprintable() and any(fnmatchcase(name, pattern) for pattern in rule.models)


def decide(
    ready: Ready, version: Version, trail: Sequence[Version], own: Callable[[], str | None]
) -> Decision:
    """Whether a concerned rule starts a run; `trail` is the version and what it is a copy of."""
    rule = ready.rule
    if not ANOTHER.match(version.uri):
        return Decision(rule, why=f"no address can name the model {version.name}", fault=True)
    if why := _unwanted(rule, version):
        return Decision(rule, why=why)
    ours = None if rule.own else own()
    if ours:
        return Decision(rule, why=f"resprout registered it: {ours}")
    # What is read is where the last one lies; an alias there says nothing of a place.
    place = trail[-1].source
    if not rule.accepts(place) or (place.startswith("models:") and not LOGGED.match(place)):
        return Decision(rule, why=f"the rule does not accept its source {place[:200]}", fault=True)
    try:
        overrides = _overrides(rule, version)
        ready.check(list(overrides))
    except BadInput as error:
        return Decision(rule, why=str(error), fault=True)
    return Decision(rule, overrides)


def _unwanted(rule: Rule, version: Version) -> str:
    """Why the version is none that the rule is for; empty where it is."""
    if set(rule.on) == {"alias"} and not rule.aliases and not version.aliases:
        return "it has no alias any more"
    if rule.aliases and not _fitting(rule, version):
        has = ", ".join(version.aliases) or "none"
        return f"none of its aliases ({has}) fits {', '.join(rule.aliases)}"
    for tag, pattern in sorted(rule.tags.items()):
        value = version.tags.get(tag)
        if value is None:
            return f"it has no tag {tag}"
        if not fnmatchcase(value, pattern):
            return f"its tag {tag} is '{value[:80]}', which does not fit '{pattern}'"
    return ""


def _fitting(rule: Rule, version: Version) -> list[str]:
    patterns = rule.aliases or ("*",)
    return [alias for alias in version.aliases if any(fnmatchcase(alias, pattern) for pattern in patterns)]


def _overrides(rule: Rule, version: Version) -> tuple[str, ...]:
    about = {
        "name": version.name,
        "version": version.version,
        "alias": next(iter(_fitting(rule, version)), ""),
        "aliases": list(version.aliases),
        "tags": dict(version.tags),
        "description": version.description,
    }
    own = [written(key, rendered(value, about)) for key, value in rule.overrides.items()]
    # Last, so that no override of a whole section can take it away.
    return (*own, written("model.source", version.uri))
