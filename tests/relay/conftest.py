"""A relay in parts: outbox, registry on SQLite, the session's Prefect server, and what a hand-over needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relaying import client_of, write_rules
from resprout.configs.rules import load_rules
from resprout.configs.schema import MlflowConfig, PrefectConfig, RelayConfig, StoreConfig
from resprout.infra.relay.handover import Handover
from resprout.infra.relay.metrics import Metrics
from resprout.infra.relay.outbox import Outbox
from resprout.infra.relay.registry import Registry
from resprout.infra.relay.starter import Starter
from resprout.infra.store.store import ArtifactStore


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    from servers import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's database with its tables, to be copied: making them takes seconds."""
    from resprout.infra.tracking import Tracker

    home = tmp_path_factory.mktemp("registry")
    Tracker(MlflowConfig(), home).connect()
    return home / "mlflow.db"


@pytest.fixture
def registry(home: Path, empty_registry: Path) -> Registry:
    (home / "mlflow.db").write_bytes(empty_registry.read_bytes())
    return Registry(MlflowConfig(), home)


@pytest.fixture
def mlflow(registry: Registry) -> Any:
    """A client of the registry."""
    return client_of(registry.uri)


@pytest.fixture
def outbox(home: Path) -> Iterator[Outbox]:
    found = Outbox.open(RelayConfig(), home)
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
def make_handover(
    outbox: Outbox, registry: Registry, store: ArtifactStore, api_url: str, tmp_path: Path
) -> Callable[..., Handover]:
    """A hand-over by some rules, with other parts where a test gives them."""

    def make(*rules: dict[str, Any], **parts: Any) -> Handover:
        usual: dict[str, Any] = {
            "rules": load_rules(write_rules(tmp_path / "rules", *rules)),
            "outbox": outbox,
            "registry": registry,
            "starter": Starter(PrefectConfig(), api_url),
            "store": store,
            "metrics": Metrics(),
        }
        return Handover(**{**usual, **parts})

    return make
