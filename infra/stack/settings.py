"""Settings on their way to the parts of the stack: as RESPROUT_* variables, secrets apart from the rest."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import SecretStr

from resprout.configs.errors import BadInput
from resprout.configs.load import PREFIX
from resprout.configs.schema import InfraConfig
from resprout.configs.section import Section
from resprout.infra.store.driver import driver_class

LOOPBACK = "127.0.0.1"


def prefect_url(infra: InfraConfig) -> str:
    """Address of the stack's Prefect server."""
    return f"http://{LOOPBACK}:{infra.stack.prefect_port}"


def mlflow_url(infra: InfraConfig) -> str:
    """Address of the stack's MLflow server."""
    return f"http://{LOOPBACK}:{infra.stack.mlflow_port}"


def relay_url(infra: InfraConfig) -> str:
    """Address of the relay on this machine."""
    host = LOOPBACK if infra.relay.host in ("0.0.0.0", "::") else infra.relay.host
    return f"http://{host}:{infra.relay.port}"


def in_the_stack(infra: InfraConfig) -> InfraConfig:
    """The settings as the parts and the runs see them: servers are the stack's own, paths are absolute.

    Raises:
        BadInput: they name other servers than the stack's, or a relay without its secret.
    """
    _refuse_other("infra.prefect.api_url", infra.prefect.api_url, f"{prefect_url(infra)}/api")
    _refuse_other("infra.mlflow.tracking_uri", infra.mlflow.tracking_uri, mlflow_url(infra))
    relay, store = infra.relay, infra.store
    if relay.rules is not None:
        rules = Path(relay.rules).expanduser().absolute()
        if not rules.is_file():
            raise BadInput(
                f"infra.relay.rules: no file {rules}; give the YAML file of rules, or remove the key"
            )
        if relay.webhook_secret is None:
            raise BadInput(
                "infra.relay.rules is set, but infra.relay.webhook_secret is not; put a long random text in "
                "an environment variable and write webhook_secret: ${ITS_NAME}"
            )
        relay = relay.model_copy(update={"rules": str(rules)})
    if store.uri is not None and "://" not in store.uri:
        store = store.model_copy(update={"uri": str(Path(store.uri).expanduser().absolute())})
    prefect = infra.prefect.model_copy(update={"api_url": f"{prefect_url(infra)}/api", "api_key": None})
    mlflow = infra.mlflow.model_copy(update={"tracking_uri": mlflow_url(infra)})
    return infra.model_copy(update={"relay": relay, "store": store, "prefect": prefect, "mlflow": mlflow})


def variables(infra: InfraConfig, home: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the settings say beyond the defaults, as RESPROUT_* variables: plain ones, and secrets."""
    plain = {"RESPROUT_HOME": str(home), f"{PREFIX}INFRA__HOME": json.dumps(str(home))}
    secret: dict[str, str] = {}
    for name in type(infra).model_fields:
        if name == "home":
            continue
        value = getattr(infra, name)
        inside = dict(value) if isinstance(value, Section) else {"": value}
        usual = (
            dict(type(value)())
            if isinstance(value, Section)
            else {"": type(infra).model_fields[name].default}
        )
        for key, given in inside.items():
            variable = "__".join([f"{PREFIX}INFRA", name.upper(), *([key.upper()] if key else [])])
            if isinstance(given, SecretStr):
                # The databases are the servers' own.
                secret |= {variable: given.get_secret_value()} if name != "stack" else {}
            elif given != usual[key]:
                plain[variable] = json.dumps(given)
    return plain, secret


def bucket_variables(infra: InfraConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What MLflow's own S3 client reads, so that its files go to the bucket of the artifact store."""
    return driver_class(infra.store.uri).mlflow_variables(infra.store)


def _refuse_other(key: str, given: str | None, own: str) -> None:
    same = {own, own.replace(LOOPBACK, "localhost")}
    if given is not None and given.rstrip("/") not in same:
        raise BadInput(
            f"{key} is {given}, but `resprout up` starts its own at {own}; remove the key, or do without the "
            "stack"
        )
