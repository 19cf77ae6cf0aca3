"""Which report tells of a run or of what it made: the one that tags name, else of several the newest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import REPORT_RECORD

STAGE = "report"
EXPORT = "export"
"""The role that the export plays for its report."""


def report_of(store: ArtifactStore, tags: Mapping[str, str], made: Record | None) -> str | None:
    """Record of the report that tags name, else of the newest on what was made; None where there is none.

    `made` is the record of an export, of which another run may have made the same, or of another artifact,
    which has no report; without it the tags are those of a whole run.
    """
    if identity := tags.get(REPORT_RECORD):
        return identity
    export = made.content if made is not None else None
    if digest := tags.get("resprout.report"):
        return _newest(store, store.records_of(digest), export)
    if made is None or made.stage != EXPORT:
        return None
    children = {child for record in store.records_of(made.content) for child in store.children(record)}
    return _newest(store, children, export)


def _newest(store: ArtifactStore, candidates: Iterable[str], export: str | None) -> str | None:
    reports = [
        (record.started, identity)
        for identity, record in ((one, store.get_record(one)) for one in candidates)
        if record.stage == STAGE
        and (export is None or any(one.role == EXPORT and one.digest == export for one in record.parents))
    ]
    return max(reports)[1] if reports else None
