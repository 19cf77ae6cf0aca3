"""COLA's choice of calibration samples in activation space (He et al., arXiv 2510.10618, section 5).

Lifecycle: draw samples * candidates_per_sample windows; one forward pass of the dense model without its
head; each layer's mean hidden state, projected at random; k-means with k = samples; the window nearest to
each centre.

Ours: each layer's projections are centred over the candidates and scaled to one mean square, or the last
layers, whose activations are the largest, would decide alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resprout.configs.schema import CalibrateConfig
from resprout.tasks.calibrate.samples import Samples, cut, draw_windows, take
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.models.load import load_for

PASS_TOKENS = 2048
"""Tokens of one forward pass; all layers' states of a pass are held at once."""


def draw(job: Job[CalibrateConfig], inputs: Mapping[str, Path], progress: Progress) -> Samples:
    """Windows nearest to the centres of k-means in the dense model's activation space."""
    config = job.config
    windows = cut(config, inputs, job.trust_remote_code)
    candidates = draw_windows(config, windows, config.samples * config.candidates_per_sample, job.seed)
    model: Any = load_for(job, inputs["model"])
    ids = torch.from_numpy(windows.input_ids[candidates])
    features = activation_features(model, ids, config.projection_dim, job.seed, progress)
    nearest, distances, sizes = representatives(features, config.samples, job.seed)
    notes = [
        {"reason": "nearest to a centre", "distance": round(float(distance), 6), "cluster_size": int(size)}
        for distance, size in zip(distances, sizes, strict=True)
    ]
    return take(windows, candidates[nearest], notes)


@torch.inference_mode()
def activation_features(
    model: Any, input_ids: Tensor, projection_dim: int, seed: int, progress: Progress
) -> NDArray[np.float32]:
    """Projected mean hidden states of all layers: float32 [sequences, layers * projection_dim].

    Args:
        model: The dense model.
        input_ids: int64 [sequences, tokens].
        projection_dim: Width of each layer's Gaussian projection.
        seed: Seed of the projections.
        progress: Called with the number of sequences.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, PASS_TOKENS // input_ids.shape[1])
    means = list[Tensor]()
    for start in range(0, len(input_ids), rows):
        ids = input_ids[start : start + rows].to(device)
        states = model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        means.append(torch.stack([state.float().mean(1) for state in states[1:]], dim=1).cpu())
        progress(min(start + rows, len(input_ids)), len(input_ids), "sequences")
    stacked = torch.cat(means)  # [sequences, layers, hidden]
    _, layers, width = stacked.shape
    projection = torch.randn(layers, width, projection_dim, generator=generator) / projection_dim**0.5
    projected = torch.einsum("nld,ldp->nlp", stacked - stacked.mean(0), projection)
    scale = projected.square().mean((0, 2), keepdim=True).sqrt().clamp_min(1e-12)
    return (projected / scale).flatten(1).numpy()


def representatives(
    features: NDArray[np.float32], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """For each k-means centre the nearest row that no earlier centre has: (rows, distances, sizes).

    Where equal rows leave a centre without members of its own, the nearest row that is still free stands
    for it.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):  # sums in the order of threads would differ in the last bit
        fitted = KMeans(count, n_init=3, random_state=seed).fit(features.astype(np.float64))
    sizes = np.bincount(fitted.labels_, minlength=count)
    distances = fitted.transform(features.astype(np.float64))
    free = np.ones(len(features), dtype=bool)
    rows = np.empty(count, dtype=np.int64)
    for centre in np.argsort(sizes == 0, kind="stable"):
        own = free & (fitted.labels_ == centre)
        allowed = own if own.any() else free
        rows[centre] = np.where(allowed, distances[:, centre], np.inf).argmin()
        free[rows[centre]] = False
    return rows, distances[rows, np.arange(count)], sizes
