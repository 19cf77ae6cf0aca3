"""Where an artifact came from: the records behind it, walked from child to parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.licences import Credit
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
    return _node(store, record_id, {})


def trees(store: ArtifactStore, record_ids: Iterable[str]) -> list[Node]:
    """The nodes of these records and of all behind them, each once; VerificationFailed as in `tree`."""
    known: dict[str, Node] = {}
    for record_id in record_ids:
        _node(store, record_id, known)
    return list(known.values())


def _node(store: ArtifactStore, record_id: str, known: dict[str, Node]) -> Node:
    if record_id not in known:
        record = store.get_record(record_id)
        parents = []
        for parent in record.parents:
            behind = _node(store, parent.record, known)
            if behind.record.content != parent.digest:
                raise VerificationFailed(
                    f"record {record_id} names {parent.digest} as its {parent.role}, but record "
                    f"{parent.record} made {behind.record.content}"
                )
            parents.append((parent.role, behind))
        known[record_id] = Node(record_id, record, tuple(parents))
    return known[record_id]


def record_of_digest(store: ArtifactStore, digest: str) -> str:
    """Id of the oldest record that made this content, a signed one first; BadInput where there is none."""
    made = []
    for identity in store.records_of(digest):
        try:
            record = store.get_record(identity)
        except (BadInput, VerificationFailed):
            # An entry without a record, say of a process that died in between, leads nowhere.
            continue
        if record.content == digest:
            made.append((not store.signed_by(identity, record.dumps()), record.started, identity))
    if not made:
        raise BadInput(f"no record in {store.root_uri} made {digest}; give a digest that a run printed")
    return min(made)[-1]


@dataclass(frozen=True)
class RecordedSource:
    """One source of an acquired artifact: its address, what it was pinned to, and its licence."""

    what: str
    """source model, encoder, or data."""
    uri: str
    given: str
    """The address as the run's config has it."""
    licence: str | None
    sha256: dict[str, str]
    """Hashes of its files, where it keeps such."""
    commit: str | None

    @property
    def name(self) -> str:
        """Name on the model card: its address, or the name of its file or folder."""
        return unquote(self.uri).rpartition("/")[2] if self.uri.startswith("file:") else self.uri


def sources_behind(nodes: Mapping[str, Node]) -> list[tuple[str, RecordedSource]]:
    """Source model, encoder and data with the ids of the records that brought them, sorted."""
    found = [
        (source.what != "source model", source.uri, identity, index, source)
        for identity, node in nodes.items()
        for index, source in enumerate(sources(node.record))
    ]
    found.sort(key=lambda one: one[:4])
    stated = as_stated(
        [source for *_, source in found], [one for node in nodes.values() for one in credits_of(node.record)]
    )
    return [(identity, source) for (_, _, identity, _, _), source in zip(found, stated, strict=True)]


def as_stated(found: Iterable[RecordedSource], credits: Iterable[Credit]) -> list[RecordedSource]:
    """The sources with their licences as the export states them.

    A licence that a config states later than the source was brought here stands with the export, which
    credits its sources; it goes before what the older record says.
    """
    stated: dict[str, set[str | None]] = {}
    for credit in credits:
        stated.setdefault(credit.name, set()).add(credit.licence)

    def licence_of(source: RecordedSource) -> str | None:
        # Two files of one name may stand under different licences; then only the records tell which.
        named = stated.get(source.name, set())
        return next(iter(named)) or source.licence if len(named) == 1 else source.licence

    return [replace(source, licence=licence_of(source)) for source in found]


def credits_of(record: Record) -> list[Credit]:
    """Sources that an export credits; nothing for other records."""
    listed = record.config.get("credits", ()) if record.stage == "export" else ()
    return [Credit(**credit) for credit in listed]


def model_role(record: Record) -> str:
    """Name for people of an acquired model: the source model, or the role in which another one is needed."""
    role = str(record.config.get("role", "model"))
    return "source model" if role == "model" else role


def sources(record: Record) -> list[RecordedSource]:
    """The sources that a record's origin names; none for what was made here."""
    origin = record.origin or {}
    listed = origin.get("sources")
    entries = listed if isinstance(listed, list) else [origin] if origin else []
    is_model = record.kind == "model"
    return [
        RecordedSource(
            what=model_role(record) if is_model else "data",
            uri=str(entry.get("uri", "")),
            given=str(entry.get("given", "")),
            licence=record.licence if is_model else entry.get("licence"),
            sha256=dict(sorted((entry.get("sha256") or {}).items())),
            commit=entry.get("commit"),
        )
        for entry in entries
        if isinstance(entry, dict)
    ]
