"""What lies in the store behind a record, held against what the record and its manifest say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.lineage import Node
from resprout.infra.provenance.seal import read_seal
from resprout.infra.store import exports, keys
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.record import Record
from resprout.infra.store.signing import ADOPT
from resprout.infra.store.store import ArtifactStore, index_keys

THREADS = 8
KEYED = 3
"""Version of records since which they say all that their key is made of."""


class Stored:
    """Checks of records and artifacts; each artifact is hashed once, however many records lead to it.

    `share` of the files is hashed, drawn with `draw`; of the others size and stored checksum are looked at.
    """

    def __init__(
        self,
        store: ArtifactStore,
        share: float = 1.0,
        draw: random.Random | None = None,
        produced: Callable[[str], bool] = lambda record: True,
        announced: Callable[[str], bool] = lambda record: False,
    ) -> None:
        self.store = store
        self.produced = produced
        """Whether MLflow has a run that made a record."""
        self.announced = announced
        """Whether MLflow has a run that was about to write a record."""
        self.unfinished: dict[str, str] = {}
        """Records that a killed run did not finish, by id, with a sentence for each."""
        self.share = share
        self._draw = draw or random.Random(0)
        self.hashed: set[str] = set()
        self.seen: set[str] = set()
        self._indexed: set[str] = set()
        self.signers: set[str] = set()
        self.strangers: set[str] = set()
        self.unsigned = 0
        self.erased: list[str] = []

    def problems(self, nodes: Sequence[Node], signed: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """What is wrong with these records, what is around them, and the artifacts that they made.

        `signed` names for each record the keys that had signed it when its run was sealed.
        """
        new = [node for node in nodes if node.record_id not in self.seen]
        self.seen.update(node.record_id for node in new)
        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(lambda node: list(self._around(node, signed.get(node.record_id))), new):
                yield from found
        yield from self._beside(new)
        for digest in sorted({node.record.content for node in new} - self.hashed):
            self.hashed.add(digest)
            try:
                yield from self.store.verify(digest, self.share, self._draw)
                if (stone := self.store.tombstone(digest)) is not None:
                    self.erased.append(f"{len(stone.files)} files of artifact {digest} were {stone.sentence}")
            except (BadInput, VerificationFailed) as error:
                yield str(error)

    def _around(self, node: Node, signed: Sequence[str] | None) -> Iterator[str]:
        yield from self._signatures(node, signed)
        if (wrong := self._record(node.record_id, node.record)) is not None:
            yield wrong
        yield from self._manifest(node)
        yield from self._result(node)
        for key in index_keys(node.record_id, node.record):
            data = self.store.driver.get_bytes(key)
            if data != b"":
                what = "removed" if data is None else "changed"
                yield f"index entry {self.store.driver.uri(key)} was {what}"
        if node.record.stage == "export":
            yield from exports.problems(self.store, node.record.content)

    def _signatures(self, node: Node, signed: Sequence[str] | None) -> Iterator[str]:
        store, identity = self.store, node.record_id
        there = store.signatures_of(identity)
        data = store.driver.get_bytes(f"records/{identity}.json") or b""
        good = set(store.signed_by(identity, data))
        self.signers |= good
        self.strangers.update(key_id for key_id in there if key_id not in store.signer.key_ids)
        self.unsigned += not there
        for key_id in sorted({*(signed or ())} - {*there}):
            yield f"the signature of key {key_id} on record {identity} was removed"
        for key_id in sorted({*there} - good):
            if key_id in store.signer.key_ids:
                yield f"the signature of key {key_id} on record {identity} was changed: it does not hold"
            elif not _is_signature(store.driver.get_bytes(f"signatures/{identity}/{key_id}"), key_id):
                yield f"the signature of key {key_id} on record {identity} was changed: it is none"
            elif signed is not None and key_id not in signed:
                yield f"a signature of key {key_id}, which is not known, was added to record {identity}"
        if store.signer.required and not good:
            yield f"record {identity} has no signature that counts; {ADOPT}"

    def _manifest(self, node: Node) -> Iterator[str]:
        record = node.record
        data = self.store.driver.get_bytes(f"manifests/{record.content}.json")
        # Where it is missing or another's, hashing the artifact tells of it.
        if data is not None and record.manifest is not None and sha256_hex(data) != record.manifest:
            yield f"the manifest of artifact {record.content} was changed after record {node.record_id}"

    def _result(self, node: Node) -> Iterator[str]:
        """The cache's pointer leads to this record, or to a later one of the same key."""
        key = f"results/{node.record.key}"
        where = self.store.driver.uri(key)
        data = self.store.driver.get_bytes(key)
        if data is None:
            yield f"{where} was removed"
            return
        try:
            given = json.loads(data)
            sound = canonical_json(given) == data and sorted(given) == ["digest", "record"]
            later = self.store.get_record(given["record"]) if sound else node.record
        except (ValueError, KeyError, TypeError, BadInput, VerificationFailed):
            sound, later = False, node.record
        if not sound or (later.key, later.content) != (node.record.key, given["digest"]):
            yield f"{where} was changed: it does not lead to a record of this key"
        elif later.id != node.record_id and not self._counts_as(later, node):
            yield f"{where} was changed: record {later.id} is not signed as the one before it is"
        elif later.id != node.record_id and not self._is_named(later.id):
            yield from self.left_behind(later.id, f"{where} was changed: {_unnamed(later.id)}")

    def _beside(self, nodes: Sequence[Node]) -> Iterator[str]:
        """What is wrong with the index entries of these artifacts, and of what was made from them."""
        for digest in sorted({node.record.content for node in nodes} - self._indexed):
            self._indexed.add(digest)
            for identity in sorted({*self.store.records_of(digest)} - self.seen):
                yield from self._indexed_under(f"made/{digest}/{identity}", identity, digest)
        for node in nodes:
            for child in sorted({*self.store.children(node.record_id)} - self.seen):
                if child not in self._ids:
                    key = f"used/{node.record_id}/{child}"
                    lost = f"index entry {self.store.driver.uri(key)} leads nowhere: there is no such record"
                    yield from self.left_behind(child, lost)

    def _indexed_under(self, key: str, identity: str, digest: str) -> Iterator[str]:
        """What is wrong with a record of the same artifact that is not behind what was asked for."""
        try:
            record = self.store.get_record(identity)
        except BadInput as error:
            lost = f"index entry {self.store.driver.uri(key)} leads nowhere: {error}"
            yield from self.left_behind(identity, lost)
            return
        except VerificationFailed as error:
            yield f"index entry {self.store.driver.uri(key)} leads nowhere: {error}"
            return
        if record.content != digest:
            yield f"index entry {self.store.driver.uri(key)} leads to a record of artifact {record.content}"
        elif (wrong := self._record(identity, record)) is not None:
            yield wrong
        elif self.store.signer.required and not self.store.signed_by(identity, record.dumps()):
            yield f"record {identity} has no signature that counts; {ADOPT}"
        elif not self._is_named(identity):
            yield from self.left_behind(identity, _unnamed(identity))

    def left_behind(self, identity: str, problem: str) -> Iterator[str]:
        """The problem, unless a run announced that it would write the record and was killed meanwhile."""
        if identity not in self.unfinished and self.announced(identity):
            self.unfinished[identity] = (
                f"record {identity} is unfinished: its run announced it and was killed before it named "
                "it, or is at it now"
            )
        if identity not in self.unfinished:
            yield problem

    def beside(self, records: Iterable[str]) -> set[str]:
        """Records of the same artifacts as these, and those that have their places in the cache."""
        found: set[str] = set()
        for identity in records:
            record = self.store.get_record(identity)
            found.update(self.store.records_of(record.content))
            if (pointer := self.store.driver.get_bytes(f"results/{record.key}")) is not None:
                found.add(json.loads(pointer)["record"])
        return found

    @staticmethod
    def _record(identity: str, record: Record) -> str | None:
        """A sentence where a record's key is not that of what it says, which is all of it since version 3."""
        if record.schema_version < KEYED or record.key == record.own_key:
            return None
        return f"record {identity} was made up: what it says does not make its key {record.key}"

    @cached_property
    def _ids(self) -> frozenset[str]:
        """Ids of all records in the store."""
        return frozenset(identity for (identity,) in keys.own(self.store.driver, "records"))

    @cached_property
    def _sealed(self) -> frozenset[str]:
        """Ids of all records that a seal names."""
        found: set[str] = set()
        for (run,) in keys.own(self.store.driver, "seals"):
            # What is wrong with a seal is said where its run is looked at.
            with suppress(VerificationFailed):
                if (seal := read_seal(self.store, run)) is not None:
                    found.update(seal.predicate["records"])
        return frozenset(found)

    def _is_named(self, identity: str) -> bool:
        """Whether a run in MLflow or a seal names a record, or one that was made from it, as from a shard."""
        if identity in self.seen or identity in self._sealed or self.produced(identity):
            return True
        return any(self._is_named(child) for child in self.store.children(identity) if child != identity)

    def _counts_as(self, later: Record, node: Node) -> bool:
        """Whether a record that took another's place is signed by somebody known, where that one is."""
        store = self.store
        return bool(store.signed_by(later.id, later.dumps())) or not store.signed_by(
            node.record_id, node.record.dumps()
        )


def _unnamed(identity: str) -> str:
    return (
        f"record {identity} is named by no run and no seal: somebody put it there, or a run of an earlier "
        "version that was killed left it, and `resprout gc` removes it"
    )


def _is_signature(data: bytes | None, key_id: str) -> bool:
    """Whether the bytes have the form of a signature by this key, which nobody here can check."""
    try:
        given = json.loads(data or b"")
        return canonical_json(given) == data and given["keyid"] == key_id and len(given["sig"]) == 128
    except (ValueError, KeyError, TypeError):
        return False
