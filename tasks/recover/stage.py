"""The stages of recovery: `teacher` keeps the dense model's words on disk, `recover` trains the pruned model.

They read one or both of `selection` (selected.jsonl, summary.json) and `recovery_text` (text.jsonl). Other
inputs of `recover`: `pruned`, the `plan` where pruning made one, `dense` where the dense model is a teacher
(distill_weight above 0) or what is reconstructed, and `teacher` where its words are read from disk.

Content of `recover`: `model/` (a plain model folder), history.jsonl (one line a step), metrics.json;
`adapter/` for peft where the model is the pruned one with an adapter merged into it; plan.json from a method
that declares `changes_plan`, which later stages then read as the plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from resprout.configs.errors import BadInput
from resprout.configs.schema import Continuation, RecoverConfig, Rung
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry
from resprout.tasks.core.stage import BYTES_A_TOKEN, CardLine, Model, Reads, Volume, stage
from resprout.tasks.recover.targets import check_fits, check_perp

if TYPE_CHECKING:
    from resprout.tasks.models.shape import Shape
    from resprout.tasks.recover.training_data import Adapter, Recovered, TrainingData

ADAPTER = "adapter"
"""Folder of the adapter that was merged into the model."""
METHODS: Registry[Callable[[Job[RecoverConfig], Mapping[str, Path], TrainingData, Progress], Recovered]] = (
    Registry("recovery method", "resprout.tasks.recover.methods", function="train")
)


def modules(config: RecoverConfig) -> list[str]:
    """The module of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def taught_from_disk(config: RecoverConfig) -> bool:
    """Whether the dense model's words are read from the file that the stage `teacher` writes."""
    return config.taught_from_disk


def teaching(config: RecoverConfig) -> dict[str, Any]:
    """What decides which examples the teacher is asked about, and what is kept of its words."""
    names = (
        "rows_weight", "seq_len_tokens", "loss_on", "epochs", "tokens", "batch_tokens", "held_out_ratio",
        "distill_temperature",
    )  # fmt: skip
    data = config.key_data()
    return {**{name: data[name] for name in names}, "text": data["text"], "top_k": config.distill.top_k}


def changes_plan(config: RecoverConfig) -> tuple[str, ...]:
    """The plan, where the method declares that it may hand back another: learned masks, say."""
    return ("plan",) if METHODS.entry(config.method).declared.get("changes_plan") else ()


def reads_dense(config: RecoverConfig) -> bool:
    """Whether recovery runs the dense model."""
    return config.method == "reconstruct" or (config.distills and not config.taught_from_disk)


def climbs(config: RecoverConfig) -> bool:
    """Whether it is a rung of a ladder."""
    return isinstance(config, Rung)


def follows(config: RecoverConfig) -> bool:
    """Whether it goes on from what an earlier recovery left."""
    return isinstance(config, Rung | Continuation)


def params(config: RecoverConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    if config.method == "reconstruct":
        own = config.reconstruct.model_dump(exclude={"memory", "batch_rows"})
        return {"recovery": config.method, **own}
    if config.budget is not None:
        given = config.budget.model_dump(exclude_none=True)
        own = {f"recovery_budget_{name}": value for name, value in given.items()}
    else:
        own = {"epochs": config.epochs}
    adapters = {"rank": config.rank, "alpha": config.alpha} if config.method in ("lora", "perp") else {}
    continued = {} if config.continued is None else {"recovery_continued": config.continued}
    return {
        "recovery": ", then ".join(config.methods),
        **continued,
        **adapters,
        **own,
        "optimizer": config.optimizer,
        "learning_rate": config.learning_rate,
        "batch_tokens": config.batch_tokens,
        "distill_weight": config.distill_weight,
    }


def card(config: RecoverConfig) -> CardLine:
    """The method, which hubs find by a tag too."""
    named = list(dict.fromkeys(config.methods))
    return CardLine(f"; then recovery by {' and '.join(named)}", tag=named[-1])


def check(config: RecoverConfig, base: Path) -> None:
    """BadInput for a method that is not there."""
    for name in config.methods:
        METHODS.entry(name)


def fits(config: RecoverConfig, shapes: Mapping[str, Shape]) -> None:
    """BadInput where the method does not go with the pruned model, or with the family where that is open."""
    dense = shapes["source"]
    pruned = shapes.get("model", dense)
    if "lora" in config.methods:
        check_fits(config, pruned)
    if "perp" in config.methods:
        check_perp(config, pruned)
    if "reconstruct" in config.methods:
        if pruned.hidden != dense.hidden or pruned.rotated:
            raise BadInput(
                "recover.method reconstruct compares hidden states with the dense model's, but pruning "
                "cuts or turns them; give another method (lora, full), or prune no hidden channels"
            )
        if config.reconstruct.solver == "closed_form" and not dense.family.ffn_reader:
            raise BadInput(
                f"recover.reconstruct.solver closed_form solves the one matrix that reads an FFN's channels, "
                f"which {dense.model_type} with its experts does not have; give solver: gradient"
            )


def tokens(config: Mapping[str, Any], volume: Volume) -> float | None:
    """The tokens that the section gives, else what grows with the rows, which all epochs go through."""
    given = config.get("tokens") or (config.get("budget") or {}).get("tokens")
    if given:
        return float(given)
    return config["epochs"] * volume.rows_bytes / BYTES_A_TOKEN if volume.rows_bytes else None


@stage(
    "teacher",
    kind="teacher",
    section="recover",
    reads={
        "dense": Reads("model", of="source"),
        "selection": Reads("data", of="training_rows", optional=True),
        "recovery_text": Reads("data", optional=True),
    },
    resumes=True,
    libraries=("torch", "transformers", "tokenizers", "numpy"),
    seeded=True,
    settings=teaching,
    tokens=tokens,
)
def teacher(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the dense model's likeliest tokens at all targets: top-*.safetensors, teacher.json, metrics.json.

    Made once for all runs on that model and data; then the dense model need not lie beside the student.
    """
    from resprout.tasks.recover.teacher_on_disk import make

    make(job, inputs, workdir, progress)


@stage(
    "recover",
    kind="recovery",
    section="recover",
    reads={
        "pruned": Reads("model", of="model"),
        "selection": Reads("data", of="training_rows", optional=True),
        "recovery_text": Reads("data", optional=True),
        "plan": Reads("plan", optional=True),
        "dense": Reads("model", of="source", where=reads_dense),
        "teacher": Reads("data", where=taught_from_disk),
        "before": Reads("data", of="rung", where=follows, optional=True),
        "verdict": Reads("data", where=climbs, optional=True),
    },
    gives="recovery",
    also_gives=changes_plan,
    leaves=Model("recovered", folder="model"),
    weights=True,
    metrics=("distill_weight",),
    reported=True,
    tagged=True,
    resumes=True,
    libraries=("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy"),
    methods=modules,
    seeded=True,
    params=params,
    card=card,
    checks={"recover.method": check},
    fits=fits,
    tokens=tokens,
)
def recover(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the recovered model and how training went."""
    if reads_dense(job.config) and "dense" not in inputs:
        raise BadInput(
            f"recover.distill_weight is {job.config.distill_weight} but there is no dense model to distil "
            "from; give the stage `dense`, or set distill_weight: 0"
        )
    if isinstance(job.config, Rung):
        from resprout.tasks.recover.ladder import climb

        climb(cast("Job[Rung]", job), inputs, workdir, progress, _recover)
    elif isinstance(job.config, Continuation):
        from resprout.tasks.recover.continuation import behind

        _recover(replace(job, config=behind(job.config, inputs["before"])), inputs, workdir, progress)
    else:
        _recover(job, inputs, workdir, progress)


def _recover(
    job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> Mapping[str, float]:
    """Train by the section's method, in as many processes as it says, and write all about it; its metrics."""
    alone = METHODS.entry(job.config.method).declared.get("trains_alone")
    if alone or job.config.devices.processes in (1, "auto"):
        write(job, inputs, workdir, progress)
    else:
        from resprout.tasks.recover.processes import train_together

        train_together(job, inputs, workdir, progress)
    metrics: dict[str, float] = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def write(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the recovery that this process makes, or several of which it is the first."""
    from resprout.tasks.models.load import save_model
    from resprout.tasks.prune.plan import read_plan, write_plan
    from resprout.tasks.recover.distill_weight import weight_of
    from resprout.tasks.recover.training_data import prepare

    data = prepare(job.config, inputs, job.seed, job.trust_remote_code)
    weight = weight_of(job.config, inputs, data.text_tokens)
    job = replace(job, config=job.config.model_copy(update={"distill_weight": weight}))
    recovered = METHODS.get(job.config.method)(job, inputs, data, progress)
    if job.config.method != "reconstruct":
        recovered.metrics["distill_weight"] = weight
    save_model(recovered.model, workdir / "model", tokenizer_from=inputs["pruned"])
    if recovered.adapter is not None:
        write_adapter(recovered.adapter, workdir / ADAPTER)
    if changes_plan(job.config):
        write_plan(recovered.plan or read_plan(inputs["plan"]), workdir)
    with (workdir / "history.jsonl").open("w", encoding="utf-8") as file:
        for entry in recovered.history:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    text = json.dumps(recovered.metrics, indent=1, sort_keys=True)
    (workdir / "metrics.json").write_text(text + "\n", encoding="utf-8")


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the folder that peft loads onto the pruned model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(adapter.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(adapter.config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
