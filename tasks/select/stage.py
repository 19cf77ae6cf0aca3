"""The stages of selection: `filter` drops rows, `pool` holds the rest against its budget, `select` chooses.

Inputs of `select`: `rows` (rows.jsonl), `dense` (its tokenizer always), the weights that the method declares,
for `embedder: minilm` the encoder's folder `embedder`, and `targets`, rows like what the model is for.
Content: selected.jsonl, summary.json, metrics.json, and decisions.jsonl, which says of every row of the pool
where it is from, and why it was taken or not.

Where `select.targets` asks for them, `answer` puts the dense model's own answers to those rows in place of
theirs: selected.jsonl, summary.json and metrics.json again, and answers.jsonl on what became of each.

`divergence-shard` computes the divergence of the pruned from the dense model on a share of the pool's rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PASER_FORMS, SelectConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry
from resprout.tasks.core.stage import BYTES_A_TOKEN, CardLine, Reads, Volume, stage
from resprout.tasks.select.json_files import write_json, write_lines
from resprout.tasks.select.paser_size import check_size, samples

if TYPE_CHECKING:
    from resprout.tasks.select.pool import Choice, Pool

MAPPED = 1000
"""Rows at most whose embeddings are kept for a picture."""
MUCH_CUT = 0.1
"""Above this share of pool rows with cut answers a selection warns."""
MOSTLY_CUT = 0.5
"""Above this share of chosen rows with cut answers a selection warns."""
MOST_CLUSTERS = 32
"""Of a search for their number."""
FACTS = {"cluster": None, "jsd": None, "efficiency": None, "concepts": None}
"""Decision on a row that the method does not look at."""


METHODS: Registry[Callable[[Job[SelectConfig], Mapping[str, Path], Pool, Progress], Choice]] = Registry(
    "selection method", "resprout.tasks.select.methods", function="choose"
)


def modules(config: SelectConfig) -> list[str]:
    """The module of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def reads_pruned(config: SelectConfig) -> bool:
    """Whether the method compares the pruned model with the dense one, which is what takes time."""
    return "pruned" in METHODS.entry(config.method).declared.get("reads", ())


def reads_targets(config: SelectConfig) -> bool:
    """Whether the method looks at rows like what the model is for, and is to."""
    read = METHODS.entry(config.method).declared.get("reads", ())
    return "targets" in read and config.capabilities is not None


def reads_encoder(config: SelectConfig) -> bool:
    """Whether a sentence encoder embeds the rows."""
    return config.method == "paser" and config.paser.embedder == "minilm"


def reads_kept_words(config: SelectConfig) -> bool:
    """Whether the pruned model is compared with what was kept of the dense one."""
    return reads_pruned(config) and config.paser.dense == "kept"


def draws(config: SelectConfig) -> bool:
    """Whether what the method chooses depends on chance."""
    return bool(METHODS.entry(config.method).declared.get("draws", True))


def splits(config: SelectConfig) -> bool:
    """Whether the comparison can be shared out."""
    return reads_pruned(config) and not reads_kept_words(config)


def tries_recovery(config: SelectConfig) -> bool:
    """Whether a short recovery says which damage can be healed."""
    return config.method == "paser" and config.paser.pilot_tokens is not None


def params(config: SelectConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    given = {"budget_tokens", "budget_rows", "budget_ratio"}
    budget = config.model_dump(include=given, exclude_none=True)
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
    """The settings that decide which of the rows are chosen, whoever answers them then."""
    others = {"filter", "prepare", "targets", "answers", "compare", "compare_seeds"}
    if config.method != "paser":
        others |= {"paser", "capabilities"}
    return {name: value for name, value in config.key_data().items() if name not in others}


def lengths(config: SelectConfig) -> dict[str, int]:
    """Sequences that the model must take."""
    return {"select.max_len_tokens": config.max_len_tokens}


def check(config: SelectConfig, base: Path) -> None:
    """BadInput for a method that is not there, or that lacks what it looks at."""
    _check("select.method is", config.method, config)


def check_compared(config: SelectConfig, base: Path) -> None:
    """BadInput for such a method among those that are compared."""
    for name in config.compare:
        arm = config.alternative(name)
        try:
            METHODS.entry(arm.method)
        except BadInput as error:
            raise BadInput(f"{error} Or forms of paser: {', '.join(PASER_FORMS)}.") from None
        _check("select.compare holds", name, arm)


def _check(place: str, name: str, config: SelectConfig) -> None:
    if METHODS.entry(config.method).declared.get("needs_targets") and config.capabilities is None:
        raise BadInput(
            f"{place} {name}, which chooses rows like given ones; give select.capabilities.rows (a source of "
            "rows like what the model is for), or another method"
        )


def rows_bytes(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Bytes of all rows, with which their tokens grow."""
    return volume.rows_bytes


def compared_bytes(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Bytes of the rows that the models go over, roughly: of a large pool not all where PASER samples.

    Those are `sample_rows` of each cluster, of half the greatest length, and a shortlist beside the budget.
    """
    whole, paser = volume.rows_bytes, config.get("paser")
    if whole is None or not paser or paser["mode"] != "auto" or paser["sample_rows"] is None:
        return whole
    clusters = MOST_CLUSTERS if paser["clusters"] == "auto" else paser["clusters"]
    sampled = clusters * paser["sample_rows"] * config["max_len_tokens"] / 2 * BYTES_A_TOKEN
    if config["budget_tokens"] is not None:
        budget = config["budget_tokens"] * BYTES_A_TOKEN
    elif config["budget_rows"] is not None:
        budget = config["budget_rows"] * config["max_len_tokens"] / 2 * BYTES_A_TOKEN
    else:
        budget = config["budget_ratio"] * whole
    return min(float(whole), sampled + paser["shortlist"] * budget)


def filtering(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide which rows no method chooses from."""
    return config.filter.key_data()


@stage(
    "filter",
    kind="filtered-rows",
    section="select",
    reads={
        "rows": Reads("data", optional=True),
        "prepared": Reads("data", of="prepared_rows", optional=True),
        "text": Reads("data", optional=True),
        "tasks": Reads("data", group=True),
        "targets": Reads("data", of="target_rows", optional=True),
    },
    gives="filtered_rows",
    libraries=("datasketch", "numpy"),
    computes=False,
    settings=filtering,
    metrics=("near_duplicate_rows", "contaminated_rows", "capability_rows"),
    tokens=rows_bytes,
)
def filter_rows(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the rows that a method may choose from, and why the others are left out."""
    from resprout.tasks.select.filters import write

    write(job.config.filter, inputs, workdir, progress)


def holding(config: SelectConfig) -> dict[str, Any]:
    """The settings of all selections that are made of the pool, which it must suit."""
    return {name: selecting(arm) for name, arm in config.arms.items()}


@stage(
    "pool",
    kind="pool",
    section="select",
    reads={"rows": Reads("data", of="filtered_rows"), "dense": Reads("model", of="source")},
    libraries=("transformers", "tokenizers"),
    methods=modules,
    computes=False,
    settings=holding,
    tokens=rows_bytes,
)
def pool(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the pool's size and the budget; BadInput where it does not suit the selections."""
    from resprout.tasks.select.filters import warned
    from resprout.tasks.select.pool import read_pool
    from resprout.tasks.select.rows import check_categories

    found = read_pool(job, inputs)
    for arm in job.config.arms.values():
        try:
            check_size(arm, len(found.rows))
        except BadInput as error:
            raise BadInput("; ".join([str(error), *warned(inputs["rows"])])) from None
        if METHODS.entry(arm.method).declared.get("needs_categories"):
            check_categories(found.rows)
    metrics = {
        "pool_rows": len(found.rows),
        "pool_tokens": int(found.tokens.sum()),
        "left_out_rows": len(found.left_out),
        "cut_rows": int(found.cut.sum()),
        "budget_tokens": found.budget_tokens,
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))


def measuring(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide the divergence of a row."""
    return {
        "template": config.template,
        "max_len_tokens": config.max_len_tokens,
        "temperature": config.paser.temperature,
        "prompts": config.paser.mode == "released",
    }


def divergence_settings(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide the divergence, and of which rows it is: neither budget nor clusters."""
    return {
        **measuring(config),
        "prompt_states": config.paser.embedder == "hidden",
        "samples": not config.paser.published and config.paser.sample_rows is not None,
    }


@stage(
    "divergence-shard",
    kind="divergence-shard",
    title="select",
    # Not the encoder and the target rows: whatever is chosen by them, the divergence is the same.
    reads={"rows": Reads("data"), "dense": Reads("model"), "pruned": Reads("model")},
    libraries=("torch", "transformers", "tokenizers", "numpy"),
    settings=divergence_settings,
)
def divergence_shard(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the divergence on the rows of the share's batches; on none where only a sample is compared."""
    from resprout.tasks.models.load import load_pair
    from resprout.tasks.select.divergence import (
        FILE,
        RowDivergences,
        batches_of,
        measure,
        on_prompts,
        write_rows,
    )
    from resprout.tasks.select.pool import read_pool

    pool, config = read_pool(job, inputs), job.config.paser
    if samples(job.config, len(pool.rows)):
        write_rows(RowDivergences.empty(0), [], workdir / FILE)
        return
    encoded = on_prompts(pool.encoded) if config.mode == "released" else pool.encoded
    dense, pruned = load_pair(job, inputs["dense"], inputs["pruned"])
    states = config.embedder == "hidden" and config.mode != "released"
    with _naming_rows(pool):
        found = measure(pruned, dense, encoded, pool.ids, config.temperature, progress, states, job.share)
    lengths = [len(row) for row in encoded]
    rows = [row for batch in batches_of(lengths, job.device, job.share) for row in batch]
    write_rows(found, rows, workdir / FILE)


def keeping(config: SelectConfig) -> dict[str, Any]:
    """The settings that decide what is kept of the dense model."""
    return {**measuring(config), "top_k": config.paser.top_k}


@stage(
    "dense_words",
    kind="dense-words",
    title="dense words",
    section="select",
    reads={"rows": Reads("data", of="filtered_rows"), "dense": Reads("model", of="source")},
    libraries=("torch", "transformers", "tokenizers", "numpy"),
    resumes=True,
    settings=keeping,
    tokens=rows_bytes,
)
def dense_words(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the dense model's likeliest tokens on the answers of the pool."""
    from resprout.tasks.select.dense_words import make

    make(job, inputs, workdir, progress)


@stage(
    "select",
    kind="selection",
    section="select",
    reads={
        "rows": Reads("data", of="filtered_rows"),
        "dense": Reads("model", of="source"),
        "pruned": Reads("model", of="model", where=reads_pruned),
        "embedder": Reads("model", of="encoder", optional=True, where=reads_encoder),
        "targets": Reads("data", of="target_rows", optional=True, where=reads_targets),
        "pilot": Reads("model", where=tries_recovery),
        "words": Reads("data", of="dense_words", where=reads_kept_words),
    },
    gives="selection",
    also_gives=training_rows,
    reported=True,
    tagged=True,
    resumes=True,
    libraries=("torch", "transformers", "tokenizers", "scikit-learn", "scipy", "numpy", "datasketch"),
    methods=modules,
    seeded=draws,
    settings=selecting,
    shard=divergence_shard,
    splits=splits,
    params=params,
    metrics=("selected_rows", "pool_rows"),
    lengths=lengths,
    checks={"select.method": check, "select.compare": check_compared},
    tokens=compared_bytes,
)
def select(job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the chosen rows and the decisions; what is chosen never exceeds the budget, but by `full`."""
    from resprout.tasks.select.filters import counted, warned
    from resprout.tasks.select.pool import read_pool

    pool, config = read_pool(job, inputs), job.config
    with _naming_rows(pool):
        choice = METHODS.get(config.method)(job, inputs, pool, progress)
    accepted = sorted(choice.accepted)
    if not accepted:
        shares = " that gives no cluster a whole row" if config.method == "paser" else ""
        raise BadInput(
            f"select.method {config.method} chose none of {len(pool.rows)} rows for a budget of "
            f"{pool.budget} {'rows' if config.counts_rows else 'tokens'}{shares}; raise the budget"
            f"{', or set fewer paser.clusters' if shares else ''}"
        )
    write_lines(
        workdir / "selected.jsonl",
        ({**pool.rows[index], "tokens": int(pool.tokens[index])} for index in accepted),
    )
    write_lines(workdir / "decisions.jsonl", _decisions(inputs["rows"], pool, choice))
    unit = "rows" if config.counts_rows else "tokens"
    filled = int(pool.costs[accepted].sum())
    counts = {
        "requested_tokens": pool.budget_tokens,
        f"requested_{unit}": pool.budget,
        f"granted_{unit}": choice.granted,
        "filled_tokens": int(pool.tokens[accepted].sum()),
        "answer_tokens": sum(len(pool.encoded[row].response_ids) for row in accepted),
        "selected_rows": len(accepted),
        "pool_rows": len(pool.rows),
        "pool_tokens": int(pool.tokens.sum()),
        "left_out_rows": len(pool.left_out),
        "cut_rows": int(pool.cut.sum()),
        "selected_cut_rows": int(pool.cut[accepted].sum()),
        **counted(inputs["rows"]),
    }
    warnings = [*warned(inputs["rows"]), *choice.warnings]
    if pool.left_out:
        first = pool.left_out[0]
        place = first.origin.place or first.id
        warnings.append(
            f"{len(pool.left_out)} of {len(pool.left_out) + len(pool.rows)} rows cannot be chosen, the first "
            f"{place}: {first.reason}; decisions.jsonl names each, and select.max_len_tokens "
            f"{config.max_len_tokens} is what prompts must leave room in"
        )
    if counts["cut_rows"] > MUCH_CUT * len(pool.rows):
        warnings.append(
            f"the answers of {counts['cut_rows']} of {len(pool.rows)} rows are cut, because they go on "
            f"beyond select.max_len_tokens {config.max_len_tokens}; raise it to train on their ends"
        )
    if counts["selected_cut_rows"] > MOSTLY_CUT * len(accepted):
        warnings.append(
            f"the answers of {counts['selected_cut_rows']} of {len(accepted)} chosen rows are cut, so that a "
            "model that learns from them seldom ends its own; raise select.max_len_tokens, or choose by "
            "another select.method"
        )
    fit = pool.costs <= pool.budget - filled
    fitting = int(fit.sum() - fit[accepted].sum())
    if filled < 0.99 * pool.budget and (fitting or len(accepted) == len(pool.rows)):
        granted = f"its clusters were granted {choice.granted}, and " if choice.granted < pool.budget else ""
        why = f"{granted}{fitting} rows that would fit are refused, as decisions.jsonl says of each"
        warnings.append(
            f"filled {filled} of {pool.budget} {unit}: {why if fitting else 'no other row may be chosen'}; "
            "recovery still trains as many steps as the budget asks"
        )
    # Recovery trains on the very tokens that were compared and counted here.
    tokens = {"template": config.template, "max_len_tokens": config.max_len_tokens}
    about = {"method": config.method, "budget_unit": unit, "warnings": warnings, **tokens}
    if choice.embeddings is not None:
        _write_map(workdir, pool, choice, job.seed)
    write_json(workdir / "summary.json", {**about, **counts, **choice.summary})
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


def comparing(config: SelectConfig) -> dict[str, Any]:
    """The settings that enter a comparison: the scores say all."""
    return {"selection": config.label}


@stage(
    "selections",
    kind="comparison",
    title="compare selections",
    section="select",
    reads={
        "pruned": Reads("scores", of="pruned"),
        "rivals": Reads("scores", group=True),
        "choices": Reads("data", group=True),
    },
    reported=True,
    libraries=("scipy", "numpy"),
    computes=False,
    settings=comparing,
)
def compare_selections(
    job: Job[SelectConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write which selection brought the model back best, and whether that is more than noise."""
    from resprout.tasks.select.comparison import write

    write(inputs, workdir, job.config.label)


@contextmanager
def _naming_rows(pool: Pool) -> Iterator[None]:
    """Say of a row on which a model gives no numbers where it is from."""
    from resprout.tasks.select.finite import NotFinite
    from resprout.tasks.select.rows import Origin

    try:
        yield
    except NotFinite as error:
        row = pool.rows[pool.ids.index(error.id)] if error.id in pool.ids else {}
        place = Origin.of(row).place
        raise StageFailed(f"{error}; it is {place}" if place else str(error)) from error


def _write_map(workdir: Path, pool: Pool, choice: Choice, seed: int) -> None:
    """Embeddings of some rows, chosen ones and others, for a picture."""
    import numpy as np
    from safetensors.numpy import save_file

    chosen = np.isin(np.arange(len(pool.ids)), choice.accepted)
    drawn = np.random.default_rng(seed).permutation(len(pool.ids))
    taken, others = drawn[chosen[drawn]][: MAPPED // 2], drawn[~chosen[drawn]]
    rows = np.sort(np.concatenate([taken, others[: MAPPED - len(taken)]]))
    given = np.asarray(choice.embeddings)[rows].astype(np.float32)
    save_file({"embeddings": np.ascontiguousarray(given)}, workdir / "map.safetensors")
    write_json(workdir / "map.json", [pool.ids[row] for row in rows])


def _decisions(folder: Path, pool: Pool, choice: Choice) -> Iterable[dict[str, Any]]:
    """What became of every row, in the order of their ids."""
    from resprout.tasks.select.filters import left_out
    from resprout.tasks.select.rows import Origin

    chosen = set(choice.accepted)
    candidates = (
        {
            **FACTS,
            **choice.facts(index),
            **Origin.of(row)._asdict(),
            "id": id,
            "tokens": int(pool.tokens[index]),
            "accepted": index in chosen,
        }
        for index, (id, row) in enumerate(zip(pool.ids, pool.rows, strict=True))
    )
    unfit = (
        {
            **FACTS,
            **one.origin._asdict(),
            "id": one.id,
            "tokens": one.tokens,
            "accepted": False,
            "reason": one.reason,
        }
        for one in pool.left_out
    )
    filtered = ({**FACTS, **one, "tokens": None, "accepted": False} for one in left_out(folder))
    return merge(candidates, unfit, filtered, key=lambda decision: decision["id"])
