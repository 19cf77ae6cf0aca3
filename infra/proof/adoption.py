"""Signing of what nobody signed: the history from before there was a key, once all of it was verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from resprout.configs.errors import VerificationFailed
from resprout.infra.proof.collected import collected_key
from resprout.infra.proof.ledger import Ledger, ledgers
from resprout.infra.proof.provenance import provenance_key
from resprout.infra.proof.seal import read_seal, seal_key
from resprout.infra.proof.snapshot import Places
from resprout.infra.store import keys, tombstones
from resprout.infra.store.store import ArtifactStore


@dataclass(frozen=True)
class Unsigned:
    """What no known key signed: ids of records and sealed runs, keys of other statements, names of models."""

    records: tuple[str, ...]
    seals: tuple[str, ...]
    statements: tuple[str, ...]
    models: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.records or self.seals or self.statements or self.models)


def unsigned(store: ArtifactStore, records: Iterable[str]) -> Unsigned:
    """What of these records, and of all seals, statements and ledgers of a store, no known key signed."""
    runs = [run for (run,) in keys.own(store.driver, "seals")]
    problems: list[str] = []
    models = tuple(name for name in ledgers(store, problems) if not _ends_signed(store, name))
    if problems:
        raise VerificationFailed("; ".join(problems))
    return Unsigned(
        tuple(one for one in sorted(records) if not store.signed_by(one, store.get_record(one).dumps())),
        tuple(run for run in sorted(runs) if _is_unsigned(store, seal_key(run))),
        tuple(key for key in sorted({*_statements(store, runs)}) if _is_unsigned(store, key)),
        models,
    )


def adopt(store: ArtifactStore, what: Unsigned, places: Places) -> None:
    """Sign it with the own key; each ledger states it, last, in an entry that vouches for all before it."""
    for record in what.records:
        store.sign_record(record)
    for key in (*what.statements, *map(seal_key, what.seals)):
        data = store.driver.get_bytes(key) or b""
        store.driver.put_bytes(key, store.signer.countersigned(data, store.driver.uri(key)))
    for name in what.models:
        said = {"key": store.signer.own_id, "records": len(what.records), "seals": len(what.seals)}
        Ledger(store, name).append(None, places, adopted=said)


def _statements(store: ArtifactStore, runs: Iterable[str]) -> Iterator[str]:
    """Keys of what is stated beside seals: where versions come from, what was collected, what was erased."""
    for run in runs:
        seal = read_seal(store, run)
        if seal is not None and seal.said.get("report") and seal.said.get("export"):
            yield provenance_key(seal.said["report"])
        yield collected_key(run)
    yield from (tombstones.tombstone_key(digest) for digest in tombstones.erased(store.driver))


def _is_unsigned(store: ArtifactStore, key: str) -> bool:
    data = store.driver.get_bytes(key)
    return data is not None and not store.signer.open(data, store.driver.uri(key)).signed_by


def _ends_signed(store: ArtifactStore, name: str) -> bool:
    *_, last = Ledger(store, name).entries()
    return bool(last.opened.signed_by)
