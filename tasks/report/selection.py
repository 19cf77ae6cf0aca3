"""What the report says of the rows that recovery trained on: how they were chosen, and which choice won."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resprout.tasks.select.comparison import COVERAGE, SIZES, UNRECOVERED
from resprout.tasks.select.comparison import FILE as COMPARISON

EXAMPLES = 10
"""Chosen rows of each cluster that are shown."""
INSTRUCTION_CHARS = 120
ALL_ROWS = "every row"


def selection_sentence(summary: Mapping[str, Any]) -> str:
    """How rows were chosen: method and path, clusters and why so many, budget asked, granted and filled."""
    unit = summary.get("budget_unit", "tokens")
    asked, granted = summary[f"requested_{unit}"], summary.get(f"granted_{unit}")
    filled = summary["selected_rows"] if unit == "rows" else summary["filled_tokens"]
    given = "" if granted is None or granted == asked else f", {granted:,} granted"
    said = [f"{asked:,} {unit} asked{given}, {filled:,} filled"]
    if (path := summary.get("path")) is not None:
        sigma = f", sigma {path['sigma']:.4g}" if "sigma" in path else ""
        landmarks = f", {path['landmarks']:,} landmarks" if "landmarks" in path else ""
        said += [
            f"{path['clusters']} clusters by {path['clusters_by']}{_searched(path)}",
            f"{path['clusterer']} on {path['embedder']}{sigma}{landmarks}",
            f"divergence of {path['divergence']}",
            f"efficiency by {path['efficiency']}",
            f"graph {path['graph']}",
        ]
    removed = {
        "nearly repeat others": summary.get("near_duplicate_rows"),
        "share words with the evaluation": summary.get("contaminated_rows"),
        "are rows of select.capabilities": summary.get("capability_rows"),
        "cannot be chosen": summary.get("left_out_rows"),
    }
    gone = [f"{count:,} {why}" for why, count in removed.items() if count]
    mode = f", mode {summary['path']['mode']}" if "path" in summary else ""
    rows = f"{summary['selected_rows']:,} of {summary['pool_rows']:,} rows"
    rows += f" ({cut:,} of the pool's are cut at the end)" if (cut := summary.get("cut_rows")) else ""
    left = f"; left out before: {', '.join(gone)}" if gone else ""
    return f"Selection by {summary['method']}{mode}: {rows}; {'; '.join(said)}{left}."


def answers_sentence(summary: Mapping[str, Any]) -> str:
    """Whose answers to the selected rows recovery trained on; empty where all are the rows' own."""
    if (counts := summary.get("answers")) is None:
        return ""
    own, original, dropped = (counts[name] for name in ("self_written_rows", "original_rows", "dropped_rows"))
    said = f"Answers: the dense model's own for {own:,} of {own + original + dropped:,} rows"
    if not (original or dropped):
        return f"{said}."
    why = ", ".join(f"{count:,} {fault}" for fault, count in counts["faults"].items())
    rest = f"{original:,} keep theirs" if original else f"{dropped:,} are left out"
    return f"{said}; {rest}, where the model's was {why}."


def _searched(path: Mapping[str, Any]) -> str:
    found = path.get("cluster_search", {})
    shown = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items())
    return f" ({shown})" if shown else ""


def cluster_sentences(summary: Mapping[str, Any]) -> list[str]:
    """For the log: each cluster's degradation with its interval, what it was granted and what was refused."""
    heads, rows = cluster_rows(summary)
    said = [[f"{head} {cell}" for head, cell in zip(heads, row, strict=True)] for row in rows]
    return [f"{cells[0]}: {', '.join(cells[1:])}" for cells in said]


def cluster_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of clusters; none where the method makes none."""
    clusters = summary.get("clusters", [])
    if not clusters or "granted" not in clusters[0]:
        return [], []
    unit = summary.get("budget_unit", "tokens")
    weights = [name for name in ("nearness", "healed") if name in clusters[0]]
    heads = [
        "cluster", "rows", "compared", "CDS", *weights, f"{unit} granted", "filled", "rows chosen",
        "refused by the graph", "re-admitted",
    ]  # fmt: skip
    rows = []
    for one in clusters:
        reach = one["cds_half_interval"]
        around = "" if not reach else f" ± {reach:.2g}"
        rows.append(
            [
                str(one["cluster"]),
                f"{one['rows']:,}",
                f"{one['compared_rows']:,}",
                f"{one['cds']:.4g}{around}",
                *(f"{one[name]:.2f}" for name in weights),
                f"{one['granted']:,}",
                f"{one['filled']:,}",
                f"{one['selected_rows']:,}",
                f"{100 * one['reject_rate']:.1f} %",
                f"{one['readmitted_rows']:,}",
            ]
        )
    return heads, rows


def examples(folder: Path, each: int = EXAMPLES) -> list[dict[str, Any]]:
    """Some chosen rows of each cluster with the reason they were chosen."""
    chosen: dict[str, list[dict[str, Any]]] = {}
    rows = {row["id"]: row for row in _lines(folder / "selected.jsonl")}
    for decision in _lines(folder / "decisions.jsonl"):
        if decision["accepted"] and decision["id"] in rows:
            cluster = str(decision.get("cluster", ""))
            if len(chosen.setdefault(cluster, [])) < each:
                instruction = " ".join(rows[decision["id"]]["instruction"].split())
                shown = instruction
                if len(instruction) > INSTRUCTION_CHARS:
                    shown = instruction[: INSTRUCTION_CHARS - 3] + "..."
                chosen[cluster].append(
                    {"cluster": cluster, "instruction": shown, "reason": decision["reason"]}
                )
    return [row for cluster in sorted(chosen, key=lambda name: (len(name), name)) for row in chosen[cluster]]


def compared_part(folder: Path | None) -> dict[str, Any] | None:
    """Table, note and sentences on selections that were compared; None where none were."""
    if folder is None:
        return None
    found = json.loads((folder / COMPARISON).read_text(encoding="utf-8"))
    arms = found["arms"]
    measures = [name for name in arms[-1] if name not in ("name", "seeds", *SIZES)]
    heads = ["selection", "seeds", *SIZES, *(part for name in measures for part in (name, "to random"))]
    gaps = {(one["arm"], one["measure"]): one for one in found["differences"]}
    rows = [
        [
            arm["name"],
            "" if arm["name"] == UNRECOVERED else str(arm["seeds"]),
            *("" if (held := arm.get(name)) is None else f"{held:,.0f}" for name in SIZES),
            *(part for name in measures for part in _cells(arm, name, gaps.get((arm["name"], name)))),
        ]
        for arm in arms
    ]
    note = (
        "Rows and tokens are what was selected, in the mean over seeds; all trained on as many tokens, so "
        "that fewer were gone through more often. Answers are what is learned by default (recover.loss_on); "
        "a model that learns from cut ones alone seldom ends its own. "
        "Behind ± the standard deviation over seeds. To random: the difference to random rows, paired by "
        f"seed and text, with intervals that hold together in {100 * COVERAGE:.0f} % of cases; * where it is "
        "more than noise."
    )
    return {"heads": heads, "rows": rows, "note": note, "sentences": found["sentences"]}


def _cells(arm: Mapping[str, Any], measure: str, gap: Mapping[str, Any] | None) -> tuple[str, str]:
    spread = arm.get(measure)
    if spread is None:
        return "", ""
    deviation = "" if not spread["deviation"] else f" ± {spread['deviation']:.4f}"
    value = f"{spread['mean']:.4f}{deviation}"
    if gap is None:
        return value, ""
    if gap["low"] is None:
        return value, f"{gap['mean']:+.4f}"
    star = " *" if gap["differs"] else ""
    return value, f"{gap['mean']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}){star}"


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
