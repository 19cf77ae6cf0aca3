"""Libraries that come with an extra and are used in one version alone."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version

from resprout.configs.errors import BadInput
from resprout.infra.identity import install_command


def require_library(what: str, name: str, package: str, distribution: str, pinned: str, extra: str) -> None:
    """Raise BadInput unless a library is installed in the pinned version; imports nothing.

    `what` needs it, `name` is what people call it, and `extra` brings the `distribution` with its `package`.
    """
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"{what} need {name}, which is not installed; {install_command(extra)}")
    if (installed := version(distribution)) != pinned:
        raise BadInput(
            f"{distribution} {installed} is installed, but {what} are made and judged by {pinned}; "
            f"pip install '{distribution}=={pinned}'"
        )
