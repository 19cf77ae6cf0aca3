"""Goals as people say them, and a sentence for anything else."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import TargetConfig
from resprout.flows.first_config.goal import parse_goal


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("20 % smaller", {"params_ratio": 0.8}),
        ("20% smaller", {"params_ratio": 0.8}),
        ("12.5%", {"params_ratio": 0.875}),
        ("250MB", {"bytes": "250MB"}),
        ("1.5 GiB", {"bytes": "1.5 GiB"}),
        ("1.3x", {"latency_ratio": 0.769}),
        ("2x faster", {"latency_ratio": 0.5}),
    ],
)
def test_a_goal_is_a_target(text: str, target: dict[str, Any]) -> None:
    goal = parse_goal(text)
    assert goal.target == target
    assert TargetConfig.model_validate(goal.target).timed == goal.timed


@pytest.mark.parametrize(
    "text",
    [
        *("", "smaller", "0.8", "20", "0 %", "100 % smaller", "-5 %", "99.99999999 %", "250", "0MB"),
        *("250 apples", "1x", "0.5x", "99999x", "1,3x"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadInput, match=r"--goal is '") as refused:
        parse_goal(text)
    assert "1.3x" in str(refused.value)
    assert "\n" not in str(refused.value)
