"""The provenance statement of a story in its envelope: as the store has it, else built now."""

from __future__ import annotations

from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows.audit.story import Story
from resprout.infra.provenance.statement import provenance, provenance_key
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.signing import UNSIGNED
from resprout.infra.store.store import ArtifactStore


def statement_of(store: ArtifactStore, story: Story) -> dict[str, Any]:
    """The statement that the records behind the story make; BadInput where nothing came of the run."""
    if story.made is None:
        raise BadInput(
            f"{story.reference} came to no artifact that a statement could be on; give a stage's digest, or "
            "a run that came to an export"
        )
    files = store.manifest(story.made.record.content).files
    return provenance(story.made, files, story.report)


def envelope_of(store: ArtifactStore, story: Story) -> tuple[bytes, str]:
    """The envelope, and a remark where it is not the signed one of the store."""
    statement = statement_of(store, story)
    kept = store.driver.get_bytes(provenance_key(story.report.record_id)) if story.report else None
    if kept is None:
        return UNSIGNED.envelope(statement), (
            "the store holds no statement on it; this one was built now and is unsigned"
        )
    opened = store.signer.open(kept, "stored provenance statement")
    if canonical_json(opened.statement) == canonical_json(statement):
        return kept, "" if opened.signed_by else "no signature by a known key is under it"
    return UNSIGNED.envelope(statement), (
        "the stored statement says otherwise than the records (`resprout verify` tells more); this one was "
        "built now and is unsigned"
    )
