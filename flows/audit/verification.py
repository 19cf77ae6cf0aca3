"""Verification of a model version, a run, an artifact, or of everything: which checks run on what."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.configs.infrastructure import LicencesConfig
from resprout.flows.audit.checks import CHECKS, Depth
from resprout.flows.audit.evidence import Evidence, RunEvidence, VersionEvidence
from resprout.flows.workspace import RUN_ID, Workspace, find, parts
from resprout.infra.mlflow.tracking import RECORD, whole_run
from resprout.infra.store import keys

HASHED_AT_ONCE = 4
"""Artifacts; most are one large file, which one thread reads."""


@dataclass(frozen=True)
class Finding:
    """A sentence on what is at odds, and the name of the check that found it."""

    check: str
    message: str


@dataclass
class Examined:
    """How much was checked, what is wrong, and what a reader should know besides."""

    artifacts: int = 0
    records: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """Addresses of the versions of which something is at odds."""


class Verification:
    """Runs the checks down to a depth on one subject after another, on each once.

    What is wrong with a run is wrong with the version that it registered too, and what is wrong with a
    record or an artifact with every version and every run that it is behind.
    """

    def __init__(
        self,
        workspace: Workspace,
        depth: Depth = "deep",
        policy: LicencesConfig | None = None,
        share: float = 1.0,
    ) -> None:
        self.workspace, self.depth = workspace, depth
        self.evidence = Evidence(workspace, policy or LicencesConfig(), share, random.SystemRandom())
        self.problems: list[str] = []
        """Sentences that no check found: references that lead nowhere."""
        self.at_odds: list[str] = []
        self._found: dict[tuple[str, str], list[Finding]] = {}

    def version(self, version: VersionEvidence) -> list[Finding]:
        """Check a model version, its run, and all records behind it."""
        evidence = self.evidence
        found = list(self._check("version", version.uri, version))
        run = evidence.run(version.run)
        if run.seal or run.damage or version.uri not in evidence.unfinished:
            found += self.run(version.run)
        found += self._behind([version.record, version.report], evidence.collected(version.run))
        if found:
            self.at_odds.append(version.uri)
        return list(dict.fromkeys(found))

    def run(self, run_id: str) -> list[Finding]:
        """Check a run and all records that its seal names; nothing where gc freed all of them."""
        run = self.evidence.run(run_id)
        sealed = run.seal.predicate["records"] if run.seal else ()
        collected = self.evidence.collected(run_id) if run_id else frozenset()
        if collected and collected.issuperset([*sealed, *([run.report] if run.report else [])]):
            # MLflow's run may be removed as well; the seal stays as a record of it.
            return []
        found = [*self._check("run", run_id, run), *self._behind([*sealed, run.report], collected)]
        return list(dict.fromkeys(found))

    def record(self, record_id: str) -> list[Finding]:
        """Check an artifact by its record, with all behind it."""
        evidence = self.evidence
        behind = evidence.intact(evidence.behind([record_id]))
        # What came before an erased artifact may have been collected, and its records stay.
        lost = not all(evidence.has_artifact(one.content) for one in behind)
        runs = [run for (run,) in keys.own(self.workspace.store.driver, "collected")] if lost else []
        return self._behind([record_id], frozenset[str]().union(*map(evidence.collected, runs)))

    def store(self) -> list[Finding]:
        """Check the store as a whole by listings."""
        return self._check("store", self.workspace.store.root_uri, self.workspace.store.root_uri)

    def everything(
        self, wanted: Callable[[int], bool] = lambda at: True
    ) -> Iterator[tuple[VersionEvidence | None, RunEvidence, list[Finding]]]:
        """Check every version of resprout's, every run that must be sealed or is, and the store.

        Yields each version with its run and what was found, then the runs that registered none of them;
        only those that are `wanted` by the time of their beginning in milliseconds.
        """
        evidence = self.evidence
        evidence.prefetch()
        runs, must = evidence.judged_runs(), evidence.must_be_sealed()
        versions = evidence.versions(runs)
        for version in versions:
            if wanted(version.at):
                yield version, evidence.run(version.run), self.version(version)
                evidence.forget_seal(version.run)
        for run in map(evidence.run, sorted({*runs} - {one.run for one in versions})):
            if wanted(run.at):
                is_due = run.seal is not None or run.damage is not None or run.id in must
                yield None, run, self.run(run.id) if is_due else []
            evidence.forget_seal(run.id)
        self.store()

    def beside(self) -> None:
        """Check other records of the artifacts that were checked, or with the same key, and so on."""
        looked: set[str] = set()
        while fresh := self.evidence.seen - looked:
            looked |= fresh
            for other in sorted({*self.evidence.neighbours(fresh)} - self.evidence.seen):
                self.record(other)

    def findings(self) -> Iterator[tuple[str, str, Finding]]:
        """Yield what was found so far, with the kind and the name of the subject that it is about."""
        for (about, key), found in self._found.items():
            yield from ((about, key, one) for one in found)

    def result(self) -> Examined:
        """Return what was found so far."""
        found = [one.message for _, _, one in self.findings()]
        return Examined(
            artifacts=len(self.evidence.hashed),
            records=len(self.evidence.seen),
            problems=list(dict.fromkeys([*self.problems, *found])),
            notes=list(dict.fromkeys(self._notes())),
            versions=self.at_odds,
        )

    def _behind(self, roots: Iterable[str], collected: Collection[str]) -> list[Finding]:
        """Check these records and all behind them, but for those that gc freed."""
        evidence = self.evidence
        records = [one for one in evidence.behind(roots) if one not in collected]
        new = [one for one in records if ("record", one) not in self._found]
        evidence.seen.update(one for one in new if not isinstance(evidence.record(one), str))
        if self.depth == "deep":
            list(evidence.pool.map(lambda one: self._check("record", one, one), new))
        artifacts = dict.fromkeys(record.content for record in evidence.intact(records))
        if self.depth == "deep":
            # Threads of their own: a check of an artifact may wait for those that read records.
            with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
                list(pool.map(lambda one: self._check("artifact", one, one), artifacts))
        return [
            *(finding for one in records for finding in self._check("record", one, one)),
            *(finding for one in artifacts for finding in self._check("artifact", one, one)),
        ]

    def _check(self, about: str, key: str, subject: Any) -> list[Finding]:
        if (about, key) not in self._found:
            checks = [one for one in CHECKS if one.about == about and self.depth in (one.depth, "deep")]
            self._found[about, key] = [
                Finding(check.name, message)
                for check in checks
                for message in check.find(self.evidence, subject)
            ]
        return self._found[about, key]

    def _notes(self) -> Iterator[str]:
        evidence = self.evidence
        if evidence.share < 1.0:
            yield f"a sample: {evidence.share:.0%} of the files were hashed, the others only looked up"
        yield from evidence.remarks
        if evidence.signers:
            yield f"signed by {', '.join(sorted(evidence.signers))}"
        for run_id, when in sorted(evidence.dated.items()):
            yield f"the seal of run {run_id} was dated {when.isoformat()} by the timestamp authority"
        if others := sorted(evidence.others()):
            yield f"not registered by resprout: {', '.join(others)}"
        if evidence.strangers:
            yield (
                f"signed by keys that are not known here: {', '.join(sorted(evidence.strangers))}; add "
                "theirs to infra.proof.verification_keys"
            )
        yield from evidence.unfinished.values()
        for name, head in sorted(evidence.heads.items()):
            yield f"ledger of {name}: {head}"
        if evidence.unsigned_seals and evidence.signers:
            yield f"unsigned, though records are signed: {', '.join(evidence.unsigned_seals)}"
        if evidence.unsigned_records:
            yield (
                f"{len(evidence.unsigned_records)} of {len(evidence.seen)} records are unsigned: whoever can "
                "write store and MLflow could have rewritten all of it"
            )


def examine(
    workspace: Workspace,
    reference: str,
    share: float = 1.0,
    head: str | None = None,
    policy: LicencesConfig | None = None,
) -> Examined:
    """Verify what a reference names: a version, an artifact, a record, a run or a stage's run.

    `head` is the hash of an entry that the ledger of the version's model must hold.

    Raises:
        BadInput: neither MLflow, nor a ledger, nor the store knows the reference.
    """
    verification = Verification(workspace, policy=policy, share=share)
    evidence, (name, alias, number) = verification.evidence, parts(reference)
    if RUN_ID.match(reference):
        tags = workspace.tracker.run(reference).data.tags
        verification.run(whole_run(reference, tags))
        if RECORD in tags:
            verification.record(tags[RECORD])
    elif not name:
        verification.record(find(workspace, reference).record)
    else:
        try:
            verification.version(evidence.version(reference))
        except BadInput:
            verification.problems.append(_removed(evidence, reference, name, alias, number))
            if not verification.problems[-1]:
                raise
        except VerificationFailed as error:
            verification.problems.append(f"{reference} cannot be read: {error}")
    if head is not None:
        try:
            if head not in evidence.ledger(name).hashes:
                verification.problems.append(
                    f"the ledger of {name} has no entry {head}: its end was cut off, or it was rewritten"
                )
        except VerificationFailed as error:
            verification.problems.append(f"the ledger of {name} does not hold: {error}")
    return verification.result()


def _removed(evidence: Evidence, reference: str, name: str, alias: str, number: str) -> str:
    """Return a sentence on a version or an alias that only the ledger knows; empty where it does not."""
    try:
        expected = evidence.ledger(name)
    except VerificationFailed as error:
        return f"the ledger of {name} does not hold: {error}"
    known = expected.aliases.get(alias) if alias else number if number in expected.versions else None
    if known is None:
        return ""
    return f"{reference} was removed from the registry: the ledger knows it as version {known}"


def examine_all(workspace: Workspace, share: float = 1.0, policy: LicencesConfig | None = None) -> Examined:
    """Verify every version that resprout registered, every ledger, every sealed run, and the store."""
    verification = Verification(workspace, policy=policy, share=share)
    deque(verification.everything(), maxlen=0)
    return verification.result()


def examine_unsigned(workspace: Workspace) -> tuple[Examined, set[str]]:
    """Verify everything but for missing signatures, and return the records that are to be signed as well.

    Signatures that are there must hold. From now on the store accepts unsigned objects as they are.
    """
    workspace.store.signer.adopts()
    verification = Verification(workspace)
    deque(verification.everything(), maxlen=0)
    if not verification.result().problems:
        verification.beside()
    return verification.result(), verification.evidence.seen
