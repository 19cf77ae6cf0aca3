"""A finished tiny run that tests share, and a way to run the command line as a user does."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forked import forks
from tiny_run import write_run
from warm_python import warm_python

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


@pytest.fixture(scope="session")
def api_url(prefect_server: None) -> str:
    """Address of the session's Prefect server, so that no command starts its own."""
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def resprout(api_url: str) -> Iterator[Callable[..., Outcome]]:
    """Run `resprout ...` in a process of its own, started anew where `env` holds what libraries may read.

    A `script` runs in its place, which changes something and calls the command line.
    """
    usual = {**os.environ, "PREFECT_API_URL": api_url, "OMP_NUM_THREADS": "1"}
    with warm_python(usual) as python, forks(usual, python) as forked:

        def call(
            *arguments: str | Path,
            home: Path,
            env: dict[str, str] | None = None,
            timeout: float = 300,
            script: str = "",
        ) -> Outcome:
            words = [str(argument) for argument in arguments]
            settings = {**usual, "RESPROUT_HOME": str(home), **(env or {})}
            if not script and not all(name.startswith("RESPROUT_") for name in env or ()):
                done = subprocess.run(
                    [*COMMAND, *words],
                    capture_output=True,
                    text=True,
                    env=settings,
                    timeout=timeout,
                    check=False,
                )
            else:
                done = forked.run(words, settings, timeout, script)
            return Outcome(done.returncode, done.stdout, done.stderr)

        yield call


@dataclass(frozen=True)
class Finished:
    """A run that went through: its config, home and result."""

    config: Path
    home: Path
    outcome: Outcome

    @property
    def result(self) -> Any:
        return self.outcome.result


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Outcome]) -> Finished:
    """A whole run of the tiny config; `env` starts it anew, as predictions are held against its seconds."""
    root = tmp_path_factory.mktemp("finished")
    path = write_run(root)
    outcome = resprout("run", path, "--json", home=root / "home", env={"COLUMNS": "120"})
    assert outcome.code == 0, outcome.err
    shutil.copytree(root / "home", root / "untouched")
    return Finished(path, root / "home", outcome)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A home of its own with all that the finished run left, for a test that changes it."""
    home, left = tmp_path / "home", finished.home.parent / "untouched"
    home.mkdir()
    for name in ("store", "mlartifacts", "reports"):
        shutil.copytree(left / name, home / name)
    shutil.copy(left / "mlflow.db", home / "mlflow.db")
    # MLflow holds absolute addresses: those of the copy, or it would change what the other tests share.
    with sqlite3.connect(home / "mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            database.execute(
                f"update {table} set {column} = replace({column}, ?, ?)",
                (finished.home.resolve().as_uri(), home.resolve().as_uri()),
            )
    return home
