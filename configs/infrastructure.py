"""Sections of the infrastructure: servers and folders, never part of a cache key."""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from resprout.configs.section import Name, Section

Port = Annotated[int, Field(ge=1, le=65535)]


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

    @field_validator("uri", "endpoint_url")
    @classmethod
    def _address_holds_no_secret(cls, url: str | None) -> str | None:
        """Addresses are printed, kept in records and in Prefect's database, and boto3 shows them whole."""
        if url is not None and without_credentials(url) != url:
            raise ValueError(
                "a password in the address is of no use to a bucket; give access_key_id and secret_access_key"
            )
        return url


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
    """Server's API; default: a server on loopback with its data under <home>, which the first run starts."""
    keep_server_seconds: Annotated[float, Field(ge=0.0)] = 600.0
    """How long the home's own server stays after the last run, so that the next one need not wait for it."""
    api_key: SecretStr | None = None
    """Key or user:password. In YAML only as ${VARIABLE}."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """Tries after a transient fault."""
    retry_delay_seconds: Annotated[float, Field(ge=0.0)] = 2.0
    """First delay; doubled each time."""
    restarts: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a deployed run whose process died begins again by itself."""
    outage_seconds: Annotated[float, Field(ge=0.0)] = 3600.0
    """How long a deployed run waits for a store or an MLflow server that is down."""
    notify: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None = None
    """Notification block of the server, as type/name, used when a deployed run fails or does not pass its
    gate."""


class RelayConfig(Section):
    """The relay, which starts runs for what is new in the model registry."""

    rules: str | None = None
    """YAML file of rules (from the current folder): which versions start which config. Read again when it
    changes."""
    host: str = "127.0.0.1"
    """Address it listens on."""
    port: Port = 8300
    """Port it listens on."""
    webhook_secret: SecretStr | None = None
    """Secret that MLflow signs its deliveries with; the relay does not start without. In YAML only as
    ${VARIABLE}."""
    database_url: SecretStr | None = None
    """PostgreSQL database of what was seen and started; default: SQLite at <home>/relay.db. In YAML only as
    ${VARIABLE}."""
    max_body_kb: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Larger deliveries are refused."""
    rate_per_second: Annotated[float, Field(gt=0.0)] = 500.0
    """More deliveries than this are answered with 429."""
    window_seconds: Annotated[int, Field(ge=1)] = 300
    """How far the time of a delivery may lie from this machine's clock."""
    poll_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """Pause between two looks at the whole registry; a webhook makes the look at its model come at once."""


class StackConfig(Section):
    """The servers that `resprout up` starts on one machine, on loopback."""

    prefect_port: Port = 4200
    """Port of the Prefect server."""
    mlflow_port: Port = 5000
    """Port of the MLflow server."""
    pool: Name = "resprout"
    """Work pool of the stack's worker."""
    run_limit: Annotated[int, Field(ge=1)] = 1
    """Runs that the worker has at once: one where they share one GPU."""
    prefect_database_url: SecretStr | None = None
    """PostgreSQL database of the Prefect server; default: SQLite below <home>. In YAML only as
    ${VARIABLE}."""
    mlflow_database_url: SecretStr | None = None
    """PostgreSQL database of the MLflow server, another one; default: SQLite below <home>. In YAML only as
    ${VARIABLE}."""


class ProofConfig(Section):
    """Signatures under what runs leave behind; without a key everything is unsigned, and says so."""

    signing_key: SecretStr | None = None
    """Ed25519 private key, PEM (PKCS 8). In YAML only as ${VARIABLE}."""
    signing_key_file: str | None = None
    """File that holds that key (from the current folder), instead of signing_key."""
    verification_keys: tuple[str, ...] = ()
    """Whose signatures count beside the own key's: files of PEM public keys (from the current folder), or
    ed25519: and 64 hexadecimal digits. A key that was rotated out stays here."""
    require_signatures: bool | None = None
    """Whether what carries no signature that counts is no cache hit, and a fault to `verify`; default: true
    where a key is given, signing_key or one of verification_keys."""
    timestamp_url: str | None = None
    """RFC 3161 authority that dates each seal, outside the reach of whoever holds the signing key."""
    timestamp_roots: str | None = None
    """File of PEM certificates that verify the authority's answers; its path starts at the current folder."""

    @model_validator(mode="after")
    def _one_key(self) -> ProofConfig:
        if self.signing_key is not None and self.signing_key_file is not None:
            raise ValueError("signing_key and signing_key_file are both given; keep one of them")
        if self.timestamp_url is not None and self.timestamp_roots is None:
            raise ValueError(
                "timestamp_url is given without timestamp_roots; name a file of the authority's certificates"
            )
        return self


class RetentionConfig(Section):
    """Retention: `gc` keeps more than registered versions, holds and running flows need."""

    keep_days: Annotated[float, Field(ge=0.0)] = 30.0
    """Artifacts that a run of the last days made or used stay, registered or not."""
    grace_hours: Annotated[float, Field(ge=0.0)] = 24.0
    """Younger artifacts stay, whoever wrote them."""
    checkpoint_days: Annotated[float, Field(ge=0.0)] = 14.0
    """Older checkpoints of an interrupted stage go; those of a finished one go in any case."""


class LicencesConfig(Section):
    """Which licences the source model and data may have; patterns like cc-by-nc*, case does not matter,
    `unknown` stands for none. Of `A AND B`, `A WITH b` and lists each part counts; `A OR B` is denied only
    where both are.
    """

    deny: tuple[str, ...] = ()
    """A source under one of these stops the run before it begins."""
    warn: tuple[str, ...] = ()
    """A source under one of these is noted in log, result and audit."""


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
    relay: RelayConfig = RelayConfig()
    """Registry triggers."""
    stack: StackConfig = StackConfig()
    """The one-machine stack."""
    proof: ProofConfig = ProofConfig()
    """Signatures."""
    retention: RetentionConfig = RetentionConfig()
    """Retention of artifacts."""
    licences: LicencesConfig = LicencesConfig()
    """Which licences are allowed."""
    price_per_hour: Annotated[float, Field(ge=0.0)] | None = None
    """Price of one hour of this machine, in any currency; with it `plan` gives the cost of a run."""
    data_scan: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    """Function that looks through each acquired data set, say for personal data, as module:function of an
    installed package: it is given the folder, returns what it found, and raises to end the run."""
    logs: Literal["text", "json"] = "text"
    """Form of the log lines of deployed runs, relay and stack."""
    task_runner: Literal["threads", "dask", "ray"] = "threads"
    """Task runner of shards and of the variants of a sweep. threads: this process, which does one thing at
    a time; dask and ray: processes, on this machine or a cluster."""
    workers: Annotated[int, Field(ge=1)] = 1
    """How many shards or variants are on their way at once."""
    shards: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Parts into which a stage that can be shared out is split; each is kept, and its bytes are the same."""
    dask_address: str | None = None
    """Scheduler of a Dask cluster; default: a cluster of `workers` processes on this machine."""
    ray_address: str | None = None
    """Address of a Ray cluster; default: a cluster of `workers` processes on this machine."""


SECRETS = {
    name
    for section in (StoreConfig, MlflowConfig, PrefectConfig, RelayConfig, StackConfig, ProofConfig)
    for name, field in section.model_fields.items()
    if SecretStr in get_args(field.annotation)
}
"""Keys that never appear in a log, a parameter or an artifact."""


SECRET_PARAMETER = re.compile(
    r"([?&](?:[\w.-]*(?:password|passwd|pwd|secret|token|signature|credential|api_?key|access_?key)"
    r"(?:_?id)?)=)[^&#\s'\"]*",
    re.IGNORECASE,
)
"""A parameter of an address whose name says that its value is not to be read."""


def without_credentials(text: str) -> str:
    """The text without the user:password@ of addresses in it, and with *** for their secret parameters."""
    return SECRET_PARAMETER.sub(r"\1***", re.sub(r"://[^/\s'\"]*@", "://", text))


def one_line(error: object, length: int | None = 200) -> str:
    """The error's text on one line, at most so long, without the credentials of addresses in it."""
    return without_credentials(" ".join(str(error).split()))[:length]
