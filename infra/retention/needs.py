"""Who needs what: registered versions, legal holds, flows that run, the seals of late, living writers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from resprout.infra.answers import answers
from resprout.infra.proof.seal import read_seal
from resprout.infra.retention.plan import Needs
from resprout.infra.store import tombstones
from resprout.infra.store.canonical import DIGEST
from resprout.infra.store.lease import LeaseLockManager
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import HOLD, RECORD, Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

REPORT_RECORD = "resprout.report_record"
PAGE = 1000
EXPERIMENTS = 100
"""Experiments that one search asks for."""
THREADS = 8
DAY_SECONDS = 86400.0
REGISTERED, HELD, RUNNING, SEALED, PINNED, ERASED = (
    "a registered version",
    "a legal hold",
    "a flow that runs",
    "a run of late",
    "a living writer",
    "an erasure on record",
)


class Look:
    """Looks at registry, runs, seals and pins as often as it is asked; a seal is read once."""

    def __init__(
        self, store: ArtifactStore, tracker: Tracker, locks: LeaseLockManager, keep_days: float
    ) -> None:
        self.store = store
        self.tracker = tracker
        self.locks = locks
        self.keep_seconds = keep_days * DAY_SECONDS
        self._sealed: dict[str, tuple[str, ...]] = {}

    def needs(self) -> Needs:
        """All that somebody needs at this moment.

        Raises:
            VerificationFailed: a seal is damaged, so that nobody knows what it names.
        """
        found = Needs()
        found.add_records(self.held(), HELD)
        found.add_records(self._of_versions(lambda version: True), REGISTERED)
        late = int((time.time() - self.keep_seconds) * 1000)
        begun = f"attributes.status = 'RUNNING' and attributes.start_time > {late}"
        found.add_records(self._of_runs(searched(self.tracker, begun)), RUNNING)
        found.add_records(self._of_seals(self._late_seals()), SEALED)
        found.add_digests(self.pinned(), PINNED)
        found.add_digests(tombstones.erased(self.store.driver), ERASED)
        return found

    def pinned(self) -> Iterator[str]:
        """Digests that a living writer relies on."""
        alive: dict[str, bool] = {}
        for key in self.store.driver.list("pins/"):
            _, digest, writer = key.split("/")
            if writer not in alive:
                alive[writer] = self.locks.is_locked(writer)
            if alive[writer]:
                yield digest

    def spent_seals(self, kept: AbstractSet[str]) -> list[str]:
        """Runs whose seals nobody needs and name records that go; to be asked after `needs`."""
        runs = [key.removeprefix("seals/").removesuffix(".json") for key in self.store.driver.list("seals/")]
        left = [run for run in runs if run not in self._sealed]
        with ThreadPoolExecutor(THREADS) as pool:
            named = list(pool.map(self._named, left))
        return [run for run, records in zip(left, named, strict=True) if not set(records) <= kept]

    def held(self) -> set[str]:
        """Records under a legal hold."""
        models = {one.name for one in every(self.tracker, "search_registered_models") if HOLD in one.tags}
        runs = self._of_runs(searched(self.tracker, f"tags.`{HOLD}` LIKE '%'"))
        return runs | self._of_versions(lambda one: HOLD in one.tags or one.name in models)

    def _of_versions(self, wanted: Callable[[Any], bool]) -> set[str]:
        """Exports and reports of versions, and what the seals of their runs name."""
        records: set[str] = set()
        runs: set[str] = set()
        for version in every(self.tracker, "search_model_versions"):
            if RECORD in version.tags and wanted(version):
                records |= self._of_tags(version.tags)
                runs.add(version.run_id or version.tags.get("resprout.run", ""))
        return records | self._of_seals(runs - {""})

    def _of_tags(self, tags: Mapping[str, str]) -> set[str]:
        """Records that the tags of a version or a run name."""
        records = {tags[tag] for tag in (RECORD, REPORT_RECORD) if tag in tags}
        report = tags.get("resprout.report", "")
        if REPORT_RECORD not in tags and DIGEST.fullmatch(report):
            records.update(self.store.records_of(report))
        return records

    def _of_runs(self, runs: Iterable[Run]) -> set[str]:
        """Records of the runs, of those nested in them, and of their seals."""
        records: set[str] = set()
        for run in runs:
            identity = run.info.run_id
            nested = searched(
                self.tracker, f"tags.`mlflow.parentRunId` = '{identity}'", [run.info.experiment_id]
            )
            for one in (run, *nested):
                records |= self._of_tags(one.data.tags)
            records |= self._of_seals([identity])
        return records

    def _late_seals(self) -> list[str]:
        return [
            entry.key.removeprefix("seals/").removesuffix(".json")
            for entry in self.store.driver.entries("seals/")
            if entry.age_seconds < self.keep_seconds
        ]

    def _of_seals(self, runs: Iterable[str]) -> set[str]:
        wanted = sorted(set(runs))
        unread = [run for run in wanted if run not in self._sealed]
        with ThreadPoolExecutor(THREADS) as pool:
            for run, records in zip(unread, pool.map(self._named, unread), strict=True):
                # A run that has no seal yet may get one.
                if records:
                    self._sealed[run] = records
        return {record for run in wanted for record in self._sealed.get(run, ())}

    def _named(self, run: str) -> tuple[str, ...]:
        """Records that the seal of a run names; none where it has no seal."""
        seal = read_seal(self.store, run)
        return () if seal is None else tuple(seal.said["records"])


def every(tracker: Tracker, search: str) -> Iterator[Any]:
    """What a search of the registry finds, a page at a time."""
    find: Callable[..., Any] = getattr(tracker.client, search)
    return _pages(tracker, lambda token: find(max_results=PAGE, page_token=token))


def searched(tracker: Tracker, text: str, experiments: list[str] | None = None) -> Iterator[Run]:
    """Runs of all experiments that a filter finds, deleted ones too, a page at a time."""
    from mlflow.entities import ViewType

    client = tracker.client
    among = experiments or [
        one.experiment_id
        for one in _pages(
            tracker,
            lambda token: client.search_experiments(ViewType.ALL, max_results=PAGE, page_token=token),
        )
    ]
    for start in range(0, len(among), EXPERIMENTS):
        some = among[start : start + EXPERIMENTS]
        yield from _pages(
            tracker, functools.partial(client.search_runs, some, text, ViewType.ALL, PAGE, None)
        )


def _pages(tracker: Tracker, ask: Callable[[str | None], Any]) -> Iterator[Any]:
    @answers
    def page_of(tracker: Tracker, token: str | None) -> Any:
        return ask(token)

    token: str | None = None
    while True:
        page = page_of(tracker, token)
        yield from page
        token = page.token
        if not token:
            return
