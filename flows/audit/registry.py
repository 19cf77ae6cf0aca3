"""What the registry and the runs in MLflow say, a page at a time: memory holds one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from resprout.infra.tracking import Tracker, answers

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

RECORD = "resprout.record"
"""Tag of what resprout registered: the record of the export."""
PAGE = 1000


def versions(tracker: Tracker) -> Iterator[ModelVersion]:
    """The versions that resprout registered, without their aliases."""
    return (version for version in _all(tracker, _versions) if RECORD in version.tags)


def aliases(tracker: Tracker) -> dict[tuple[str, str], list[str]]:
    """The aliases by name and version."""
    found: dict[tuple[str, str], list[str]] = {}
    for model in _all(tracker, _models):
        for alias, version in sorted(model.aliases.items()):
            found.setdefault((model.name, str(version)), []).append(alias)
    return found


def runs(tracker: Tracker, wanted: str) -> Iterator[Run]:
    """The runs that MLflow's filter selects."""
    experiments = tracker.experiments()
    return _all(
        tracker,
        lambda here, token: here.client.search_runs(experiments, wanted, max_results=PAGE, page_token=token),
    )


def _versions(tracker: Tracker, token: str | None) -> Any:
    return tracker.client.search_model_versions(max_results=PAGE, page_token=token)


def _models(tracker: Tracker, token: str | None) -> Any:
    return tracker.client.search_registered_models(max_results=PAGE, page_token=token)


def _all(tracker: Tracker, page_of: Callable[[Tracker, str | None], Any]) -> Iterator[Any]:
    ask, token = answers(page_of), None
    while True:
        page = ask(tracker, token)
        yield from page
        token = page.token
        if not token:
            return
