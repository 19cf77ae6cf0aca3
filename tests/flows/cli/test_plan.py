"""`resprout plan`: seconds by what stages took here, scaled to this model, and why a stage is not cached."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import finish
from resprout.configs.infrastructure import StoreConfig
from resprout.flows.cli.forecast import sentence
from resprout.flows.history import Estimate, History, Work
from resprout.infra.identity import machine
from resprout.infra.store.record import Parent, Record
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.prepare.stage import prepare
from resprout.tasks.prune.stage import plan, prune
from resprout.tasks.select.stage import filter_rows, pool, select

SECONDS = 60.0
"""What a larger model takes longer in each stage that computes with it."""
READ = ("measure", "acquire_rows")
"""Stages whose artifacts the prediction reads, beside the model's."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Any:
    """A run that took the seconds of a user's: the start of each of its processes is among them."""
    return finish(tmp_path_factory.mktemp("anew"), resprout, anew=True)


def write_larger(finished: Any, home: Path) -> None:
    """The records of the finished run as one with a model of 1,000 times the parameters left them."""
    before = ArtifactStore.from_config(StoreConfig(), finished.home)
    store = ArtifactStore.from_config(StoreConfig(), home)
    scratch = home.parent / "larger"
    written: dict[str, str] = {}

    def write(record_id: str) -> str:
        if record_id in written:
            return written[record_id]
        record = before.get_record(record_id)
        parents = tuple(Parent(role=p.role, digest=p.digest, record=write(p.record)) for p in record.parents)
        changes: dict[str, Any] = {"parents": parents}
        if record.stage == "acquire_model":
            with before.open(record.content) as folder:
                config = json.loads((folder / "config.json").read_text())
            scratch.mkdir()
            wide = {key: 16 * config[key] for key in ("hidden_size", "intermediate_size", "head_dim")}
            config |= {**wide, "num_hidden_layers": 4 * config["num_hidden_layers"]}
            (scratch / "config.json").write_text(json.dumps(config))
            changes["content"] = store.publish(scratch).digest
        if record.stage in READ:
            with before.open(record.content) as folder:
                store.publish(folder)
        if record.stage == "acquire_model" or record.dtype is not None:
            changes["seconds"] = record.seconds + SECONDS
        written[record_id] = store.put_record(record.model_copy(update=changes))
        return written[record_id]

    for record_id, _ in before.records():
        write(record_id)


def test_times_of_a_larger_model_are_scaled_to_this_one(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    write_larger(finished, tmp_path / "home")
    shown = resprout("plan", finished.config, home=tmp_path / "home")
    assert shown.code == 0, shown.err
    told = [int(found) for found in re.findall(r"would run +(\d+) s", shown.out)]
    assert len(told) >= 15
    took = sum(stage["seconds"] for stage in finished.result["stages"])
    assert took / 2 <= sum(told) <= took * 2, shown.out


def test_a_run_that_was_made_here_is_predicted_by_its_own_times(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    shutil.rmtree(home / "store" / "results")
    found = resprout("plan", finished.config, "--json", home=home).result
    took = {stage["name"]: stage["seconds"] for stage in finished.result["stages"]}
    for stage in found["stages"]:
        if stage["name"] in ("export", "measure", "recover", "acquire model"):
            assert took[stage["name"]] / 2 <= stage["seconds"] <= took[stage["name"]] * 2, stage


def test_plan_says_why_a_stage_is_not_cached(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    def why(*changes: str, home: Path = finished.home) -> dict[str, list[str]]:
        shown = resprout("plan", finished.config, *changes, "--json", home=home).result["stages"]
        return {one["name"]: one["reasons"] for one in shown}

    found = why("seed=18", "prune.round_to=4")
    assert found["acquire pool"] == ["seed 17 -> 18"]
    assert found["plan"] == ["after calibrate, score", "prune.round_to 8 -> 4"]
    assert found["acquire model"] == []
    found = why("recover.rank=3")
    assert found["recover"] == ["recover.rank 2 -> 3"]
    assert found["evaluate recovered"] == ["after recover"]
    assert why(home=tmp_path / "home")["acquire model"] == ["new"]
    # A run on another model is no precedent that would explain anything, though it tells of times.
    other = shutil.copytree(finished.config.parent / "model", tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    found = why(f"model.source={other}", "recover.rank=3")
    assert {tuple(reasons) for reasons in found.values()} == {(), ("new",)}


def test_the_first_line_sums_up_and_nothing_is_wider_than_a_page(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    shown = resprout("plan", finished.config, "recover.rank=3", "--price", "1800", home=finished.home)
    found = resprout(
        "plan", finished.config, "recover.rank=3", "infra.price_per_hour=1800", "--json", home=finished.home
    ).result
    assert (found["found"], found["would_run"]) == (len(found["stages"]) - 5, 5)
    assert found["money"] == pytest.approx(found["seconds"] / 2, abs=0.01)
    run = [one for one in found["stages"] if not one["cached"]]
    assert found["memory_bytes"] == max(one["memory_bytes"] for one in run)
    assert found["disk_bytes"] == sum(one["disk_bytes"] for one in run)
    took = {one["name"]: one for one in finished.result["stages"]}
    for one in run:
        # The peak that this stage had here, and not an estimate from the model's size.
        assert one["memory_bytes"] == took[one["name"]]["peak_memory_bytes"], one
    first = " ".join(shown.out.split("\n\n")[0].split())
    assert re.fullmatch(
        r"[\d,]+ parameters, \d+\.\d MB of weights -> [\d,]+, \d+\.\d MB \(x0\.\d\d\) "
        r"file: \d+\.\d MB \(safetensors\) -> about \d+\.\d MB \(hf, x\d\.\d\d\) "
        rf"{found['found']} of {len(found['stages'])} stages found, 5 would run, "
        r"(about (\d+ min )?\d+ s|a few seconds), at most \d+\.\d GB of memory, \d+\.\d MB of disk, "
        r"\d+\.\d\d at 1800\.00 an hour",
        first,
    ), first
    lines = [line for line in shown.out.splitlines() if not line.startswith("plan: file:")]
    assert max(map(len, lines)) <= 100
    assert any(re.match(r"recover +would run .* recover\.rank 2 -> 3", line) for line in lines), shown.out
    nothing = resprout("plan", finished.config, "--price", "1800", home=finished.home).out
    assert nothing.splitlines()[2] == f"all {len(found['stages'])} stages found, nothing would run"


def test_no_price_is_named_where_no_time_is_known(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    shown = resprout("plan", finished.config, "--price", "1.2", home=tmp_path / "home").out
    first = " ".join(shown.split("\n\n")[0].split())
    assert "an hour" not in first
    assert "time and price not known: no run here tells of acquire calibration text and " in first


def test_rows_that_were_never_seen_are_not_predicted_by_others(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    found = resprout("plan", finished.config, "select.pool.0.limit=7", "--json", home=finished.home).result
    seconds = {one["name"]: one["seconds"] for one in found["stages"]}
    assert seconds["select"] is seconds["pool"] is None
    assert seconds["prune"] == 0, "found in the cache"
    assert "select" in found["unknown"]
    assert found["seconds"] is None
    assert found["seconds_known"] == pytest.approx(sum(filter(None, seconds.values())), abs=0.5)


@pytest.mark.parametrize(
    ("known", "takes"), [(380.4, ", at least 6 min 20 s; time of the rest"), (4.0, "; time")]
)
def test_stages_of_unknown_time_leave_a_lower_bound(known: float, takes: str) -> None:
    none = dict.fromkeys(("seconds", "money", "price_per_hour"))
    found = {"found": 3, "would_run": 6, "seconds_known": known, "memory_bytes": 0, "disk_bytes": 0, **none}
    assert sentence({**found, "unknown": ["select", "recover"]}) == (
        f"3 of 9 stages found, 6 would run{takes} not known: no run here tells of select and 1 more yet"
    )


def test_a_search_of_hours_says_nothing_of_another_allocator(tmp_path: Path) -> None:
    def record(allocator: str, seconds: float, hour: int) -> Record:
        return Record(
            stage="plan", key="plan-k", kind="plan", content="ab" * 32, config={"allocator": allocator},
            code={}, libraries={}, machine=machine(), who="ada", seconds=seconds,
            started=f"2026-01-02T{hour:02d}:00:00+00:00",
        )  # fmt: skip

    records = [("1", record("uniform", 2.0, 1)), ("2", record("evolutionary", 7200.0, 2))]
    history = History(ArtifactStore.from_config(StoreConfig(), tmp_path), records)
    work = Work(params=None, tokens=None)
    assert history.estimate(plan, {"allocator": "uniform"}, work).seconds == 2.0
    assert history.estimate(plan, {"allocator": "evolutionary"}, work).seconds == 7200.0
    assert history.estimate(prune, {"allocator": "uniform"}, work) == Estimate(None, None, None)


def _made(stage: str, kind: str, content: str, config: dict[str, Any], *parents: str) -> Record:
    return Record(
        stage=stage, key="k", kind=kind, content=content * 64, config=config, code={}, libraries={},
        machine=machine(), who="ada", seconds=1.0, started="2026-01-02T01:00:00+00:00",
        parents=tuple(Parent(role=one, digest="0" * 64, record=one) for one in parents),
    )  # fmt: skip


def test_work_is_measured_by_the_source_model_and_not_by_an_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made("select", "selection", "c", {}, "encoder", "dense")
    records = [
        ("encoder", _made("acquire_model", "model", "a", {"role": "encoder"})),
        ("dense", _made("acquire_model", "model", "b", {"role": "model"})),
        ("selection", made),
    ]
    history = History(ArtifactStore.from_config(StoreConfig(), tmp_path), records)
    monkeypatch.setattr(history, "_params_of", {"a" * 64: 1, "b" * 64: 2}.get)
    assert history.work(select, made).params == 2


def test_work_on_rows_grows_with_documents_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = _made("filter", "filtered-rows", "c", {}, "pool", "prepared")
    one = _made("pool", "pool", "d", {}, "prepared")
    records = [
        ("pool", _made("acquire_rows", "rows", "a", {})),
        ("documents", _made("acquire_documents", "documents", "b", {})),
        ("prepared", _made("prepare", "prepared-rows", "e", {}, "documents")),
    ]
    history = History(ArtifactStore.from_config(StoreConfig(), tmp_path), records)
    monkeypatch.setattr(history, "size", {"a" * 64: 100, "b" * 64: 30}.get)
    assert history.work(filter_rows, both).tokens == 130
    assert history.work(pool, one).tokens == 30
    assert history.work(prepare, records[2][1]).tokens == 30
    # What was erased is not taken for nothing.
    monkeypatch.setattr(history, "size", {"a" * 64: 100}.get)
    assert history.work(filter_rows, both).tokens is None
