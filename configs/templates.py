"""Overrides of a rule: text with Jinja in it, rendered to strings that stay strings.

What a version's author wrote (tags, description) reaches a run config only as the value of a key that the
rule names: values are quoted, so that no line break or brace in them makes another key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import SECRETS

VARIABLES = ("name", "version", "alias", "aliases", "tags", "description")
KEY = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$")
NEVER = {"trust_remote_code", "allow_pickle", *SECRETS}
"""Keys that no rule sets, wherever they stand."""


def check_override(key: str, value: Any) -> None:
    """Raise ValueError where a rule must not set `key` to `value`, or where a template in it is wrong."""
    if not KEY.match(key):
        raise ValueError(f"'{key[:80]}' is no key of a run config; write for example prune.round_to")
    for path in _paths(value, tuple(key.split("."))):
        dotted = ".".join(path)
        if path[0] == "infra" or path[-1] in NEVER:
            raise ValueError(f"{dotted} cannot be set by a rule; set it in the run config itself")
        if path[:2] == ("model", "source"):
            raise ValueError("model.source is the version that starts the run; leave it out")
    for text in _texts(value):
        _check_template(text)


def is_template(value: Any) -> bool:
    """Whether some text in `value` is rendered for each version."""
    return any("{{" in text or "{%" in text for text in _texts(value))


def rendered(value: Any, about: Mapping[str, Any]) -> Any:
    """`value` with each text in it rendered over `about`; BadInput where one asks for what is not there."""
    import jinja2

    if isinstance(value, dict):
        return {key: rendered(inner, about) for key, inner in value.items()}
    if isinstance(value, list):
        return [rendered(inner, about) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        return _environment().from_string(value).render(**about)
    except jinja2.TemplateError as error:
        raise BadInput(f"the template '{value[:80]}' cannot be filled: {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BadInput(f"the template '{value[:80]}' cannot be filled: {type(error).__name__}") from None


def written(key: str, value: Any) -> str:
    """key=value for `load`; text is quoted, whatever it looks like."""
    flow = yaml.dump(value, Dumper=_Quoting, default_flow_style=True, width=float("inf"), sort_keys=False)
    return f"{key}={flow.strip().removesuffix('...').strip()}"


class _Quoting(yaml.SafeDumper):
    """Writes every text in double quotes, on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, '"')
)


def _paths(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The path of `value` and of all in it."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from _paths(inner, (*path, str(key)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _check_template(text: str) -> None:
    import jinja2
    from jinja2 import meta

    try:
        unknown = meta.find_undeclared_variables(_environment().parse(text)) - set(VARIABLES)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the template '{text[:80]}' is no Jinja ({error})") from None
    if unknown:
        raise ValueError(
            f"the template '{text[:80]}' asks for {sorted(unknown)[0]}; it may use {', '.join(VARIABLES)}"
        )


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
