"""Stage export: write each format with its card, load it by its stock tool, compare, only then count it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resprout.configs.schema import ExportConfig
from resprout.infra.licences import Credit
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import CardLine, Reads, stage
from resprout.tasks.export.format import chats, entry, folder_name, format_of, usage
from resprout.tasks.models.shape import Shape
from resprout.tasks.quantize.names import scores_of


@dataclass(frozen=True)
class Export:
    """The section, and what the model card says besides: sources with licences, and a line of each stage."""

    config: ExportConfig
    credits: tuple[Credit, ...]
    lines: tuple[CardLine, ...] = ()

    def key_data(self) -> dict[str, Any]:
        return {
            **self.config.key_data(),
            "credits": [asdict(credit) for credit in self.credits],
            "lines": [list(line) for line in self.lines],
        }


def export_methods(wanted: Export) -> list[str]:
    """Modules of the formats that the config selects."""
    return [entry(name).module for name in wanted.config.formats]


WEIGHTS = (".gguf", ".safetensors", ".onnx", ".data")
"""Endings of files that hold weights."""
ORIGIN = "resprout.json"
"""Name of the file in each export that says what it was made of; GGUF files say the same inside."""


MADE_OF = ("source", "plan", "model", "pruned")
"""Inputs that the file names by their digests."""


def check(config: ExportConfig, base: Path) -> None:
    """BadInput for a format or type that is not there, or that lacks what it is written or checked by."""
    for name in config.formats:
        format_of(name).require()


def fits(config: ExportConfig, shapes: Mapping[str, Shape]) -> None:
    """BadInput where a format cannot hold the model that pruning leaves."""
    for name in config.formats:
        format_of(name).check(shapes.get("model", shapes["source"]))


def with_adapters(wanted: Export) -> bool:
    """Whether a format is written of the adapter that recovery merged."""
    return any(entry(name).declared["adapters"] for name in wanted.config.formats)


@stage(
    "export",
    kind="export",
    section="export",
    reads={
        "model": Reads("model"),
        "plan": Reads("plan"),
        "source": Reads("model"),
        "dense": Reads("scores"),
        "final": Reads("scores"),
        "quantized": Reads("model", group=True),
        "judged": Reads("scores", group=True),
        "recovery": Reads("data", optional=True, where=with_adapters),
        "pruned": Reads("model", of="prune", optional=True, where=with_adapters),
    },
    weights=True,
    reported=True,
    libraries=("torch", "transformers", "huggingface_hub"),
    methods=export_methods,
    starts=True,
    checks={"export.formats": check},
    fits=fits,
)
def export(job: Job[Export], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write `<format>/` with README.md, exports.json and metrics.json from `model`.

    `quantized`, by their names, are the models of few bits, `judged` their scores. `plan` lists the removed
    units, `source` (the acquired model) has the licence files that go along; `dense` and `final` are its
    scores and those of `model`, which the card states, as such, where a format has none of its own.
    `recovery` has the adapter that was merged into `pruned`, for formats of adapters.

    An export that its stock tool cannot load, or that computes something else, raises StageFailed.
    """
    import torch

    from resprout.tasks.export.card import CARD, Use, card, carry_licences
    from resprout.tasks.export.judged import judged
    from resprout.tasks.export.probe import Question, probe
    from resprout.tasks.models.layouts import layout_of
    from resprout.tasks.models.load import load_for, load_tokenizer, room_for
    from resprout.tasks.prune.plan import read_plan

    config = job.config.config
    exports: list[dict[str, object]] = []
    metrics: dict[str, float] = {}
    if config.formats:
        model = load_for(job, inputs["model"])
        threads = torch.get_num_threads()
        question = Question(list(config.prompts), config.greedy_tokens, job.dtype, job.device, threads)
        expected = probe(model, load_tokenizer(inputs["model"], job.trust_remote_code), question)
        plan = read_plan(inputs["plan"])
        stock = layout_of(model.config) is None
    for done, name in enumerate(config.formats):
        written = format_of(name)
        folder = workdir / folder_name(name)
        folder.mkdir()
        written.write(model, written.source(name, inputs), folder)
        files = carry_licences(inputs["source"], folder)
        (folder / ORIGIN).write_text(_origin(job), encoding="utf-8")
        own = inputs.get(scores_of(name))
        scores = judged(inputs["dense"], own or inputs["final"])
        lines = usage(name, '"."', chats(folder))
        # Other notes are about layers of different widths.
        use = Use(written.library, lines, written.note if written.adapters or not stock else "")
        if written.quantized:
            use = replace(use, stored=name, bytes=_weight_bytes(folder), evaluated=own is not None)
        text = card(job.config.credits, plan, job.config.lines, files, scores, use)
        (folder / CARD).write_text(text, encoding="utf-8")
        if job.max_memory is not None:
            question = replace(question, max_memory={str(k): v for k, v in room_for(job, model).items()})
        found = written.compare(expected, written.probe(folder, question), config.max_abs_logit_diff)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        exports.append({"format": name, "path": folder.name, "bytes": size, "verified": True, **found})
        if not written.adapters:
            exports[-1]["weight_bytes"] = _weight_bytes(folder)
        metrics |= {f"{folder.name}_{key}": value for key, value in {"bytes": size, **found}.items()}
        progress(done + 1, len(config.formats), "formats exported")
    (workdir / "exports.json").write_text(json.dumps(exports, sort_keys=True, indent=1) + "\n")
    (workdir / "metrics.json").write_text(json.dumps(metrics, sort_keys=True, indent=1) + "\n")


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)


def _origin(job: Job[Export]) -> str:
    """Digests of the artifacts that an export was made of, and the source model's licence."""
    from resprout.tasks.export.card import SOURCE

    made_of = {role: job.digests[role] for role in MADE_OF if role in job.digests}
    licence = next((one.licence for one in job.config.credits if one.role == SOURCE), None)
    return json.dumps({"made_of": made_of, "licence": licence}, sort_keys=True, indent=1) + "\n"
