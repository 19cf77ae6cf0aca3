"""Sweeps: variants checked before any runs, shared stages made once, one failure ends no other, resuming."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import COMMAND, mlflow_of
from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import StoreConfig
from resprout.configs.result import RunResult
from resprout.configs.sweep import SweepConfig, load_sweep
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.measure.ratio import ratio_in
from tiny_run import write_run


def write_sweep(root: Path, **given: Any) -> Path:
    write_run(root, measure=None)
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny-sweep", "base": "run.yaml", **given}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


def test_a_grid_is_every_combination_and_the_last_key_turns_fastest(folder: Path) -> None:
    path = write_sweep(folder, grid={"prune.target.params_ratio": [0.8, 0.9], "seed": [1, 2]})
    _, variants = load_sweep(path, ["recover.rank=3"])
    found = [
        (one.name, one.loaded.config.prune.target.params_ratio, one.loaded.config.seed) for one in variants
    ]
    assert found == [("tiny-1", 0.8, 1), ("tiny-2", 0.8, 2), ("tiny-3", 0.9, 1), ("tiny-4", 0.9, 2)]
    assert {one.loaded.config.recover.rank for one in variants if one.loaded.config.recover} == {3}
    assert all(one.loaded.config.registration is None for one in variants), "no alias moves unless asked"


def test_a_list_says_what_each_variant_sets(folder: Path) -> None:
    listed = [{"seed": 3}, {"prune.units": ["ffn", "kv_groups"], "prune.target.params_ratio": 0.7}]
    path = write_sweep(folder, list=listed, variant_name="v{index:02d}-of-{base}", register=True)
    _, variants = load_sweep(path, [])
    assert [one.name for one in variants] == ["v01-of-tiny", "v02-of-tiny"]
    assert variants[1].loaded.config.prune.units == ("ffn", "kv_groups")
    registration = variants[0].loaded.config.registration
    assert registration is not None
    assert (registration.name, registration.alias) == ("tiny-pruned", "candidate")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "exactly one of grid, list and search"),
        ({"grid": {"seed": [1]}, "list": [{"seed": 1}]}, "exactly one of grid, list and search"),
        ({"grid": {}}, "the grid is empty"),
        ({"grid": {"seed": []}}, "at least 1 item"),
        (
            {"grid": {"seed": list(range(40)), "recover.rank": list(range(1, 41))}},
            "1600 variants; at most 1000",
        ),
        ({"list": [{"seed": 1}, {"seed": 1}]}, "two variants are the same"),
        ({"grid": {"infra.workers": [1, 2]}}, "infra.workers cannot differ between variants"),
        ({"list": [{"name": "x"}]}, "name cannot differ between variants"),
        ({"grid": {"seed": [1, 2]}, "variant_name": "{base}"}, r"two variants one name; put \{index\}"),
        ({"grid": {"seed": [1]}, "variant_name": "dense"}, "a variant is called dense"),
        ({"grid": {"seed": [1, 2]}, "variant_name": "{rank}"}, r"may hold \{base\} and \{index\}"),
        ({"gird": {"seed": [1]}}, "did you mean 'grid'"),
        ({"grid": {"prune.target.param_ratio": [0.5, 0.6]}}, "variant 2.*did you mean 'params_ratio'"),
        ({"grid": {"seed": [1]}, "base": "other.yaml"}, "no config at .*other.yaml"),
    ],
)
def test_a_sweep_that_cannot_be_used_is_refused(folder: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        load_sweep(write_sweep(folder, **given), [])


def test_a_grid_of_millions_is_not_written_out() -> None:
    keys = {f"k{index}": tuple(range(100)) for index in range(8)}
    with pytest.raises(ValueError, match="variants; at most 1000"):
        SweepConfig(name="x", base="y", grid=keys)


def test_one_variant_that_does_not_fit_is_refused_before_any_runs_where_that_is_asked(
    folder: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_sweep(folder, grid={"prune.target.params_ratio": [0.9, 0.01]})
    found = resprout("sweep", path, "--strict", home=tmp_path / "home")
    assert found.code == 2, found.err
    assert "variant tiny-2" in found.err
    assert "prune.target" in found.err
    assert "variant tiny-1" not in found.err
    assert not (tmp_path / "home" / "store").exists(), "the good variant has run"


def test_a_dry_run_counts_what_variants_share_once(
    folder: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_sweep(folder, grid={"recover.rank": [2, 3]})
    found = resprout("sweep", path, "--dry-run", "--json", home=tmp_path / "home").result
    first, second = found["variants"]
    own = [one["name"] for one in second["stages"] if one["name"] not in second["shared"]]
    assert own == ["recover", "evaluate recovered", "gate", "export"]
    assert first["shared"] == []
    assert found["would_run"] == len(first["stages"]) + len(own)
    assert found["disk_bytes"] == first["disk_bytes"] + second["disk_bytes"]
    shown = resprout("sweep", path, "--dry-run", home=tmp_path / "home").out
    assert " ".join(shown.split()).startswith(f"2 variants: 0 of {found['would_run']} stages found, ")
    assert max(map(len, shown.splitlines())) <= 100


VARIANTS = [
    {"gate.max_perplexity_ratio": 11.0},
    {"gate.max_params_ratio": 0.5},
    # The schema cannot know how many rows the pool has.
    {"select.paser.clusters": 40},
    {"recover.rank": 3},
]


def test_shared_stages_run_once_and_a_failed_variant_leaves_the_rest(
    folder: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    unfit = {"prune.target.params_ratio": 0.01}
    path, home = write_sweep(folder, list=[*VARIANTS, unfit]), tmp_path / "home"
    found = resprout("sweep", path, "infra.workers=2", "--json", home=home)
    assert found.code == 1, found.err
    statuses = ["done", "gate_not_passed", "bad_input", "done", "bad_input"]
    assert [one["result"]["status"] for one in found.result["variants"]] == statuses
    assert [one["left_out"] for one in found.result["variants"]] == [False] * 4 + [True]
    assert "tiny-5: left out, " in found.err
    assert "prune.target" in found.result["variants"][4]["result"]["message"]
    assert "too few for paser.clusters: 40" in found.result["variants"][2]["result"]["message"]
    assert found.result["page"] == str(home / "reports" / "tiny-sweep" / "sweep.html")
    page = (home / "reports" / "tiny-sweep" / "sweep.html").read_text()
    assert "5 variants of run.yaml" in page
    assert 'id="figure-size"' in page
    assert "too few for paser.clusters: 40" in page, "what failed is there with its reason"
    made = Counter(
        (stage["name"], stage["artifact"]["digest"])
        for one in found.result["variants"]
        for stage in one["result"]["stages"]
        if not stage["cached"]
    )
    assert set(made.values()) == {1}, "a stage that variants share was made twice"
    records = list(ArtifactStore.from_config(StoreConfig(), home).records())
    assert len({record.key for _, record in records}) == len(records)
    names = [name for name, _ in made]
    assert names.count("recover") == 2
    assert names.count("prune") == names.count("evaluate dense") == names.count("select") == 1
    for part in (
        "tiny-1",
        "flap (uniform",
        "gate.max_params_ratio",
        "decode tokens/s",
        "max_params_ratio",
        "bad_input",
    ):
        assert part in found.err
    client = mlflow_of(home)
    kinds = [one.experiment_id for one in client.search_experiments()]
    tagged = client.search_runs(kinds, "tags.`resprout.sweep` LIKE '%'")
    (whole,) = [run for run in tagged if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in tagged if run is not whole]
    assert len(nested) == 4, "each variant is a run of its own"
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {whole.info.run_id}
    assert found.result["mlflow_run_id"] == whole.info.run_id
    assert whole.info.status == "FINISHED"
    assert whole.data.params["variants"] == "4"
    assert whole.data.params["recover.rank"] == "[3]"
    assert whole.data.metrics["variants_done"] == 2
    note = whole.data.tags["mlflow.note.content"]
    assert all(f"[tiny-{number}](#/experiments/" in note for number in range(1, 5))
    assert "`tiny-5`" in note
    assert "left out" in note
    files = {one.path for one in client.list_artifacts(whole.info.run_id)}
    assert "sweep.json" in files
    done = next(run for run in nested if run.info.run_name == "tiny-1").info.run_id
    checked = resprout("verify", done, home=home)
    assert checked.code == 0, checked.err
    assert "every byte as published" in checked.out

    # The same command goes on from there: mended, it makes what is missing, here on two Dask workers.
    pytest.importorskip("prefect_dask", reason="pip install -e '.[dask]'")
    path = write_sweep(folder, list=[*VARIANTS[:2], {"select.paser.clusters": 4}, VARIANTS[3], unfit])
    shown = resprout("sweep", path, "--dry-run", "--json", home=home).result["variants"]
    missing = [[stage["name"] for stage in one["stages"] if not stage["cached"]] for one in shown]
    assert (missing[0], missing[1], missing[3]) == ([], [], [])
    assert missing[2][:2] == ["pool", "select"]
    options = ("infra.task_runner=dask", "infra.workers=2", "infra.shards=2")
    again = resprout("sweep", path, *options, "--json", home=home)
    assert again.code == 3, again.err
    results = [one["result"] for one in again.result["variants"] if not one["left_out"]]
    assert [result["status"] for result in results] == ["done", "gate_not_passed", "done", "done"]
    assert [all(stage["cached"] for stage in result["stages"]) for result in results] == [
        True, True, False, True,
    ]  # fmt: skip


def test_speeds_of_all_variants_are_measured_together_once(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    parts = dict.fromkeys(("select", "recover", "gate", "register"))
    write_run(tmp_path, **parts)
    # The last makes the same model as the first.
    listed = [
        {"prune.target.params_ratio": 0.85},
        {"prune.target.params_ratio": 0.7},
        {"gate.max_params_ratio": 0.99},
    ]
    path, home = tmp_path / "sweep.yaml", tmp_path / "home"
    path.write_text(yaml.safe_dump({"name": "timed", "base": "run.yaml", "list": listed}))
    for _ in range(2):
        found = resprout("sweep", path, "--json", home=home)
        assert found.code == 0, found.err
        variants = [one["result"] for one in found.result["variants"]]
        names = {stage["name"] for one in variants for stage in one["stages"]}
        assert not {name for name in names if name.startswith("measure")}, "no variant measures by itself"
        speeds = [one["models"]["pruned"]["speeds"] for one in variants]
        assert {name for one in speeds for name in one} == {"prefill16_tokens_per_s", "decode4_tokens_per_s"}
        assert speeds[0] == speeds[2] != speeds[1]
        dense = [one["models"]["dense"]["metrics"]["decode4_tokens_per_s"] for one in variants]
        assert len(set(dense)) == 1
        rows = [line for line in found.err.splitlines() if line.startswith("tiny-") and "flap" in line]
        assert len(rows) == 3
        for row, one in zip(rows, variants, strict=True):
            own = one["models"]["pruned"]
            ratio = ratio_in(own["metrics"], "decode4_tokens_per_s")
            assert f"{own['metrics']['decode4_tokens_per_s']:,.1f} ({ratio})" in row
        store = ArtifactStore.from_config(StoreConfig(), home)
        records = [record for _, record in store.records() if record.stage == "measure"]
        assert [[parent.role for parent in one.parents] for one in records] == [["dense", "tiny-1", "tiny-2"]]


def test_a_worker_that_reads_another_config_says_so(folder: Path, home: Path) -> None:
    from resprout.configs.load import travelling
    from resprout.flows.sweep import RUN

    (variant,) = load_sweep(
        write_sweep(folder, grid={"seed": [1]}), [f"infra.home={home}", "infra.task_runner=dask"]
    )[1]
    sent = {"infra": travelling(variant.loaded), "digest": "another", "sweep": "s"}
    sent |= {"own": "o", "parent": None}
    result = RUN.fn(variant.name, str(variant.loaded.path), variant.overrides, **sent)
    assert result["status"] == "bad_input"
    assert "is another config on this worker" in result["message"]


def test_a_variant_that_begins_again_goes_on_in_its_mlflow_run(
    folder: Path, home: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask gives a variant to another worker where one is lost: another flow run, but the same variant."""
    from resprout.configs.load import travelling
    from resprout.flows.rerun_command import config_digest
    from resprout.flows.sweep import RUN

    def fail(*stage: Any) -> None:
        raise StageFailed("the worker is lost")

    monkeypatch.setattr("resprout.flows.stages.Artifacts.make", fail)
    path = write_sweep(folder, grid={"seed": [1, 2]})
    _, variants = load_sweep(path, [f"infra.home={home}", "infra.task_runner=dask"])

    def run(index: int, own: str) -> str:
        one = variants[index]
        sent = {"infra": travelling(one.loaded), "digest": config_digest(one.loaded), "sweep": "s"}
        sent["parent"] = None
        result = RUN.fn(one.name, str(one.loaded.path), one.overrides, **sent, own=own)
        assert result["message"] == "the worker is lost"
        return str(result["mlflow_run_id"])

    first = run(0, "sweep-1")
    assert run(0, "sweep-1") == first
    assert len({first, run(1, "sweep-1"), run(0, "sweep-2")}) == 3


def test_a_variant_is_told_when_it_ends_and_listed_in_its_place(
    folder: Path, home: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    from resprout.flows import sweep

    def late(
        name: str,
        config: str,
        overrides: Any,
        infra: Any,
        digest: str,
        sweep: str,
        own: str,
        parent: str,
        rivals: Any,
    ) -> dict[str, Any]:
        time.sleep(2.0 if name == "tiny-1" else 0.0)
        return RunResult(status="done", exit_code=0).model_dump(mode="json")

    monkeypatch.setattr(sweep, "RUN", Task(fn=late, cache_policy=NO_CACHE, persist_result=False))
    path = write_sweep(folder, grid={"seed": [1, 2]})
    session = sweep.prepared(*load_sweep(path, [f"infra.home={home}", "infra.workers=2"]))
    told: list[str] = []
    session.ended = lambda result: told.append(result.name)
    result = sweep.sweep_here(path, [], session)
    assert told == ["tiny-2", "tiny-1"]
    assert [one.name for one in result.variants] == ["tiny-1", "tiny-2"]
    assert result.status == "done"


def test_ctrl_c_ends_variants_that_wait_for_another_run(folder: Path, home: Path, api_url: str) -> None:
    from resprout.flows.dry_run import look_up
    from resprout.flows.inputs import Sources
    from resprout.flows.stages import Steps
    from resprout.infra.mlflow.tracking import Tracker
    from resprout.infra.store.lease import LeaseLockManager

    path = write_sweep(folder, grid={"seed": [1, 2]})
    loaded = load_sweep(path, [f"infra.home={home}"])[1][0].loaded
    store = ArtifactStore.from_config(StoreConfig(), home)
    tracker = Tracker(loaded.config.infra.mlflow, home)
    _, forecasts = look_up(Steps(loaded.config, Sources(loaded, tracker.uri).sections), store)
    (dense,) = (one for one in forecasts if one.step.label == "acquire model")
    another = LeaseLockManager(store.driver)
    assert another.acquire_lock(dense.step.stage.key_of(dense.parts), "another run")
    process = subprocess.Popen(
        [*COMMAND, "sweep", str(path), "infra.workers=2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RESPROUT_HOME": str(home), "PREFECT_API_URL": api_url},
    )
    try:
        assert process.stderr is not None
        told = list(itertools.takewhile(lambda line: "another run" not in line, process.stderr))
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        another.close()
    assert process.returncode == 130, rest
    assert "Traceback" not in "".join(told) + rest
