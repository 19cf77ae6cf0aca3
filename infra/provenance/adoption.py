"""Find and sign records and statements that were written before a signing key was set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from resprout.configs.errors import VerificationFailed
from resprout.infra.provenance.ledger import Ledger, ledgers
from resprout.infra.provenance.mlflow_state import Locations
from resprout.infra.provenance.seal import collection_key, read_seal, seal_key
from resprout.infra.provenance.statement import provenance_key
from resprout.infra.store import keys, tombstones
from resprout.infra.store.store import ArtifactStore


@dataclass(frozen=True)
class UnsignedHistory:
    """History that no known key signed: record ids, sealed runs, keys of other statements, model names."""

    records: tuple[str, ...]
    seals: tuple[str, ...]
    statements: tuple[str, ...]
    models: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.records or self.seals or self.statements or self.models)


def find_unsigned(store: ArtifactStore, records: Iterable[str]) -> UnsignedHistory:
    """Return what no known key signed of these records and of all seals, statements and ledgers."""
    runs = [run for (run,) in keys.own(store.driver, "seals")]
    problems: list[str] = []
    models = tuple(name for name in ledgers(store, problems) if not _ends_signed(store, name))
    if problems:
        raise VerificationFailed("; ".join(problems))
    return UnsignedHistory(
        tuple(one for one in sorted(records) if not store.signed_by(one, store.get_record(one).dumps())),
        tuple(run for run in sorted(runs) if _is_unsigned(store, seal_key(run))),
        tuple(key for key in sorted({*_statements(store, runs)}) if _is_unsigned(store, key)),
        models,
    )


def adopt(store: ArtifactStore, history: UnsignedHistory, here: Locations) -> None:
    """Sign the history with the own key; each ledger states it in an entry that vouches for all before it."""
    for record in history.records:
        store.sign_record(record)
    for key in (*history.statements, *map(seal_key, history.seals)):
        data = store.driver.get_bytes(key) or b""
        store.driver.put_bytes(key, store.signer.countersigned(data, store.driver.uri(key)))
    for name in history.models:
        adopted = {"key": store.signer.own_id, "records": len(history.records), "seals": len(history.seals)}
        Ledger(store, name).append(None, here, adopted=adopted)


def _statements(store: ArtifactStore, runs: Iterable[str]) -> Iterator[str]:
    """Yield the keys of the statements beside seals: on provenance, on collected and on erased artifacts."""
    for run in runs:
        seal = read_seal(store, run)
        if seal is not None and seal.predicate.get("report") and seal.predicate.get("export"):
            yield provenance_key(seal.predicate["report"])
        yield collection_key(run)
    yield from (tombstones.tombstone_key(digest) for digest in tombstones.erased(store.driver))


def _is_unsigned(store: ArtifactStore, key: str) -> bool:
    data = store.driver.get_bytes(key)
    return data is not None and not store.signer.open(data, store.driver.uri(key)).signed_by


def _ends_signed(store: ArtifactStore, name: str) -> bool:
    *_, last = Ledger(store, name).entries()
    return bool(last.opened.signed_by)
