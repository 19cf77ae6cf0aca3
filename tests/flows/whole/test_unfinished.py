"""Runs that die while they register, and registered models that were deleted and made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

KILL = """
import os, sys
from resprout.flows import conclude
from resprout.flows.cli.main import main
from resprout.infra.provenance.ledger import Registrar
from resprout.infra.store.local import LocalDriver
from resprout.infra.mlflow.tracking import Tracker
from resprout.tasks.core.run import Run
steps = {
    "version": (Tracker, "point_alias"), "alias": (Registrar, "enter"), "run": (conclude, "write_seal"),
    "index": (LocalDriver, "put_if_absent"), "record": (Run, "_track"),
}
after, stage = (sys.argv.pop(1) + ":").split(":")[:2]
place, name = steps[after]
real, at = getattr(place, name), []
def die(*given, **named):
    tracked = name == "_track" and given[1].label(given[5]) == stage
    if not stage or tracked or (stage in at and given[1].startswith("records/")):
        os._exit(9)
    return real(*given, **named)
setattr(place, name, die)
produce = Run._produce
def _produce(self, one, *given):
    at.append(one.label(given[-1]))
    return produce(self, one, *given)
Run._produce = _produce
main()
"""
"""The command line in a process that is killed right after the version, the alias, the run's end, or, in a
stage, after the entries of its record in the index, or after the record."""


@pytest.fixture
def home(finished: Any, tmp_path: Path) -> Path:
    shutil.copytree(finished.untouched, tmp_path / "home", symlinks=True)
    return tmp_path / "home"


def killed(resprout: Callable[..., Any], after: str, config: Path, home: Path, *overrides: str) -> int:
    return resprout(after, "run", config, *overrides, home=home, script=KILL).code


def test_killed_while_it_registers_a_run_leaves_what_verify_calls_unfinished(
    finished: Any, home: Path, resprout: Callable[..., Any]
) -> None:
    for after in ("version", "alias", "run"):
        name = f"register.name=killed-{after}"
        assert killed(resprout, after, finished.config, home, name) == 9
        looked = resprout("verify", "--all", home=home)
        assert looked.code == 0, f"{after}: {looked.err}"
        assert f"models:/killed-{after}/1 is unfinished" in looked.out
        again = resprout("run", finished.config, name, "--json", home=home)
        assert again.code == 0, again.err
        assert again.result["registered"]["version"] == "1"
        looked = resprout("verify", f"models:/killed-{after}@candidate", home=home)
        assert looked.code == 0, looked.err
        assert "unfinished" not in looked.out


def test_killed_between_a_move_of_an_alias_and_its_entry(
    finished: Any, home: Path, resprout: Callable[..., Any]
) -> None:
    env = ("register.alias=champion", "register.tags={team: a}")
    assert killed(resprout, "alias", finished.config, home, *env) == 9
    looked = resprout("verify", "models:/tiny-pruned/1", home=home)
    assert looked.code == 0, looked.err
    assert "alias champion of tiny-pruned was announced and moved, and not stated" in looked.out
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}")
    client.set_registered_model_alias("tiny-pruned", "another", "1")
    assert resprout("verify", "models:/tiny-pruned/1", home=home).code == 4, "nobody announced this one"
    client.delete_registered_model_alias("tiny-pruned", "another")
    assert resprout("run", finished.config, *env, home=home).code == 0
    looked = resprout("verify", "models:/tiny-pruned@champion", home=home)
    assert looked.code == 0, looked.err
    assert "not stated" not in looked.out


def test_a_registered_model_that_was_deleted_and_made_again_verifies(
    finished: Any, home: Path, resprout: Callable[..., Any]
) -> None:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}")
    client.delete_registered_model("tiny-pruned")
    assert resprout("verify", "--all", home=home).code == 4, "as long as it is gone, that is a fault"
    env = {
        "RESPROUT_INFRA__RETENTION__KEEP_DAYS": "0",
        "RESPROUT_INFRA__RETENTION__GRACE_HOURS": "0",
    }
    assert resprout("gc", "--delete", home=home, env=env).code == 0
    again = resprout("run", finished.config, "--json", home=home)
    assert again.code == 0, again.err
    assert again.result["registered"]["version"] == "1"
    for reference in ("models:/tiny-pruned@candidate", "--all"):
        looked = resprout("verify", reference, home=home)
        assert looked.code == 0, looked.err
        assert "registered model tiny-pruned was deleted and made again" in looked.out
    client.delete_model_version("tiny-pruned", "1")
    assert resprout("verify", "--all", home=home).code == 4, "the new chain counts as the old one did"


EDIT = """
import sys
from resprout.flows.cli.main import main
from resprout.flows.conclude import Conclusion
from resprout.infra.mlflow import search
seal = Conclusion.seal
def edited(self):
    tracker = self.run.tracker
    below = search.runs(tracker, f"tags.`mlflow.parentRunId` = '{self.run.mlflow_run_id}'")
    (run,) = [one for one in below if one.info.run_name == "evaluate pruned"]
    tracker.client.log_metric(run.info.run_id, "own_acc", 0.99)
    seal(self)
Conclusion.seal = edited
main()
"""
"""The command line while somebody edits a metric in MLflow, right before the run is sealed."""


def test_a_seal_does_not_vouch_for_what_contradicts_the_artifacts(
    finished: Any, home: Path, resprout: Callable[..., Any]
) -> None:
    before = sorted((home / "store" / "seals").iterdir())
    done = resprout("run", finished.config, home=home, script=EDIT)
    assert done.code == 4, done.err
    assert "is not sealed" in done.err
    assert "own_acc is not that of artifact" in done.err
    assert sorted((home / "store" / "seals").iterdir()) == before


@pytest.mark.parametrize("after", ["index:prune", "record:prune"])
def test_killed_while_it_writes_a_record_a_run_leaves_what_verify_calls_unfinished(
    finished: Any, home: Path, resprout: Callable[..., Any], after: str
) -> None:
    changed = "prune.round_to=4"
    assert killed(resprout, after, finished.config, home, changed) == 9
    looked = resprout("verify", "--all", home=home)
    assert looked.code == 0, looked.err
    again = resprout("run", finished.config, changed, "--json", home=home)
    assert again.code == 0, again.err
    version = again.result["registered"]
    looked = resprout("verify", f"models:/{version['name']}/{version['version']}", home=home)
    assert looked.code == 0, looked.err
    assert ("is unfinished" in looked.out) == after.startswith("index")
    looked = resprout("verify", "--all", home=home)
    assert looked.code == 0, looked.err


def test_a_finished_run_has_nothing_announced(finished: Any) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{finished.home / 'mlflow.db'}")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert runs
    assert not [tag for run in runs for tag in run.data.tags if tag.startswith("resprout.announced")]
