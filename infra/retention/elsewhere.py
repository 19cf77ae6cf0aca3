"""Where a backup lies, and which database is behind MLflow."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput
from resprout.configs.schema import InfraConfig, StoreConfig
from resprout.infra.answers import answers
from resprout.infra.stack.databases import mlflow_database
from resprout.infra.stack.settings import mlflow_url
from resprout.infra.store.driver import Driver
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker


def driver_at(where: str, infra: StoreConfig, endpoint_url: str | None) -> Driver:
    """Driver of a folder or of s3://bucket/prefix, with the credentials of the store."""
    parts = urlsplit(where)
    if parts.scheme == "s3":
        from resprout.infra.store.s3 import S3Driver

        changed = {"uri": where, "endpoint_url": endpoint_url or infra.endpoint_url}
        return S3Driver.from_config(infra.model_copy(update=changed))
    if parts.scheme == "file":
        return LocalDriver(Path(unquote(parts.path)))
    if "://" in where:
        raise BadInput(f"'{where}' is no place for a backup; give a folder or s3://bucket/prefix")
    return LocalDriver(Path(where).expanduser())


def require_apart(store: ArtifactStore, driver: Driver) -> None:
    """BadInput where the backup would lie in the store, or the store in the backup."""
    one, other = f"{store.root_uri}/", f"{driver.uri('store').removesuffix('/store')}/"
    if one.startswith(other) or other.startswith(one):
        raise BadInput(f"{other} and the store {one} lie in each other; give another place for the backup")


def database_address(infra: InfraConfig, tracker: Tracker, home: Path) -> str:
    """SQLAlchemy address of MLflow's database.

    Raises:
        BadInput: tracking goes through a server, and nothing says what is behind it.
    """
    if not tracker.is_server:
        return tracker.uri
    own = {mlflow_url(infra), mlflow_url(infra).replace("127.0.0.1", "localhost")}
    if infra.stack.mlflow_database_url is None and tracker.uri.rstrip("/") not in own:
        raise BadInput(
            f"MLflow at {tracker.shown_uri} is a server, whose tables are read from its database: put the "
            "address into an environment variable and write infra.stack.mlflow_database_url: ${ITS_NAME}, or "
            "set RESPROUT_INFRA__STACK__MLFLOW_DATABASE_URL"
        )
    return mlflow_database(infra.stack, home)


@answers
def own_experiment(tracker: Tracker) -> str:
    """Name of the experiment that new runs go to, which connecting makes."""
    return str(tracker.client.get_experiment(tracker.experiment_id).name)
