"""Versions that became the source of another run: from what was acquired back to the record that made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows.place import DIGEST, Place
from resprout.infra.lineage import Node, record_of_digest, tree
from resprout.infra.mlflow.tracking import RECORD
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

ROLE = "version"
"""What the export is to the record that acquired it again."""
Made = Callable[[str], str | None]
"""From the address of a version, models:/name/3, to the record of what it holds."""


def by_registry(place: Place) -> Made:
    """What the registry says of a version now; None where it has none, or none of resprout's."""

    def made(address: str) -> str | None:
        try:
            return place.tracker.version(address).tags.get(RECORD)
        except BadInput:
            return None

    return made


def origin_record(store: ArtifactStore, record: Record, made: Made) -> str | None:
    """Id of the record in this store of the version that was acquired; None where it was no such version.

    What the tags of the version said then goes before what they say now, and where it lay comes last.
    """
    origin = record.origin or {}
    addresses = [address for address in version_addresses(origin) if "@" not in address]
    if not addresses:
        return None
    tags = origin.get("tags")
    named = [tags.get(RECORD) if isinstance(tags, dict) else None, *map(made, addresses)]
    for identity in named:
        if isinstance(identity, str) and DIGEST.match(identity) and store.has_record(identity):
            return identity
    content = f"{store.driver.uri('content')}/"
    digest = str(origin.get("source")).removeprefix(content).partition("/")[0]
    if not DIGEST.match(digest):
        return None
    try:
        return record_of_digest(store, digest)
    except BadInput:
        return None


def version_addresses(origin: dict[str, Any]) -> list[str]:
    """The addresses of the version that an origin names; none where it is of something else."""
    named = (str(origin.get(key, "")) for key in ("uri", "given"))
    return [address for address in dict.fromkeys(named) if address.startswith("models:/")]


def linked(store: ArtifactStore, top: Node, made: Made) -> Node:
    """The node with what is behind every acquired version of this store added as its input, all the way."""
    return _linked(store, top, made, {})


def _linked(store: ArtifactStore, node: Node, made: Made, known: dict[str, Node]) -> Node:
    if node.record_id in known:
        return known[node.record_id]
    # A tag that was moved by hand may name what was made of this very node, which then stays as it is.
    known[node.record_id] = node
    parents = [(role, _linked(store, parent, made, known)) for role, parent in node.parents]
    origin = None if parents else origin_record(store, node.record, made)
    if origin is not None:
        version = _linked(store, tree(store, origin), made, known)
        if all(behind.record_id != node.record_id for behind in version.walk()):
            parents.append((ROLE, version))
    known[node.record_id] = Node(node.record_id, node.record, tuple(parents))
    return known[node.record_id]
