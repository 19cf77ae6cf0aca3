"""Read-only client of the MLflow model registry: models, versions and aliases as they are now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.configs.errors import ResproutError, Transient
from resprout.configs.infrastructure import MlflowConfig, one_line
from resprout.infra.mlflow.search import named, pages

PAGE = 200
KNOCK_SECONDS = 5.0
MOST_HOPS = 10
VERSION_URI = re.compile(r"^models:/([^/@]+)/(\d+)$")


class NotRegistered(Exception):
    """The registry holds no such model or version."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version; `status` is MLflow's, `created` in milliseconds since the epoch, 0 where unknown."""

    name: str
    version: str
    source: str = ""
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    description: str = ""
    status: str = "READY"
    created: int = 0

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model: `created` as of a version, `aliases` each with its version's number."""

    name: str
    created: int
    aliases: Mapping[str, str] = field(default_factory=dict)


class ModelRegistry:
    """One MLflow registry. Every method raises Transient where it does not answer."""

    def __init__(self, config: MlflowConfig, home: Path) -> None:
        # MLflow reads its environment when it is imported.
        from resprout.infra.mlflow.tracking import Tracker

        self._tracker = Tracker(config, home)
        name, word = (one.get_secret_value() if one else "" for one in (config.username, config.password))
        self._auth = (name, word) if name or word else None
        self._client: Any = None
        self.uri, self.shown_uri = self._tracker.uri, self._tracker.shown_uri

    def server_version(self) -> str:
        """Version of the server, or of the library where the registry is a database."""
        import mlflow
        import requests

        if not self._tracker.is_server:
            return str(mlflow.__version__)
        try:
            found = requests.get(f"{self.uri.rstrip('/')}/version", auth=self._auth, timeout=KNOCK_SECONDS)
            found.raise_for_status()
        except requests.RequestException as error:
            raise Transient(f"MLflow at {self.shown_uri} does not answer ({type(error).__name__})") from None
        return found.text.strip()

    def version(self, name: str, number: str) -> RegisteredVersion:
        """The version; raises NotRegistered where there is none."""
        found = self._call("get_model_version", name, number)
        return _version(found, found.aliases)

    def trail(self, version: RegisteredVersion) -> tuple[RegisteredVersion, ...]:
        """The version, what it is a copy of (source models:/name/number), and what that is a copy of."""
        hops = [version]
        while (found := VERSION_URI.match(hops[-1].source)) and len(hops) < MOST_HOPS:
            hops.append(self.version(found[1], found[2]))
        return tuple(hops)

    def run_tags(self, run_id: str) -> Mapping[str, str]:
        """Tags of a run, none where there is no such run."""
        try:
            return self._call("get_run", run_id).data.tags
        except NotRegistered:
            return {}

    def models(self) -> list[RegisteredModel]:
        """All registered models."""
        return [_model(found) for found in self._search("search_registered_models", None)]

    def model(self, name: str) -> RegisteredModel:
        """The model; raises NotRegistered where there is none."""
        return _model(self._call("get_registered_model", name))

    def versions(self, model: RegisteredModel) -> list[RegisteredVersion]:
        """All versions of a model by number."""
        # A version that is registered between two pages moves others to the next, where they come again.
        found = {int(one.version): one for one in self._search("search_model_versions", named(model.name))}
        aliases: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        return [_version(found[number], aliases.get(str(number), ())) for number in sorted(found)]

    def _search(self, method: str, having: str | None) -> Iterator[Any]:
        return pages(lambda token: self._call(method, having, PAGE, None, token))

    def _call(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of MLflow's client."""
        import requests
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            if self._client is None:
                if not self._tracker.is_server:
                    # Makes the database where there is none yet, one process at a time.
                    self._tracker.connect()
                self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            return getattr(self._client, method)(*arguments)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                raise NotRegistered(one_line(error)) from None
            raise Transient(f"MLflow at {self.shown_uri} does not answer: {one_line(error)}") from None
        except (requests.RequestException, SQLAlchemyError, OSError, ResproutError) as error:
            raise Transient(f"MLflow at {self.shown_uri} does not answer: {one_line(error)}") from None


def _model(found: Any) -> RegisteredModel:
    return RegisteredModel(found.name, int(found.creation_timestamp or 0), dict(found.aliases))


def _version(found: Any, aliases: Iterable[str]) -> RegisteredVersion:
    return RegisteredVersion(
        name=found.name,
        version=str(found.version),
        source=found.source or "",
        run_id=found.run_id or "",
        tags=dict(found.tags),
        aliases=tuple(sorted(aliases)),
        description=found.description or "",
        status=str(found.status),
        created=int(found.creation_timestamp or 0),
    )
