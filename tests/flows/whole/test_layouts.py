"""A method in its own layout, which the config does not name: its export, and what plan and run say of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny_run import write_run

PRUNE = {
    "method": "flap",
    "units": ["ffn"],
    "target": {"params_ratio": 0.9},
    "round_to": 64,
    "repair": "none",
}
SHORT = {"select": None, "recover": None, "measure": None, "gate": None, "register": None}
WORDS = "stock transformers does not load hf_layouts: call resprout.tasks.models.auto.register_layouts()"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_run(tmp_path, prune=PRUNE, **SHORT)


def test_a_method_with_widths_by_layer_is_run_and_exported_as_that(
    config: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    planned = resprout("plan", config, home=tmp_path / "home")
    assert planned.code == 0, planned.err
    assert "flap: criterion flap, allocator global_standardised" in planned.out
    assert WORDS in " ".join(planned.out.split())
    done = resprout("run", config, "--json", home=tmp_path / "home")
    assert done.code == 0, done.err
    assert [one["format"] for one in done.result["exports"]] == ["hf_layouts"]
    assert done.result["method"] == "flap"
    assert WORDS in done.err
    # Half of the 128 channels of one of two layers is the only step: 0.885 of the model.
    missed = "warning: prune.target asks for 0.900 of the parameters, which no allowed size comes near: "
    assert (
        f"{missed}the nearest sizes are 0.885 below (192 ffn in all layers) and 1.000 above (256)" in done.err
    )
    (report,) = (tmp_path / "home" / "reports").rglob("report.md")
    assert "the nearest sizes are 0.885 below" in report.read_text()


def test_uniform_widths_are_exported_for_stock_classes_without_a_word(
    config: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    planned = resprout("plan", config, "prune.layout=uniform", home=tmp_path / "home")
    assert planned.code == 0, planned.err
    assert "flap (uniform widths): criterion flap, allocator uniform" in planned.out
    assert "stock transformers" not in planned.out
