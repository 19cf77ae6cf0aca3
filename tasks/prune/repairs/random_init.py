"""Fresh weights in the pruned shape, the control of what pruned weights are worth (Liu et al., 1810.05270).

Rethinking the Value of Network Pruning (ICLR 2019, arXiv 1810.05270): the architecture that pruning found is
trained from scratch, which often comes out as well as fine-tuning the weights that stayed. Weights are drawn
by the model class's own initialisation, embeddings and head too; `recover.method: full` trains them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from resprout.tasks.models.load import own_generator
from resprout.tasks.prune.interfaces import Kinds, Model, require
from resprout.tasks.prune.repairs.none import NoRepair


@dataclass(frozen=True)
class RandomInit(NoRepair):
    """Forget the weights: the pruned shape starts afresh, to be trained by `recover.method: full`."""

    units: ClassVar[Kinds] = ("ffn", "kv_groups", "heads", "experts", "hidden", "layers", "sublayers")
    whole_model: ClassVar[bool] = True

    seed: int = 17
    """Of the weights."""

    def __post_init__(self) -> None:
        require("random_init", 0, seed=self.seed)

    def finish(self, model: Model) -> None:
        """Draw all weights of `model` again, in place and in its dtype."""
        for one in (*model.modules(), *model.parameters()):
            # Transformers leaves alone what bears this mark, which loading sets.
            marked: Any = one
            marked._is_hf_initialized = False
        with own_generator(self.seed, model.device.type):
            model.init_weights()
