"""The empty objects that lead from one id to another: made/, used/ and signatures/."""

from __future__ import annotations

from collections.abc import Iterator

from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.driver import Driver

INDEXES = ("made/", "used/", "signatures/")


def pairs(driver: Driver, prefix: str, strays: list[str]) -> Iterator[tuple[str, str]]:
    """The two ids of each key below an index; a key that no index has goes to `strays` instead."""
    for key in driver.list(prefix):
        _, *ids = key.split("/")
        if len(ids) == 2 and all(DIGEST.fullmatch(one) for one in ids):
            yield ids[0], ids[1]
        else:
            strays.append(key)
