"""Searches of MLflow, a page at a time: memory holds one page, and no later page is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from resprout.infra.mlflow.errors import mlflow_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

PAGE = 1000
EXPERIMENTS = 100
"""Experiments that one search asks for."""


class Connection(Protocol):
    """A client of MLflow."""

    @property
    def client(self) -> MlflowClient: ...


def versions(tracker: Connection, having: str = "") -> Iterator[ModelVersion]:
    """All versions in the registry, or those that a filter names, without their aliases."""
    return _pages(tracker, partial(tracker.client.search_model_versions, having))


def named(name: str) -> str:
    """The filter for the versions of one registered model; MLflow knows no escape inside quotes."""
    return f'name = "{name}"' if "'" in name else f"name = '{name}'"


@mlflow_errors
def is_registered(tracker: Connection, name: str) -> bool:
    """Whether there is a registered model of this name."""
    return bool(tracker.client.search_registered_models(filter_string=named(name), max_results=1))


def models(tracker: Connection) -> Iterator[RegisteredModel]:
    """All registered models with their aliases."""
    return _pages(tracker, tracker.client.search_registered_models)


def runs(tracker: Connection, having: str, experiments: list[str] | None = None) -> Iterator[Run]:
    """Runs of these or of all experiments that a filter names, deleted runs and experiments among them."""
    from mlflow.entities import ViewType

    client = tracker.client
    if experiments is None:
        found = _pages(tracker, partial(client.search_experiments, ViewType.ALL))
        experiments = [one.experiment_id for one in found]
    for start in range(0, len(experiments), EXPERIMENTS):
        some = experiments[start : start + EXPERIMENTS]
        yield from _pages(tracker, partial(client.search_runs, some, having, ViewType.ALL))


def _pages(tracker: Connection, find: Callable[..., Any]) -> Iterator[Any]:
    return pages(lambda token: _page(tracker, find, token))


def pages(find: Callable[[str | None], Any]) -> Iterator[Any]:
    """Yield what all pages hold; `find` returns the page that begins at a token."""
    token: str | None = None
    while True:
        page = find(token)
        yield from page
        token = page.token
        if not token:
            return


@mlflow_errors
def _page(tracker: Connection, find: Callable[..., Any], token: str | None) -> Any:
    return find(max_results=PAGE, page_token=token)
