"""Criteria that look at weights alone: over all coupled tensors, and the control."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hand_units import made_and_read_by
from resprout.configs.errors import BadInput
from resprout.tasks.core.job import Share
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.prune.criteria.magnitude import Magnitude
from resprout.tasks.prune.criteria.random import Random
from resprout.tasks.prune.scoring import score_units
from tiny_models import tiny_model

IDS = torch.randint(4, 256, (2, 8), generator=torch.Generator().manual_seed(5))


UNITS = made_and_read_by(up=[[3.0, 4.0], [0.0, -1.0]], bias=[12.0, 2.0], reader=[[0.0, 2.0]])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("l2", [13.0, 3.0]),  # sqrt(9 + 16 + 144 + 0), sqrt(0 + 1 + 4 + 4)
        ("l1", [19.0, 5.0]),  # 3 + 4 + 12 + 0, 0 + 1 + 2 + 2
    ],
)
def test_magnitude_by_hand(norm, expected):
    assert Magnitude(norm=norm).score(UNITS).tolist() == [[value] for value in expected]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_magnitude_covers_exactly_what_a_unit_takes_along(norm, family):
    """As numpy's norm over the values that Units.coupled gathers."""
    model = tiny_model(family)
    kinds = tuple(kind for kind in FAMILIES[family].units if kind in Magnitude.units)
    scores = score_units(model, Magnitude(norm=norm), kinds, IDS)
    for layer, by_kind in zip(anatomy(model).layers, scores, strict=True):
        for kind in kinds:
            gathered = np.concatenate([one.numpy() for one in layer.units(kind).coupled()], axis=1)
            expected = np.linalg.norm(gathered, ord=int(norm[1]), axis=1)
            np.testing.assert_allclose(by_kind[kind].squeeze(1).numpy(), expected, rtol=1e-5)


def test_experts_have_no_reader():
    with pytest.raises(BadInput, match="of is reader, but no one module reads experts; give of: coupled"):
        score_units(tiny_model("mixtral"), Magnitude(of="reader"), ("experts",), IDS)


def test_random_scores_depend_on_seed_layer_and_kind_alone():
    """Other weights, another order of kinds, a share of the layers: the same scores."""
    whole = score_units(tiny_model("llama"), Random(), ("ffn", "kv_groups"), IDS)
    other = score_units(tiny_model("llama", seed=1), Random(), ("kv_groups", "ffn"), IDS)
    (second,) = score_units(tiny_model("llama"), Random(), ("ffn", "kv_groups"), IDS, share=Share(1, 2))
    for index, by_kind in enumerate(whole):
        for kind, values in by_kind.items():
            assert torch.equal(values, other[index][kind])
            assert torch.equal(values, second[kind]) == (index == 1)
    assert not torch.equal(
        whole[0]["ffn"], score_units(tiny_model("llama"), Random(18), ("ffn",), IDS)[0]["ffn"]
    )
    assert 0.4 < whole[0]["ffn"].mean() < 0.6
    assert len(whole[0]["ffn"].unique()) == 128


def test_a_negative_seed_is_refused():
    with pytest.raises(BadInput, match="'random' has seed: -1; give at least 0"):
        Random(-1)
