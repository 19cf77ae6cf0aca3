"""The check before a run of a 70B model: where it lies, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.cli.plan import _placed
from resprout.flows.dry_run import _placement
from resprout.tasks.core import hardware
from resprout.tasks.models.shape import shape_of
from tiny_run import config

LARGE = shape_of(
    {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
)
ALONE: dict[str, Any] = {"recover": None, "select": None}
AUTO: dict[str, Any] = {"device_map": "auto", "max_memory": {"cpu": "40 GB"}}


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(total=64 * 10**9, available=50 * 10**9)
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: here)


def asked(changes: dict[str, Any], **model: Any) -> RunConfig:
    return RunConfig.model_validate(
        {**config(model={"source": "model", "device": "cpu", **model}), **changes}
    )


def checked(given: RunConfig) -> None:
    preflight.check_room(given, LARGE, Path("home"), 10**13, 4, lambda: [True])


def test_layers_that_do_not_fit_are_forecast_on_disk() -> None:
    given = asked(ALONE, **AUTO)
    found = _placement(given, LARGE)
    assert found is not None
    # Half of what is granted, less embeddings, head and room for one layer, holds 8 layers of 1.71 GB.
    assert found["layers"] == {"cpu": 8, "disk": 72}
    assert sum(found["held_bytes"].values()) == 2 * LARGE.params
    (line,) = _placed(found)
    assert "(8 layers) in memory; 123." in line
    checked(given)
    assert _placement(asked({}), LARGE) is None


@pytest.mark.parametrize(
    ("changes", "model", "said"),
    [
        ({}, {}, "64.0 GB .* for two copies of the model in .*; use model.device_map: auto, a smaller dtype"),
        ({}, AUTO, "for the pruned model, which recovery trains on one device, .* leave select and recover"),
        (
            {**ALONE, "quantize": {"formats": ["onnx:F32"]}},
            AUTO,
            "quantize.formats: onnx:F32 needs all weights in memory, but the model of 141.1 GB",
        ),
        (ALONE, {"device_map": "auto", "max_memory": {"cpu": 1}, "device": "auto"}, None),
    ],
)
def test_what_cannot_fit_is_refused(changes: dict[str, Any], model: dict[str, Any], said: str | None) -> None:
    given = asked(changes, **model)
    if said is None:
        checked(given)
        return
    with pytest.raises(BadInput, match=said):
        checked(given)


def test_limits_of_devices_that_are_not_here_are_refused() -> None:
    given = asked(ALONE, device_map="auto", max_memory={"7": "1 GB"}, device="auto")
    with pytest.raises(BadInput, match="max_memory names device 7, which is not here; give some of cpu"):
        checked(given)
    with pytest.raises(ValueError, match="without device_map: auto"):
        asked({}, max_memory={"cpu": 1})
