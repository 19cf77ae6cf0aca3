"""The home's own Prefect server: started once, found by the next run, ended after a while without one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from resprout.configs.errors import BadInput, Unreachable
from resprout.configs.infrastructure import InfraConfig
from resprout.infra.network import is_healthy
from resprout.infra.prefect.auth import auth_string
from resprout.infra.prefect.home_server import FOLDER, START_SECONDS, home_server
from resprout.infra.store.filesystem import exclusive_lock
from servers import assert_guarded


@pytest.fixture(autouse=True)
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home" / "prefect"))
    monkeypatch.setenv(START_SECONDS, "120")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def infra(keep_seconds: float) -> InfraConfig:
    return InfraConfig.model_validate({"prefect": {"keep_server_seconds": keep_seconds}})


def used(keep_seconds: float) -> str:
    """The address of the server that a run with this setting has."""
    with home_server(infra(keep_seconds)):
        url = os.environ["PREFECT_API_URL"]
        assert is_healthy(f"{url}/health")
    assert "PREFECT_API_URL" not in os.environ
    return url


def until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_next_run_finds_the_server_of_the_last_which_ends_after_a_while_without_one() -> None:
    first = used(keep_seconds=4)
    assert is_healthy(f"{first}/health")
    folder = Path(os.environ["PREFECT_HOME"])
    assert_guarded(first, auth_string(folder))
    assert used(keep_seconds=4) == first
    # A file that was restored or removed meanwhile.
    (folder / "auth").write_text("resprout:another")
    with pytest.raises(Unreachable, match="was started with another auth string than that in"):
        used(keep_seconds=4)
    until(lambda: not is_healthy(f"{first}/health"), 30)


def test_it_ends_with_the_last_run_where_it_is_not_to_be_kept() -> None:
    url = used(keep_seconds=0)
    until(lambda: not is_healthy(f"{url}/health"), 30)


def test_a_kept_server_ends_when_its_home_is_removed_and_does_not_make_it_again(tmp_path: Path) -> None:
    url = used(keep_seconds=600)
    # The server may write a file while the folder is emptied, which must then be emptied again.
    until(lambda: removed(tmp_path / "home"), 30)
    until(lambda: not is_healthy(f"{url}/health"), 30)
    assert not (tmp_path / "home" / "prefect" / FOLDER).exists()


def removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_a_server_of_an_older_release_serves_the_run_though_it_asks_for_no_auth_string() -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'"3.9.1"')

    folder = Path(os.environ["PREFECT_HOME"]) / FOLDER
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as old, exclusive_lock(folder / "alive"):
        Thread(target=old.serve_forever, daemon=True).start()
        (folder / "address").write_text(f"http://127.0.0.1:{old.server_address[1]}/api")
        assert used(keep_seconds=0).endswith(f":{old.server_address[1]}/api")
        old.shutdown()


def test_of_processes_at_once_one_makes_the_auth_string_and_all_read_the_whole(tmp_path: Path) -> None:
    for again in range(5):
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: auth_string(tmp_path / f"home-{again}"), range(8)))  # noqa: B023
        assert len(found) == 1
        assert len(found.pop()) > 40
        (made,) = (tmp_path / f"home-{again}").iterdir()
        assert made.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("text", "mode", "sentence"), [("", 0o600, "is empty"), ("a:b", 0o644, "chmod 600")])
def test_a_secret_that_is_none_is_refused(tmp_path: Path, text: str, mode: int, sentence: str) -> None:
    (tmp_path / "auth").write_text(text)
    (tmp_path / "auth").chmod(mode)
    with pytest.raises(BadInput, match=sentence):
        auth_string(tmp_path)


def test_a_server_that_the_config_names_is_left_alone(tmp_path: Path) -> None:
    named = InfraConfig.model_validate({"prefect": {"api_url": "http://127.0.0.1:1/api"}})
    with home_server(named):
        assert not (tmp_path / "home").exists()
