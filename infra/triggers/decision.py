"""Decide what a version starts: for a rule the overrides of its run, or a sentence why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase

from resprout.configs.errors import BadInput
from resprout.configs.rules import LoadedRule, Rule, rendered, written
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.model_registry import VERSION_URI, ModelRegistry, RegisteredVersion

BACKFILL = "backfill"
"""The change of a version that was registered before the rule was for its model."""
LOGGED_MODEL = re.compile(r"^models:/m-[0-9a-f]+$")
CONTENT = re.compile(r"/content/([0-9a-f]{64})(?:/|$)")


@dataclass(frozen=True)
class Decision:
    """`overrides` where the rule starts a run; else `why` not, a `fault` where someone should look at it."""

    overrides: tuple[str, ...] = ()
    why: str = ""
    fault: bool = False


def mismatch(rule: Rule, changes: Set[str], name: str) -> str:
    """Why none of these changes of a version called `name` starts the rule; empty where one may."""
    if not rule.fits(name):
        return f"the name {name} fits none of {', '.join(rule.models)}"
    if changes.isdisjoint(rule.on) and not (BACKFILL in changes and rule.backfill):
        return f"it starts on {', '.join(rule.on)}, not on {', '.join(sorted(changes))}"
    return ""


def key_of(rule: str, version: RegisteredVersion, alias: str = "", attempt: int = 0) -> str:
    """Name of what one run is for: Prefect's idempotency key and the flow's claim in the store.

    A model that is deleted and made again counts its versions from 1 again, hence the time.
    """
    parts = [rule, version.name, version.version]
    if version.created:
        parts.append(str(version.created))
    if alias:
        parts.append(f"@{alias}")
    if attempt:
        parts.append(f"again-{attempt}")
    return " ".join(parts)


def aliases_for(rule: Rule, version: RegisteredVersion) -> list[str]:
    """The version's aliases that the rule is for, each of which starts a run; [""] where it names none."""
    return [alias for alias in version.aliases if rule.names(alias)] if rule.aliases else [""]


def decide(
    loaded: LoadedRule,
    version: RegisteredVersion,
    alias: str,
    trail: Sequence[RegisteredVersion],
    own: Callable[[], str | None],
) -> Decision:
    """Whether a rule starts a run for one of `aliases_for` a version.

    `trail` is the version and what it is a copy of; `own` says why resprout itself made it, or None.
    """
    rule = loaded.rule
    if not VERSION_URI.match(version.uri):
        return Decision(why=f"no address can name the model {version.name}", fault=True)
    if why := _unwanted(rule, version, alias):
        return Decision(why=why)
    if not rule.own and (ours := own()):
        return Decision(why=f"resprout registered it: {ours}")
    # The bytes are read where the last copy is; an alias there names no place.
    place = trail[-1].source
    if not rule.accepts(place) or (place.startswith("models:") and not LOGGED_MODEL.match(place)):
        accepted = ", ".join(rule.sources)
        return Decision(
            why=f"the rule does not accept its source {place[:200] or '(none)'}; its sources are {accepted}",
            fault=True,
        )
    about = {
        "name": version.name,
        "version": version.version,
        "alias": alias or next(iter(version.aliases), ""),
        "aliases": list(version.aliases),
        "tags": dict(version.tags),
        "description": version.description,
    }
    try:
        overrides = [written(key, rendered(value, about)) for key, value in rule.overrides.items()]
        # Last, so that no override of a whole section can take it away.
        overrides.append(written("model.source", version.uri))
        loaded.check(overrides)
    except BadInput as error:
        return Decision(why=str(error), fault=True)
    return Decision(tuple(overrides))


def _unwanted(rule: Rule, version: RegisteredVersion, alias: str) -> str:
    """Why the version is none that the rule is for; empty where it is."""
    if set(rule.on) == {"alias"} and not rule.aliases and not version.aliases:
        return "it has no alias any more"
    if rule.aliases and alias not in aliases_for(rule, version):
        has = ", ".join(version.aliases) or "none"
        return f"none of its aliases ({has}) fits {', '.join(rule.aliases)}"
    for tag, pattern in sorted(rule.tags.items()):
        value = version.tags.get(tag)
        if value is None:
            return f"it has no tag {tag}"
        if not fnmatchcase(value, pattern):
            return f"its tag {tag} is '{value[:80]}', which does not fit '{pattern}'"
    return ""


def own_export(
    trail: Sequence[RegisteredVersion], registry: ModelRegistry, store: ArtifactStore
) -> str | None:
    """Why the version is resprout's own, by itself or by what it is a copy of; None where it is not.

    What a run registers must not start the next run. A tag can be lost, so the artifact's digest counts: in
    the version's source, in the store that it points into, or by the run whose artifacts it is among. A
    copy that was brought elsewhere byte for byte is known only once it is here, so the flow looks again
    (`store/exports.py`).
    """
    for version in trail:
        if "resprout.digest" in version.tags:
            return f"{version.uri} has the tag resprout.digest"
        if version.source.startswith(f"{store.root_uri.rstrip('/')}/"):
            return f"{version.uri} points into resprout's store"
        found = CONTENT.search(version.source)
        if found and _holds(store, found[1]):
            return f"{version.uri} points at artifact {found[1]}"
        if version.run_id and f"/{version.run_id}/artifacts" in version.source:
            tags = registry.run_tags(version.run_id)
            if any(name.startswith("resprout.") for name in tags):
                return f"{version.uri} points into the artifacts of resprout's run {version.run_id}"
    return None


def _holds(store: ArtifactStore, digest: str) -> bool:
    try:
        store.manifest(digest)
    except BadInput:
        return False
    return True
