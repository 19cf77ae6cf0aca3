"""Files of few bits: their table, and whether pruning or fewer bits is the better way to a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resprout.tasks.measure.ratio import Ratio
from resprout.tasks.report.table import (
    NONE,
    SPEED,
    Metrics,
    Row,
    accuracy_cell,
    perplexity_of,
    ratio_cell,
    speeds_of,
)

DENSE = "dense "
"""How names of the dense model's files begin."""
AS_LARGE = 1.01
"""Files count as equally large up to this ratio of their bytes."""


@dataclass(frozen=True)
class FewerBits:
    """A file of the pruned model, and the dense model's best file that is no larger.

    `worse`: the pruned file's perplexity over its rival's, window by window.
    """

    file: str
    rival: str
    worse: Ratio

    @property
    def sentence(self) -> str:
        """Which of them wins at this size."""
        if not self.worse.different:
            return f"{self.file} and {self.rival}, which is no larger, do not differ in perplexity."
        share = f"x{self.worse.median:.2f} the perplexity (x{self.worse.low:.2f}-{self.worse.high:.2f})"
        if self.worse.median > 1:
            return (
                f"Fewer bits win at this size: {self.file} has {share} of {self.rival}, which is no larger."
            )
        return (
            f"Pruning wins at this size: {self.file} has {share} of {self.rival}, the best that is no larger."
        )


def rival_of(name: str, files: Mapping[str, Metrics]) -> str | None:
    """The file of the dense model with the lowest perplexity among those no larger; None where all are."""
    quality = perplexity_of(files[name])
    fitting = [
        other
        for other, metrics in files.items()
        if other.startswith(DENSE) and metrics["bytes"] <= AS_LARGE * files[name]["bytes"]
    ]
    return min(fitting, key=lambda other: files[other][quality], default=None)


def file_rows(files: Mapping[str, Metrics]) -> tuple[tuple[str, ...], list[Row]]:
    """The headings of the columns, and a row for each file, the larger first."""
    first = next(iter(files.values()))
    quality = perplexity_of(first)
    divergence = next((name for name in sorted(first) if "_kl_to_dense" in name), None)
    speeds = speeds_of(first)
    heads = ["MB", "perplexity", "KL to dense"]
    heads += ["mean accuracy"] if "zero_shot_mean_acc" in first else []
    heads += [f"{name.removesuffix(SPEED)}, tokens/s" for name in speeds]
    rows = []
    for name, metrics in sorted(files.items(), key=lambda one: -one[1]["bytes"]):
        cells = [f"{metrics['bytes'] / 1e6:,.1f}", ratio_cell(metrics, quality, ",.2f")]
        cells.append(f"{metrics[divergence]:.4f}" if divergence and divergence in metrics else NONE)
        if "zero_shot_mean_acc" in first:
            cells.append(accuracy_cell(metrics, "zero_shot_mean_acc"))
        cells += [ratio_cell(metrics, speed) for speed in speeds]
        rows.append(Row(name, tuple(cells)))
    return tuple(heads), rows
