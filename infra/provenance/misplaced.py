"""Entries of a store's indexes, and of what was set aside, held against what they lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store import keys
from resprout.infra.store.manifest import Manifest
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore, index_keys

THREADS = 8


def misplaced(store: ArtifactStore, left_behind: Callable[[str, str], Iterator[str]]) -> Iterator[str]:
    """A sentence for each entry that leads nowhere, or elsewhere than it says; each record is read once.

    `left_behind(record, problem)` has none where a run that was killed left what is there of the record.
    """
    driver = store.driver
    ids = [identity for (identity,) in keys.own(driver, "records")]
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(ids, pool.map(lambda one: _record(store, one), ids), strict=True))
    wanted: set[str] = set()
    for identity, record in read.items():
        if isinstance(record, str):
            yield record
        else:
            wanted.update(index_keys(identity, record))
    for room in ("made", "used"):
        for parts in keys.own(driver, room):
            key = "/".join((room, *parts))
            # What is wrong with a record is said once.
            if key not in wanted and not isinstance(read.get(parts[-1]), str):
                problem = f"index entry {driver.uri(key)} leads to no record that says so"
                yield from [problem] if parts[-1] in read else left_behind(parts[-1], problem)
    for identity, key_id in keys.own(driver, "signatures"):
        if identity not in read:
            where = driver.uri(f"signatures/{identity}/{key_id}")
            yield from left_behind(identity, f"signature {where} is on no record that is there")
    for (digest,) in keys.own(driver, "quarantine"):
        yield from _set_aside(store, digest)


def _record(store: ArtifactStore, identity: str) -> Record | str:
    """A record, or a sentence where it cannot be read."""
    try:
        return store.get_record(identity)
    except (BadInput, VerificationFailed) as error:
        return str(error)


def _set_aside(store: ArtifactStore, digest: str) -> Iterator[str]:
    key = f"quarantine/{digest}.json"
    where = store.driver.uri(key)
    try:
        Manifest.loads(store.driver.get_bytes(key) or b"", digest)
    except VerificationFailed as error:
        yield f"{where} is no manifest that was set aside: {error}"
        return
    if store.driver.head(f"manifests/{digest}.json") is not None:
        yield f"{where} says that artifact {digest} is set aside, but it is there; delete the entry"
