"""Runs of the compress flow on a Prefect server: created once for a key, counted, and restarted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from resprout.configs.errors import BadInput, Transient
from resprout.configs.infrastructure import PrefectConfig, one_line, without_credentials
from resprout.infra.prefect.auth import CLIENT

T = TypeVar("T")
FLOW, SWEEP = "compress", "sweep"
"""Names of the flows."""
GATE_NOT_PASSED = "GateNotPassed"
"""Name of the last state of a run whose gate did not pass."""
RESTARTING = "Restarting"
"""Name of the state in which a run whose process died is scheduled."""
WAITING = ("Late", "AwaitingConcurrencySlot")
"""States that the server itself puts before a start."""
MOST_RESTARTS = 11
"""More than infra.prefect.restarts allows: only a run that dies before the flow can count gets here."""
NEVER_BEGINS = (
    f"its process died more than {MOST_RESTARTS} times before the flow's own code began; look into the "
    "worker's log (image, installation, memory?), fix it, then retry the run"
)
REQUEST_SECONDS = 10.0
STATES = ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED")


class NoDeployment(Exception):
    """The flow has no deployment of this name yet."""


class NoAnswer(Transient):
    """The server is down, or cannot do what it is asked now."""


class NoPrefect(NoAnswer):
    """Something else answers at the address: it lacks /api, or a proxy speaks for the server."""


class FlowRuns:
    """One Prefect server. Every method raises NoAnswer where it does not answer."""

    def __init__(self, config: PrefectConfig, url: str) -> None:
        self.url = url
        secret = config.api_key.get_secret_value() if config.api_key else os.environ.get(CLIENT)
        self._auth: dict[str, Any] = {"auth_string" if secret and ":" in secret else "api_key": secret}

    @property
    def shown_url(self) -> str:
        return without_credentials(self.url)

    def start(self, deployment: str, key: str, name: str, overrides: Sequence[str], own: bool = False) -> str:
        """Id of the flow run for `key`, which is made or there already.

        Args:
            deployment: Name of the deployment.
            key: Names what the run is for, to Prefect (idempotency) and to the flow (claim).
            name: Name of the run.
            overrides: key=value, after those of the deployment.
            own: Whether the flow goes on with a model that resprout exported.

        Raises:
            NoDeployment: the deployment is not there.
            BadInput: Prefect does not take the parameters.
        """

        def create(client: Any) -> str:
            found = client.read_deployment_by_name(f"{FLOW}/{deployment}")
            parameters: dict[str, Any] = {
                "overrides": [*(found.parameters.get("overrides") or ()), *overrides],
                "claim": key,
            }
            if own:
                parameters["own"] = True
            run = client.create_flow_run_from_deployment(
                found.id,
                parameters=parameters,
                idempotency_key=f"resprout {key}",
                tags=["resprout-relay"],
                name=name,
            )
            return str(run.id)

        return self._call(create)

    def server_version(self) -> str:
        """The server's version; raises BadInput where what answers is no Prefect server."""
        try:
            return self._call(lambda client: str(client.api_version()))
        except NoPrefect as fault:
            raise BadInput(f"{fault}; infra.prefect.api_url ends in /api") from None

    def count(self) -> dict[str, int]:
        """How many runs of the flow are in each state, of all that the server keeps."""

        def count(client: Any, state: str) -> int:
            wanted = {
                "flows": {"name": {"any_": [FLOW]}},
                "flow_runs": {"state": {"type": {"any_": [state]}}},
            }
            return int(client.request("POST", "/flow_runs/count", json=wanted).json())

        return self._call(lambda client: {state.lower(): count(client, state) for state in STATES})

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Emit an event, for display and for the user's own automations; nothing depends on it."""
        from prefect.events import emit_event

        emit_event(event, resource={"prefect.resource.id": resource}, payload=dict(payload))

    def _call(self, question: Callable[[Any], T]) -> T:
        import httpx
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.exceptions import ObjectNotFound

        try:
            with SyncPrefectClient(
                self.url, httpx_settings={"timeout": REQUEST_SECONDS}, **self._auth
            ) as client:
                return question(client)
        except ObjectNotFound:
            raise NoDeployment from None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (400, 409, 422):
                text = one_line(error.response.text, 300)
                raise BadInput(f"Prefect does not take the run's parameters ({status}: {text})") from None
            # At a right address a proxy says this too, while the server behind it starts.
            if status == 404 and not self.url.rstrip("/").endswith("/api"):
                raise self._no_prefect() from None
            raise NoAnswer(f"Prefect at {self.shown_url} answers {status}") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise self._no_prefect() from None
        except (httpx.HTTPError, RuntimeError, OSError) as error:
            raise NoAnswer(f"Prefect at {self.shown_url} does not answer ({type(error).__name__})") from None

    def _no_prefect(self) -> NoPrefect:
        return NoPrefect(f"what answers at {self.shown_url} is no Prefect server")


def in_a_row(states: Iterable[tuple[str, str]]) -> int:
    """Deaths after which the server restarted the run, since a person, a schedule or a rule last began it.

    `states` are type and name of the run's states, oldest first.
    """
    count, died = 0, False
    for kind, name in states:
        if kind == "CRASHED":
            died = True
        elif kind == "SCHEDULED" and name not in WAITING:
            count = count + died if name == RESTARTING else 0
            died = False
    return count
