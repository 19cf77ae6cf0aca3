"""A target that rounding misses by far is reported, with the sizes next to it worked out by hand."""

from __future__ import annotations

import re

import pytest
import torch

from resprout.configs.schema import PruneConfig
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.planning import plan_from

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": "wanda_sp", "units": ["ffn"], "layout": "uniform", "round_to": 128},
            r"0\.750 below \(1,024 ffn in each layer\) and 0\.813 above \(1,152\).*lower round_to \(128\)",
        ),
        ({"method": "wanda_sp", "units": ["ffn"], "layout": "uniform", "round_to": 32}, None),
        ({"method": "wanda_sp", "units": ["ffn"], "layout": "per_layer", "round_to": 128}, None),
        (
            {"method": "shortgpt", "units": ["layers"], "layout": "uniform"},
            r"0\.767 below \(23 layers\) and 0\.801 above \(24\); the one below is taken; ask for 0\.801",
        ),
    ],
)
def test_a_target_that_rounding_misses_by_far_names_the_sizes_next_to_it(values, says):
    """A layer of SmolLM2-135M has 885,888 parameters and 1,536 channels of 1,728; 30 of them; 576 in a norm.

    Asked for 0.8 of 106,203,456: 1,024 channels leave 79,661,376 (0.7501), 1,152 leave 86,296,896 (0.8126),
    1,120 leave 84,638,016 (0.7969); 23 layers leave 81,422,784 (0.7667), 24 leave 84,962,880 (0.80000).
    """
    dense = shape_of(SMOLLM2)
    config = PruneConfig.model_validate({"method": "flap", "target": {"non_embedding_ratio": 0.8}, **values})
    size = 1 if "layers" in config.units else 1536
    scores = [{config.units[0]: torch.arange(size, 0.0, -1.0)[:, None] + layer} for layer in range(30)]
    warnings = plan_from(scores, dense, "bfloat16", config).warnings
    assert len(warnings) == (says is not None)
    assert says is None or re.search(says, warnings[0])


def test_layers_that_are_spared_are_no_step_to_the_next_size():
    """27 of 30 layers lose 1,728 * (1,536 - w) parameters each of 106,203,456.

    1,024 channels leave 82,315,584 (0.7751), 1,152 leave 88,287,552 (0.8313).
    """
    dense = shape_of(SMOLLM2)
    config = PruneConfig.model_validate(
        {
            "method": "taylor", "units": ["ffn"], "target": {"non_embedding_ratio": 0.8}, "round_to": 128,
            "spared_front": 2, "spared_back": 1,
        }
    )  # fmt: skip
    scores = [{"ffn": torch.arange(1536, 0.0, -1.0)[:, None]} for _ in range(30)]
    (warning,) = plan_from(scores, dense, "bfloat16", config).warnings
    assert "0.775 below (1,024 ffn in each layer that may get narrower) and 0.832 above (1,152)" in warning
