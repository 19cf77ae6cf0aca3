"""The LoggedModel behind a registered version: MLflow's page of a model, with params, metrics and data sets.

Its weights stay where the version points. Only where MLflow is a server and the store a folder of this
machine, whose files the server does not take as a source, they are copied into the LoggedModel's own folder,
and the version points there.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resprout.infra.markdown import NOTE, code, link, model_page
from resprout.infra.mlflow.errors import mlflow_errors
from resprout.infra.mlflow.tracking import DATASET_DIGEST_CHARS, MAX_PARAM_CHARS, MAX_TAG_CHARS, Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

MLMODEL = "MLmodel"
OUTSIDE = "mlflow.model.isExternal"
"""MLflow's own tag, and key of metadata, of a model whose files are not in its folder."""
VERSIONS = "mlflow.modelVersions"
"""MLflow's own tag of a LoggedModel that is registered."""
NOT_IN_NAMES = str.maketrans(dict.fromkeys("/:.%\"'", "-"))


@dataclass(frozen=True)
class Measured:
    """Metrics by name, and the data set that they are about by its name and digest, where there is one."""

    metrics: Mapping[str, float]
    data: str = ""
    digest: str = ""


@dataclass(frozen=True)
class ModelPage:
    """All that the page of a model shows, and the text of the MLmodel beside its weights, if there is one."""

    mlmodel: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()


@mlflow_errors
def begin_model(
    tracker: Tracker, run_id: str, name: str, tags: Mapping[str, str], page: ModelPage
) -> LoggedModel:
    """The LoggedModel of a run with its params and metrics, not READY yet; one that the run has is taken."""
    from mlflow.entities import LoggedModelOutput

    client, experiment = tracker.client, tracker.run(run_id).info.experiment_id
    if (found := _of_run(tracker, run_id, experiment)) is not None:
        return found
    model = client.create_logged_model(
        experiment,
        name=name.translate(NOT_IN_NAMES),
        source_run_id=run_id,
        tags={key: value[:MAX_TAG_CHARS] for key, value in tags.items()},
        params={key: str(value)[:MAX_PARAM_CHARS] for key, value in page.params.items()},
        model_type="transformers" if page.mlmodel else None,
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    _log_metrics(tracker, run_id, model.model_id, page.measured)
    return model


def _log_metrics(tracker: Tracker, run_id: str, model_id: str, measured: Iterable[Measured]) -> None:
    """As metrics of the run too, since MLflow has none without a run."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(
            name,
            float(value),
            now,
            0,
            model_id=model_id,
            dataset_name=one.data or None,
            dataset_digest=one.digest[:DATASET_DIGEST_CHARS] or None,
            run_id=run_id,
        )
        for one in measured
        for name, value in sorted(one.metrics.items())
    ]
    for start in range(0, len(metrics), 1000):
        tracker.client.log_batch(run_id, metrics=metrics[start : start + 1000])


@mlflow_errors
def keep_in_model(tracker: Tracker, model: LoggedModel, folder: Path) -> str:
    """Copy the files of `folder` into the LoggedModel's own folder, which is READY then; its address."""
    tracker.client.log_model_artifacts(model.model_id, str(folder))
    tracker.client.finalize_logged_model(model.model_id, "READY")
    return str(model.artifact_location)


@mlflow_errors
def point_outside(tracker: Tracker, model: LoggedModel, source: str, mlmodel: str) -> None:
    """Keep an MLmodel in the LoggedModel's folder that says what it is, when it was made, and where it is."""
    from mlflow.models import Model

    flavours = yaml.safe_load(mlmodel)["flavors"] if mlmodel else {}
    metadata = {OUTSIDE: True, "source": source}
    stated = Model(source, model.source_run_id, flavors=flavours, model_id=model.model_id, metadata=metadata)
    with tempfile.TemporaryDirectory() as scratch:
        stated.save(str(Path(scratch) / MLMODEL))
        tracker.client.log_model_artifacts(model.model_id, scratch)
    tracker.client.set_logged_model_tags(model.model_id, {OUTSIDE: "true"})
    tracker.client.finalize_logged_model(model.model_id, "READY")


@mlflow_errors
def link_version(tracker: Tracker, model_id: str, name: str, version: str, mlmodel: str) -> None:
    """Name the version on the LoggedModel's page, as `mlflow.register_model` does, and how it is loaded."""
    uri = f"models:/{name}/{version}"
    note = f"Registered as {link(uri, model_page(name, version))}. "
    if mlmodel:
        call = code(f'mlflow.transformers.load_model("{uri}")')
        note += f"Flavour {code('transformers')}: {call} loads it with stock transformers."
    else:
        note += "It has no flavour: MLflow brings its files, and the model card says how they are loaded."
    linked = json.dumps([{"name": name, "version": version}])
    tracker.client.set_logged_model_tags(model_id, {VERSIONS: linked, NOTE: note})


@mlflow_errors
def folder_of(tracker: Tracker, run_id: str) -> str | None:
    """Address of the folder of a run's LoggedModel; None where it has none.

    A version names no LoggedModel but in Databricks' registry; both name the run.
    """
    found = _of_run(tracker, run_id, tracker.run(run_id).info.experiment_id)
    return None if found is None else str(found.artifact_location)


def _of_run(tracker: Tracker, run_id: str, experiment: str) -> LoggedModel | None:
    found = tracker.client.search_logged_models([experiment], f"source_run_id = '{run_id}'", max_results=1)
    return found[0] if found else None
