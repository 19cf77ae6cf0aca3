"""A run that leaves a model with 2:4 zeros: judged, held to the gate, exported, registered, and told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from resprout.tasks.sparsify.layers import keeps_to
from resprout.tasks.sparsify.pattern import Pattern
from tiny_run import write_run

NOTHING = {"method": "wanda_sp", "target": {"non_embedding_ratio": 1.0}, "round_to": 8}


def matrices(folder: Path) -> list[Any]:
    tensors = load_file(folder / "model.safetensors")
    return [one for name, one in tensors.items() if ".layers." in name and one.dim() == 2]


def test_the_sparse_model_is_the_final_one(resprout: Callable[..., Any], tmp_path: Path) -> None:
    path = write_run(tmp_path, measure=None, sparsify={"pattern": "2:4", "method": "sparsegpt"})
    home = tmp_path / "home"
    done = resprout("run", path, "--json", home=home)
    assert done.code == 0, done.err
    models, stages = done.result["models"], {one["name"]: one for one in done.result["stages"]}
    assert list(stages)[-6:] == [
        "evaluate recovered", "sparsify", "evaluate sparsified", "gate", "export", "report",
    ]  # fmt: skip
    assert models["sparsified"]["params"] == models["recovered"]["params"]
    assert models["sparsified"]["metrics"]["pattern_zeros_share"] >= 0.5
    perplexity = [models[name]["metrics"]["words_ppl_seq32"] for name in ("dense", "sparsified")]
    assert done.result["gate"]["checks"][0]["value"] == pytest.approx(perplexity[1] / perplexity[0])
    exported = Path(done.result["exports"][0]["uri"].removeprefix("file://"))
    assert all(keeps_to(one, Pattern.of("2:4")) for one in matrices(exported))
    assert "then zeros in the pattern 2:4 by sparsegpt" in (exported / "README.md").read_text()
    assert done.result["registered"]["version"] == "1"
    report = (home / "reports" / "tiny" / "report.md").read_text()
    assert "| dense | pruned | recovered | sparsified |" in report
    assert "zeros, share of parameters" in report
    again = resprout("run", path, "sparsify.method=wanda", "--json", home=home)
    assert {one["name"] for one in again.result["stages"] if not one["cached"]} == {
        "sparsify", "evaluate sparsified", "gate", "export", "report",
    }  # fmt: skip
    checked = resprout("verify", "models:/tiny-pruned/1", home=home)
    assert checked.code == 0, checked.err


def test_zeros_alone(resprout: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing structured goes: the pruned model is the dense one, and the plan names it."""
    parts = dict.fromkeys(("select", "recover", "measure", "gate"))
    path = write_run(tmp_path, **parts, prune=NOTHING, sparsify={"method": "magnitude"})
    done = resprout("run", path, "--json", home=tmp_path / "home")
    assert done.code == 0, done.err
    models, stages = done.result["models"], {one["name"]: one for one in done.result["stages"]}
    assert models["pruned"]["params"] == models["dense"]["params"]
    assert models["pruned"]["metrics"]["words_kl_to_dense_seq32"] == 0
    assert models["sparsified"]["metrics"]["words_kl_to_dense_seq32"] > 0
    folder = Path(stages["plan"]["artifact"]["uri"].removeprefix("file://"))
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["model_digest"] == stages["acquire model"]["artifact"]["digest"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsify.method=sparsgpt", "unknown sparsity method 'sparsgpt'; did you mean 'sparsegpt'?"),
        ("sparsify.settings.damping=1", "sparsity method 'wanda' has no setting 'damping'; it takes none"),
        ("prune.round_to=6", "prune.round_to 6 does not keep whole; give a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_told_at_once(
    resprout: Callable[..., Any], tmp_path: Path, override: str, says: str
) -> None:
    path = write_run(tmp_path, sparsify={})
    done = resprout("validate", path, override, home=tmp_path / "home")
    assert done.code == 2
    assert says in done.err
