"""A hook for a scan of data, say for personal data: a function of the user's, called for each data set."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from resprout.configs.errors import BadInput, ResproutError, StageFailed

Scan = Callable[[Path], list[str]]


def load_scan(target: str) -> Scan:
    """The scan that `infra.data_scan` names as module:function; BadInput where there is none.

    The function is given the folder of an acquired data set, and returns what it found, a sentence each, or
    raises to end the run.
    """
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"infra.data_scan is '{target}', which cannot be imported ({error}); give module:function of an "
            "installed package"
        ) from None
    if not callable(function):
        raise BadInput(f"infra.data_scan is '{target}', which is no function; give module:function")

    def scan(folder: Path) -> list[str]:
        try:
            found: Iterable[object] | None = function(folder)
        except ResproutError:
            raise
        except Exception as error:
            what = " ".join(str(error).split())[:300] or type(error).__name__
            raise StageFailed(f"infra.data_scan {target} refuses the data: {what}") from error
        return [" ".join(str(one).split()) for one in found or ()]

    return scan
