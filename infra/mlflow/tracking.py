"""MLflow: one run for the flow, one nested run for each stage, and the model registry.

Everything goes through MlflowClient with explicit run ids, so that nothing hangs on global state. A server
that does not answer becomes one sentence; what was computed is in the artifact store by then. MLflow is
imported where it is used: its import takes as long as all others that a run needs before its first line.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput, ResproutError, Unreachable
from resprout.configs.infrastructure import MlflowConfig, one_line, without_credentials
from resprout.infra.environment import ARTIFACTS
from resprout.infra.imports import without_collector
from resprout.infra.mlflow import search
from resprout.infra.mlflow.errors import allowing, knock, legible, mlflow_errors, will_not_pass

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.entities.model_registry import ModelVersion

MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
DATASET_DIGEST_CHARS = 36
SOURCE = {"mlflow.source.name": "resprout", "mlflow.source.type": "LOCAL"}
"""Tags of every run, for the column that says which program it was."""
FLOW_RUN = "resprout.flow_run"
"""Tag of a parent run that names Prefect's flow run."""
RECORD = "resprout.record"
"""Tag of stage runs and versions that names a record."""
ANNOUNCED = "resprout.announced."
"""Begins a tag of a parent run that names what it has started and not finished: a record, until a stage's run
names it, or what it does in the registry, until its entry is in the ledger."""
REGISTRATION = "registration"
REPORT_RECORD = "resprout.report_record"
"""Tag of parent runs and versions that names the record of the report."""
GATE = "resprout.gate"
"""Tag of a parent run with the gate's verdict: passed, failed, or none."""
VERDICT = "resprout.verdict"
"""Tag of a parent run with the sentence that its report begins with."""
SHIPS = "resprout.ships"
"""Tag of a parent run with the format that its verdict is about."""
HOLD = "resprout.hold"
"""Tag of a version, a model or a run that keeps all behind it, whatever retention says."""
WRITER = "resprout.writer"
"""Tag of a parent run that names the lease which it holds as long as its process lives."""
PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that is nested in another."""
KEY = "resprout.key"
"""Tag of a stage's run with the stage's cache key."""
STAGE = "resprout.stage"
"""Tag of the nested run of a stage; runs of a sweep's variants are nested too, and are whole runs."""
SWEEP_NAME = "resprout.sweep"
"""Tag of a sweep's run and of those of its variants with the sweep's name."""
VARIANT = "resprout.variant"
"""Tag of a parent run that names the flow run of its sweep, and the variant."""
IN = " in "
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's own tag and its value for experiments that train models."""
PAGE_OF_TRAINING = "workflowType=machine_learning"
"""Query of a page. MLflow 3.17 shows an experiment in the mode that the browser had last, at first GenAI,
whatever its kind is, where the page has a switch between both."""


class Point(NamedTuple):
    """A value of a curve; `time_ms` since the epoch."""

    name: str
    value: float
    time_ms: int
    step: int


def whole_run(run_id: str, tags: Mapping[str, str]) -> str:
    """Id of the run that a run belongs to: of a stage's run the one in which it is nested, else itself."""
    return tags.get(PARENT, run_id) if STAGE in tags else run_id


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


class Tracker:
    """Runs and the registry of one MLflow server or database."""

    def __init__(self, config: MlflowConfig, home: Path) -> None:
        self.config = config
        self.home = home
        self.uri = config.tracking_uri or f"sqlite:///{(home / 'mlflow.db').resolve()}"
        self.files = HomeFiles(home, own=config.tracking_uri is None)
        self.is_server = self.uri.startswith(("http://", "https://"))

    @property
    def shown_uri(self) -> str:
        """The tracking URI without credentials."""
        return without_credentials(self.uri)

    def connect(self, read_only: bool = False) -> None:
        """Reach the server, or make the database once; BadInput in under 20 s where neither works.

        With `read_only` a home that cannot be written will do, and a moved one gets no new experiment.
        """
        with without_collector():
            self._connect(read_only)

    def _connect(self, read_only: bool) -> None:
        from filelock import FileLock
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import ArgumentError

        fixed = read_only and not os.access(self.home, os.W_OK)
        if not fixed:
            self.home.mkdir(parents=True, exist_ok=True)
        # Several processes at a new SQLite file break each other's migrations, so one makes it.
        with nullcontext() if fixed else FileLock(str(self.home / "mlflow.lock"), timeout=120):
            try:
                knock(self.uri)
                self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self.experiment_id = self._experiment(read_only)
            except BadInput:
                raise
            except (MlflowException, OSError, ImportError, ArgumentError) as error:
                what = one_line(error)
                if will_not_pass(error):
                    raise BadInput(
                        f"MLflow at {self.shown_uri} refuses ({what}); check infra.mlflow: tracking_uri, "
                        "username and password, and that the database's driver is installed"
                    ) from error
                raise Unreachable(
                    f"MLflow at {self.shown_uri} cannot be used ({what}); start it, or set "
                    "infra.mlflow.tracking_uri to one that answers"
                ) from error

    def _experiment(self, read_only: bool) -> str:
        """Id of the active experiment of the config's name, which is made where there is none.

        MLflow never changes where an experiment's artifacts lie. In a home that was moved or copied the
        experiment still points at the old folder, so new runs go to one that is named after the home's
        project as well. With `read_only` none is made for that.
        """
        client, name = self.client, self.config.experiment
        own = None if self.is_server else self.files.address
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=own, tags=KIND))
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"the MLflow experiment '{name}' is deleted; restore it or set infra.mlflow.experiment to "
                "another name"
            )
        if self.files.here(found.artifact_location) != found.artifact_location:
            kin = self._kin()
            here = [one for one in kin if one.artifact_location == own]
            if not here and not read_only:
                first = f"{name}{IN}{self.home.resolve().parent.name}"
                names = itertools.chain([first], (f"{first} {number}" for number in itertools.count(2)))
                new = next(one for one in names if one not in {taken.name for taken in kin})
                return str(client.create_experiment(new, artifact_location=own, tags=KIND))
            found = here[0] if here else found
        if not read_only and not KIND.keys() & found.tags.keys():
            for key, value in KIND.items():
                client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _kin(self) -> list[Experiment]:
        """The active experiment, and those that stood for it while the home was elsewhere."""
        name = self.config.experiment
        found = self.client.search_experiments()
        return [one for one in found if one.name == name or one.name.startswith(f"{name}{IN}")]

    def experiments(self) -> list[str]:
        """Ids of the experiment and of those that stood for it while the home was elsewhere."""
        kin = self._kin() if self.config.tracking_uri is None else ()
        return sorted({self.experiment_id, *(one.experiment_id for one in kin)})

    @mlflow_errors
    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Id of a new run, nested where `parent` is given."""
        nested = {PARENT: parent} if parent else {}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            tags={**SOURCE, **{key: value[:MAX_TAG_CHARS] for key, value in tags.items()}, **nested},
        )
        return run.info.run_id

    @mlflow_errors
    def resume(self, mark: str, value: str, params: Mapping[str, Any] | None = None) -> str | None:
        """Id of the run that began before under this tag and did not get through, open again; None: none.

        One that began with other `params` stays as it is: MLflow lets no one change them.
        """
        found = self.client.search_runs([self.experiment_id], f"tags.`{mark}` = '{value}'", max_results=1)
        given = _shown(params)
        if not found or any(given.get(key, was) != was for key, was in found[0].data.params.items()):
            return None
        self.client.update_run(found[0].info.run_id, "RUNNING")
        return found[0].info.run_id

    @mlflow_errors
    def tracked(self, run_id: str) -> set[tuple[str, str]]:
        """Name and key of each nested run that ended well under a run that began before."""
        finished = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'FINISHED'",
            max_results=1000,
        )
        return {(run.info.run_name, run.data.tags.get("resprout.key", "")) for run in finished}

    @mlflow_errors
    def unfinished(self, name: str, key: str, parent: str) -> str | None:
        """Id of the nested run that an attempt at this key left unfinished, open again; None: none."""
        found = self.client.search_runs(
            [self.experiment_id],
            f"tags.`{PARENT}` = '{parent}' and tags.`{KEY}` = '{key}' and attributes.status != 'FINISHED'",
            max_results=100,
        )
        for run in found:
            if run.info.run_name == name:
                self.client.update_run(run.info.run_id, "RUNNING")
                return run.info.run_id
        return None

    @mlflow_errors
    def steps_of(self, run_id: str) -> set[tuple[str, int]]:
        """Name and step of each value that a run's metrics have."""
        names = self.client.get_run(run_id).data.metrics
        return {(name, one.step) for name in names for one in self.client.get_metric_history(run_id, name)}

    @mlflow_errors
    def log_points(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points of curves in one batch a thousand; one that is there already stays one."""
        from mlflow.entities import Metric

        for start in range(0, len(points), 1000):
            batch = points[start : start + 1000]
            self.client.log_batch(run_id, metrics=[Metric(*point) for point in batch])

    @mlflow_errors
    def end(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    @mlflow_errors
    def running_of(self, having: str) -> list[Run]:
        """The runs of this experiment that a filter selects and that say that they are running."""
        wanted = f"attributes.status = 'RUNNING' and {having}"
        return list(self.client.search_runs([self.experiment_id], wanted, max_results=1000))

    def is_up(self) -> bool:
        """Whether MLflow answers at all."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.search_experiments(max_results=1)
        except (MlflowException, OSError):
            return False
        return True

    @mlflow_errors
    def concluded(self, having: str = "") -> list[Run]:
        """The runs of this experiment and its kin that came to a verdict and are finished, all or some."""
        wanted = f"attributes.status = 'FINISHED' and tags.`{GATE}` LIKE '%'"
        wanted += f" and {having}" if having else ""
        found = search.runs(self, wanted, self.experiments())
        return [run for run in found if run.info.lifecycle_stage == "active"]

    @mlflow_errors
    def log(
        self,
        run_id: str,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        history: list[dict[str, float]] | None = None,
    ) -> None:
        """Write metrics, params, tags and series (rows {"step": i, name: value}) in one batch a thousand."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        entries = [Metric(key, float(value), now, 0) for key, value in sorted((metrics or {}).items())]
        for row in history or []:
            entries += [
                Metric(key, float(value), now, int(row["step"]))
                for key, value in sorted(row.items())
                if key != "step"
            ]
        shown = [Param(key, value) for key, value in sorted(_shown(params).items())]
        marks = [RunTag(key, str(value)[:MAX_TAG_CHARS]) for key, value in sorted((tags or {}).items())]
        for start in range(0, max(len(entries), 1), 1000):
            first = start == 0
            self.client.log_batch(
                run_id,
                metrics=entries[start : start + 1000],
                params=shown[:100] if first else (),
                tags=marks if first else (),
            )
        for start in range(100, len(shown), 100):
            self.client.log_batch(run_id, params=shown[start : start + 100])

    @mlflow_errors
    def log_dataset(self, run_id: str, role: str, digest: str, origin: Any, profile: str) -> None:
        """Add a data set, by digest and origin, to a run's inputs; MLflow shows its `profile`."""
        source = json.dumps(origin, sort_keys=True)
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(role, digest[:DATASET_DIGEST_CHARS], "resprout", source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", role)])])

    @mlflow_errors
    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Write a small text file into a run's artifacts."""
        self.client.log_text(run_id, text, path)

    @mlflow_errors
    def log_folder(self, run_id: str, folder: Path, path: str) -> None:
        """Copy a folder into a run's artifacts."""
        self.client.log_artifacts(run_id, str(folder), path)

    def artifact_uri(self, run_id: str, path: str) -> str:
        """URI of an artifact of a run, in a form that the server accepts as a version's source."""
        return f"{self.run(run_id).info.artifact_uri}/{path}"

    def page(self, run_id: str) -> str | None:
        """Address of a run's page on the server; None where MLflow is a database without one."""
        return (
            f"{self.shown_uri}/#/experiments/{self.experiment_id}/runs/{run_id}?{PAGE_OF_TRAINING}"
            if self.is_server
            else None
        )

    @mlflow_errors
    def artifact_root(self) -> str:
        """Address below which the files of this experiment's runs lie."""
        return self.files.here(self.client.get_experiment(self.experiment_id).artifact_location.rstrip("/"))

    @mlflow_errors
    def run(self, run_id: str) -> Run:
        """A run; BadInput where MLflow has none with this id."""
        with allowing("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return self.client.get_run(run_id)
        raise BadInput(
            f"no run {run_id} in MLflow at {self.shown_uri}; give the id of a run that it shows, or set "
            "infra.mlflow.tracking_uri to the one that holds it"
        )

    @contextmanager
    def running(self, run_id: str) -> Iterator[None]:
        """Close the run when the block ends: FINISHED, FAILED on an error, KILLED on Ctrl-C."""
        with self.closing_on_error(run_id):
            yield
        self.end(run_id)

    @contextmanager
    def closing_on_error(self, run_id: str) -> Iterator[None]:
        """Close the run as FAILED on an error in the block, as KILLED where a signal ends the process."""
        try:
            yield
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            try:
                self.end(run_id, status)
            except ResproutError as lost:
                error.add_note(str(lost))
            raise

    @mlflow_errors
    def producer(self, record: str) -> Run | None:
        """The run that wrote this record, None where MLflow does not know it (say, a new database)."""
        found = self.client.search_runs(
            self.experiments(),
            f"tags.`resprout.record` = '{record}' and tags.`resprout.cached` = 'false'",
            max_results=1,
        )
        return found[0] if found else None

    @mlflow_errors
    def announce(self, run_id: str, what: str) -> None:
        """State that a run is about to write this record, or to register."""
        self.client.set_tag(run_id, f"{ANNOUNCED}{what}", "true")

    @mlflow_errors
    def has_done(self, run_id: str, what: str) -> None:
        """Take back what was announced, if it was."""
        with allowing("RESOURCE_DOES_NOT_EXIST"):
            self.client.delete_tag(run_id, f"{ANNOUNCED}{what}")

    @mlflow_errors
    def announced(self, what: str, run_id: str | None = None) -> bool:
        """Whether any run, or this one, announced that and has not done it."""
        having = f"tags.`{ANNOUNCED}{what}` = 'true'"
        if run_id is not None:
            having += f" and attributes.run_id = '{run_id}'"
        return bool(self.client.search_runs(self.experiments(), having, max_results=1))

    @mlflow_errors
    def holding(self, name: str, digest: str) -> list[ModelVersion]:
        """The versions of `name` whose tag says that they hold this digest, the newest first."""
        found = sorted(self.versions(search.named(name)), key=lambda one: -int(one.version))
        return [one for one in found if one.tags.get("resprout.digest") == digest]

    @mlflow_errors
    def make_version(
        self,
        name: str,
        source: str,
        run_id: str,
        tags: Mapping[str, str],
        description: str,
        of_the_model: str = "",
        model_id: str | None = None,
    ) -> ModelVersion:
        """A new version of `name`, which is registered, and described, where it is not yet.

        `model_id` is its LoggedModel.
        """
        with allowing("RESOURCE_ALREADY_EXISTS"):
            self.client.create_registered_model(name, description=of_the_model)
        return self.client.create_model_version(
            name,
            source,
            run_id=run_id,
            tags={key: value[:MAX_TAG_CHARS] for key, value in tags.items()},
            description=description,
            model_id=model_id,
        )

    @mlflow_errors
    def point_alias(self, name: str, alias: str, version: str) -> None:
        """Move the alias, unless it is there already: setting it again would fire webhooks again."""
        if str(self.client.get_registered_model(name).aliases.get(alias, "")) != str(version):
            self.client.set_registered_model_alias(name, alias, version)

    @mlflow_errors
    def drop_alias(self, name: str, alias: str, version: str) -> None:
        """Take the alias away; BadInput where it does not point at this version."""
        at = self.client.get_registered_model(name).aliases.get(alias)
        if str(at) != str(version):
            raise BadInput(f"alias {alias} of {name} points at version {at}; name that instead of {version}")
        self.client.delete_registered_model_alias(name, alias)

    @mlflow_errors
    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        for key, value in sorted(tags.items()):
            self.client.set_model_version_tag(name, version, key, value[:MAX_TAG_CHARS])

    def versions(self, having: str = "") -> list[ModelVersion]:
        """All versions in the registry, or those that a filter names."""
        return list(search.versions(self, having))

    @legible
    def version(self, reference: str) -> ModelVersion:
        """The version that models:/name/3 or models:/name@alias names; BadInput where there is none."""
        from mlflow.exceptions import MlflowException

        rest = reference.removeprefix("models:/")
        try:
            name, _, number = rest.rpartition("/")
            if name and number.isdigit():
                return self.client.get_model_version(name, number)
            name, _, alias = rest.rpartition("@")
            return self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            raise BadInput(
                f"no model version {reference} in {self.shown_uri}; give models:/name/3 or "
                f"models:/name@alias ({one_line(error, 120)})"
            ) from None


def _shown(params: Mapping[str, Any] | None) -> dict[str, str]:
    """Params as MLflow keeps them."""
    return {key: str(value)[:MAX_PARAM_CHARS] for key, value in (params or {}).items()}
