"""The table of `audit`: every registered version and every failed gate, with what shallow checks found."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from resprout.configs.infrastructure import LicencesConfig
from resprout.flows.audit.evidence import Evidence, RunEvidence, VersionEvidence
from resprout.flows.audit.verification import Finding, Verification
from resprout.flows.workspace import Workspace
from resprout.infra.licences import UNKNOWN


@dataclass
class AuditRow:
    """A version, a run whose gate failed or with findings, or the store itself where it has some."""

    kind: str
    name: str
    version: str
    at: str
    verdict: str
    run: str
    digest: str
    aliases: list[str] = field(default_factory=list)
    signed: str = "no"
    """yes, no, or how many of the records behind it are."""
    sealed: bool = False
    licences: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Problems."""
    remarks: list[str] = field(default_factory=list)
    """Remarks: allowed, but worth knowing."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit_rows(
    workspace: Workspace, policy: LicencesConfig, since: datetime.datetime | None
) -> list[AuditRow]:
    """Return a row for each version and each failed gate since then, the oldest first.

    What is wrong with the store itself, before all and whenever it was, makes a row of its own.
    """
    verification = Verification(workspace, "shallow", policy)
    rows = [
        _row(verification.evidence, version, run, found)
        for version, run, found in verification.everything(
            lambda at: since is None or at >= since.timestamp() * 1000
        )
        if version is not None or run.verdict == "failed" or found
    ]
    rows.sort(key=lambda row: (row.at, row.kind == "run", row.name, int(row.version or 0)))
    problems = [one.message for one in verification.store()]
    whole = AuditRow("store", workspace.store.root_uri, "", "", "", "", "", problems=problems)
    return [whole] * bool(problems) + rows


def _row(
    evidence: Evidence, version: VersionEvidence | None, run: RunEvidence, found: Sequence[Finding]
) -> AuditRow:
    roots = [version.record, version.report] if version else [run.report]
    collected = evidence.collected(run.id) if run.id else frozenset()
    verdict, seal = run.verdict or UNKNOWN, run.seal is not None or run.damage is not None
    if version is not None:
        digest, at = version.tags.get("resprout.digest", ""), _time(version.at)
        row = AuditRow("version", version.name, version.number, at, verdict, version.run, digest, sealed=seal)
        row.aliases = evidence.aliases(version)
    else:
        digest = next((one.content for one in evidence.intact(roots[:1] if roots[0] else [])), "")
        row = AuditRow("run", run.name, "", _time(run.at), verdict, run.id, digest, sealed=seal)
        if collected.issuperset(roots) and not found:
            # What no version needs is collected in time; seal and MLflow still show the run.
            row.remarks = [one for one in evidence.remarks if f" of run {run.id} " in one]
            return row
    behind = evidence.behind(roots)
    row.licences, judged = evidence.licences(roots)
    _sign(evidence, row, behind)
    unsigned = [one for one in found if one.check == "signed"]
    prefix = f"{version.uri}: " if version else f"run {run.id}: "
    row.problems = [one.message.removeprefix(prefix) for one in found if one.check != "signed"]
    if unsigned:
        row.problems.append(f"{len(unsigned)} of {len(behind)} records carry no signature that counts")
    contents = {one.content for one in evidence.intact(behind)}
    row.remarks += [f"artifact {digest} was erased" for digest in sorted(contents & evidence.erased)]
    row.remarks += [str(one) for one in judged if one.rule == "warn"]
    return row


def _sign(evidence: Evidence, row: AuditRow, behind: list[str]) -> None:
    """Fill in how many records are signed by known keys; whether the signatures hold is `verify`'s to say."""
    known = {*evidence.store.signer.key_ids}
    signers = [{*evidence.signatures(one)} for one in behind]
    good = sum(bool(known & keys) for keys in signers)
    row.signed = "yes" if behind and good == len(behind) else f"{good} of {len(behind)}" if good else "no"
    if strange := set[str]().union(*signers) - known:
        row.remarks.append(f"signed by keys that are not known here: {', '.join(sorted(strange))}")


def _time(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.isoformat(timespec="seconds")
