"""A finished tiny run that tests share, and a way to run the command line as a user does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from commands import COMMAND, Finished, Outcome, finish
from forked import Forks, forks
from resprout.infra.retention.mlflow_data import Database
from warm_python import warm_python

OURS = ("RESPROUT_", "BUCKET_", "MY_", "PYTHONPATH")
"""How variables begin that no library reads when it is imported."""


@pytest.fixture(scope="session")
def api_url(prefect_server: None) -> str:
    """Address of the session's Prefect server, so that no command starts its own."""
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def forked() -> Iterator[Forks]:
    """A process out of which commands are forked, and their children for models out of another."""
    usual = {**os.environ, "OMP_NUM_THREADS": "1"}
    with warm_python(usual) as python, forks(usual, python) as found:
        yield found


@pytest.fixture(scope="session")
def resprout(api_url: str, forked: Forks) -> Callable[..., Outcome]:
    """Run `resprout ...` in a process of its own, forked out of one that has imported the libraries.

    It is started `anew` where that is asked, or where `env` holds what libraries may read. A `script`, which
    changes something and calls the command line, runs in its place.
    """
    usual = {**os.environ, "PREFECT_API_URL": api_url, "OMP_NUM_THREADS": "1"}

    def call(
        *arguments: str | Path,
        home: Path,
        env: dict[str, str] | None = None,
        timeout: float = 300,
        script: str = "",
        anew: bool = False,
    ) -> Outcome:
        words = [str(argument) for argument in arguments]
        settings = {**usual, "RESPROUT_HOME": str(home), **(env or {})}
        if anew or not (script or all(name.startswith(OURS) for name in env or ())):
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

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Outcome]) -> Finished:
    """A whole run of the tiny config."""
    return finish(tmp_path_factory.mktemp("finished"), resprout)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """A home of its own with all that the finished run left, for a test that changes it."""
    home, left = tmp_path / "home", finished.untouched
    home.mkdir()
    for name in ("store", "mlartifacts", "reports"):
        shutil.copytree(left / name, home / name)
    shutil.copy(left / "mlflow.db", home / "mlflow.db")
    # MLflow's addresses lead to the copy, or it would change what the other tests share.
    database = Database(f"sqlite:///{home / 'mlflow.db'}")
    database.move({finished.home.resolve().as_uri(): home.resolve().as_uri()})
    database.close()
    return home
