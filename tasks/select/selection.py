"""What PASER decided: clusters with their budgets, and of each row why it was taken or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resprout.tasks.select.concept_graph import Outcome
from resprout.tasks.select.pool import Choice, Pool

OUTSIDE = "not compared: outside the shortlist of its cluster"


@dataclass(frozen=True)
class Degradation:
    """How far pruning moved the model on the rows of each cluster.

    `cds` are means over `compared` rows of `rows`, nats; the interval of 95 % reaches `reach` to each side.
    """

    cds: NDArray[np.float64]
    reach: NDArray[np.float64]
    compared: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Rows that PASER took from its clusters.

    `labels` holds the cluster of each pool row, -1 for one that went before; `dropped` has the reasons. `jsd`
    and `efficiency` are not a number where a row was not compared. `held` and `grants` are what each cluster
    holds and may fill, in the unit of the budget. `path` says how it was done, `weights` what the degradation
    of each cluster was multiplied by.
    """

    labels: NDArray[np.int64]
    dropped: Mapping[int, str]
    jsd: NDArray[np.float64]
    efficiency: NDArray[np.float64]
    concepts: Mapping[int, Sequence[str]]
    degradation: Degradation
    held: Sequence[int]
    grants: Sequence[int]
    outcome: Outcome
    path: dict[str, Any]
    weights: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def choice(self, pool: Pool) -> Choice:
        """As every method reports it."""
        accepted = list(self.outcome.reasons)
        outcome, compared = self.outcome, ~np.isnan(self.jsd)
        metrics = {
            "clusters": len(self.grants),
            "compared_rows": int(compared.sum()),
            # Not of all rows compared, of which a shortlist holds more where the damage is greater.
            "pool_jsd_nats": float(np.average(self.degradation.cds, weights=self.degradation.rows)),
            "selected_jsd_nats": float(self.jsd[accepted].mean()) if accepted else 0.0,
            "graph_reject_rate": sum(outcome.rejected) / max(1, sum(outcome.considered)),
            **self.metrics,
        }
        warnings = list(self.warnings)
        if not self.degradation.cds.any():
            warnings.insert(
                0, "the pruned model equals the dense one on every row: all clusters have equal shares"
            )
        if len(self.grants) == 1:
            warnings.insert(0, "all rows came to lie in one cluster: the budget is not divided")
        summary = {"path": self.path, "clusters": self.clusters()}
        return Choice(accepted, self.facts, sum(self.grants), summary, metrics, warnings)

    def clusters(self) -> list[dict[str, Any]]:
        """What became of each cluster."""
        degradation, outcome = self.degradation, self.outcome
        selected = np.bincount(self.labels[list(outcome.reasons)], minlength=len(self.grants))
        return [
            {
                "cluster": k,
                "rows": int(degradation.rows[k]),
                "compared_rows": int(degradation.compared[k]),
                "cds": float(degradation.cds[k]),
                "cds_half_interval": float(degradation.reach[k]),
                "held": self.held[k],
                "granted": grant,
                "filled": outcome.filled[k],
                "selected_rows": int(selected[k]),
                "considered_rows": outcome.considered[k],
                "reject_rate": outcome.rejected[k] / max(1, outcome.considered[k]),
                "readmitted_rows": outcome.readmitted[k],
                **{name: float(values[k]) for name, values in self.weights.items()},
            }
            for k, grant in enumerate(self.grants)
        ]

    def facts(self, row: int) -> dict[str, Any]:
        """What decided on a row of the pool."""
        jsd, efficiency = float(self.jsd[row]), float(self.efficiency[row])
        found: dict[str, Any] = {} if np.isnan(jsd) else {"jsd": jsd}
        if row in self.dropped:
            return {**found, "reason": self.dropped[row]}
        if not np.isnan(efficiency):
            found["efficiency"] = efficiency
        if row in self.concepts:
            found["concepts"] = list(self.concepts[row])
        outcome = self.outcome
        reason = outcome.reasons.get(row) or outcome.refusals.get(row, OUTSIDE)
        return {**found, "cluster": int(self.labels[row]), "reason": reason}
