"""A lineage in the formats of others: OpenLineage run events, and an in-toto statement in its envelope.

OpenLineage (openlineage.io) gets one COMPLETE event for each record, the oldest first.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resprout.configs.errors import BadInput
from resprout.flows.audit.lineage import Lineage
from resprout.infra.identity import install_command
from resprout.infra.lineage import Node, RecordedSource, sources
from resprout.infra.provenance.statement import provenance, provenance_key
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.record import Record
from resprout.infra.store.signing import UNSIGNED
from resprout.infra.store.store import ArtifactStore

if TYPE_CHECKING:
    from openlineage.client.event_v2 import RunEvent
    from openlineage.client.generated.base import DatasetFacet

PRODUCER = "urn:resprout"
JOBS = "resprout"
"""Namespace of the stages."""
RUNS = uuid.uuid5(uuid.NAMESPACE_URL, "urn:resprout:record")


def lines(lineage: Lineage, store_uri: str) -> Iterator[str]:
    """The events as JSON lines; `store_uri` is the namespace of the artifacts, whose names are digests.

    Raises:
        BadInput: the OpenLineage client is not installed.
    """
    try:
        from openlineage.client.serde import Serde
    except ImportError:
        raise BadInput(
            "--openlineage needs the OpenLineage client, which is not installed; run "
            + install_command("openlineage")
        ) from None
    nodes = sorted(lineage.nodes().values(), key=lambda node: (node.record.started, node.record_id))
    for node in nodes:
        yield Serde.to_json(event(node, store_uri))


def event(node: Node, store_uri: str) -> RunEvent:
    """The COMPLETE event of one record; equal records give equal events."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import (
        documentation_job,
        job_type_job,
        ownership_job,
        processing_engine_run,
        source_code_location_job,
    )

    record = node.record
    made_here = [
        InputDataset(
            namespace=store_uri, name=parent.record.content, facets=_artifact_facets(parent.record, role)
        )
        for role, parent in node.parents
    ]
    brought = [
        InputDataset(namespace=space, name=name, facets=_source_facets(source))
        for source in sources(record)
        for space, name in [address(source.uri)]
    ]
    job: dict[str, Any] = {
        "documentation": documentation_job.DocumentationJobFacet(
            f"resprout's stage {record.stage}; its record is {node.record_id}"
        ),
        "jobType": job_type_job.JobTypeJobFacet("BATCH", "RESPROUT", "STAGE"),
        "ownership": ownership_job.OwnershipJobFacet([ownership_job.Owner(record.who, "MAINTAINER")]),
    }
    if commit := record.code.get("commit"):
        job["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            type="git", url=f"urn:resprout:code:{commit}", version=commit
        )
    engine = processing_engine_run.ProcessingEngineRunFacet(
        version=str(record.code.get("resprout")), name="resprout"
    )
    ended = datetime.datetime.fromisoformat(record.started) + datetime.timedelta(seconds=record.seconds)
    return RunEvent(
        eventTime=ended.isoformat(),
        eventType=RunState.COMPLETE,
        producer=PRODUCER,
        run=Run(runId=run_id(node.record_id), facets={"processing_engine": engine}),
        job=Job(namespace=JOBS, name=record.stage, facets=job),
        inputs=[*made_here, *brought],
        outputs=[
            OutputDataset(
                namespace=store_uri, name=record.content, facets=_artifact_facets(record, record.stage)
            )
        ],
    )


def run_id(record_id: str) -> str:
    """The UUID that stands for a record."""
    return str(uuid.uuid5(RUNS, record_id))


def address(uri: str) -> tuple[str, str]:
    """Namespace and name of a source as OpenLineage names them: scheme with host or bucket, then the path."""
    parts = urlsplit(uri)
    if not parts.scheme:
        return "file", uri
    host = f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme
    name = parts.path.lstrip("/") if parts.netloc else parts.path
    rest = f"?{parts.query}" if parts.query else ""
    return host, f"{name}{rest}{f'#{parts.fragment}' if parts.fragment else ''}" or "/"


def _artifact_facets(record: Record, role: str) -> dict[str, DatasetFacet]:
    from openlineage.client.facet_v2 import dataset_version_dataset, documentation_dataset

    return {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(record.content),
        "documentation": documentation_dataset.DocumentationDatasetFacet(f"{role}: {record.kind}"),
        **_licence_facet(record.licence if record.origin else None),
    }


def _source_facets(source: RecordedSource) -> dict[str, DatasetFacet]:
    from openlineage.client.facet_v2 import dataset_version_dataset, documentation_dataset

    hashes = source.sha256
    pinned = source.commit or (next(iter(hashes.values())) if len(hashes) == 1 else None)
    version = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(pinned)} if pinned else {}
    return {
        **version,
        "documentation": documentation_dataset.DocumentationDatasetFacet(source.what),
        **_licence_facet(source.licence or "unknown"),
    }


def _licence_facet(licence: str | None) -> dict[str, DatasetFacet]:
    """OpenLineage has no facet for licences; tags carry what has none."""
    from openlineage.client.facet_v2 import tags_dataset

    if licence is None:
        return {}
    tag = tags_dataset.TagsDatasetFacetFields(key="licence", value=licence, source="RESPROUT")
    return {"tags": tags_dataset.TagsDatasetFacet([tag])}


def statement_of(store: ArtifactStore, lineage: Lineage) -> dict[str, Any]:
    """The statement that the records of a lineage make; BadInput where nothing came of the run."""
    if lineage.made is None:
        raise BadInput(
            f"{lineage.reference} came to no artifact that a statement could be on; give a stage's digest, "
            "or a run that came to an export"
        )
    files = store.manifest(lineage.made.record.content).files
    return provenance(lineage.made, files, lineage.report)


def envelope_of(store: ArtifactStore, lineage: Lineage) -> tuple[bytes, str]:
    """The envelope, and a remark where it is not the signed one of the store."""
    statement = statement_of(store, lineage)
    kept = store.driver.get_bytes(provenance_key(lineage.report.record_id)) if lineage.report else None
    if kept is None:
        return UNSIGNED.envelope(statement), (
            "the store holds no statement on it; this one was built now and is unsigned"
        )
    opened = store.signer.open(kept, "stored provenance statement")
    if canonical_json(opened.statement) == canonical_json(statement):
        return kept, "" if opened.signed_by else "no signature by a known key is under it"
    return UNSIGNED.envelope(statement), (
        "the stored statement differs from the records (`resprout verify` shows more); this one was "
        "built now and is unsigned"
    )
