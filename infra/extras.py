"""Extras of the package: how to install what one brings, from whatever resprout itself was installed."""

from __future__ import annotations

import shlex
from importlib import metadata


def install_command(extra: str) -> str:
    """The pip command that installs the packages of an extra into this environment.

    It names the packages and not the extra of resprout, which no index has.
    """
    marked = f'extra == "{extra}"'
    stated = metadata.requires("resprout") or ()
    packages = [one.partition(";")[0].strip() for one in stated if one.partition(";")[2].strip() == marked]
    return shlex.join(["pip", "install", *packages])
