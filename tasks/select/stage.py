"""Stage `select`: the rows that recovery trains on, and for every row of the pool why it was taken or not.

Inputs: `rows` (rows.jsonl), `dense` (its tokenizer always), for paser also the weights of `dense` and
`pruned`, and for `embedder: minilm` the encoder's folder `embedder`.

Content: selected.jsonl, decisions.jsonl, summary.json, metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, stage
from resprout.tasks.select.registry import METHODS, modules
from resprout.tasks.select.shard_stage import divergence_shard

if TYPE_CHECKING:
    from resprout.tasks.select.pool import Choice, Pool

FACTS = {"cluster": None, "jsd": None, "ies": None, "concepts": None}
"""What a row's decision says where the method does not look at it."""


def compares_models(config: SelectConfig) -> bool:
    """Whether the method looks at the divergence, which is what takes time."""
    return config.method == "paser"


def params(config: SelectConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    budget = config.model_dump(include={"budget_tokens", "budget_ratio"}, exclude_none=True)
    return {
        "selection": config.method,
        "selection_budget": ", ".join(f"{key}={value}" for key, value in budget.items()),
        "selection_max_len_tokens": config.max_len_tokens,
    }


def lengths(config: SelectConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    return {"select.max_len_tokens": config.max_len_tokens}


def check(config: SelectConfig, base: Path) -> None:
    """BadInput for a method that is not there."""
    METHODS.entry(config.method)


@stage(
    "select",
    kind="selection",
    section="select",
    reads={
        "rows": Reads("data"),
        "dense": Reads("model", of="source"),
        "pruned": Reads("model", of="model"),
        "embedder": Reads("model", of="encoder", optional=True),
    },
    gives="selection",
    reported=True,
    tagged=True,
    libraries=("torch", "transformers", "tokenizers", "scikit-learn", "scipy", "numpy"),
    methods=modules,
    seeded=True,
    shard=divergence_shard,
    splits=compares_models,
    params=params,
    metrics=("selected_rows", "pool_rows"),
    lengths=lengths,
    checks={"select.method": check},
)
def select(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the chosen rows and the decisions; tokens chosen never exceed the budget."""
    from resprout.tasks.select.pool import read_pool

    pool = read_pool(job, inputs)
    choice = METHODS.get(job.config.method)(job, inputs, pool, progress)
    accepted = sorted(choice.accepted)
    _write_lines(
        workdir / "selected.jsonl",
        ({**pool.rows[index], "tokens": int(pool.tokens[index])} for index in accepted),
    )
    _write_lines(workdir / "decisions.jsonl", _decisions(pool, choice))
    filled = int(pool.tokens[accepted].sum())
    budget = {"requested_tokens": pool.budget, "granted_tokens": choice.granted, "filled_tokens": filled}
    counts = {
        **budget,
        "selected_rows": len(accepted),
        "pool_rows": len(pool.rows),
        "pool_tokens": int(pool.tokens.sum()),
        "left_out_rows": len(pool.left_out),
    }
    warnings = list(choice.warnings)
    if filled < 0.99 * pool.budget:
        warnings.append(
            f"filled {filled} of {pool.budget} tokens: the rows that may be chosen do not give more; "
            "recovery still trains as many steps as the budget asks"
        )
    # Recovery trains on the very tokens that were compared and counted here.
    tokens = {"template": job.config.template, "max_len_tokens": job.config.max_len_tokens}
    summary = {"method": job.config.method, "warnings": warnings, **tokens, **counts, **choice.summary}
    _write(workdir / "summary.json", summary)
    _write(workdir / "metrics.json", {**counts, **choice.metrics})


def _decisions(pool: Pool, choice: Choice) -> Iterable[dict[str, Any]]:
    chosen = set(choice.accepted)
    told = [
        {**FACTS, **choice.facts[index], "id": row["id"], "tokens": int(tokens), "accepted": index in chosen}
        for index, (row, tokens) in enumerate(zip(pool.rows, pool.tokens, strict=True))
    ]
    told += [
        {**FACTS, "id": row["id"], "tokens": tokens, "accepted": False, "reason": reason}
        for row, tokens, reason in pool.left_out
    ]
    return sorted(told, key=lambda decision: str(decision["id"]))


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
