"""Stage report: the page about a run: pictures, tables, selected data, and the command that repeats the run.

Content: report.html (self-contained), report.md, summary.md (the model version's description), config.yaml.
Inputs: `source` (the acquired model), `dense`, `pruned`, `recovered`, `sparsified` (scores), `speeds`
(measurements of them all), `draft` (the last as a draft), `plan`, `selection`, `recovery`, recoveries that
came before it (`recovery_1`, ...: parts before the last cut, rungs), `sparsity`, `gate`, `export`; what the
run's config leaves out is absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from resprout.configs.result import GateResult
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import config_data, stage
from resprout.tasks.evaluate.paired import FILE as SAMPLES
from resprout.tasks.evaluate.paired import compared
from resprout.tasks.measure.ratio import COVERAGE, metrics_of
from resprout.tasks.models.shape import Shape
from resprout.tasks.report import figures
from resprout.tasks.report.draft import draft_sentence
from resprout.tasks.report.files import (
    FewerBits,
    against_fewer_bits,
    bias,
    file_rows,
    judged_models,
    note,
)
from resprout.tasks.report.graph import Label, draw
from resprout.tasks.report.lost import FLIPS, HEADS, lost_part, write_flips
from resprout.tasks.report.outlook import HEADS as RUNG_HEADS
from resprout.tasks.report.outlook import Outlook, Recovery, rung_rows, rung_sentences, rungs_of
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.selection import (
    answers_sentence,
    cluster_rows,
    compared_part,
    examples,
    selection_sentence,
)
from resprout.tasks.report.shipped import shipped
from resprout.tasks.report.table import Metrics, comparison, recovery_sentence
from resprout.tasks.report.verdict import RULE, VERDICT, verdict

RELATIVE = "relative sources begin at the folder of the config that was run"
TRAINING = re.compile(r"recovery(?:_(\d+))?$")


class ReportConfig(BaseModel):
    """Content of the report beside its inputs: the run's config without secrets and infrastructure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    config: dict[str, Any]
    command: str
    digests: dict[str, str]
    """Of each stage's artifact, by the stage's label."""
    models: dict[str, str | None]
    """Models in the order in which they were made, each with the input whose metrics are its own too."""
    files: dict[str, dict[str, float]] = {}
    """Files of few bits, those of the dense model and the source file among them, by the inputs that hold
    their scores, each with metrics of how it was written."""
    made: str = ""
    """Date of the export (YYYY-MM-DD), the same however often it is found in the cache."""
    credits: list[dict[str, str]] = []
    """Models and data that the run used: role, name, licence."""
    graph: dict[str, list[str]] = {}
    """The labels of the stages, each with those of the stages whose artifacts it read."""
    earlier: list[PastRun] = []
    """Runs on the same model before this one."""


def settings(config: ReportConfig) -> dict[str, Any]:
    """All but earlier runs: they are drawn where a report is made, and make none again."""
    return {name: value for name, value in config_data(config).items() if name != "earlier"}


@stage(
    "report",
    kind="report",
    timed=True,
    libraries=("jinja2", "matplotlib", "scipy", "scikit-learn"),
    computes=False,
    settings=settings,
)
def report(job: Job[ReportConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the report of a run."""
    from resprout.tasks.report.pages import render

    facts = gather(job.config, inputs, job.digests)
    for template in ("report.html", "report.md", "summary.md"):
        (workdir / template).write_text(render(template, facts), encoding="utf-8")
    (workdir / VERDICT).write_text(facts["verdict"].result.model_dump_json(), encoding="utf-8")
    # For MLflow's page, which shows pictures among a run's files.
    for chart in facts["figures"]["results"]:
        (workdir / chart.file_name).write_text(chart.file, encoding="utf-8")
    if facts["lost"] is not None:
        named = [*job.config.models, *job.config.files]
        others = {name: inputs[name] for name in named if name != "dense"}
        write_flips(inputs["dense"], others, workdir / FLIPS)
    text = config_text(f"{job.config.command}\n# {RELATIVE}", job.config.config)
    (workdir / "config.yaml").write_text(text, encoding="utf-8")


def config_text(command: str, config: dict[str, Any]) -> str:
    """A run config as YAML below the command that ran it."""
    return f"# {command}\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def gather(config: ReportConfig, inputs: Mapping[str, Path], digests: Mapping[str, str]) -> dict[str, Any]:
    """All that the templates show, read from the inputs, whose artifacts have these `digests` by role."""
    from resprout.tasks.models.shape import shape_of

    timed = _json(inputs["speeds"] / "metrics.json") if "speeds" in inputs else {}

    def scored(name: str, own: str | None = None) -> Metrics:
        return {
            **_json(inputs[name] / "metrics.json"),
            **(compared(inputs["dense"], inputs[name]) if name != "dense" else {}),
            **metrics_of(name, timed),
            **(_json(inputs[own] / "metrics.json") if own else {}),
        }

    models = {name: scored(name, own) for name, own in config.models.items()}
    quantized = {name: {**scored(name), **written} for name, written in config.files.items()}
    origin = _json(inputs["source"] / "source.json") if (inputs["source"] / "source.json").is_file() else {}
    plan = _json(inputs["plan"] / "plan.json")
    schedule = config.config.get("prune", {}).get("schedule", "one_shot")
    shape = shape_of(inputs["source"])
    recoveries = [Recovery.in_folder(inputs[name]) for name in in_order(inputs)]
    steps = [row for one in recoveries for row in one.history]
    # Parts of one training count their steps on; one that begins at 1 is no part of another.
    earlier = int(recoveries[-1].history[0]["step"]) - 1 if recoveries and recoveries[-1].history else 0
    recover = config.config.get("recover") or {}
    outlook = Outlook.of(recoveries, best=recover.get("patience") is not None)
    rungs = rungs_of(recoveries)
    widths = kept_widths(plan["layers"], shape)
    details = {name: _json(inputs[name] / "details.json") for name in models}
    gate = GateResult.model_validate(_json(inputs["gate"] / "gate.json")) if "gate" in inputs else None
    rounds = _json(inputs["speeds"] / "details.json") if "speeds" in inputs else None
    coverage = rounds["coverage"] if rounds is not None else COVERAGE
    windows = {name: _json(inputs[name] / SAMPLES)["windows"] for name in quantized}
    against = against_fewer_bits(quantized, windows, rounds["models"] if rounds is not None else {})
    chosen = next((inputs[name] for name in ("answers", "selection") if name in inputs), None)
    selection = None if chosen is None else _json(chosen / "summary.json")
    exports = _exports(inputs["export"]) if "export" in inputs else []
    ships = shipped(config.config, exports, origin)
    about, held, lead = judged_models(config.config, models, quantized, windows, ships)
    lead = ships.before(lead) if ships is not None else lead
    rival = next((one for one in against if one.file == about), None)
    of_whom = about or list(models)[-1]
    asked_models = {name: _answers(inputs[name]) for name in (["dense", about] if about else models)}
    return {
        "name": config.name,
        "model": model_name(config.config["model"]["source"]),
        "made": _date(config.made),
        "asked": asked(config.config),
        "credits": config.credits,
        "lineage": lineage(config.graph, config.digests),
        "command": config.command,
        "config": yaml.safe_dump(config.config, sort_keys=False, allow_unicode=True),
        "digests": config.digests,
        "models": list(models),
        "rows": comparison(
            models,
            origin.get("source_bytes"),
            origin.get("source_format", ""),
            averaged(details["dense"]),
            ships,
        ),
        "measured": measured_how(rounds) if rounds is not None else "",
        "source": config.config["model"]["source"],
        "source_digest": digests["source"],
        "recovery": recovery_sentence(models["pruned"], models["recovered"], earlier, len(steps))
        if "recovered" in models
        else "",
        "draft": draft_sentence(_json(inputs["draft"] / "metrics.json")) if "draft" in inputs else "",
        "gate": gate,
        "gate_of": (config.config.get("gate") or {}).get("of") or "",
        "verdict": verdict(held, gate, coverage, rival, lead, ships is not None and bool(ships.larger)),
        "files": files_table(quantized, against, origin.get("source_format", "")),
        "lost": lost_part(inputs["dense"], of_whom, inputs[of_whom]),
        "lost_heads": HEADS,
        "rule": RULE,
        "exports": exports,
        "plan": plan,
        "method": plan.get("method") or plan["criterion"],
        "schedule": "" if schedule == "one_shot" else schedule,
        "widths": widths,
        "figures": {
            "results": [
                *figures.file_trade_offs(quantized),
                *figures.trade_offs(models, config.earlier, coverage),
                *figures.accuracies(models),
            ],
            "pruning": [
                *figures.unit_scores(_unit_scores(inputs.get("scores")), plan),
                *figures.layer_widths(widths),
                *figures.layer_distances(
                    {name: one.get("layer_distances", ()) for name, one in details.items()}
                ),
                *figures.source_divergence({name: one.get("sources", {}) for name, one in details.items()}),
            ],
            "recovery": [
                *figures.training_loss(steps),
                *outlook.chart(),
                *(figures.rows_on_a_map(inputs["selection"]) if "selection" in inputs else ()),
                *(
                    figures.category_divergence(
                        _rows(inputs["selection"] / "decisions.jsonl"), _rows(inputs["rows"] / "rows.jsonl")
                    )
                    if "selection" in inputs and "rows" in inputs
                    else ()
                ),
            ],
        },
        "layers_compared": any(one.get("layer_distances") for one in details.values()),
        "prompts": side_by_side(asked_models),
        "prompt_notes": notes_on_prompts(asked_models),
        "losses": [(number, row["loss"]) for number, row in enumerate(steps, 1) if "loss" in row],
        "outlook": outlook,
        "rung_heads": RUNG_HEADS,
        "rungs": rung_rows(rungs),
        "rung_sentences": rung_sentences(rungs),
        "selection": selection,
        "selected": selection_sentence(selection) if selection and "method" in selection else "",
        "clusters": cluster_rows(selection or {}),
        "decided": (selection or {}).get("path", {}).get("decided", []),
        "compared": compared_part(inputs.get("selections")),
        "answers": answers_sentence(selection) if selection else "",
        "examples": examples(inputs["selection"]) if "selection" in inputs else [],
    }


def in_order(names: Iterable[str]) -> list[str]:
    """The names of recoveries in the order in which they were made: `recovery` is the last."""
    found = {name: match[1] for name in names if (match := TRAINING.match(name))}
    return sorted(found, key=lambda name: math.inf if found[name] is None else int(found[name]))


def files_table(
    files: Mapping[str, Metrics], against: Sequence[FewerBits], source_format: str
) -> dict[str, Any] | None:
    """Table, note and sentences on the files of few bits; None of a run that made none."""
    if not files:
        return None
    heads, rows = file_rows(files)
    sentences = [*(one.sentence for one in against), bias(source_format, files)]
    return {"heads": heads, "rows": rows, "note": note(files), "sentences": [one for one in sentences if one]}


TARGETS: dict[str, Callable[[Any], str]] = {
    "params_ratio": lambda value: f"{100 * value:.4g} % of the parameters",
    "non_embedding_ratio": lambda value: f"{100 * value:.4g} % of the parameters outside embeddings",
    "params": lambda value: f"{value:,} parameters",
    "non_embedding_params": lambda value: f"{value:,} parameters outside embeddings",
    "bytes": lambda value: f"{value / 1e6:,.4g} MB of weights",
    "latency_ratio": lambda value: f"{100 * value:.4g} % of the time",
    "latency_ms": lambda value: f"{value:,.4g} ms a forward pass",
}
"""By the forms of `prune.target` how each is put into words."""


METHODS = {
    "recommended": "resprout's recommended method",
    "recommended_per_layer": "resprout's recommended method with widths by layer",
}
"""Presets whose names say nothing to a reader of the report."""


def asked(config: Mapping[str, Any]) -> str:
    """In a clause what the run's config asks for: target, method, units, recovery."""
    prune = config.get("prune") or {}
    targets = [
        words(value)
        for form, words in TARGETS.items()
        if (value := (prune.get("target") or {}).get(form)) is not None
    ]
    units = " and ".join(figures.UNITS.get(unit, unit) for unit in prune.get("units") or ())
    method = prune.get("method") or prune.get("criterion") or "pruning"
    parts = [f"keep {' and '.join(targets) or 'what the plan says'}"]
    by = METHODS.get(method, method)
    parts.append(f"prune {units} by {by}" if units else f"prune by {by}")
    recover = config.get("recover")
    trained = {"lora": "LoRA", "full": "full training"}
    how = recover.get("method", "lora") if recover else ""
    parts.append(f"recover by {trained.get(how, how)}" if recover else "no recovery")
    return ", ".join(parts)


def model_name(source: str) -> str:
    """Name of a model for a heading: the last part of its address, or a registered one with its version."""
    if source.startswith("models:/"):
        name, _, version = source.removeprefix("models:/").partition("/")
        return f"{name} version {version}" if version else name
    last = source.split("://")[-1].rstrip("/").rpartition("/")[2].partition("@")[0]
    return last.removesuffix(".gguf") or source


def kept_widths(layers: Sequence[Mapping[str, Any]], shape: Shape) -> list[dict[str, tuple[int, int]]]:
    """Units of each layer of the source model before and after, by name; a removed layer keeps nothing."""
    kept = {place if one.get("index") is None else one["index"]: one for place, one in enumerate(layers)}
    rows = []
    for index in range(shape.layers):
        layer, had = kept.get(index, {}), shape.widths(index)
        groups, heads, experts = (layer.get(name) for name in ("kv_groups", "heads", "experts"))
        stay = len(groups or ())
        row = {
            "FFN channels": (had.ffn, len(layer.get("ffn", ()))),
            "KV groups": (had.kv_heads, stay),
            "query heads": (
                had.kv_heads * had.heads_per_group,
                stay * had.heads_per_group if heads is None else len(heads),
            ),
        }
        if had.experts:
            row["experts"] = (had.experts, (had.experts if layer else 0) if experts is None else len(experts))
        rows.append(row)
    return rows


def measured_how(details: Mapping[str, Any]) -> str:
    """How the speeds were measured and on what, and how far the times of one model lay apart."""
    hardware = details["hardware"]
    place = " and ".join([hardware["cpu"], *hardware["gpus"]])
    spreads = [one["spread"] for runs in details["models"].values() for one in runs.values()]
    how = "all models in each" if details["order"] == "together" else "one model after another"
    return (
        f"Speeds: medians of {details['rounds']} rounds, {how}, on {place}, {hardware['cores']} cores, "
        f"{details['threads']} threads; times of one model lay up to {100 * max(spreads):.0f} % apart. A "
        "ratio is the median of the rounds' ratios to dense, with its interval of "
        f"{100 * details['coverage']:.0f} %; where that holds 1, there is no measurable difference."
    )


def averaged(details: Mapping[str, Any]) -> list[str]:
    """The accuracies that zero_shot_mean_acc averages, from the scores' details; none without tasks."""
    return list(details.get("averaged", ()))


def lineage(graph: Mapping[str, Sequence[str]], digests: Mapping[str, str]) -> dict[str, Any] | None:
    """The drawing of a run's stages with the label of each; None where it is not known what each read."""
    if not graph:
        return None
    read = {label for makers in graph.values() for label in makers}
    labels = [
        Label.of(
            label,
            label,
            digests.get(label, "")[:12],
            f"{label} {digests.get(label, '')}",
            kind="end" if label not in read else "" if graph[label] else "source",
        )
        for label in graph
    ]
    return {"drawing": draw(graph), "labels": labels}


def side_by_side(asked: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each prompt the answers of all models, by model; `asked` are their answers.json."""
    found: dict[str, list[dict[str, Any]]] = {}
    for model, one in asked.items():
        for answer in one.get("answers", ()):
            found.setdefault(answer["prompt"], []).append({"model": model, **answer})
    return [{"prompt": prompt, "answers": answers} for prompt, answers in found.items()]


def notes_on_prompts(asked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the prompts were given to the models, and what stood in the way."""
    known = [one for one in asked.values() if one]
    if not known:
        return []
    chat = all(one["chat"] for one in known)
    how = "through the model's chat template" if chat else "as plain text"
    notes = dict.fromkeys(one["note"] for one in known if one["note"])
    return [f"Asked {how}, answered by the most likely token each time; … where an answer was cut.", *notes]


def _answers(folder: Path) -> dict[str, Any]:
    path = folder / "answers.json"
    return _json(path) if path.is_file() else {}


def _unit_scores(folder: Path | None) -> dict[int, dict[str, list[float]]]:
    """The mean score of each unit, by layer and kind."""
    from safetensors import safe_open

    found: dict[int, dict[str, list[float]]] = {}
    if folder is not None:
        with safe_open(folder / "scores.safetensors", "np") as file:
            for name in file.keys():  # noqa: SIM118
                _, layer, unit = name.split(".")
                found.setdefault(int(layer), {})[unit] = file.get_tensor(name).mean(axis=1).tolist()
    return found


def _date(day: str) -> str:
    """A day in ISO form as people write it; empty where it is not known."""
    found = date.fromisoformat(day) if day else None
    return f"{found.day} {found:%B %Y}" if found else ""


def _exports(folder: Path) -> list[dict[str, Any]]:
    """The exports, each with how far its stock tool's answers are from the model's."""
    found: list[dict[str, Any]] = _json(folder / "exports.json")
    for one in found:
        apart, largest = one.get("mean_kl_nats"), one.get("max_abs_logit_diff")
        one["apart"] = f"{largest:g} (largest of a logit)" if apart is None else f"{apart:.3g} (nats a token)"
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
