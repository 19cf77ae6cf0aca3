"""Legal holds: a tag in MLflow that keeps everything behind a version, a registered model or a run."""

from __future__ import annotations

import re

from resprout.configs.errors import BadInput
from resprout.infra.answers import answers
from resprout.infra.tracking import HOLD, MAX_TAG_CHARS, Tracker

RUN_ID = re.compile(r"^[0-9a-f]{32}$")


@answers
def hold(tracker: Tracker, reference: str, reason: str | None) -> None:
    """Set the tag on what `reference` names, or without a reason lift it.

    Raises:
        BadInput: there is no such version, model or run.
    """
    client = tracker.client
    rest = reference.removeprefix("models:/")
    if RUN_ID.match(reference):
        run_id = tracker.run(reference).info.run_id
        if reason is not None:
            client.set_tag(run_id, HOLD, reason[:MAX_TAG_CHARS])
        elif HOLD in tracker.run(run_id).data.tags:
            client.delete_tag(run_id, HOLD)
    elif reference.startswith("models:/") and ("@" in rest or "/" in rest):
        version = tracker.version(reference)
        if reason is not None:
            client.set_model_version_tag(version.name, version.version, HOLD, reason[:MAX_TAG_CHARS])
        elif HOLD in version.tags:
            client.delete_model_version_tag(version.name, version.version, HOLD)
    elif reference.startswith("models:/"):
        _hold_model(tracker, rest, reason)
    else:
        raise BadInput(
            f"'{reference}' cannot be held; give models:/name/3, models:/name@alias, models:/name, or the id "
            "of an MLflow run"
        )


def _hold_model(tracker: Tracker, name: str, reason: str | None) -> None:
    from mlflow.exceptions import MlflowException

    try:
        found = tracker.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise BadInput(f"no registered model {name} in {tracker.shown_uri}; give models:/name") from None
    if reason is not None:
        tracker.client.set_registered_model_tag(name, HOLD, reason[:MAX_TAG_CHARS])
    elif HOLD in found.tags:
        tracker.client.delete_registered_model_tag(name, HOLD)
