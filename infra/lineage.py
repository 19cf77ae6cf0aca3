"""Where an artifact came from: the records behind it, walked from child to parents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore


@dataclass(frozen=True)
class Node:
    """A record, and for each of its inputs the role it played and the node behind it."""

    record_id: str
    record: Record
    parents: tuple[tuple[str, Node], ...]

    def walk(self) -> Iterator[Node]:
        """The node and all behind it, each once."""
        seen: set[str] = set()
        todo = [self]
        while todo:
            node = todo.pop()
            if node.record_id not in seen:
                seen.add(node.record_id)
                yield node
                todo.extend(parent for _, parent in node.parents)

    def as_dict(self) -> dict[str, Any]:
        """Records by id, and the id at the top: shared parents are written once."""
        return {
            "top": self.record_id,
            "records": {node.record_id: node.record.model_dump(mode="json") for node in self.walk()},
        }


def tree(store: ArtifactStore, record_id: str) -> Node:
    """The node of a record with all behind it; VerificationFailed where a link does not hold."""
    known: dict[str, Node] = {}

    def node_of(identity: str) -> Node:
        if identity not in known:
            record = store.get_record(identity)
            parents = []
            for parent in record.parents:
                behind = node_of(parent.record)
                if behind.record.content != parent.digest:
                    raise VerificationFailed(
                        f"record {identity} names {parent.digest} as its {parent.role}, but record "
                        f"{parent.record} made {behind.record.content}"
                    )
                parents.append((parent.role, behind))
            known[identity] = Node(identity, record, tuple(parents))
        return known[identity]

    return node_of(record_id)


def record_of_digest(store: ArtifactStore, digest: str) -> str:
    """Id of the oldest record that made this content; BadInput where there is none."""
    made = [(record.started, identity) for identity, record in store.records() if record.content == digest]
    if not made:
        raise BadInput(f"no record in {store.root_uri} made {digest}; give a digest that a run printed")
    return min(made)[1]
