"""Recovery by distillation of all weights (Minitron, Muralidharan et al., arXiv 2407.14679).

As the paper found best after pruning widths: the divergence from the dense model's logits alone, without
cross-entropy and, where depth stays, without hidden states. Its learning rate falls along a cosine; those of
`recover` are used, of which the warm-up is not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.recover.methods import full
from resprout.tasks.recover.training_data import Recovered, TrainingData


def train(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], data: TrainingData, progress: Progress
) -> Recovered:
    """All weights, float32 while they are trained, 16 bytes a parameter, beside the dense model or its words.

    Raises:
        BadInput: dtype float16 on a CPU.
        StageFailed: a loss or a weight that is not finite.
    """
    return full.train(job, inputs, data, progress)
