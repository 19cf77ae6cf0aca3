"""Where resprout runs: refuse systems on which it cannot, and say where nobody has tested it."""

from __future__ import annotations

import platform
import sys

OLDEST = (3, 11)
TESTED_PYTHONS = ((3, 11), (3, 12), (3, 13))
TESTED_SYSTEM = ("linux", "x86_64")


def refusal() -> str:
    """The sentence for a system on which no command can work; empty elsewhere."""
    if sys.platform == "win32":
        return (
            "resprout does not run on Windows, which lacks the signals and file locks that it needs; run it "
            "in WSL 2 or in a Linux container (infra/deploy/README.md)"
        )
    if sys.version_info[:2] < OLDEST:
        return f"resprout needs Python {_shown(OLDEST)} or later, and this is {_shown(sys.version_info[:2])}"
    return ""


def caution() -> str:
    """The sentence for a system on which resprout may work, but was not tested; empty where it was."""
    here, python = (sys.platform, platform.machine()), tuple(sys.version_info[:2])
    if here == TESTED_SYSTEM and python in TESTED_PYTHONS:
        return ""
    tested = f"{_shown(TESTED_PYTHONS[0])} to {_shown(TESTED_PYTHONS[-1])}"
    return (
        f"resprout is tested on Linux x86_64 with Python {tested}, and not on {platform.system()} {here[1]} "
        f"with Python {_shown(python)}"
    )


def _shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
