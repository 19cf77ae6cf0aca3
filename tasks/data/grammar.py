"""Rows from a probabilistic grammar: labelled examples of a skill for which there is no data.

A YAML file names the skill, draws some symbols once for each row, and renders the columns from them:

    skill: addition
    rows: 300
    seed: 17
    rules:
      number: {range: [10, 99]}
      name: [Anna, Ben, {weight: 2, text: Carla}]
      fruit: [apples, pears, "<size> plums"]
      size: [ripe, small]
    draw: {who: name, a: number, b: number, what: fruit}
    columns:
      instruction: "{{ who }} has {{ a }} {{ what }} and buys {{ b }} more. How many does {{ who }} have?"
      output: "{{ a | int + b | int }}"

`<symbol>` in a production is expanded by that symbol's rule, as often as it stands there: a probabilistic
context-free grammar, whose labels are computed from what was drawn.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resprout.configs.errors import BadInput
from resprout.tasks.data.render import RowTemplates

MOST_EXPANSIONS = 10_000
"""Of one symbol drawn; a grammar that needs more does not end."""
MOST_BYTES = 1_000_000
"""Of a file, which takes some hundred times as much memory when parsed, and of a text drawn."""
_NO_VALUE = (ValueError, LookupError, AttributeError)
"""Exceptions of PyYAML on values that are not what their tags say: the month 13, `!!int a`."""
_FORM = re.compile(r"\[|^Production$|^str$")
"""Names of the union's types, which pydantic puts among the keys of an error's location."""
SYMBOL = re.compile(r"<([A-Za-z_][A-Za-z0-9_]*)>")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Production(_Part):
    """A text with symbols in it, drawn by its weight among the others of its rule."""

    text: str
    weight: float = Field(1.0, gt=0.0, le=1e9, allow_inf_nan=False)


class Numbers(_Part):
    """Whole numbers from the first to the last, each as likely."""

    range: tuple[int, int]

    @model_validator(mode="after")
    def _in_order(self) -> Numbers:
        if self.range[0] > self.range[1]:
            raise ValueError(f"range is {list(self.range)}, which holds no number; give [low, high]")
        return self


class Grammar(_Part):
    """The file: rules by symbol, which of them a row draws by what name, and its columns as templates."""

    skill: str
    rows: int = Field(ge=1)
    seed: int = 17
    rules: dict[str, Numbers | tuple[Production | str, ...]]
    draw: dict[str, str]
    columns: dict[str, str]

    @model_validator(mode="after")
    def _symbols_have_rules(self) -> Grammar:
        used = set(self.draw.values())
        for rule in self.rules.values():
            used |= {one for text, _ in _choices(rule) for one in SYMBOL.findall(text)}
        if lacking := sorted(used - set(self.rules)):
            raise ValueError(f"symbol {lacking[0]} has no rule; rules are {', '.join(sorted(self.rules))}")
        lists = {name: rule for name, rule in self.rules.items() if not isinstance(rule, Numbers)}
        empty = sorted(name for name, rule in lists.items() if not rule)
        if empty:
            raise ValueError(f"the rule of {empty[0]} has no production; give one")
        return self


def grammar_rows(path: Path, file: IO[bytes], max_part: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a grammar file, numbered: its columns, and `category`, the skill, where it has none.

    Raises:
        BadInput: it is no grammar, does not end, or a template fails.
    """
    most = min(max_part, MOST_BYTES)
    grammar = _read(path, file, most)
    rng = random.Random(grammar.seed)
    drawn = (
        (number, {name: _expanded(path, grammar, symbol, rng, most) for name, symbol in grammar.draw.items()})
        for number in range(1, grammar.rows + 1)
    )
    for number, row in RowTemplates(grammar.columns).over(drawn):
        if row is None or isinstance(row, BadInput):
            raise BadInput(f"{path}, row {number}: {row}")
        yield number, {"category": grammar.skill, **row}


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, a few of which can stand for any number of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"an alias in line {mark.line + 1}; write out what it stands for")
        return super().compose_node(parent, index)


def _read(path: Path, file: IO[bytes], most: int) -> Grammar:
    content = file.read(most + 1)
    if len(content) > most:
        raise BadInput(
            f"{path} is larger than {most / 1e6:g} MB, expected a grammar of at most that; make it "
            "shorter, or give its rows as jsonl"
        )
    try:
        given = yaml.load(content, Loader=_Loader)
        # YAML can write half of a surrogate pair, UTF-8 cannot.
        json.dumps(given, ensure_ascii=False, default=str, skipkeys=True).encode()
        return Grammar.model_validate(given)
    except RecursionError as error:
        raise BadInput(f"{path}: expected a grammar as YAML, found values nested too deep") from error
    except ValidationError as error:
        # A rule that fails has an error for each type of its union; the deepest is of the type meant.
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        place = ".".join(str(one) for one in first["loc"] if not _FORM.search(str(one))) or "the file"
        said = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{path}: expected a grammar, but {place}: {said}") from error
    except (yaml.YAMLError, *_NO_VALUE) as error:
        raise BadInput(f"{path}: expected a grammar as YAML, found a fault: {error}") from error


def _choices(rule: Numbers | tuple[Production | str, ...]) -> list[tuple[str, float]]:
    """Productions of a rule with their weights; none of numbers, in which no symbol stands."""
    if isinstance(rule, Numbers):
        return []
    return [(one, 1.0) if isinstance(one, str) else (one.text, one.weight) for one in rule]


def _expanded(path: Path, grammar: Grammar, symbol: str, rng: random.Random, most: int) -> str:
    """A text drawn for a symbol, the leftmost symbol first."""
    text = f"<{symbol}>"
    for _ in range(MOST_EXPANSIONS):
        if (found := SYMBOL.search(text)) is None:
            return text
        rule = grammar.rules[found[1]]
        if isinstance(rule, Numbers):
            drawn = str(rng.randint(*rule.range))
        else:
            texts, weights = zip(*_choices(rule), strict=True)
            (drawn,) = rng.choices(texts, weights)
        text = text[: found.start()] + drawn + text[found.end() :]
        if len(text) > most:
            raise BadInput(
                f"{path}: {symbol} makes a text longer than {most / 1e6:g} MB; give shorter productions"
            )
    raise BadInput(
        f"{path}: {symbol} does not end within {MOST_EXPANSIONS:,} expansions; give productions without "
        "symbols more weight"
    )
