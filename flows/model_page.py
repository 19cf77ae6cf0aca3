"""The contents of MLflow's page of a registered model: params, metrics with their data, its MLmodel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from resprout.flows.inputs import TASKS
from resprout.flows.stages import FINAL, SCORES, Artifacts, Slot
from resprout.infra.mlflow.logged_model import MLMODEL, Measured, ModelPage
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.evaluate.task_files import TASK_ROLE
from resprout.tasks.export.judged import judged
from resprout.tasks.quantize.names import DENSE

CHOSEN = {"calibration": "calibration_text", "selection": "rows"}
"""Artifacts that are drawn from data, by their names, with those of the data."""


def model_page(
    store: ArtifactStore,
    artifacts: Artifacts,
    export: str,
    folder: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> ModelPage:
    """The page of the model in a `folder` of the artifact `export`; `metrics` are all of the final model."""
    measured = [*_scores(store, artifacts), *_chosen(store, artifacts)]
    named = {name for one in measured for name in one.metrics}
    rest = {name: value for name, value in metrics.items() if name not in named}
    path = f"{folder}/{MLMODEL}"
    has_one = any(entry.path == path for entry in store.manifest(export).files)
    mlmodel = store.read(export, path).decode() if has_one else ""
    return ModelPage(mlmodel, params, (*measured, Measured(rest)))


def _scores(store: ArtifactStore, artifacts: Artifacts) -> Iterator[Measured]:
    """Scores of the final model, each with the text or the task that it was measured on."""
    steps = artifacts.steps
    dense, final = (artifacts[slot.step].digest for slot in (steps.groups[SCORES][DENSE], steps.names[FINAL]))
    with store.open(dense) as before, store.open(final) as after:
        found = judged(before, after)
    for one in found:
        is_task = one.kind == "accuracy"
        slot = steps.groups[TASKS][f"{TASK_ROLE}{one.data}"] if is_task else steps.names["text"]
        yield _on(artifacts, slot, {one.name: one.value})


def _chosen(store: ArtifactStore, artifacts: Artifacts) -> Iterator[Measured]:
    """Metrics of the choice of samples and rows; where a stage has none, how many there are."""
    for name, data in CHOSEN.items():
        made, slot = artifacts.named(name), artifacts.steps.names.get(data)
        if made is None or slot is None:
            continue
        paths = {entry.path for entry in store.manifest(made.digest).files}
        if "metrics.json" in paths:
            found = store.read_json(made.digest, "metrics.json")
        else:
            found = {"samples": len(store.read(made.digest, "samples.jsonl").splitlines())}
        yield _on(artifacts, slot, {f"{name}_{key}": value for key, value in found.items()})


def _on(artifacts: Artifacts, slot: Slot, metrics: Mapping[str, float]) -> Measured:
    """With the name and the digest under which the run logged the data."""
    return Measured(metrics, slot.step.role, artifacts[slot.step].digest)
