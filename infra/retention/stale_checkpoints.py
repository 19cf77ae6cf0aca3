"""Checkpoints that no training will go on from: of finished stages, and of those that were left long ago."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from resprout.infra.store import keys
from resprout.infra.store.checkpoints import ROOM
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.results import ArtifactResults
from resprout.infra.store.store import ArtifactStore


@dataclass
class Kept:
    """All checkpoints of a stage: their bytes, and the seconds since the last write among them."""

    size: int = 0
    age_seconds: float = float("inf")


def stale_checkpoints(store: ArtifactStore, locks: LeaseLockManager, keep_days: float) -> dict[str, int]:
    """Return by stage key the bytes of checkpoints that can go; none of a stage that is at work."""
    found: dict[str, Kept] = {}
    for entry in store.driver.entries(f"{ROOM}/"):
        if not keys.is_stray(entry.key):
            kept = found.setdefault(entry.key.split("/")[1], Kept())
            kept.size += entry.size
            kept.age_seconds = min(kept.age_seconds, entry.age_seconds)
    results = ArtifactResults.of(store)
    return {
        key: kept.size
        for key, kept in sorted(found.items())
        if (kept.age_seconds >= keep_days * 86400.0 or results.find(key) is not None)
        and not locks.is_locked(key)
    }


def drop_checkpoints(
    store: ArtifactStore, locks: LeaseLockManager, stale: Mapping[str, int]
) -> dict[str, int]:
    """Delete the checkpoints of these stages and return what went; a stage that began again keeps its own."""
    me, gone = f"gc-{uuid.uuid4().hex}", {}
    for key, size in stale.items():
        # Under the stage's own lease no one can begin to read them meanwhile.
        if locks.acquire_lock(key, me, acquire_timeout=0):
            try:
                store.driver.delete_folder(f"{ROOM}/{key}")
                gone[key] = size
            finally:
                locks.release_lock(key, me)
    return gone
