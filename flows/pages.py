"""The report pages that lie where a person finds them, held against the artifacts they are copies of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.place import Place
from resprout.infra.mlflow import search
from resprout.infra.proof.seal import read_seal
from resprout.infra.store import keys
from resprout.infra.store.filesystem import plain_status, unsafe
from resprout.infra.store.manifest import hash_file

REPORTS = "reports"
LOGGED = "report/"
"""Folder of a run's files in MLflow that holds its report."""
CONFIG = "config.yaml"
"""File of the page that names folders of this machine, and so is another one in the artifact."""


class Pages:
    """Checks the copies of reports below a home; each name once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._done: set[str] = set()

    def problems(self, name: str | None, report: str | None) -> Iterator[str]:
        """What is wrong with the page of the runs called `name`, of which `report` is one record."""
        if name is None or report is None or name in self._done or unsafe(name):
            return
        self._done.add(name)
        folder = self.place.home / REPORTS / name
        if not folder.is_dir():
            return
        found = dict(_files(folder))
        # A later run of the same name put its own there.
        if (
            found
            and not _fit(found, self._of_seals(name))
            and not _fit(found, self._files_of(self._of_mlflow(name)))
        ):
            yield f"the report page in {folder} was changed: no run of {name} wrote it so"

    def _files_of(self, digests: list[str]) -> Iterator[dict[str, str]]:
        for digest in dict.fromkeys(digests):
            try:
                yield {entry.path: entry.sha256 for entry in self.place.store.manifest(digest).files}
            except (BadInput, VerificationFailed):
                continue

    def _of_seals(self, name: str) -> Iterator[dict[str, str]]:
        """By file of the report its SHA-256, of each sealed run of this name; gc leaves seals."""
        store = self.place.store
        for (run,) in keys.own(store.driver, "seals"):
            try:
                seal = read_seal(store, run)
            except VerificationFailed:
                # Said where its run is looked at.
                continue
            if seal is not None and seal.said.get("name") == name:
                files = seal.said["runs"].get(run, {}).get("files", {})
                yield {
                    path.removeprefix(LOGGED): entry["sha256"]
                    for path, entry in files.items()
                    if path.startswith(LOGGED)
                }

    def _of_mlflow(self, name: str) -> list[str]:
        """A run that was killed before its seal had put its page there already."""
        found = search.runs(self.place.tracker, "tags.`resprout.report` LIKE '%'")
        return [run.data.tags["resprout.report"] for run in found if run.info.run_name == name]


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of the files of a page; what is no plain file has no hash."""
    for path in sorted(folder.iterdir()):
        if path.name == CONFIG:
            continue
        try:
            plain_status(folder, path.name)
            yield path.name, hash_file(path, path.name).sha256
        except (FileNotFoundError, VerificationFailed):
            yield path.name, ""


def _fit(found: dict[str, str], artifacts: Iterator[dict[str, str]]) -> bool:
    """Whether one of the artifacts has all these files; others beside them are the user's own."""
    return any(
        found.keys() & artifact.keys()
        and all(found[path] == artifact[path] for path in found.keys() & artifact)
        for artifact in artifacts
    )
