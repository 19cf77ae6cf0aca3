"""A model folder's config.json as a dict; imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput


def read_config(folder: Path, place: str | None = None) -> dict[str, Any]:
    """The object in `folder`/config.json; BadInput, which names `place`, where there is none to read."""
    path = folder / "config.json"
    name = f"{place or folder}/config.json"
    if not path.is_file():
        raise BadInput(
            f"{place or folder} is no model folder: it has no config.json; give a folder that "
            "save_pretrained wrote"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name} is not valid JSON ({error}); write the model's config again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{name} holds no object but a {type(data).__name__}; write the model's config again")
    return data
