"""Criteria against a case worked by hand and against a few lines of numpy on what the layers really see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hand_units import read_by
from resprout.configs.errors import StageFailed
from resprout.tasks.prune.criteria.apoz import Apoz
from resprout.tasks.prune.criteria.flap import Flap
from resprout.tasks.prune.criteria.magnitude import Magnitude
from resprout.tasks.prune.criteria.wanda_sp import WandaSp
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.scoring import best_units, score_units
from resprout.tasks.prune.statistics import Gram, Moments
from tiny_models import READERS, read_units, readers_of, tiny_model

IDS = torch.randint(4, 256, (6, 16), generator=torch.Generator().manual_seed(5))


READER = [[1.0, -2.0], [2.0, 0.0]]


def hand_inputs(statistic):
    """Given inputs (tokens x features) [[1, 3], [3, 3], [5, 9]] in batches of two and one."""
    statistic.update(torch.tensor([[1.0, 3.0], [3.0, 3.0]]))
    statistic.update(torch.tensor([[5.0, 9.0]]))
    return statistic


def test_moments_by_hand():
    """Means 3 and 5; centred squares 4+0+4 = 8 and 4+4+16 = 24, over 3 - 1; norms sqrt(35), sqrt(99)."""
    moments = hand_inputs(Moments(2))
    assert moments.mean.tolist() == [3.0, 5.0]
    assert moments.variance.tolist() == [4.0, 12.0]
    torch.testing.assert_close(moments.norm, torch.tensor([35.0, 99.0]).sqrt())


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (Magnitude(of="reader"), [5**0.5, 2.0]),  # column norms: sqrt(1 + 4), 2
        (Magnitude(of="reader", norm="l1"), [3.0, 2.0]),  # column sums of |W|: 1 + 2, 2
        (Magnitude(of="reader", norm="mean"), [1.5, 1.0]),  # the same over two weights each
        (WandaSp(), [3 * 35**0.5, 2 * 99**0.5]),  # column sums of |W|: 3 and 2, times the norms
        (Apoz(threshold=0.7), [1 / 3, 1.0]),  # bounds 0.7 * sqrt(5), 0.7 * 3, 0.7 * sqrt(53): 1.6, 2.1, 5.1
        (Flap(), [4 * 5.0, 12 * 4.0]),  # variance 4 and 12, squared column norms 5 and 4
    ],
)
def test_criteria_by_hand(criterion, expected):
    inputs = [hand_inputs(criterion.statistic(2))] if criterion.needs == "inputs" else []
    torch.testing.assert_close(
        criterion.score(read_by(READER), *inputs), torch.tensor(expected).reshape(2, 1)
    )
    assert criterion.score(read_by(READER, features_per_unit=2), *inputs).shape == (1, 2)


def reference(name, weight, inputs):
    if name == "magnitude":
        return np.sqrt((weight**2).sum(0))
    if name == "wanda_sp":
        return (np.abs(weight) * np.sqrt((inputs**2).sum(0))).sum(0)
    return inputs.var(axis=0, ddof=1) * (weight**2).sum(0)


STACKS = {"opt": "model.decoder.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}


@pytest.mark.parametrize("name", ["flap", "magnitude", "wanda_sp"])
def test_scores_of_a_model_equal_the_numpy_reference(name, family):
    model = tiny_model(family)
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, x, path=path: seen.update({path: x[0].reshape(-1, x[0].shape[-1]).double().numpy()})
        )
        for path, module in model.named_modules()
        if path.endswith(("down_proj", "o_proj", "out_proj", "fc2", "c_proj", "4h_to_h", "attention.dense"))
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    kinds = tuple(kind for kind in ("ffn", "kv_groups") if kind in read_units(family))
    settings = {"of": "reader"} if name == "magnitude" else {}
    scores = score_units(model, CRITERIA.get(name)(**settings), kinds, IDS)
    for index, by_kind in enumerate(scores):
        for kind in kinds:
            reader = readers_of(family)[kind]
            path = f"{STACKS.get(family, 'model.layers')}.{index}.{reader}"
            weight = model.get_submodule(path).weight.double().numpy()
            weight = weight.T if family == "gpt2" else weight
            assert by_kind[kind].shape == (
                (128, 1) if kind == "ffn" else (4, 16) if family in READERS else (2, 32)
            )
            assert by_kind[kind].dtype == torch.float32
            expected = reference(name, weight, seen[path])
            np.testing.assert_allclose(by_kind[kind].flatten().numpy(), expected, rtol=2e-4)


def test_variance_does_not_cancel_beside_a_large_mean():
    """Mean 4096, spread 1: the difference of mean square and squared mean would be lost in float32."""
    values = 4096 + torch.randn(4096, 3, generator=torch.Generator().manual_seed(0))
    moments = Moments(3)
    for batch in values.split(512):
        moments.update(batch)
    torch.testing.assert_close(moments.variance, values.double().var(dim=0).float(), rtol=1e-5, atol=0)


def test_gram_of_bfloat16_inputs_is_that_of_their_exact_values():
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram = Gram(40)
    for batch in values.split(128):
        gram.update(batch)
    exact = values.double().T @ values.double()
    torch.testing.assert_close(gram.matrix.double(), exact, rtol=1e-5, atol=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_best_units_goes_by_the_mean_and_breaks_ties_by_index():
    """Means 1, 3, 2, 3, 2: the best three are 1, 3 and, of the tied 2 and 4, the first."""
    scores = torch.tensor([[1.0, 1.0], [2.0, 4.0], [2.0, 2.0], [3.0, 3.0], [0.0, 4.0]])
    assert best_units(scores, 3) == [1, 2, 3]


def test_scores_that_are_not_finite_stop_the_stage():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    says = r"scores of ffn in layer 1 are not finite; neither is mlp\.up_proj\.weight of that layer"
    with pytest.raises(StageFailed, match=says):
        score_units(model, Flap(), ("ffn",), IDS)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = 1e38
    with pytest.raises(StageFailed, match=r"scores of ffn in layer 1 are not finite.*bfloat16 or float32"):
        score_units(model, Flap(), ("ffn",), IDS)
