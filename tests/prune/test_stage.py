"""Scores put together from shards are those of one piece, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job, Share, silent
from resprout.tasks.prune.stage import score, score_shard
from tiny_models import read_units, write_tiny_folder

IDS = torch.randint(4, 256, (6, 24), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("method", ["flap", "magnitude", "random", "taylor"])
def test_scores_from_shards_equal_those_of_one_piece(family: str, method: str, tmp_path: Path) -> None:
    write_tiny_folder(tmp_path / "model", family, dtype="bfloat16", num_hidden_layers=5)
    (tmp_path / "calibration").mkdir()
    save_file({"input_ids": IDS}, tmp_path / "calibration" / "calibration.safetensors")
    inputs = {"model": tmp_path / "model", "calibration": tmp_path / "calibration"}
    units = [unit for unit in ("ffn", "kv_groups") if unit in read_units(family)]
    config = PruneConfig.model_validate(
        {
            "method": method, "units": units, "target": {"params_ratio": 0.96}, "round_to": 8,
            "layout": "per_layer", "repair": "none",
        }
    )  # fmt: skip
    given = dict(inputs)
    for index in range(3):
        folder = given[f"shard-{index:06d}"] = tmp_path / f"{index}"
        folder.mkdir()
        score_shard.body(Job(config, share=Share(index, 3)), inputs, folder, silent)
    layers = [sorted(load_file(tmp_path / f"{index}" / "scores.safetensors")) for index in range(3)]
    assert [{name.split(".")[1] for name in names} for names in layers] == [
        {"00"}, {"01", "02"}, {"03", "04"},
    ]  # fmt: skip
    for name, seen in (("whole", inputs), ("merged", given)):
        (tmp_path / name).mkdir()
        score.body(Job(config), seen, tmp_path / name, silent)
    merged, whole = (tmp_path / name / "scores.safetensors" for name in ("merged", "whole"))
    assert merged.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("stage", [score, score_shard])
def test_scores_serve_every_target(stage: Any) -> None:
    """A sweep over targets, allocators and repairs scores once."""

    def key(**changes: object) -> str:
        given = {"method": "flap", "target": {"params_ratio": 0.8}, "layout": "uniform", **changes}
        return str(stage.key(Job(PruneConfig.model_validate(given), share=Share(0, 2)), {}))

    base = key()
    for same in ({"target": {"params": 1000}}, {"repair": "bias"}, {"layout": "per_layer"}, {"round_to": 8}):
        assert key(**same) == base
    for other in ({"criterion": "magnitude"}, {"units": ["kv_groups"]}):
        assert key(**other) != base


def test_each_share_has_a_key_of_its_own() -> None:
    config = PruneConfig.model_validate({"target": {"params_ratio": 0.8}})
    shares = [Share(0, 2), Share(1, 2), Share(0, 3)]
    assert len({score_shard.key(Job(config, share=share), {}) for share in shares}) == 3
    assert score.key(Job(config), {}) == score.key(Job(config, share=Share()), {})
