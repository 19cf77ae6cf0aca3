"""The command line as tests run it, and a finished run of the tiny config."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from tiny_run import write_run

COMMAND = [sys.executable, "-m", "resprout.flows.cli.main"]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The JSON object on the last line of stdout."""
        return json.loads(self.out.strip().splitlines()[-1])


def mlflow_of(home: Path) -> MlflowClient:
    """A client of the database of a home."""
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def versions_in(home: Path) -> list[tuple[str, str]]:
    """Name and number of each version that is registered in a home."""
    return [(one.name, str(one.version)) for one in mlflow_of(home).search_model_versions()]


@dataclass(frozen=True)
class Finished:
    """A run that went through: its config, home and result."""

    config: Path
    home: Path
    outcome: Outcome

    @property
    def result(self) -> Any:
        return self.outcome.result

    @property
    def untouched(self) -> Path:
        """A copy of the home as the run left it, which nobody changes; MLflow's addresses lead to `home`."""
        return self.home.with_name("untouched")


def finish(root: Path, resprout: Callable[..., Outcome], **options: Any) -> Finished:
    """Run the tiny config below `root`."""
    path = write_run(root)
    outcome = resprout("run", path, "--json", home=root / "home", **options)
    assert outcome.code == 0, outcome.err
    shutil.copytree(root / "home", root / "untouched")
    return Finished(path, root / "home", outcome)
