"""Stage gate: hold the final model's scores against the dense model's. Content: gate.json.

Inputs: `dense` and `final`, both scores of the same evaluator in the same flow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.result import GateCheck, GateResult
from resprout.configs.schema import DropBound, GateConfig, GateOfRung
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage
from resprout.tasks.evaluate.drop import Drop
from resprout.tasks.evaluate.losses import losses

Scores = dict[str, float]
ROUNDING = 1e-12
"""0.70 - 0.65 is more than 0.05 by the last bit."""


def check(
    bounds: GateConfig,
    dense: Scores,
    final: Scores,
    protocol: Mapping[str, Any],
    source_bytes: float | None = None,
    drops: Mapping[str, Drop] = MappingProxyType({}),
) -> GateResult:
    """The verdict: every bound that is given, with the value it was held against. NaN never passes.

    `drops` are by capability and task.
    """
    ppl, kl = protocol["metric"], protocol["kl_metric"]
    values: dict[str, Callable[[], float]] = {
        "max_perplexity_ratio": lambda: final[ppl] / dense[ppl],
        "max_kl_nats": lambda: final[kl],
        "min_accuracy_kept": lambda: final["zero_shot_mean_acc"] / dense["zero_shot_mean_acc"],
        "max_params_ratio": lambda: final["params"] / dense["params"],
        "max_file_ratio": lambda: final["bytes"] / (source_bytes or 0.0),
    }
    checks = []
    for name, value_of in values.items():
        bound = getattr(bounds, name)
        if bound is None:
            continue
        try:
            value = value_of()
        except (KeyError, ZeroDivisionError) as error:
            raise BadInput(
                f"gate.{name} cannot be computed from these scores ({error}); drop it or change evaluate"
            ) from None
        inside = value >= bound if name.startswith("min_") else value <= bound
        checks.append(GateCheck(name=name, value=value, bound=bound, passed=inside and math.isfinite(value)))
    checks += [_drop(name, bound, drops) for name, bound in sorted(bounds.max_drop.items())]
    return GateResult(passed=all(one.passed for one in checks), checks=checks)


def _drop(name: str, bound: DropBound, drops: Mapping[str, Drop]) -> GateCheck:
    """A drop held against its bound."""
    if (drop := drops.get(name)) is None:
        raise BadInput(
            f"gate.max_drop names {name}, which was not evaluated; give one of {', '.join(sorted(drops))}"
        )
    note = f"{drop.dense:.3f} -> {drop.other:.3f} of {drop.items:,} items, {drop.lost} lost, {drop.won} won"
    shown = ""
    if bound.margin is not None:
        value, most = drop.upper(bound.error_rate), bound.margin
        note += f", error rate {bound.error_rate:g}"
        passed = value < most
        only = "" if passed else "only "
        shown = f"drop {drop.value:.3f}, shown {only}to be below {value:.3g} (margin {most:g})"
    elif bound.relative is not None:
        most = bound.relative
        # A model that had nothing can lose nothing.
        value = drop.value / drop.dense if drop.dense else 0.0
        passed = value <= most + ROUNDING
    else:
        value, most = drop.value, bound.absolute or 0.0
        passed = value <= most + ROUNDING
    return GateCheck(
        name=f"max_drop.{name}",
        value=value,
        bound=most,
        passed=passed,
        items=drop.items,
        note=note,
        shown=shown,
    )


@stage(
    "gate",
    kind="gate",
    section="gate",
    reads={
        "dense": Reads("scores"),
        "final": Reads("scores"),
        "source": Reads("model", where=lambda config: config.max_file_ratio is not None),
    },
    reported=True,
    computes=False,
)
def gate(job: Job[GateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the verdict and, as metrics, each value that was compared with a bound.

    Before a rung of a ladder only whether the gate passed is written.
    """

    def read(role: str, name: str) -> dict[str, Any]:
        return dict(json.loads((inputs[role] / name).read_text(encoding="utf-8")))

    protocol = read("final", "details.json")["perplexity"]
    by_capability, by_task = losses(inputs["dense"], inputs["final"]) if job.config.max_drop else ({}, {})
    drops = {name: loss.drop for name, loss in (by_task | by_capability).items()}
    came = read("source", "source.json")["source_bytes"] if "source" in inputs else None
    verdict = check(
        job.config, read("dense", "metrics.json"), read("final", "metrics.json"), protocol, came, drops
    )
    if isinstance(job.config, GateOfRung):
        verdict.checks.clear()
    (workdir / "gate.json").write_text(verdict.model_dump_json(indent=1))
    metrics = {f"gate_{one.name}": one.value for one in verdict.checks} | {
        "gate_passed": float(verdict.passed)
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
