"""What takes the place of what gc frees where others look for it: under a stage's key, and by its weights."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.infra.retention.inventory import Inventory
from resprout.infra.store import exports
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.filesystem import unsafe
from resprout.infra.store.store import ArtifactStore

THREADS = 8


class Successors:
    """Finds them among what a store holds; a record or manifest is read once, and only where it may matter.

    `staying` are the records that the plan keeps: they go before others that are still there.
    """

    def __init__(self, store: ArtifactStore, inventory: Inventory, staying: Iterable[str]) -> None:
        self.store = store
        self.inventory = inventory
        self.staying = frozenset(staying)
        self._keys: dict[str, str | None] = {}
        self._by_weights: dict[str, list[str]] | None = None
        self._made = inventory.made()
        self._children: dict[str, list[str]] = {}
        self._first: list[str] = []
        for record in inventory.content:
            parents = inventory.parents.get(record, ())
            for parent in parents:
                self._children.setdefault(parent, []).append(record)
            if not parents:
                self._first.append(record)

    def of_result(self, record_id: str, digest: str) -> None:
        """Let the entry that makes the record's stage a cache hit, where it is this record's, be another's.

        One of the same key takes its place, whatever it made; where there is none, the entry is removed.
        """
        key = self._key(record_id)
        name = f"results/{key}"
        data = None if key is None or unsafe(key) else self.store.driver.get_bytes(name)
        if data is None or record_id.encode() not in data:
            return
        near = {*self._kin(record_id), *self.store.records_of(digest)} - {record_id}
        same = (one for one in near if self._key(one) == key and self.store.has_record(one))
        heir = max(same, key=lambda one: (one in self.staying, one), default=None)
        if heir is None:
            self.store.driver.delete(name)
        else:
            said = {"digest": self.store.get_record(heir).content, "record": heir}
            self.store.driver.put_bytes(name, canonical_json(said))

    def of_export(self, digest: str) -> None:
        """Let the notes on an export's weights lead to another one with the same, or remove them."""
        artifact = self.inventory.artifacts.get(digest)
        if artifact is None or not artifact.has_weights:
            return
        try:
            names = exports.names(self.store.manifest(digest).files)
        except (BadInput, VerificationFailed):
            return
        for name, folder in names.items():
            if self.store.driver.get_bytes(name) == exports.noted(digest, folder):
                heir = self._same_weights(name, digest)
                if heir is None:
                    self.store.driver.delete(name)
                else:
                    held = exports.names(self.store.manifest(heir).files)
                    self.store.driver.put_bytes(name, exports.noted(heir, held[name]))

    def _kin(self, record_id: str) -> Iterable[str]:
        """Records that may have the key of this one: a key covers what the parents' content is."""
        parents = self.inventory.parents.get(record_id, ())
        if not parents:
            return self._first
        twins = self._made.get(self.inventory.content.get(parents[0], ""), [])
        return (child for twin in twins for child in self._children.get(twin, ()))

    def _key(self, record_id: str) -> str | None:
        """The stage's key in a record; None where it cannot be read."""
        if record_id not in self._keys:
            try:
                self._keys[record_id] = self.store.get_record(record_id).key
            except (BadInput, VerificationFailed):
                self._keys[record_id] = None
        return self._keys[record_id]

    def _same_weights(self, name: str, digest: str) -> str | None:
        if self._by_weights is None:
            self._by_weights = {}
            held = [one for one, artifact in self.inventory.artifacts.items() if artifact.has_weights]
            with ThreadPoolExecutor(THREADS) as pool:
                for one, names in zip(held, pool.map(self._names, held), strict=True):
                    for found in names:
                        self._by_weights.setdefault(found, []).append(one)
        left = [one for one in self._by_weights.get(name, ()) if one != digest and self._is_export(one)]
        return max(left, key=lambda one: (self._stays(one), one), default=None)

    def _names(self, digest: str) -> Iterable[str]:
        try:
            return exports.names(self.store.manifest(digest).files)
        except (BadInput, VerificationFailed):
            return ()

    def _is_export(self, digest: str) -> bool:
        """Whether it is still there, and a record says that it was exported."""
        if self.store.driver.head(f"manifests/{digest}.json") is None:
            return False
        try:
            records = map(self.store.get_record, self.store.records_of(digest))
            return any(record.stage == "export" for record in records)
        except (BadInput, VerificationFailed):
            return False

    def _stays(self, digest: str) -> bool:
        return not self.staying.isdisjoint(self._made.get(digest, ()))
