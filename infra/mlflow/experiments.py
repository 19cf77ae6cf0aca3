"""The MLflow experiment that runs go to: its kind, its name, and another one where the home was moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput
from resprout.infra.environment import ARTIFACTS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

IN = " in "
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's own tag and its value for experiments that train models."""
PAGE_OF_TRAINING = "workflowType=machine_learning"
"""Query of a page. MLflow 3.17 shows an experiment in the mode that the browser had last, at first GenAI,
whatever its kind is, where the page has a switch between both."""


def experiment_of(
    client: MlflowClient, name: str, files: HomeFiles, project: str, is_server: bool, read_only: bool = False
) -> str:
    """Id of the active experiment called `name`, which is made where there is none.

    MLflow never changes where an experiment's artifacts lie. In a home that was moved or copied the
    experiment still points at the old folder, so new runs go to one that is named after the home's `project`
    as well. With `read_only` none is made for that.
    """
    own = None if is_server else files.address
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=own, tags=KIND))
    if found.lifecycle_stage != "active":
        raise BadInput(
            f"the MLflow experiment '{name}' is deleted; restore it or set infra.mlflow.experiment to "
            "another name"
        )
    if files.here(found.artifact_location) != found.artifact_location:
        kin = kin_of(client, name)
        here = [one for one in kin if one.artifact_location == own]
        if not here and not read_only:
            taken, new = {one.name for one in kin}, f"{name}{IN}{project}"
            number = 2
            while new in taken:
                new, number = f"{name}{IN}{project} {number}", number + 1
            return str(client.create_experiment(new, artifact_location=own, tags=KIND))
        found = here[0] if here else found
    if not read_only and not KIND.keys() & found.tags.keys():
        for key, value in KIND.items():
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def kin_of(client: MlflowClient, name: str) -> list[Experiment]:
    """The active experiment called `name`, and those that stood for it while the home was elsewhere."""
    return [
        one for one in client.search_experiments() if one.name == name or one.name.startswith(f"{name}{IN}")
    ]


class HomeFiles:
    """The folder below `home` that holds them, where MLflow's database is the home's `own`."""

    def __init__(self, home: Path, own: bool) -> None:
        self.own = own
        self.address = (home / ARTIFACTS).resolve().as_uri()

    def here(self, address: str) -> str:
        """An address of files of runs, where the home is now; others as they are."""
        old, found, rest = address.rpartition(f"/{ARTIFACTS}")
        if not self.own or not found or not old.startswith("file:") or rest[:1] not in ("", "/"):
            return address
        return f"{self.address}{rest}"

    def folder(self, address: str) -> Path | None:
        """The local folder behind such an address; None where MLflow keeps the files elsewhere."""
        here = self.here(address)
        return Path(unquote(urlsplit(here).path)) if here.startswith(f"{self.address}/") else None
