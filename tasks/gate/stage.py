"""Stage gate: hold the final model's scores against the dense model's. Content: gate.json.

Inputs: `dense` and `final`, both scores of the same evaluator in the same flow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.configs.result import GateCheck, GateResult
from resprout.configs.schema import GateConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage

Scores = dict[str, float]


def check(bounds: GateConfig, dense: Scores, final: Scores, protocol: Mapping[str, Any]) -> GateResult:
    """The verdict: every bound that is given, with the value it was held against. NaN never passes."""
    ppl, kl = protocol["metric"], protocol["kl_metric"]
    values: dict[str, Callable[[], float]] = {
        "max_perplexity_ratio": lambda: final[ppl] / dense[ppl],
        "max_kl_nats": lambda: final[kl],
        "min_accuracy_kept": lambda: final["zero_shot_mean_acc"] / dense["zero_shot_mean_acc"],
        "max_params_ratio": lambda: final["params"] / dense["params"],
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
    return GateResult(passed=all(one.passed for one in checks), checks=checks)


@stage(
    "gate",
    kind="gate",
    section="gate",
    reads={"dense": Reads("scores"), "final": Reads("scores")},
    reported=True,
    computes=False,
)
def gate(job: Job[GateConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the verdict and, as metrics, each value that was held against a bound."""

    def read(role: str, name: str) -> dict[str, Any]:
        return dict(json.loads((inputs[role] / name).read_text(encoding="utf-8")))

    protocol = read("final", "details.json")["perplexity"]
    verdict = check(job.config, read("dense", "metrics.json"), read("final", "metrics.json"), protocol)
    (workdir / "gate.json").write_text(verdict.model_dump_json(indent=1))
    metrics = {f"gate_{one.name}": one.value for one in verdict.checks} | {
        "gate_passed": float(verdict.passed)
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
