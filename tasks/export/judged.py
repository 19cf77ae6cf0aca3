"""The scores that a model card states: each metric with its protocol, beside the source model's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["perplexity", "divergence", "accuracy"]
INTERVAL = 1.96
"""Standard errors to either side of a value that an interval of 95 % reaches, where errors are normal."""


@dataclass(frozen=True)
class Metric:
    """One metric of the exported model, and of the source model where that has it too."""

    name: str
    kind: Kind
    data: str
    """Name of the text or the task."""
    value: float
    dense: float | None
    protocol: str
    stderr: float | None = None
    dense_stderr: float | None = None

    @property
    def shown(self) -> tuple[str, str]:
        """The source model's value and the exported model's."""
        digits = {"perplexity": 2, "divergence": 4, "accuracy": 3}[self.kind]

        def text(value: float | None, stderr: float | None) -> str:
            if value is None:
                return "-"
            return f"{value:.{digits}f}" + (f" ± {stderr:.{digits}f}" if stderr is not None else "")

        return text(self.dense, self.dense_stderr), text(self.value, self.stderr)

    @property
    def change(self) -> str:
        """How far the value moved; of accuracies only what the standard errors of both do not explain."""
        if self.dense is None:
            return ""
        moved = self.value - self.dense
        if self.kind != "accuracy":
            return f"{moved:+.2f}"
        noise = INTERVAL * math.hypot(self.stderr or 0.0, self.dense_stderr or 0.0)
        return f"{moved:+.3f}" if abs(moved) > noise else "no measurable difference"


def judged(dense: Path, final: Path) -> list[Metric]:
    """Metrics of a model by its folder of scores and the source model's, perplexity and divergence first."""
    ours, details = _json(final / "metrics.json"), _json(final / "details.json")
    theirs = _json(dense / "metrics.json")
    return [
        *_of_text(ours, theirs, details["perplexity"]),
        *_of_tasks(ours, theirs, details.get("tasks", {})),
    ]


def _of_text(
    ours: Mapping[str, float], theirs: Mapping[str, float], protocol: Mapping[str, Any]
) -> Iterator[Metric]:
    windows = f"windows of {protocol['window_tokens']:,} tokens"
    kinds: tuple[tuple[str, Kind, str], ...] = (
        ("metric", "perplexity", f"{windows}, {protocol['scored_tokens']:,} tokens scored"),
        ("kl_metric", "divergence", f"nats a token, {windows}, {protocol['compared_tokens']:,} tokens"),
    )
    for key, kind, how in kinds:
        if (name := protocol[key]) in ours:
            yield Metric(name, kind, protocol["name"], ours[name], theirs.get(name), how)


def _of_tasks(
    ours: Mapping[str, float], theirs: Mapping[str, float], tasks: Mapping[str, Mapping[str, Any]]
) -> Iterator[Metric]:
    for task, about in tasks.items():
        how = f"lm-eval, task version {about['lm_eval_version']}, {about['items']:,} items"
        how += f", {about['few_shot']} examples" if about["few_shot"] else ""
        for name in about["metrics"]:
            if name in ours:
                errors = (scores.get(f"{name}_stderr") for scores in (ours, theirs))
                yield Metric(name, "accuracy", task, ours[name], theirs.get(name), how, *errors)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
