"""What the registry and the runs in MLflow say, a page at a time: memory holds one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from resprout.infra.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

RECORD = "resprout.record"
"""Tag of what resprout registered: the record of the export."""


def versions(tracker: Tracker) -> Iterator[ModelVersion]:
    """The versions that resprout registered, without their aliases."""
    return (version for version in _all(tracker.page_of_versions) if RECORD in version.tags)


def aliases(tracker: Tracker) -> dict[tuple[str, str], list[str]]:
    """The aliases by name and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in _all(tracker.page_of_models):
        for alias, version in sorted(model.aliases.items()):
            found.setdefault((model.name, str(version)), []).append(alias)
    return found


def runs(tracker: Tracker, wanted: str) -> Iterator[Run]:
    """The runs that MLflow's filter selects."""
    return _all(lambda token: tracker.page_of_runs(wanted, token))


def _all(page_of: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = page_of(token)
        yield from page
        token = page.token
        if not token:
            return
