"""Flow runs for versions, through Prefect: one for a rule, name and version, whoever asks how often."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import PrefectConfig, without_credentials
from resprout.configs.rules import Rule
from resprout.infra.relay.registry import Version
from resprout.infra.restarts import FLOW

T = TypeVar("T")
REQUEST_SECONDS = 10.0
STATES = ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED")


def key_of(rule: str, version: Version, attempt: int = 0) -> str:
    """What one run is for. A model that is deleted and made again counts from 1 again, hence the time."""
    parts = [rule, version.name, version.version]
    if version.created:
        parts.append(str(version.created))
    if attempt:
        parts.append(f"again-{attempt}")
    return " ".join(parts)


class Missing(Exception):
    """The rule has no deployment yet."""


class NoPrefect(Transient):
    """Something else answers at the address: it lacks /api, or a proxy speaks for the server."""


class Starter:
    """One Prefect server. Every method raises Transient where it does not answer."""

    def __init__(self, config: PrefectConfig, url: str) -> None:
        self.url = url
        secret = config.api_key.get_secret_value() if config.api_key else None
        self._auth: dict[str, Any] = {"auth_string" if secret and ":" in secret else "api_key": secret}

    @property
    def shown_url(self) -> str:
        return without_credentials(self.url)

    def start(self, rule: Rule, version: Version, overrides: Sequence[str], attempt: int = 0) -> str:
        """Id of the flow run for the rule, version and attempt, made or there already.

        Raises:
            Missing: the rule's deployment is not there.
            BadInput: Prefect does not take the parameters.
        """
        key = key_of(rule.name, version, attempt)

        def create(client: Any) -> str:
            deployment = client.read_deployment_by_name(f"{FLOW}/{rule.name}")
            parameters: dict[str, Any] = {
                "overrides": [*(deployment.parameters.get("overrides") or ()), *overrides],
                "claim": key,
            }
            if rule.own:
                parameters["own"] = True
            run = client.create_flow_run_from_deployment(
                deployment.id,
                parameters=parameters,
                idempotency_key=f"resprout {key}",
                tags=["resprout-relay"],
                # Any version may start it, and a name must not tell of more than this.
                name=f"{version.name}-{version.version}",
            )
            return str(run.id)

        return self._ask(create)

    def server_version(self) -> str:
        """The server's version; raises BadInput where what answers is no Prefect server."""
        try:
            return self._ask(lambda client: str(client.api_version()))
        except NoPrefect as fault:
            raise BadInput(f"{fault}; infra.prefect.api_url ends in /api") from None

    def runs(self) -> dict[str, int]:
        """How many runs of the flow are in each state, of all that the server keeps."""

        def count(client: Any, state: str) -> int:
            wanted = {
                "flows": {"name": {"any_": [FLOW]}},
                "flow_runs": {"state": {"type": {"any_": [state]}}},
            }
            return int(client.request("POST", "/flow_runs/count", json=wanted).json())

        return self._ask(lambda client: {state.lower(): count(client, state) for state in STATES})

    def tell(self, kind: str, version: Version) -> None:
        """Emit an event, for display and for the user's own automations; nothing depends on it."""
        from prefect.events import emit_event

        emit_event(
            f"resprout.model-version.{kind}",
            resource={"prefect.resource.id": f"resprout.model-version.{version.name}.{version.version}"},
            payload={
                "name": version.name,
                "version": version.version,
                "aliases": list(version.aliases),
                "tags": dict(version.tags),
            },
        )

    def _ask(self, question: Callable[[Any], T]) -> T:
        import httpx
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.exceptions import ObjectNotFound

        try:
            with SyncPrefectClient(
                self.url, httpx_settings={"timeout": REQUEST_SECONDS}, **self._auth
            ) as client:
                return question(client)
        except ObjectNotFound:
            raise Missing from None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (400, 409, 422):
                text = without_credentials(" ".join(error.response.text.split()))[:300]
                raise BadInput(f"Prefect does not take the run's parameters ({status}: {text})") from None
            # At a right address a proxy says this too, while the server behind it starts.
            if status == 404 and not self.url.rstrip("/").endswith("/api"):
                raise self._other() from None
            raise Transient(f"Prefect at {self.shown_url} answers {status}") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise self._other() from None
        except (httpx.HTTPError, RuntimeError, OSError) as error:
            raise Transient(f"Prefect at {self.shown_url} does not answer ({type(error).__name__})") from None

    def _other(self) -> NoPrefect:
        return NoPrefect(f"what answers at {self.shown_url} is no Prefect server")
