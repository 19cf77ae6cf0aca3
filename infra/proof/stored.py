"""What lies in the store behind a record, held against what the record and its manifest say."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.lineage import Node
from resprout.infra.store import exports
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore, index_keys

THREADS = 8


class Stored:
    """Checks of records and artifacts; each artifact is hashed once, however many records lead to it.

    `share` of the files is hashed, drawn with `draw`; of the others size and stored checksum are looked at.
    """

    def __init__(self, store: ArtifactStore, share: float = 1.0, draw: random.Random | None = None) -> None:
        self.store = store
        self.share = share
        self._draw = draw or random.Random(0)
        self.hashed: set[str] = set()
        self.seen: set[str] = set()
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
            yield f"record {identity} has no signature that counts, and infra.proof.require_signatures is on"

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

    def _counts_as(self, later: Record, node: Node) -> bool:
        """Whether a record that took another's place is signed by somebody known, where that one is."""
        store = self.store
        return bool(store.signed_by(later.id, later.dumps())) or not store.signed_by(
            node.record_id, node.record.dumps()
        )


def _is_signature(data: bytes | None, key_id: str) -> bool:
    """Whether the bytes have the form of a signature by this key, which nobody here can check."""
    try:
        given = json.loads(data or b"")
        return canonical_json(given) == data and given["keyid"] == key_id and len(given["sig"]) == 128
    except (ValueError, KeyError, TypeError):
        return False
