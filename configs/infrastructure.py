"""Sections of the infrastructure: servers and folders, never part of a cache key."""

from __future__ import annotations

import re
from typing import Annotated, get_args

from pydantic import Field, SecretStr

from resprout.configs.section import Section


class StoreConfig(Section):
    """Where artifacts live."""

    uri: str | None = None
    """Folder (from the current one) or s3://bucket/prefix; default: <home>/store."""
    endpoint_url: str | None = None
    """Endpoint of an S3-compatible server; default: AWS."""
    region: str | None = None
    """Region; default: boto3's own chain."""
    access_key_id: SecretStr | None = None
    """Default: boto3's own chain. In YAML only as ${VARIABLE}."""
    secret_access_key: SecretStr | None = None
    """Default: boto3's own chain. In YAML only as ${VARIABLE}."""
    cache_gb: Annotated[float, Field(gt=0.0)] = 50.0
    """Size limit of the local cache of an S3 store, in GB."""


class MlflowConfig(Section):
    """Where runs are tracked."""

    tracking_uri: str | None = None
    """Server or database; default: SQLite at <home>/mlflow.db."""
    experiment: str = "resprout"
    """Experiment of all runs."""
    username: SecretStr | None = None
    """Basic authentication. In YAML only as ${VARIABLE}."""
    password: SecretStr | None = None
    """Basic authentication. In YAML only as ${VARIABLE}."""


class PrefectConfig(Section):
    """Which Prefect server runs the flow."""

    api_url: str | None = None
    """Server's API; default: an embedded server with its data under <home>."""
    api_key: SecretStr | None = None
    """Key or user:password. In YAML only as ${VARIABLE}."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Tries after a transient fault."""
    retry_delay_seconds: Annotated[float, Field(ge=0.0)] = 2.0
    """First delay; doubled each time."""


class InfraConfig(Section):
    """Servers and folders; never part of a cache key."""

    home: str | None = None
    """Data folder (from the current one); default: RESPROUT_HOME, else .resprout in the config's project."""
    store: StoreConfig = StoreConfig()
    """Artifact store."""
    mlflow: MlflowConfig = MlflowConfig()
    """Tracking and registry."""
    prefect: PrefectConfig = PrefectConfig()
    """Orchestration."""


SECRETS = {
    name
    for section in (StoreConfig, MlflowConfig, PrefectConfig)
    for name, field in section.model_fields.items()
    if SecretStr in get_args(field.annotation)
}
"""Keys that never appear in a log, a parameter or an artifact."""


def without_credentials(text: str) -> str:
    """The text without the user:password@ of addresses in it."""
    return re.sub(r"://[^/\s'\"]*@", "://", text)
