"""Whether resprout made a version, so that what a run registers does not start the next run.

A tag alone can be lost, so the artifact's digest tells: in the version's source, in the store that it points
into, or by the run whose artifacts it lies among. A copy of a version is followed to where it came from. What
was brought elsewhere byte for byte is known only once it is here, so the flow looks again (see
`store/exports.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from resprout.configs.errors import BadInput
from resprout.infra.relay.registry import Registry, Version
from resprout.infra.store.store import ArtifactStore

CONTENT = re.compile(r"/content/([0-9a-f]{64})(?:/|$)")


def own(trail: Sequence[Version], registry: Registry, store: ArtifactStore) -> str | None:
    """Why the version is resprout's own, by itself or by what it is a copy of; None where it is not."""
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
