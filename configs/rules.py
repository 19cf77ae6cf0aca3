"""The rules of the relay: which versions in the model registry start which run config."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from resprout.configs.errors import BadInput
from resprout.configs.load import VARIABLE, document, explain, load_data, read_yaml
from resprout.configs.origins import Origin
from resprout.configs.section import Name, Section
from resprout.configs.templates import check_override, is_template, written

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
