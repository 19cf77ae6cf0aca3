"""The image, built and run: help, the one-machine stack, and a run to a registered version, all inside of it.

Buildah with chroot isolation needs no daemon and no namespaces, only root. Where no registry of images
answers, the base is Debian's own, with this machine's Python. Containers share the machine's network.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import free_port
from tiny_run import write_run

pytestmark = pytest.mark.image
ROOT = Path(__file__).resolve().parents[3]
BASE = "docker.io/library/python:3.11-slim"
IMAGE = "localhost/resprout"
LIBRARIES = (
    "ca-certificates", "libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8t64", "libsqlite3-0",
    "libssl3t64", "libuuid1", "zlib1g",
)  # fmt: skip
"""What this machine's Python is linked with, as Debian 13 names it."""
PIP = ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "SSL_CERT_FILE")
"""How pip of this machine reaches its packages; a build inside reaches them in the same way."""
SHARED = ("--isolation", "chroot", "--network", "host")
UID = 10001


@dataclass(frozen=True)
class Buildah:
    """Buildah with a storage of its own."""

    storage: Path
    limits: Path

    def command(self, *arguments: str | Path) -> list[str]:
        return [
            "buildah",
            "--root",
            f"{self.storage}/root",
            "--runroot",
            f"{self.storage}/run",
            *map(str, arguments),
        ]

    def __call__(self, *arguments: str | Path, timeout: float = 120, ok: bool = True) -> str:
        done = subprocess.run(
            self.command(*arguments),
            env={**os.environ, "CONTAINERS_CONF": str(self.limits)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not (ok and done.returncode), done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    if None in map(shutil.which, ("buildah", "debootstrap")) or os.geteuid() != 0:
        pytest.skip("building the image takes root and buildah: apt-get install buildah netavark debootstrap")
    folder = tmp_path_factory.mktemp("buildah")
    ulimits = [
        f"{name}={resource.getrlimit(number)[0]}:{resource.getrlimit(number)[0]}"
        for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
    ]
    limits = folder / "containers.conf"
    limits.write_text(f"[containers]\ndefault_ulimits = {json.dumps(ulimits)}\n")
    yield Buildah(folder / "storage", limits)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image by the Dockerfile."""
    pulled = subprocess.run(buildah.command("pull", BASE), capture_output=True, timeout=600, check=False)
    if pulled.returncode:
        debian(buildah, tmp_path_factory.mktemp("debian"))
    mounts, given = [], []
    for name in PIP:
        if value := os.environ.get(name):
            given += ["--env", f"{name}={value}"]
            if value.startswith("/") and Path(value).exists():
                mounts += ["--volume", f"{value}:{value}:ro"]
    began = time.monotonic()
    buildah(
        "bud", *SHARED, "--pull=never", "-f", ROOT / "infra" / "deploy" / "Dockerfile",
        "--build-arg", f"BASE={BASE}", "-t", IMAGE, *mounts, *given, ROOT, timeout=3000,
    )  # fmt: skip
    size = json.loads(buildah("images", "--json", IMAGE))[0]["size"]
    print(f"image: {size}, built in {time.monotonic() - began:.0f} s")
    return IMAGE


def debian(buildah: Buildah, folder: Path) -> None:
    """A base without a registry: Debian's smallest system and this machine's Python under /usr/local."""
    if shutil.which("debootstrap") is None:
        pytest.skip("no registry of images answers, and there is no debootstrap: apt-get install debootstrap")
    sources = Path("/etc/apt/sources.list.d/debian.sources").read_text()
    mirror = next(line.split()[1] for line in sources.splitlines() if line.startswith("URIs:"))
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(LIBRARIES)}",
            "trixie",
            folder / "root",
            mirror,
        ],
        stdout=subprocess.DEVNULL,
        timeout=900,
        check=True,
    )
    container = buildah("from", "scratch").strip()
    left_out = shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a")
    shutil.copytree(
        sys.base_prefix, folder / "root" / "usr" / "local", symlinks=True, ignore=left_out, dirs_exist_ok=True
    )
    subprocess.run(["chroot", folder / "root", "ldconfig"], check=True)
    buildah("add", container, folder / "root", "/", timeout=300)
    buildah("commit", "--rm", container, BASE, timeout=300)
    shutil.rmtree(folder)


@pytest.fixture
def container(buildah: Buildah, image: str) -> Iterator[str]:
    name = buildah("from", "--pull=never", image).strip()
    yield name
    buildah("rm", name)


def inside(
    container: str, *command: str | Path, mounts: tuple[str, ...] = (), **variables: object
) -> list[str]:
    """The command as the image's own user runs it."""
    mounted = [word for one in mounts for word in ("--volume", one)]
    given = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    return [
        "run", *SHARED, "--user", f"{UID}:{UID}", *mounted, *given, container, "--",
        *map(str, command),
    ]  # fmt: skip


def test_the_commands_are_there_and_run_as_nobody_in_particular(buildah: Buildah, container: str) -> None:
    assert "Prune a language model" in buildah(*inside(container, "resprout", "--help"))
    assert "flap" in buildah(*inside(container, "resprout", "methods"))
    assert buildah(*inside(container, "id", "-u")).strip() == str(UID)


def test_the_stack_comes_up_and_says_how_it_is(buildah: Buildah, container: str) -> None:
    ports = {f"RESPROUT_INFRA__STACK__{name}_PORT": free_port() for name in ("PREFECT", "MLFLOW")}
    up = subprocess.Popen(
        buildah.command(*inside(container, "resprout", "up", **ports)),
        env={**os.environ, "CONTAINERS_CONF": str(buildah.limits)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        end = time.monotonic() + 180
        said = ""
        while "worker" not in said or said.count("running") < 3:
            assert time.monotonic() < end, said
            assert up.poll() is None, up.communicate()[0][-2000:]
            time.sleep(3)
            said = buildah(*inside(container, "resprout", "up", "--status", **ports), ok=False)
    finally:
        up.terminate()
        up.communicate(timeout=60)


def test_a_run_inside_of_it_ends_in_a_registered_version(
    buildah: Buildah, container: str, tmp_path: Path
) -> None:
    write_run(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, UID, UID)
    command = ("resprout", "run", "/data/run.yaml", "--json")
    said = buildah(
        *inside(container, *command, mounts=(f"{tmp_path}:/data:rw",), RESPROUT_HOME="/data/home"),
        timeout=900,
    )
    result = next(json.loads(line) for line in said.splitlines() if line.startswith("{"))
    assert (result["status"], result["registered"]["version"]) == ("done", "1")
    assert (tmp_path / "home" / "mlflow.db").exists()
