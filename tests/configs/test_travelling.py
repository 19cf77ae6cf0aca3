"""A section goes to a worker as plain data and arrives as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import resprout.configs
from resprout.configs.load import load
from resprout.configs.schema import PASER_FORMS, RunConfig, SelectConfig

CONFIGS = Path(resprout.configs.__file__).parent
RUNS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "model" in yaml.safe_load(path.read_text())]


def sections(config: RunConfig) -> Iterator[tuple[str, BaseModel]]:
    """The sections of a config, and of the selection all forms that can be compared with it."""
    for name in type(config).model_fields:
        if isinstance(section := getattr(config, name), BaseModel):
            yield name, section
    if config.select is not None:
        yield from config.select.arms.items()


def test_the_configs_are_looked_at() -> None:
    assert {"quickstart", "compare_selections"} <= {path.stem for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_section_of_a_shipped_config_arrives_as_it_was(path: Path) -> None:
    for name, section in sections(load(path, environ={}).config):
        assert type(section).model_validate(section.model_dump(mode="json")) == section, name


@pytest.mark.parametrize("form", PASER_FORMS)
def test_every_form_of_paser_arrives_as_it_was(form: str) -> None:
    given: dict[str, Any] = {"pool": [{"source": "x"}], "budget_ratio": 0.1, "paser": PASER_FORMS[form]}
    section = SelectConfig.model_validate(given)
    assert SelectConfig.model_validate(section.model_dump(mode="json")) == section


def test_beside_a_published_form_auto_is_as_it_is_alone() -> None:
    given: dict[str, Any] = {"pool": [{"source": "x"}], "budget_ratio": 0.1}
    alone = SelectConfig.model_validate(given)
    beside = SelectConfig.model_validate({**given, "paser": {"mode": "paper"}}).alternative("auto")
    assert beside.paser == alone.paser
    assert (beside.paser.graph, alone.paser.graph) == ("top3", "top3")
