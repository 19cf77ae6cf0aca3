"""Who and what ran: code version and commit, library versions, machine, user; and what can be installed."""

from __future__ import annotations

import functools
import getpass
import platform
import shlex
import socket
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def library_version(name: str) -> str:
    """Installed version of a distribution, "absent" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def install_command(extra: str) -> str:
    """The pip command that installs the packages of an extra into this environment.

    It names the packages and not the extra of resprout, which no index has.
    """
    marked = f'extra == "{extra}"'
    stated = metadata.requires("resprout") or ()
    packages = [one.partition(";")[0].strip() for one in stated if one.partition(";")[2].strip() == marked]
    return shlex.join(["pip", "install", *packages])


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE_ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@functools.lru_cache(maxsize=1)
def code_identity() -> dict[str, str]:
    """Version of resprout, and the commit and cleanness of its checkout where it runs from one."""
    identity = {"resprout": library_version("resprout")}
    top = _git("rev-parse", "--show-toplevel")
    if top is not None and Path(top.strip()) == PACKAGE_ROOT:
        identity["commit"] = (_git("rev-parse", "HEAD") or "none").strip()
        identity["dirty"] = "true" if dirty_patch() else "false"
    return identity


@functools.lru_cache(maxsize=1)
def dirty_patch() -> str:
    """Uncommitted changes to tracked files of the checkout that runs; empty from a wheel."""
    if not (PACKAGE_ROOT / ".git").exists():
        return ""
    return _git("diff", "HEAD", "--", "flows", "tasks", "infra", "configs") or ""


@functools.lru_cache(maxsize=1)
def machine() -> dict[str, str]:
    """Host name, system, processor family and Python version."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "python": platform.python_version(),
    }


@functools.lru_cache(maxsize=1)
def who() -> str:
    """The user's login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
