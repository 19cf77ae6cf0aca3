"""The table of all keys of a run config: section, key, default, whether it is required, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from resprout.configs.schema import RunConfig

HEAD = """# All keys of a run config

Written by `resprout schema --table > configs/keys.md` from the docstrings of [schema.py](schema.py) and
[infrastructure.py](infrastructure.py). Each entry of a list, say of `calibrate.text`, has the keys of the
section `calibrate.text[]`. `resprout schema` prints the types too, as a JSON schema.

| section | key | default | required | meaning |
|---|---|---|---|---|
"""
TOP = "(top)"
LONGEST = 80
"""Characters of a default that is shown; what is longer is a list of texts."""
DEPENDS = "depends"
"""Shown where another key decides the default."""


@dataclass(frozen=True)
class Key:
    """One key; `sections` are all places where a section of its kind may stand."""

    sections: tuple[str, ...]
    name: str
    default: str
    required: bool
    meaning: str


def keys(root: type[BaseModel] = RunConfig) -> Iterator[Key]:
    """All keys below a section, each kind of section once, in the order of the schema."""
    places: dict[type[BaseModel], list[str]] = {}
    _collect(root, "", places)
    for section, found in places.items():
        for name, field in section.model_fields.items():
            yield Key(
                tuple(found),
                field.alias or name,
                _default(field),
                field.is_required(),
                _meaning(field),
            )


def table() -> str:
    """The Markdown page of all keys."""
    rows = (
        f"| {', '.join(f'`{one}`' if one else TOP for one in key.sections)} | `{key.name}` | "
        f"{f'`{key.default}`' if key.default not in ('', DEPENDS) else key.default} | "
        f"{'yes' if key.required else ''} | {key.meaning} |"
        for key in keys()
    )
    return HEAD + "\n".join(rows) + "\n"


def _collect(section: type[BaseModel], place: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Note where each kind of section may stand."""
    places.setdefault(section, []).append(place)
    for name, field in section.model_fields.items():
        inner, many = _section_in(field.annotation)
        if inner is not None:
            dotted = f"{place}.{field.alias or name}".lstrip(".")
            _collect(inner, f"{dotted}[]" if many else dotted, places)


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The kind of section that an annotation holds, and whether in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for inner in get_args(annotation):
        found, many = _section_in(inner)
        if found is not None:
            return found, many or get_origin(annotation) in (tuple, list)
    return None, False


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    if field.json_schema_extra is not None:
        return DEPENDS
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "{}"
    text = json.dumps(value, ensure_ascii=False, default=str).replace("|", "\\|")
    if len(text) <= LONGEST:
        return text
    return "a text, see schema.py" if isinstance(value, str) else f"[{len(value)} texts, see schema.py]"


def _meaning(field: FieldInfo) -> str:
    """The description, and the allowed words that it does not name."""
    text = " ".join((field.description or "").split())
    words = [str(one) for one in _words(field.annotation)]
    if any(word not in text for word in words):
        text += f" One of {', '.join(words)}."
    return text.replace("|", "\\|")


def _words(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from _words(inner)
