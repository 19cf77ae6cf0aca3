"""The rules of the relay: which versions in the model registry start which run config, and how.

What a version's author wrote (tags, description) reaches a run config only as the value of a key that the
rule names: values are quoted, so that no line break or brace in them makes another key.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import SECRETS
from resprout.configs.load import VARIABLE, document, explain, load_data, read_yaml
from resprout.configs.section import Name, Section

SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Origin:
    """An address in parts: scheme (none for a folder), host or bucket, and the segments of its path."""

    scheme: str
    host: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, address: str) -> Origin:
        """The parts of an address in normal form; ValueError for one that has several readings."""
        if "\\" in address or any(ord(char) < 32 for char in address):
            raise ValueError("holds a backslash or a control character")
        found = SCHEME.match(address)
        scheme, rest = (found[1].lower(), found[2]) if found else ("", address)
        host = ""
        if scheme and rest.startswith("//"):
            host, _, rest = rest[2:].partition("/")
        elif not scheme and not rest.startswith("/"):
            raise ValueError("is relative")
        path = tuple(part for part in rest.split("/") if part not in ("", "."))
        # Some servers decode an address once more than others.
        decoded = unquote(unquote(rest)).replace("\\", "/").split("/")
        if ".." in path or ".." in decoded:
            raise ValueError("leads upwards ('..')")
        return cls(scheme, host, path)

    @classmethod
    def accepted(cls, prefix: str) -> Origin:
        """The same of a prefix in a rule; ValueError says what is wrong with it."""
        try:
            found = cls.parse(prefix)
        except ValueError as error:
            raise ValueError(
                f"the source '{prefix}' {error}; give a scheme and prefix such as s3://models/, "
                "mlflow-artifacts:/ or models:/, or an absolute folder"
            ) from None
        if any(char in prefix for char in "*?"):
            raise ValueError(f"the source '{prefix}' is a pattern; give a prefix, which holds all below it")
        return found

    def holds(self, address: str) -> bool:
        """Whether `address` is this one or is below it; a prefix of a scheme alone holds all of it."""
        try:
            other = Origin.parse(address)
        except ValueError:
            return False
        if self.scheme != other.scheme:
            return False
        if self.scheme and not self.host and not self.path:
            return True
        return self.host == other.host and other.path[: len(self.path)] == self.path


VARIABLES = ("name", "version", "alias", "aliases", "tags", "description")
KEY = re.compile(r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$")
NEVER = {"trust_remote_code", "trust_task_code", "allow_pickle", *SECRETS}
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


Glob = Annotated[str, Field(min_length=1)]
Happening = Literal["created", "alias", "tag"]


class Rule(Section):
    """Versions that it is for, and what they start."""

    name: Name
    """Name of the rule and of its deployment."""
    models: Annotated[tuple[Glob, ...], Field(min_length=1)]
    """Patterns (*, ?, [ab]) of model names, one of which must fit."""
    on: Annotated[tuple[Happening, ...], Field(min_length=1)] = ("created",)
    """Events that start it: a new version, an alias that was set, a tag that was set."""
    aliases: tuple[Glob, ...] = ()
    """Patterns of aliases, one of which the version must have; needs `alias` in `on`. Each alias that fits
    starts a run of its own."""
    tags: dict[str, Glob] = Field(default={})
    """Tags that the version must have, each with a pattern of its value."""
    config: Glob
    """Run config (from the rules file), or a pattern that one file fits."""
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    """Prefixes of allowed sources of versions, say s3://models/ or mlflow-artifacts:/; others are refused."""
    overrides: dict[str, Any] = Field(default={})
    """Keys of the run config with values; text may hold Jinja over name, version, alias, aliases, tags,
    description."""
    own: bool = False
    """Also for versions that resprout registered."""
    backfill: bool = False
    """Also for versions that were there before the rule was for them."""
    pool: Name | None = None
    """Work pool; default: infra.stack.pool."""

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_word(cls, data: Any) -> Any:
        """YAML reads a bare `on` as true."""
        if not isinstance(data, dict) or True not in data:
            return data
        if "on" in data:
            raise ValueError("'on' is given twice; keep one of them")
        return {"on" if key is True else key: value for key, value in data.items()}

    @field_validator("sources")
    @classmethod
    def _are_origins(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            Origin.accepted(source)
        return sources

    @field_validator("overrides")
    @classmethod
    def _are_harmless(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        for key, value in overrides.items():
            check_override(key, value)
        return overrides

    @model_validator(mode="after")
    def _can_match(self) -> Rule:
        if self.aliases and "alias" not in self.on:
            raise ValueError(
                f"rule {self.name} can never match: it asks for aliases, which a version has once one is "
                "set; add alias to on"
            )
        return self

    def fits(self, name: str) -> bool:
        """Whether the rule is for models of this name."""
        # A name with a line break in it would forge lines of the log.
        return name.isprintable() and any(fnmatchcase(name, pattern) for pattern in self.models)

    def names(self, alias: str) -> bool:
        """Whether the rule names this alias."""
        return any(fnmatchcase(alias, pattern) for pattern in self.aliases)

    def accepts(self, source: str) -> bool:
        """Whether a version may come from `source`."""
        return any(Origin.accepted(prefix).holds(source) for prefix in self.sources)


class RulesFile(Section):
    """All rules."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    """The rules; a version starts every one that is for it."""

    @field_validator("rules")
    @classmethod
    def _each_once(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        twice = sorted(name for name, count in Counter(rule.name for rule in rules).items() if count > 1)
        if twice:
            raise ValueError(
                f"the rule name {twice[0]} is given twice; it names a deployment, so give another"
            )
        return rules


@dataclass(frozen=True)
class LoadedRule:
    """A rule with its run config: the file's path and its mapping, secrets still as ${VARIABLE}."""

    rule: Rule
    path: Path
    data: dict[str, Any]

    def check(self, overrides: list[str]) -> None:
        """Raise BadInput where the config with these overrides is no valid run config.

        Secrets and settings are those of the worker that runs it, so any value stands for them here.
        """
        load_data(self.data, self.path, overrides, dict.fromkeys(_variables(self.data), "set by the worker"))


def load_rules(path: Path) -> tuple[LoadedRule, ...]:
    """The rules in `path`, each with its config found and checked. Raises BadInput naming each fault."""
    path = path.expanduser()
    try:
        found = RulesFile.model_validate(read_yaml(path))
    except ValidationError as error:
        raise BadInput(explain(error, str(path), root=RulesFile)) from None
    return tuple(_load_rule(rule, path) for rule in found.rules)


def _load_rule(rule: Rule, path: Path) -> LoadedRule:
    base = path.resolve().parent
    given = Path(rule.config).expanduser()
    root = Path(given.anchor) if given.is_absolute() else base
    pattern = given.relative_to(given.anchor)
    # A name that is there is meant as it stands, even with a bracket in it.
    files = [root / pattern] if (root / pattern).is_file() else sorted(root.glob(str(pattern)))
    if len(files) != 1:
        what = (
            f"matches {len(files)} files ({files[0].name}, {files[1].name}, …)"
            if files
            else "matches no file"
        )
        raise BadInput(
            f"{path}: rule {rule.name}: config '{rule.config}' {what}; name one run config, by its path from "
            "the folder of the rules file"
        )
    try:
        loaded = LoadedRule(rule, files[0], document(files[0]))
        plain = {key: value for key, value in rule.overrides.items() if not is_template(value)}
        loaded.check(
            [written(key, value) for key, value in {**plain, "model.source": "models:/any/1"}.items()]
        )
    except BadInput as error:
        raise BadInput(f"{path}: rule {rule.name}: {error}") from None
    return loaded


def _variables(data: Any) -> set[str]:
    """Names of the environment variables that `data` takes secrets from."""
    if isinstance(data, dict):
        return {name for value in data.values() for name in _variables(value)}
    if isinstance(data, list):
        return {name for value in data for name in _variables(value)}
    found = VARIABLE.match(data) if isinstance(data, str) else None
    return {found[1]} if found else set()
