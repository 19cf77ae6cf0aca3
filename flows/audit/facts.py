"""What the artifacts behind a story say themselves: metrics of stages, and the gate's verdict."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from resprout.configs.errors import BadInput, VerificationFailed
from resprout.flows.audit.story import Story
from resprout.infra.lineage import Node
from resprout.infra.store.store import ArtifactStore

METRICS, GATE, PLAN = "metrics.json", "gate.json", "plan.json"
THREADS = 8


@dataclass(frozen=True)
class Facts:
    """By record id the metrics of its artifact; the gate's verdict and the plan where the story has them."""

    metrics: dict[str, dict[str, float]]
    gate: dict[str, Any] | None
    plan: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        """All of them, and the verdict in a word."""
        return {"metrics": self.metrics, "gate": self.gate, "plan": self.plan, "verdict": self.verdict}

    @property
    def verdict(self) -> str:
        """passed, failed, or none where no gate was asked for."""
        return "none" if self.gate is None else "passed" if self.gate["passed"] else "failed"


def gather(store: ArtifactStore, story: Story) -> Facts:
    """The facts of a story; what is no longer in the store is left out."""
    nodes = list(story.nodes().values())
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda node: _read(store, node, METRICS), nodes))
    metrics = {node.record_id: data for node, data in zip(nodes, found, strict=True) if data is not None}
    return Facts(metrics, verdict_of(store, story), plan_of(store, story))


def verdict_of(store: ArtifactStore, story: Story) -> dict[str, Any] | None:
    """The content of gate.json."""
    return _of_stage(store, story, "gate", GATE)


def plan_of(store: ArtifactStore, story: Story) -> dict[str, Any] | None:
    """The content of plan.json."""
    return _of_stage(store, story, "plan", PLAN)


def _of_stage(store: ArtifactStore, story: Story, stage: str, path: str) -> dict[str, Any] | None:
    """The content of the stage nearest to the top: the report's own goes before one further down."""
    known = story.nodes()
    nodes = (known[identity] for identity in story.roles() if known[identity].record.stage == stage)
    return next((data for node in nodes if (data := _read(store, node, path)) is not None), None)


def _read(store: ArtifactStore, node: Node, path: str) -> dict[str, Any] | None:
    """A JSON file of the node's artifact; None where it has none, or the artifact is not there any more."""
    try:
        if all(entry.path != path for entry in store.manifest(node.record.content).files):
            return None
        return dict(json.loads(store.read(node.record.content, path)))
    except (BadInput, VerificationFailed):
        # Erased, collected or damaged: the record still tells what it was, and `verify` what became of it.
        return None
