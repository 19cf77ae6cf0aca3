"""Claims: of all runs that are started for one thing, one goes on."""

from __future__ import annotations

import json

from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.driver import Driver


def claim(driver: Driver, key: str, owner: str) -> str:
    """Who has `key`: `owner` where it is the first to ask, or asks again; else the one that was first."""
    name = f"claims/{sha256_hex(key.encode())}.json"
    if driver.put_if_absent(name, canonical_json({"key": key, "owner": owner})):
        return owner
    held = driver.get_bytes(name)
    return owner if held is None else str(json.loads(held)["owner"])
