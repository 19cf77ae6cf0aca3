"""What gc freed of what a sealed run made: a statement beside the seal, which stays, explains the gap."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from resprout.configs.errors import VerificationFailed
from resprout.infra import identity
from resprout.infra.proof.ledger import Form, predicate_of, statement
from resprout.infra.store.store import ArtifactStore

PREDICATE = "urn:resprout:collected:v1"


class CollectedForm(Form):
    """Types of what is said of a run."""

    run: str
    records: list[str]
    who: str
    when: str
    key: str | None


@dataclass(frozen=True)
class Collected:
    """The records of a sealed run that gc freed, or of which it freed the bytes; when last, and by whom."""

    run: str
    records: frozenset[str]
    who: str
    when: str

    @property
    def sentence(self) -> str:
        """What to say to somebody who misses them."""
        return f"gc collected {len(self.records)} records of run {self.run} on {self.when[:10]} ({self.who})"


def collected(store: ArtifactStore, run_id: str) -> Collected | None:
    """What gc freed of a sealed run; None where nothing.

    Raises:
        VerificationFailed: the statement is damaged, or unsigned where signatures are required.
    """
    key = collected_key(run_id)
    data = store.driver.get_bytes(key)
    if data is None:
        return None
    what = f"statement {store.driver.uri(key)}"
    opened = store.signer.open(data, what)
    said = predicate_of(opened, PREDICATE, what, CollectedForm)
    if said.get("run") != run_id:
        raise VerificationFailed(f"the {what} is that of run {said.get('run')}")
    if not store.signer.excuses(opened):
        raise VerificationFailed(f"the {what} has no signature that counts")
    return Collected(run_id, frozenset(said["records"]), said["who"], said["when"])


def state_collected(store: ArtifactStore, run_id: str, records: Collection[str]) -> None:
    """State that these records go too; to be called before they do."""
    before = None
    # What does not count is not vouched for, and holds nobody up.
    with suppress(VerificationFailed):
        before = collected(store, run_id)
    if before is not None and before.records.issuperset(records):
        return
    said = {
        "run": run_id,
        "records": sorted({*records, *(before.records if before is not None else ())}),
        "who": identity.who(),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "key": store.signer.own_id,
    }
    data = store.signer.envelope(statement(f"mlflow-run:{run_id}", PREDICATE, said))
    store.driver.put_bytes(collected_key(run_id), data)


def collected_key(run_id: str) -> str:
    """Key of the object that holds the statement about a run."""
    return f"collected/{run_id}.json"
