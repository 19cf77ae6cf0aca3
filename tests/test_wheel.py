"""The wheel: built, installed in an environment of its own, and used without the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tiny_run import write_run

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "tasks", "infra", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source") / "resprout"
    # What was built before and lies in the checkout would be packed again.
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("resprout-*.whl")
    return built


def test_it_fills_one_namespace_and_holds_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"resprout"}
    assert not [name for name in names if "test" in name.split("/")]
    ships = [("*.py", room) for room in ROOMS] + [("*.j2", room) for room in ROOMS] + [("*.yaml", "configs")]
    files = {str(path.relative_to(ROOT)) for kind, room in ships for path in (ROOT / room).rglob(kind)}
    assert len(files) > 300
    assert {name.removeprefix("resprout/") for name in names if name.startswith("resprout/")} == files


def test_it_validates_a_config_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        str(wheel),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A line in a .pth adds the folder with the requirements, but not what that folder's own .pth files point
    # to.
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import resprout.flows.cli.main as main; print(main.__file__)"
    found = subprocess.run(
        [str(python), "-c", where], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert found.stdout.startswith(str(site)), "the checkout was imported, not the wheel"
    config = write_run(tmp_path / "run")
    validated = subprocess.run(
        [str(tmp_path / "env" / "bin" / "resprout"), "validate", str(config)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert validated.returncode == 0, validated.stderr
    assert "is a valid run config" in validated.stdout
