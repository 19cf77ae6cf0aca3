"""Settings of a run that people compare, flat, as params of its MLflow run."""

from __future__ import annotations

from typing import Any

from resprout.configs.schema import RunConfig
from resprout.tasks.prune.compatibility import resolve


def compared(config: RunConfig, model: str) -> dict[str, Any]:
    """Name and value of each setting; `model` is what the source is called on every machine.

    They follow from config and source alone, so that a run that goes on has those with which it began.
    """
    prune, method = config.prune, resolve(config.prune)
    found: dict[str, Any] = {
        "model": model,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "calibration": config.calibrate.method,
        "calibration_samples": config.calibrate.samples,
        "calibration_seq_len_tokens": config.calibrate.seq_len_tokens,
        "method": method.method,
        "criterion": method.criterion,
        "allocator": method.allocator,
        "repair": method.repair,
        "schedule": prune.schedule,
        "units": ", ".join(prune.units),
        "layout": prune.layout,
        "target": _one(prune.target.model_dump(exclude_none=True)),
        "round_to": prune.round_to,
    }
    if (select := config.select) is not None:
        found["selection"] = select.method
        found["selection_budget"] = _one(
            select.model_dump(include={"budget_tokens", "budget_ratio"}, exclude_none=True)
        )
        found["selection_max_len_tokens"] = select.max_len_tokens
    if (recover := config.recover) is not None:
        found["recovery"] = recover.method
        if recover.method == "lora":
            found |= {"rank": recover.rank, "alpha": recover.alpha}
        found |= {
            "learning_rate": recover.learning_rate,
            "epochs": recover.epochs,
            "batch_tokens": recover.batch_tokens,
            "distill_weight": recover.distill_weight,
        }
    if (sparsify := config.sparsify) is not None:
        found |= {"sparsity": sparsify.method, "sparsity_pattern": sparsify.pattern}
    return found


def _one(given: dict[str, Any]) -> str:
    """The one form in which a quantity is given, as in `params_ratio=0.9`."""
    return ", ".join(f"{key}={value}" for key, value in given.items())
