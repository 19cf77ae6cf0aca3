"""Lineage both ways and the audit over a store of 10,000 artifacts in 1,000 registered runs.

    PYTHONPATH=tests/support python tests/benchmarks/bench_audit.py

All runs are made from one source, so that the way down from it leads to everything. Bounds: lineage of one
version, and what one artifact of it led to, in under 1 s; everything that came from the source of all in
under 1 s; audit in under 10 s with less than 100 MB more memory (all after imports, medians of three).
Exits 1 above.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import many
from lineages import keyed
from resprout.configs.infrastructure import LicencesConfig, MlflowConfig, StoreConfig
from resprout.flows.audit import descendants
from resprout.flows.audit.lineage import lineage_of, read_results
from resprout.flows.audit.table import audit_rows
from resprout.flows.rerun_command import digest_of_config
from resprout.flows.workspace import Workspace
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.provenance.ledger import Ledger
from resprout.infra.provenance.mlflow_state import locations, version_state
from resprout.infra.provenance.seal import PREDICATE, seal_key
from resprout.infra.provenance.statement import statement
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.signing import UNSIGNED
from resprout.infra.store.store import ArtifactStore

RUNS, ROUNDS = 1000, 3
ADDRESS = "hf://acme/all"
CONFIG = {"model": {"source": ADDRESS}}
BYTES = 100_000_000


def build(store: ArtifactStore, root: Path, scratch: Path) -> list[list[many.Made]]:
    """One source, and runs of ten stages each made from the one before, the first from the source."""
    (scratch / "source").mkdir(parents=True)
    (scratch / "source" / "text.jsonl").write_text("{}\n")
    manifest = store.publish(scratch / "source")
    record = Record(
        stage="acquire_text", key="acquire", kind="text", content=manifest.digest, manifest=manifest.sha256,
        config={}, code={"resprout": "0"}, libraries={}, machine={}, who="many", licence="mit",
        started="2026-01-01T00:00:00+00:00", seconds=0.1,
        origin={"sources": [{"given": ADDRESS, "uri": f"{ADDRESS}@{'1' * 40}", "licence": "mit"}]},
    )  # fmt: skip
    source = many.Made("acquire_text", manifest.digest, store.put_record(keyed(record)))
    runs = []
    for number in range(RUNS):
        made = [source]
        for stage in many.STAGES:
            # The report is on the export, as it is in a run.
            role = "export" if stage == "report" else "input"
            parent = Parent(role=role, digest=made[-1].digest, record=made[-1].record)
            config = {"config": CONFIG} if stage == "report" else None
            files = {"hf/out.txt": f"{number}"} if stage == "export" else None
            text = f"{number} {stage}"
            made.append(many.artifact(root, stage, text, (parent,), files, config=config))
        runs.append(made[1:])
        seal(root, number + 1, *made[-2:])
    return runs


def seal(root: Path, number: int, export: many.Made, report: many.Made) -> None:
    """A seal as large as those of whole runs, which list all that MLflow shows."""
    run = f"{number:032x}"
    shown = {"info": {"shown": "x" * 75_000}, "tags": {}, "metrics": {}, "files": {}}
    said = {
        "run": run, "name": run, "verdict": "passed", "report": report.record, "key": None,
        "export": export.record, "registered": f"models:/many/{number}", "records": {}, "runs": {run: shown},
        "provenance": [], "statement": None, "resprout": "0", "sealed": "2026-01-01T00:00:00+00:00",
        "places": {"store": "file:///s", "artifacts": "file:///a"},
    }  # fmt: skip
    many.write(root, seal_key(run), UNSIGNED.envelope(statement(f"mlflow-run:{run}", PREDICATE, said)))


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    seconds, found = [], None
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        store = ArtifactStore.from_config(StoreConfig(), home)
        tracker = Tracker(MlflowConfig(), home)
        tracker.connect()
        runs = build(store, home / "store", home / "scratch")
        said = {"resprout.source": ADDRESS, "resprout.config_digest": digest_of_config(CONFIG)}
        many.register(tracker.uri, "many", runs, tracker.experiment_id, store.root_uri, said)
        numbers = [str(one.version) for one in tracker.versions()]
        states = {number: version_state(tracker, "many", number) for number in numbers}
        Ledger(store, "many").append(None, locations(tracker, store.root_uri), versions=states)
        place = Workspace(store, tracker, home)
        middle = runs[RUNS // 2]
        low = 0

        def up() -> int:
            story = lineage_of(place, f"models:/many/{RUNS // 2}")
            read_results(store, story)
            return len(story.nodes())

        def down() -> int:
            found = descendants.descendants_of(place, middle[0].digest)
            descendants.draw(found)
            return len(found.order)

        def all_down() -> int:
            found = descendants.descendants_of(place, ADDRESS)
            descendants.draw(found)
            return len(found.order)

        def all_down_json() -> int:
            return len(descendants.descendants_of(place, ADDRESS).as_dict()["records"])

        before = peak()
        seconds, rows = timed(lambda: audit_rows(place, LicencesConfig(deny=("gpl*",)), None))
        more = peak() - before
        assert len(rows) == RUNS
        assert {tuple(row.problems) for row in rows} == {()}
        low += seconds >= 10.0 or more >= BYTES
        print(
            f"audit of {RUNS} versions: {seconds:.2f} s (bound 10 s), {more / 1e6:.0f} MB more (bound 100 MB)"
        )
        for what, work, expected, bound in (
            ("lineage of a version", up, 11, 1.0),
            ("what one artifact led to", down, 10, 1.0),
            ("what the source of all led to", all_down, 10 * RUNS + 1, 1.0),
            ("the same with every record (--json)", all_down_json, 10 * RUNS + 1, None),
        ):
            seconds, count = timed(work)
            assert count == expected, (what, count)
            low += bound is not None and seconds >= bound
            print(f"{what}: {seconds:.2f} s{'' if bound is None else f' (bound {bound:g} s)'}")
        return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
