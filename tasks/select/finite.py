"""Numbers of models that are no numbers: which model gave them, and on which row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resprout.configs.errors import StageFailed

DENSE, PRUNED, PILOT, ENCODER = "dense", "pruned", "pilot's", "encoder"


class NotFinite(StageFailed):
    """A model's numbers on a row are infinite or none; `id` is the row's, to say where it is from."""

    def __init__(self, message: str, id: str = "") -> None:
        super().__init__(message)
        self.id = id


def require_finite(
    values: NDArray[np.floating], model: str, places: Sequence[int], ids: Sequence[str]
) -> None:
    """Refuse rows on which a model's numbers are infinite or none.

    Args:
        values: Of each row: [rows] or [rows, columns].
        model: Which model they are of.
        places: Of each row its place among all, in the order of their ids.
        ids: Of each row.

    Raises:
        NotFinite: a row's values are not all finite; the first such row is named.
    """
    fine = np.isfinite(values).reshape(len(values), -1).all(1)
    if fine.all():
        return
    first = int(fine.argmin())
    others = int((~fine).sum()) - 1
    more = f" and {others} more of its batch" if others else ""
    instead = {DENSE: "", ENCODER: ", or another paser.embedder"}.get(model, ", or a milder prune.target")
    raise NotFinite(
        f"the {model} model's logits or states are not finite on the row {ids[first]} (number "
        f"{places[first] + 1} by id){more}; try model.dtype: float32{instead}",
        ids[first],
    )
