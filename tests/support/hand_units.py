"""Units of a layer that is small enough to score by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from resprout.tasks.models.anatomy import Part, Slices, Units

Matrix = Sequence[Sequence[float]]


def read_by(weight: Matrix, features_per_unit: int = 1) -> Units:
    """Units of which only the matrix is known that reads them: a column for each of their features."""
    reader = torch.tensor(weight)
    count = reader.shape[1] // features_per_unit
    return Units(Part("ffn", count, (), "reader", features_per_unit), {"reader.weight": reader})


def made_and_read_by(up: Matrix, bias: Sequence[float], reader: Matrix) -> Units:
    """Channels that rows of `up` with a bias make, and columns of `reader` read."""
    each = torch.arange(len(up)).view(-1, 1)
    slices = (Slices("up.weight", 0, each), Slices("up.bias", 0, each), Slices("reader.weight", 1, each))
    tensors = {
        "up.weight": torch.tensor(up),
        "up.bias": torch.tensor(bias),
        "reader.weight": torch.tensor(reader),
    }
    return Units(Part("ffn", len(up), slices, "reader"), tensors)
