"""The rows that a finished run selected for recovery, each with the reason why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput
from resprout.flows.recorded_run import RecordedRun
from resprout.infra.store.record import ArtifactRef
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.stored_json import parse_json
from resprout.tasks.core.stage import StepId
from resprout.tasks.select.comparison import role_of
from resprout.tasks.select.rows import FILE, rows_by_id
from resprout.tasks.select.stage import answer, select

SELECTED, DECISIONS, SUMMARY = "selected.jsonl", "decisions.jsonl", "summary.json"


@dataclass(frozen=True)
class Selection:
    """One selection of a run: its artifact, that with the rows as they were trained on, and the pool."""

    made: ArtifactRef
    trained: ArtifactRef
    pool: ArtifactRef | None


def selections(run: RecordedRun, store: ArtifactStore) -> dict[str, Selection]:
    """The selections of a run by name and seed, its own first.

    Raises:
        BadInput: the run selected none.
    """
    config, found = run.config, dict[str, Selection]()
    for step in (one for one in run.steps if one.stage is select):
        made = run.ref(store, step.id)
        own = role_of(config.select.label, config.seed) if config.select is not None else ""
        name = step.role or own
        if made is None or not _is_seeded(name):
            continue
        trained = run.ref(store, StepId(answer.name, step.role)) or made
        pool = run.ref(store, step.inputs["rows"].step)
        found[name] = Selection(made, trained, pool)
    if not found:
        raise BadInput("this run selected no rows: its config has no select section")
    return found


def read_summary(store: ArtifactStore, selection: Selection) -> dict[str, Any]:
    """How the rows were selected."""
    return dict(_whole(store, selection.made).read_json(selection.made.digest, SUMMARY))


def read_rows(
    store: ArtifactStore, selection: Selection, everything: bool = False
) -> Iterator[dict[str, Any]]:
    """The selected rows with what decided on each, in the order of their ids; one after another.

    With `everything` also the rows of the pool that were not selected, `accepted` false.
    """
    with ExitStack() as opened:
        folders = [
            opened.enter_context(_whole(store, one).open(one.digest))
            for one in (selection.made, selection.trained, selection.pool)
            if one is not None
        ]
        made, trained, *pool = folders
        files = [trained / SELECTED, *(folder / FILE for folder in pool if everything)]
        rows = iter(rows_by_id(*files))
        row = next(rows, None)
        with (made / DECISIONS).open(encoding="utf-8") as decisions:
            for line in decisions:
                decision: Mapping[str, Any] = parse_json(line, DECISIONS)
                if not decision["accepted"] and not everything:
                    continue
                while row is not None and row["id"] < decision["id"]:
                    row = next(rows, None)
                if row is not None and row["id"] == decision["id"]:
                    yield {**row, **decision}
                elif everything:
                    # A filter took it before the pool, where its text is no more.
                    yield dict(decision)


def _is_seeded(name: str) -> bool:
    """Whether it is a selection that recovery trained on, and not one on the way to another."""
    return name.rpartition(":")[2].isdigit()


def _whole(store: ArtifactStore, ref: ArtifactRef) -> ArtifactStore:
    """The store; BadInput where the artifact is no more in it."""
    if not store.check(ref.digest):
        raise BadInput(
            f"the rows of this run (artifact {ref.digest}) are not whole in {store.root_uri}; restore them "
            "from a backup, or run its config again"
        )
    return store
