"""Copies outside the store of what is erased there: files of MLflow runs, and reports on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Set
from pathlib import Path

from resprout.infra import searches
from resprout.infra.answers import answers
from resprout.infra.proof.snapshot import file_paths
from resprout.infra.retention import run_files
from resprout.infra.retention.rows import Signs, is_text
from resprout.infra.store.manifest import hash_file
from resprout.infra.tracking import Tracker


class Copies:
    """Finds files that are the same bytes as one of `hashes`, or text in which a sign stands."""

    def __init__(self, tracker: Tracker, hashes: Set[str], wanted: Signs) -> None:
        self.tracker = tracker
        self.hashes = hashes
        self.wanted = wanted
        self._of_run: dict[str, dict[str, str]] = {}

    def tracked(self, digest: str) -> dict[str, str]:
        """By "<run id>/<path>" the SHA-256 of such files in an artifact's runs and the runs around them."""
        runs: set[str] = set()
        for run in searches.runs(self.tracker, f"tags.`resprout.digest` = '{digest}'"):
            runs |= {run.info.run_id, run.data.tags.get("mlflow.parentRunId", run.info.run_id)}
        return {path: sha256 for run in sorted(runs) for path, sha256 in self._run(run).items()}

    def reports(self, home: Path) -> list[Path]:
        """Copies of a report that lie where a person looks for them."""
        files = (path for path in sorted((home / "reports").rglob("*")) if path.is_file())
        return [path for path in files if self.hit(path, path.name) is not None]

    def _run(self, run_id: str) -> dict[str, str]:
        if run_id not in self._of_run:
            self._of_run[run_id] = _looked(self.tracker, run_id, self.hit)
        return self._of_run[run_id]

    def hit(self, file: Path, path: str) -> str | None:
        """The SHA-256 of a file that is a copy, None of another; no more than a line is in memory."""
        sha256 = hash_file(file, path).sha256
        if sha256 in self.hashes:
            return sha256
        if is_text(path):
            with file.open("rb") as lines:
                return sha256 if self.wanted.stand_in(path, lines) else None
        return None


@answers
def _looked(tracker: Tracker, run_id: str, hit: Callable[[Path, str], str | None]) -> dict[str, str]:
    """The hits among a run's files; one at a time is brought here, and none is kept."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for path in file_paths(tracker, run_id):
            folder = tempfile.mkdtemp(dir=scratch)
            sha256 = hit(Path(tracker.client.download_artifacts(run_id, path, folder)), path)
            shutil.rmtree(folder)
            if sha256 is not None:
                found[f"{run_id}/{path}"] = sha256
    return found


@answers
def untrack(tracker: Tracker, tracked: str) -> None:
    """Delete a file of a run, if it is still there."""
    run_id, _, path = tracked.partition("/")
    if path in set(file_paths(tracker, run_id)):
        run_files.remove(tracker, tracker.run(run_id).info.artifact_uri, path)
