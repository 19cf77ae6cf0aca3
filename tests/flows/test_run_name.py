"""Names of flow runs: of the config and the time, where none was given."""

from __future__ import annotations

import re

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from resprout.flows import run_name as names

DATED = r"{} \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("honorable-bittern", False),
        ("chat-7b-3", True),
        ("tiny 2026-11-28 19:02:41", True),
        ("Nightly", True),
        ("", False),
    ],
)
def test_a_name_that_prefect_drew_is_replaced_and_any_other_stays(
    given: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FlowRun.model_construct(name=given)
    monkeypatch.setattr(FlowRunContext, "get", lambda: FlowRunContext.model_construct(flow_run=run))
    found = names.run_name("tiny")
    assert found == given if kept else re.fullmatch(DATED.format("tiny"), found)


def test_the_title_is_the_name_of_the_config_or_of_its_file() -> None:
    assert names.title_of({"name": "tiny"}, []) == "tiny"
    assert names.title_of({"name": "tiny"}, ["seed=3", "name=big"]) == "big"
    assert names.title_of("configs/quickstart.yaml", None) == "quickstart"


def test_prefect_draws_names_that_are_known_as_drawn() -> None:
    from prefect.utilities.names import generate_slug

    assert all(names.DRAWN.fullmatch(generate_slug(2)) for _ in range(200))
