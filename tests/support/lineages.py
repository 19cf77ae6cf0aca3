"""A finished run as records and small artifacts, written straight into a store: no model, no flow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprout.infra.lineage import Node, tree
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.store import ArtifactStore

COMMIT = "c0ffee" + "0" * 34
CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 17,
    "model": {"source": "hf://acme/tiny@main", "dtype": "float32", "licence": None},
    "prune": {"method": "flap", "target": {"params_ratio": 0.85}},
}
PLAN: dict[str, Any] = {
    "criterion": "flap",
    "dense": {"params": 1000, "bytes": 4000},
    "reached": {"params": 850, "bytes": 3400},
    "layers": [{"ffn": [0, 1, 2], "kv_groups": [0]}, {"ffn": [0, 3], "kv_groups": [0]}],
}


def keyed(record: Record, unlike: str = "") -> Record:
    """The record with the key of what it says; `unlike` sets apart what is equal otherwise."""
    parts: dict[str, Any] = {
        "stage": record.stage,
        "config": record.config,
        "libraries": record.libraries,
        "code": record.code.get("reached"),
        "parents": {parent.role: [parent.digest, ""] for parent in record.parents},
        "unlike": unlike,
    }
    if record.seed is not None:
        parts["seed"] = record.seed
    if record.device is not None:
        parts["dtype"], parts["device"] = record.dtype, record.device
    return record.with_key_of(parts)


@dataclass
class Writer:
    """Writes artifacts with records; `made` holds each by the name that it was given."""

    store: ArtifactStore
    scratch: Path
    made: dict[str, tuple[str, str]] = field(default_factory=dict)
    minute: int = 0

    def add(
        self, name: str, stage: str, kind: str, files: dict[str, Any], parents: dict[str, str], **more: Any
    ) -> str:
        """The record's id; `parents` maps roles to names given before."""
        folder = self.scratch / f"{name}-{self.minute}"
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(data if isinstance(data, str) else json.dumps(data))
        manifest = self.store.publish(folder)
        self.minute += 1
        given = {
            "config": {"of": stage},
            "code": {"resprout": "0.1.0", "commit": COMMIT, "dirty": "false", "reached": "ab" * 32},
            "libraries": {"torch": "2.13.0+cpu"},
            **more,
        }
        record = Record(
            stage=stage,
            key="",
            kind=kind,
            content=manifest.digest,
            manifest=manifest.sha256,
            parents=tuple(
                Parent(role=role, digest=self.made[parent][0], record=self.made[parent][1])
                for role, parent in sorted(parents.items())
            ),
            machine={"host": "box", "python": "3.11.7"},
            who="ada",
            started=f"2026-01-02T03:{self.minute:02d}:00+00:00",
            seconds=1.5,
            **given,
        )
        self.made[name] = (manifest.digest, self.store.put_record(keyed(record, name)))
        return self.made[name][1]


def write_lineage(store: ArtifactStore, scratch: Path, config: dict[str, Any] | None = None) -> Writer:
    """A run of acquire, plan, prune, evaluate, gate, export and report; what differs in `config` shows."""
    config = {**CONFIG, **(config or {})}
    prune = config["prune"]
    writer = Writer(store, scratch)
    writer.add(
        "model", "acquire_model", "model", {"config.json": {}, "weights": "w" * 100}, {},
        config={"role": "model"}, licence="apache-2.0", libraries={"transformers": "5.24.0"},
        origin={
            "given": config["model"]["source"], "uri": "hf://acme/tiny@" + "1" * 40, "commit": "1" * 40,
            "revision": "main", "licence": "apache-2.0",
        },
    )  # fmt: skip
    writer.add(
        "text", "acquire_text", "text", {"text.jsonl": '{"text": "a"}\n'}, {},
        licence="cc-by-4.0, unknown", config={"sources": []},
        origin={"sources": [
            {"given": "a.jsonl", "uri": "file:///data/a.jsonl", "sha256": {"a.jsonl": "aa" * 32},
             "licence": "cc-by-4.0"},
            {"given": "b", "uri": "s3://data/b", "objects": {"x": "1", "y": "2"}, "licence": None},
        ]},
    )  # fmt: skip
    writer.add(
        "plan", "plan", "plan", {"plan.json": {**PLAN, "criterion": prune["method"]}}, {"model": "model"},
        config=prune, dtype="float32", device="cpu",
    )  # fmt: skip
    writer.add(
        "pruned", "prune", "model", {"config.json": {}, "weights": f"p{prune}"},
        {"model": "model", "plan": "plan"}, config=prune, dtype="float32", device="cpu", seed=17,
    )  # fmt: skip
    for name, model, ppl in (("dense", "model", 10.0), ("cut", "pruned", 12.5)):
        metrics = {"perplexity": ppl, "params": 1000}
        writer.add(
            name, "evaluate", "scores", {"metrics.json": metrics, "details.json": {"of": name}},
            {"model": model, "text": "text"},
        )  # fmt: skip
    checks = [{"name": "perplexity_ratio", "value": 1.25, "bound": 2.0, "passed": True}]
    writer.add(
        "gate", "gate", "gate", {"gate.json": {"passed": True, "checks": checks}},
        {"dense": "dense", "final": "cut"},
    )  # fmt: skip
    writer.add(
        "export", "export", "export",
        {"exports.json": [], "hf/config.json": {}, "hf/model.safetensors": f"e{prune}"}, {"model": "pruned"},
    )  # fmt: skip
    writer.add(
        "report", "report", "report", {"report.html": f"<p>{prune}</p>"},
        {"dense": "dense", "export": "export", "gate": "gate", "plan": "plan", "pruned": "cut",
         "source": "model"},
        config={"name": "small", "config": config, "command": "resprout run x.yaml", "digests": {}},
    )  # fmt: skip
    return writer


def nodes(writer: Writer) -> tuple[Node, Node]:
    """The nodes of export and report."""
    made = tree(writer.store, writer.made["export"][1])
    return made, tree(writer.store, writer.made["report"][1])
