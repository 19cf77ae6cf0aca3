"""compare_trained.yaml trains as its paper does: Scratch-E and Scratch-B, at the best learning rate."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from resprout.configs.load import load
from resprout.configs.sweep import load_sweep
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.target import implied_shape

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_arms_are_those_of_the_paper() -> None:
    """arXiv 1810.05270: as many epochs, or as much computation and at most twice as many epochs."""
    _, variants = load_sweep(CONFIGS / "compare_trained.yaml", [])
    rates = defaultdict(set)
    for variant in variants:
        config = variant.loaded.config
        assert config.recover is not None
        assert config.recover.method == "full"
        assert config.recover.distill_weight == 0
        rates[config.prune.method, config.recover.epochs].add(config.recover.learning_rate)
    fresh = sorted(epochs for method, epochs in rates if method == "random_init")
    assert len(fresh) == 2, "Scratch-E and Scratch-B"
    assert all(len(each) >= 3 for each in rates.values()), "a learning rate is chosen for each"

    from benchmarks_model import SMALL

    dense = shape_of({**SMALL, "model_type": "llama"})
    cut = [implied_shape(dense, one.loaded.config.prune) for one in variants]
    assert {one.params for one in cut if one is not None} == {467_808}
    assert dense.params == 688_992
    base = load(CONFIGS / "trained_base.yaml").config
    assert base.recover is not None
    assert fresh[0] == base.recover.epochs
    assert fresh[1] / fresh[0] == pytest.approx(min(2, 688_992 / 467_808), rel=1e-3)
