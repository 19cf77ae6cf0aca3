"""The activation criterion: by hand, and against numpy on what the layers of every family really see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resprout.tasks.models.anatomy import Part, Units, anatomy
from resprout.tasks.models.forward import watch
from resprout.tasks.prune.criteria.activation import Activation
from resprout.tasks.prune.scoring import score_units
from tiny_models import read_units, tiny_model

IDS = torch.randint(4, 256, (6, 16), generator=torch.Generator().manual_seed(5))
SAMPLES = torch.tensor([[[3.0, 1.0], [-4.0, 1.0]], [[6.0, -2.0], [8.0, 2.0]]])
"""Two samples of two tokens with two features."""


@pytest.mark.parametrize(
    ("over_tokens", "over_samples", "expected"),
    [
        # Norms over tokens: sample 0 has 5, sqrt(2); sample 1 has 10, sqrt(8).
        ("l2", "mean", [7.5, 1.5 * 2**0.5]),
        ("l2", "l2", [125**0.5, 10**0.5]),
        # Mean magnitudes: 3.5, 1 and 7, 2.
        ("mean", "l2", [61.25**0.5, 5**0.5]),
        ("mean", "mean", [5.25, 1.5]),
        # Variances: 12.25, 0 and 1, 4; of these over samples: (11.25 / 2)^2, 2^2.
        ("var", "mean", [6.625, 2.0]),
        ("var", "var", [31.640625, 4.0]),
    ],
)
def test_aggregations_by_hand(over_tokens, over_samples, expected):
    criterion = Activation(over_tokens, over_samples)
    units = Units(Part("ffn", 2, (), "reader"), {"reader.weight": torch.ones(1, 2)})
    rows = criterion.statistic(2)
    for sample in SAMPLES.split(1):
        rows.update(sample)
    torch.testing.assert_close(criterion.score(units, rows), torch.tensor(expected).view(2, 1))
    head = Units(Part("heads", 1, (), "reader", 2), units.tensors)
    torch.testing.assert_close(criterion.score(head, rows), torch.tensor([[np.hypot(*expected)]]).float())


def test_scores_of_a_model_are_those_of_the_authors_code(family):
    """Against numpy; samples stay apart in every family, also where they run several in a batch."""
    model, kinds = tiny_model(family), [kind for kind in read_units(family) if kind in Activation.units]
    seen = {}
    for index, layer in enumerate(anatomy(model).layers):
        for kind in kinds:
            with watch(layer.reader(kind), lambda x, key=(index, kind): seen.update({key: x})):
                model(IDS)
    for index, by_kind in enumerate(score_units(model, Activation(), tuple(kinds), IDS)):
        for kind in kinds:
            inputs = seen[index, kind].double().numpy().reshape(6, 16, -1)
            # The authors' code: abs().mean(dim=tokens).pow(2).sum(dim=samples), at last the square root.
            features = np.sqrt((np.abs(inputs).mean(1) ** 2).sum(0)).reshape(len(by_kind[kind]), -1)
            expected = np.sqrt((features**2).sum(1))
            np.testing.assert_allclose(by_kind[kind].squeeze(1).numpy(), expected, rtol=1e-4)
