"""The stages of selection: `pool` holds the pool against its budget, `select` chooses rows for recovery.

Inputs of `select`: `rows` (rows.jsonl), `dense` (its tokenizer always), for paser also the weights of
`dense` and `pruned`, and for `embedder: minilm` the encoder's folder `embedder`. Content: selected.jsonl,
summary.json, metrics.json, and decisions.jsonl, which says of every row why it was taken or not.

Where `select.targets` asks for them, `answer` puts the dense model's own answers to those rows in place of
theirs: selected.jsonl, summary.json and metrics.json again, and answers.jsonl on what became of each.

`divergence-shard` computes the divergence of the pruned from the dense model on a share of the pool's rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.schema import SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry
from resprout.tasks.core.stage import CardLine, Reads, Volume, stage
from resprout.tasks.select.json_files import write_json, write_lines
from resprout.tasks.select.paser_size import check_size

if TYPE_CHECKING:
    from resprout.tasks.select.pool import Choice, Pool

FACTS = {"cluster": None, "jsd": None, "ies": None, "concepts": None}
"""Decision on a row that the method does not look at."""


METHODS: Registry[Callable[[Job[SelectConfig], Mapping[str, Path], Pool, Progress], Choice]] = Registry(
    "selection method", "resprout.tasks.select.methods", function="choose"
)


def modules(config: SelectConfig) -> list[str]:
    """The module of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def compares_models(config: SelectConfig) -> bool:
    """Whether the method uses the divergence, which is what takes time."""
    return config.method == "paser"


def params(config: SelectConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    budget = config.model_dump(include={"budget_tokens", "budget_ratio"}, exclude_none=True)
    return {
        "selection": config.method,
        "selection_budget": ", ".join(f"{key}={value}" for key, value in budget.items()),
        "selection_max_len_tokens": config.max_len_tokens,
        "selection_targets": config.targets,
    }


def training_rows(config: SelectConfig) -> tuple[str, ...]:
    """The name under which recovery reads rows, whoever wrote their answers."""
    return ("training_rows",)


def selecting(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide which rows are chosen, whoever answers them then."""
    return {name: value for name, value in config.key_data().items() if name not in ("targets", "answers")}


def lengths(config: SelectConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    return {"select.max_len_tokens": config.max_len_tokens}


def check(config: SelectConfig, base: Path) -> None:
    """BadInput for a method that is not there."""
    METHODS.entry(config.method)


def rows_bytes(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Bytes of all rows, with which their tokens grow."""
    return volume.rows_bytes


@stage(
    "pool",
    kind="pool",
    section="select",
    reads={"rows": Reads("data"), "dense": Reads("model", of="source")},
    libraries=("transformers", "tokenizers"),
    methods=modules,
    computes=False,
    settings=selecting,
    tokens=rows_bytes,
)
def pool(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the pool's size and the budget; BadInput where the one does not hold the other."""
    from resprout.tasks.select.pool import read_pool

    found = read_pool(job, inputs)
    check_size(job.config, len(found.rows))
    metrics = {
        "pool_rows": len(found.rows),
        "pool_tokens": int(found.tokens.sum()),
        "left_out_rows": len(found.left_out),
        "budget_tokens": found.budget,
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))


def divergence_settings(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide the divergence: neither budget nor clusters."""
    return {
        "template": config.template,
        "max_len_tokens": config.max_len_tokens,
        "temperature": config.paser.temperature,
        "prompt_states": config.paser.embedder == "hidden",
    }


@stage(
    "divergence-shard",
    kind="divergence-shard",
    title="select",
    libraries=("torch", "transformers", "tokenizers", "numpy"),
    settings=divergence_settings,
)
def divergence_shard(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the divergence on the rows of the share's batches."""
    from resprout.tasks.select.divergence import FILE, batches_of, write_rows
    from resprout.tasks.select.methods.paser import measure_rows
    from resprout.tasks.select.pool import read_pool

    pool = read_pool(job, inputs)
    found = measure_rows(job, inputs, pool, progress)
    rows = [row for batch in batches_of(pool.encoded, job.device, job.share) for row in batch]
    write_rows(found, rows, workdir / FILE)


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
    also_gives=training_rows,
    reported=True,
    tagged=True,
    libraries=("torch", "transformers", "tokenizers", "scikit-learn", "scipy", "numpy"),
    methods=modules,
    seeded=True,
    settings=selecting,
    shard=divergence_shard,
    splits=compares_models,
    params=params,
    metrics=("selected_rows", "pool_rows"),
    lengths=lengths,
    checks={"select.method": check},
    tokens=rows_bytes,
)
def select(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the chosen rows and the decisions; tokens chosen never exceed the budget."""
    from resprout.tasks.select.pool import read_pool

    pool = read_pool(job, inputs)
    choice = METHODS.get(job.config.method)(job, inputs, pool, progress)
    accepted = sorted(choice.accepted)
    write_lines(
        workdir / "selected.jsonl",
        ({**pool.rows[index], "tokens": int(pool.tokens[index])} for index in accepted),
    )
    write_lines(workdir / "decisions.jsonl", _decisions(pool, choice))
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
    write_json(workdir / "summary.json", summary)
    write_json(workdir / "metrics.json", {**counts, **choice.metrics})


def answering(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide how the dense model answers."""
    return {
        "targets": config.targets,
        "template": config.template,
        "max_len_tokens": config.max_len_tokens,
        **config.answers.key_data(),
    }


def card(config: SelectConfig) -> CardLine:
    """That a model wrote what the next one learned from."""
    return CardLine("; rows for recovery answered by the model itself before pruning")


@stage(
    "answer",
    kind="selection",
    section="select",
    reads={"selection": Reads("data"), "dense": Reads("model", of="source")},
    gives="answers",
    also_gives=training_rows,
    reported=True,
    tagged=True,
    resumes=True,
    libraries=("torch", "transformers", "tokenizers"),
    seeded=True,
    settings=answering,
    metrics=("self_written_rows",),
    card=card,
    tokens=rows_bytes,
)
def answer(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the chosen rows with the dense model's own answers."""
    from resprout.tasks.select.self_written import write

    write(job, inputs, workdir, progress)


def _decisions(pool: Pool, choice: Choice) -> Iterable[dict[str, Any]]:
    chosen = set(choice.accepted)
    decisions = [
        {**FACTS, **choice.facts[index], "id": row["id"], "tokens": int(tokens), "accepted": index in chosen}
        for index, (row, tokens) in enumerate(zip(pool.rows, pool.tokens, strict=True))
    ]
    decisions += [
        {**FACTS, "id": row["id"], "tokens": tokens, "accepted": False, "reason": reason}
        for row, tokens, reason in pool.left_out
    ]
    return sorted(decisions, key=lambda decision: str(decision["id"]))
