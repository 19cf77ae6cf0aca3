"""Stage sparsify: the final model with n of every m consecutive weights of its matrices.

Inputs: `model`, `calibration`. Content: `model/` (a plain model folder) and metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprout.configs.schema import SparsifyConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import CardLine, Model, Reads, calibration_tokens, stage
from resprout.tasks.models.shape import Shape
from resprout.tasks.sparsify.pattern import METHODS, check_method, check_sparsity


def modules(config: SparsifyConfig) -> list[str]:
    """Modules of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def settings(config: SparsifyConfig) -> dict[str, Any]:
    """The section with all settings of the method."""
    return {**config.key_data(), "settings": METHODS.settings(config.method, config.settings)}


def params(config: SparsifyConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    return {"sparsity": config.method, "sparsity_pattern": config.pattern}


def card(config: SparsifyConfig) -> CardLine:
    """Pattern and method."""
    return CardLine(f"; then zeros in the pattern {config.pattern} by {config.method}")


def check(config: SparsifyConfig, base: Path) -> None:
    """BadInput where the method or a setting is unknown or out of bounds."""
    known = METHODS.settings(config.method, config.settings)
    if config.settings:
        METHODS.get(config.method)(**known)


def fits(config: SparsifyConfig, shapes: Mapping[str, Shape]) -> None:
    """BadInput where the method does not suit the family, or the pattern the widths that pruning leaves."""
    if "model" in shapes:
        check_sparsity(config, shapes["model"])
    else:
        check_method(config, shapes["source"])


@stage(
    "sparsify",
    kind="sparsified",
    section="sparsify",
    reads={"model": Reads("model"), "calibration": Reads("data")},
    gives="sparsity",
    leaves=Model("sparsified", folder="model", metrics=True),
    reported=True,
    tagged=True,
    libraries=("torch", "transformers"),
    methods=modules,
    settings=settings,
    params=params,
    card=card,
    checks={"sparsify": check},
    tokens=calibration_tokens,
    fits=fits,
)
def sparsify(job: Job[SparsifyConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the sparse model and the shares of its zeros."""
    from safetensors.torch import load_file

    from resprout.tasks.models.load import load_for, save_model
    from resprout.tasks.models.shape import shape_of
    from resprout.tasks.sparsify.layers import make_sparse
    from resprout.tasks.sparsify.pattern import Pattern

    config = job.config
    check_sparsity(config, shape_of(inputs["model"]))
    method = METHODS.get(config.method)(**METHODS.settings(config.method, config.settings))
    input_ids = load_file(inputs["calibration"] / "calibration.safetensors")["input_ids"].long()
    model = load_for(job, inputs["model"])
    metrics = make_sparse(model, method, Pattern.of(config.pattern), input_ids, progress)
    save_model(model, workdir / "model", tokenizer_from=inputs["model"])
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
