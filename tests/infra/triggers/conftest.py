"""A relay in parts: registry on SQLite, the session's Prefect server, and a reconciler on both."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relaying import client_of, write_rules
from resprout.configs.infrastructure import MlflowConfig, PrefectConfig, RelayConfig, StoreConfig
from resprout.infra.prefect.flow_runs import FlowRuns
from resprout.infra.store.store import ArtifactStore
from resprout.infra.triggers.model_registry import ModelRegistry
from resprout.infra.triggers.reconciler import Reconciler, WatchedRules
from resprout.infra.triggers.state import TriggerState

Make = Callable[..., Reconciler]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    from servers import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture
def named() -> str:
    """A rule's name, and with it a deployment's, of its own: the Prefect server is shared."""
    return f"rule-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def registry(home: Path, mlflow_template: Path) -> ModelRegistry:
    (home / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    return ModelRegistry(MlflowConfig(), home)


@pytest.fixture
def mlflow(registry: ModelRegistry) -> Any:
    """A client of the registry."""
    return client_of(registry.uri)


@pytest.fixture
def state(home: Path) -> Iterator[TriggerState]:
    found = TriggerState.open(RelayConfig(), home)
    yield found
    found.close()


@pytest.fixture
def store(home: Path) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), home)


@pytest.fixture
def api_url(prefect_server: None) -> str:
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


@pytest.fixture
def make(
    state: TriggerState, registry: ModelRegistry, store: ArtifactStore, api_url: str, tmp_path: Path
) -> Make:
    """A reconciler with some rules, and with other parts where a test gives them."""

    def reconciler(*rules: dict[str, Any], **parts: Any) -> Reconciler:
        usual: dict[str, Any] = {
            "rules": WatchedRules(write_rules(tmp_path / "rules", *rules)),
            "state": state,
            "registry": registry,
            "runs": FlowRuns(PrefectConfig(), api_url),
            "store": store,
        }
        return Reconciler(**{**usual, **parts})

    return reconciler
