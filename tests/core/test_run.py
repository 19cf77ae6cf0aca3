"""The stage: what its key varies on and what not, hits and misses, retries, tracking."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import SafetensorError

from resprout.configs.errors import BadInput, StageFailed, Transient
from resprout.infra import identity, retry
from resprout.infra.markdown import NOTE
from resprout.infra.mlflow import live_curves
from resprout.infra.mlflow.tracking import Tracker
from resprout.infra.store.checkpoints import StageCheckpoints
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.core.job import Job
from resprout.tasks.core.stage import Subfolder, stage
from toys import Knobs, Walk, walker, write_text


def toy(**options: Any):
    return stage("toy", kind="toy", **options)(write_text)


def ref(digest: str, **changes: Any) -> ArtifactRef:
    given = {"kind": "toy", "digest": digest, "key": "k", "record": "r", "uri": "file:///x", "bytes": 1}
    return ArtifactRef(**{**given, **changes})


A, B = "a" * 64, "b" * 64


def test_the_key_varies_on_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = toy(seeded=True, libraries=("numpy",))
    base = one.key(Job(Knobs()), {"x": ref(A)})
    assert base == one.key(Job(Knobs()), {"x": ref(A)})
    others = {
        "config": one.key(Job(Knobs(text="b")), {"x": ref(A)}),
        "parent": one.key(Job(Knobs()), {"x": ref(B)}),
        "role": one.key(Job(Knobs()), {"y": ref(A)}),
        "part": one.key(Job(Knobs()), {"x": Subfolder(ref(A), "model")}),
        "seed": one.key(Job(Knobs(), seed=18), {"x": ref(A)}),
        "dtype": one.key(Job(Knobs(), dtype="float32"), {"x": ref(A)}),
        "device": one.key(Job(Knobs(), device="cuda"), {"x": ref(A)}),
        "methods": toy(
            seeded=True, libraries=("numpy",), methods=lambda config: ["resprout.tasks.evaluate.task_files"]
        ).key(Job(Knobs()), {"x": ref(A)}),
    }
    monkeypatch.setattr(identity, "library_version", lambda name: "0.0.0")
    others["library"] = one.key(Job(Knobs()), {"x": ref(A)})
    assert len({base, *others.values()}) == len(others) + 1, "two different inputs share a key"


def test_the_key_does_not_vary_on_where_things_are(monkeypatch: pytest.MonkeyPatch) -> None:
    one = toy(libraries=("numpy",))
    base = one.key(Job(Knobs()), {"x": ref(A)})
    elsewhere = ref(A, uri="s3://other/place", record="another", key="another", bytes=2, kind="other")
    assert one.key(Job(Knobs()), {"x": elsewhere}) == base
    assert one.key(Job(Knobs(), seed=18), {"x": ref(A)}) == base, (
        "a stage that draws nothing ignores the seed"
    )
    some = toy(seeded=lambda config: config.text == "drawn")
    assert some.key(Job(Knobs(), seed=17), {}) == some.key(Job(Knobs(), seed=18), {})
    drawn = Knobs(text="drawn")
    assert some.key(Job(drawn, seed=17), {}) != some.key(Job(drawn, seed=18), {})
    for name in ("who", "machine", "code_identity"):
        monkeypatch.setattr(identity, name, lambda: {"host": "other"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "rotated")
    assert one.key(Job(Knobs()), {"x": ref(A)}) == base
    assert toy(computes=False).key(Job(Knobs(), dtype="float32"), {}) == toy(computes=False).key(
        Job(Knobs()), {}
    )


def test_a_second_run_finds_what_the_first_made(home: Path, make_run: Callable[..., Any]) -> None:
    one = toy()

    def steps(run: Any) -> list[Any]:
        first = one(run, Job(Knobs(text="a")), role="first")
        second = one(run, Job(Knobs(text="b")), inputs={"before": first}, role="second")
        return [second, run.stages]

    made, stages = make_run(home, steps)
    assert [found.cached for found in stages] == [False, False]
    again, stages = make_run(home, steps)
    assert [found.cached for found in stages] == [True, True]
    assert again == made


@pytest.mark.parametrize("faults", [1, 2, 4])
def test_what_a_store_that_stammers_has_is_not_made_again(
    faults: int, home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many lookups fail: Prefect would take each failure for absence."""
    one = toy()
    made = make_run(home, lambda run: one(run, Job(Knobs(text="a"))))
    real, left = LocalDriver.get_bytes, iter(range(faults))

    def get_bytes(self: LocalDriver, key: str) -> bytes | None:
        if key.startswith("results/") and next(left, None) is not None:
            raise Transient("503 from the store")
        return real(self, key)

    monkeypatch.setattr(LocalDriver, "get_bytes", get_bytes)

    def steps(run: Any) -> list[Any]:
        run.retries, run.retry_delay_seconds = 5, 0.01
        return [one(run, Job(Knobs(text="a"))), run.stages[0].cached]

    assert make_run(home, steps) == [made, True]
    assert next(left, None) is None


def test_one_changed_knob_reruns_only_what_it_reaches(home: Path, make_run: Callable[..., Any]) -> None:
    one = toy()

    def steps(run: Any, middle: str) -> list[bool]:
        first = one(run, Job(Knobs(text="a")), role="first")
        second = one(run, Job(Knobs(text=middle)), inputs={"before": first}, role="second")
        one(run, Job(Knobs(text="c")), inputs={"before": second}, role="third")
        one(run, Job(Knobs(text="d")), inputs={"before": first}, role="apart")
        return [found.cached for found in run.stages]

    make_run(home, lambda run: steps(run, "b"))
    assert make_run(home, lambda run: steps(run, "B")) == [True, False, False, True]


def test_the_same_bytes_from_another_config_reach_no_further(
    home: Path, make_run: Callable[..., Any]
) -> None:
    def same(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        (workdir / "out.txt").write_text("same")

    same.__module__ = write_text.__module__
    maker = stage("maker", kind="toy")(same)

    def steps(run: Any, knob: str) -> list[bool]:
        first = maker(run, Job(Knobs(text=knob)))
        toy()(run, Job(Knobs()), {"before": first})
        return [found.cached for found in run.stages]

    make_run(home, lambda run: steps(run, "a"))
    assert make_run(home, lambda run: steps(run, "b")) == [False, True]


def test_a_failure_keeps_what_was_finished(home: Path, make_run: Callable[..., Any]) -> None:
    broken = True

    def fails(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        if broken:
            raise StageFailed("the loss is NaN at step 3; lower learning_rate")
        (workdir / "out.txt").write_text("ok")

    fails.__module__ = write_text.__module__
    last = stage("last", kind="toy")(fails)

    def steps(run: Any) -> list[bool]:
        last(run, Job(Knobs()), {"before": toy()(run, Job(Knobs()))})
        return [found.cached for found in run.stages]

    with pytest.raises(StageFailed, match="NaN at step 3"):
        make_run(home, steps)
    broken = False
    assert make_run(home, steps) == [True, False]


@pytest.mark.parametrize(
    ("error", "tries"),
    [(Transient("503"), 3), (BadInput("no"), 1), (StageFailed("NaN"), 1), (ValueError("bug"), 1)],
)
def test_only_transient_faults_are_tried_again(
    home: Path, make_run: Callable[..., Any], error: Exception, tries: int
) -> None:
    calls = []

    def fails(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        calls.append(1)
        raise error

    fails.__module__ = write_text.__module__
    with pytest.raises(type(error)):
        make_run(home, lambda run: stage("f", kind="toy")(fails)(run, Job(Knobs())), retries=2)
    assert len(calls) == tries


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk of .* is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk of .* is full"),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "ran out of memory"),
    ],
)
def test_faults_of_the_machine_become_sentences(
    home: Path, make_run: Callable[..., Any], error: Exception, sentence: str
) -> None:
    def fails(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        (workdir / "half.bin").write_text("half")
        raise error

    fails.__module__ = write_text.__module__
    with pytest.raises(StageFailed, match=sentence):
        make_run(home, lambda run: stage("f", kind="toy")(fails)(run, Job(Knobs())))
    assert not list((home / "store").rglob("half.bin")), "half an artifact is left"


def test_a_lost_artifact_is_made_again(home: Path, make_run: Callable[..., Any]) -> None:
    def steps(run: Any) -> tuple[bool, str]:
        found = toy()(run, Job(Knobs()))
        return run.stages[0].cached, found.digest

    _, digest = make_run(home, steps)
    (folder,) = (home / "store").rglob(f"content/{digest}")
    shutil.rmtree(folder)
    assert make_run(home, steps) == (False, digest)


def test_another_home_with_the_same_store_finds_the_cache(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    from resprout.configs.infrastructure import StoreConfig

    shared = StoreConfig(uri=str(tmp_path / "shared"))

    def steps(run: Any) -> bool:
        toy()(run, Job(Knobs()))
        return bool(run.stages[0].cached)

    assert make_run(tmp_path / "one", steps, shared) is False
    assert make_run(tmp_path / "two", steps, shared) is True


def test_each_call_writes_a_nested_run_and_a_hit_names_its_producer(
    home: Path, make_run: Callable[..., Any]
) -> None:
    def steps(run: Any) -> Any:
        return toy()(run, Job(Knobs()), role="mine"), run.tracker, run.mlflow_run_id

    made, tracker, parent = make_run(home, steps)
    again, tracker, later = make_run(home, steps)

    def nested(of: str) -> Any:
        (found,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{of}'")
        return found

    first, second = nested(parent), nested(later)
    assert first.data.metrics["length"] == second.data.metrics["length"] == 1
    assert first.data.params == second.data.params == {"text": "a"}
    assert first.data.tags["resprout.digest"] == made.digest == again.digest
    assert (first.data.tags["resprout.cached"], second.data.tags["resprout.cached"]) == ("false", "true")
    assert second.data.tags["resprout.produced_by_run"] == first.info.run_id
    spent = {"stage_seconds", "stage_cpu_seconds", "stage_peak_memory_mb"}
    assert spent <= set(first.data.metrics)
    assert not spent & set(second.data.metrics)
    page = f"#/experiments/{tracker.experiment_id}/runs/"
    of = "Stage toy mine of [this compression run]({}). Its artifact is `{}`. It was {}."
    assert first.data.tags[NOTE] == of.format(page + parent, made.digest, "made in this run")
    found = f"found in the cache, where [another run]({page}{first.info.run_id}) put it"
    assert second.data.tags[NOTE] == of.format(page + later, made.digest, found)


def test_the_record_tells_how_it_came_to_be(home: Path, make_run: Callable[..., Any]) -> None:
    def steps(run: Any) -> Any:
        first = toy()(run, Job(Knobs(text="a")), role="first")
        second = toy(seeded=True)(run, Job(Knobs(text="b"), seed=5), inputs={"before": first}, role="second")
        return first, run.store.get_record(second.record)

    first, record = make_run(home, steps)
    assert [(parent.role, parent.digest, parent.record) for parent in record.parents] == [
        ("before", first.digest, first.record)
    ]
    assert (record.stage, record.seed, record.config) == ("toy", 5, {"text": "b"})
    assert record.who == identity.who()
    assert record.machine["python"]


def test_a_prefect_server_that_is_away_costs_no_stage(
    home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def away(**given: Any) -> None:
        tries.append(given)
        raise httpx.ConnectError("All connection attempts failed")

    def long(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        progress(1, 2, "halves")
        progress(2, 2, "halves")
        (workdir / "out.txt").write_text("done")

    long.__module__ = write_text.__module__
    monkeypatch.setattr("resprout.tasks.core.run.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", away)
    made = make_run(home, lambda run: stage("long", kind="toy")(long)(run, Job(Knobs())))
    assert made.digest
    assert [given["progress"] for given in tries] == [50.0, 100.0]


def test_an_edit_while_a_stage_runs_is_not_recorded_as_what_ran(
    home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def edits(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        monkeypatch.setattr("resprout.tasks.core.stage.code_hash", lambda modules: "after")
        monkeypatch.setattr(identity, "library_version", lambda name: "after")
        (workdir / "out.txt").write_text("done")

    edits.__module__ = write_text.__module__
    monkeypatch.setattr("resprout.tasks.core.stage.code_hash", lambda modules: "before")
    monkeypatch.setattr(identity, "library_version", lambda name: "before")

    def steps(run: Any) -> Any:
        made = stage("edits", kind="toy", libraries=("numpy",))(edits)(run, Job(Knobs()))
        return run.store.get_record(made.record)

    record = make_run(home, steps)
    assert record.code["reached"] == "before"
    assert record.libraries == {"numpy": "before"}


def test_a_swallowed_interrupt_stops_the_stage_before_it_publishes(
    home: Path, make_run: Callable[..., Any]
) -> None:
    pressed = []

    def swallows(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        pressed.append(1)
        (workdir / "out.txt").write_text("done")

    swallows.__module__ = write_text.__module__
    with pytest.raises(KeyboardInterrupt):
        make_run(
            home,
            lambda run: stage("s", kind="toy")(swallows)(run, Job(Knobs())),
            cancelled=lambda: bool(pressed),
        )
    assert not list((home / "store").rglob("out.txt"))


def test_finished_work_waits_for_a_store_that_is_away_and_is_not_done_again(
    home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_SECONDS", 0.01)
    worked: list[int] = []

    def body(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        worked.append(1)
        write_text(job, inputs, workdir, progress)

    body.__module__ = write_text.__module__
    one = stage("toy", kind="toy")(body)

    def mlflow_is_away(*given: Any) -> None:
        raise Transient("MLflow is away")

    def steps(run: Any) -> Any:
        away = {"publish": 3, "put_record": 2, "put_bytes": 2}

        def sometimes(owner: Any, name: str) -> None:
            real = getattr(owner, name)

            def call(*given: Any, **named: Any) -> Any:
                away[name] -= 1
                if away[name] >= 0:
                    raise Transient("the bucket is away")
                return real(*given, **named)

            monkeypatch.setattr(owner, name, call)

        sometimes(run.store, "publish")
        sometimes(run.store, "put_record")
        real = run.store.driver.put_bytes

        def put_bytes(key: str, data: bytes) -> None:
            if key.startswith("results/") and away["put_bytes"] > 0:
                away["put_bytes"] -= 1
                raise Transient("the bucket is away")
            real(key, data)

        monkeypatch.setattr(run.store.driver, "put_bytes", put_bytes)
        run.results._outage_seconds = 30.0
        monkeypatch.setattr(run.tracker, "announce", mlflow_is_away)
        made = one(run, Job(Knobs()))
        assert away["put_bytes"] == 0
        return run.store.read(made.digest, "out.txt")

    assert make_run(home, steps, outage_seconds=30.0) == b"a"
    assert worked == [1]
    with pytest.raises(Transient, match="the bucket is away"):
        make_run(home.parent / "impatient", steps)


def walked(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def test_a_stage_that_resumes_goes_on_from_its_last_checkpoint(
    home: Path, make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    section = Walk(log=str(log))
    undisturbed = make_run(tmp_path / "other", lambda run: walker(run, Job(section)))
    log.unlink()
    real = StageCheckpoints.save

    def dies(self: StageCheckpoints, folder: Path, step: int) -> None:
        real(self, folder, step)
        if step == 4:
            raise StageFailed("the machine is gone")

    monkeypatch.setattr(StageCheckpoints, "save", dies)
    with pytest.raises(StageFailed, match="machine is gone"):
        make_run(home, lambda run: walker(run, Job(section)))
    monkeypatch.setattr(StageCheckpoints, "save", real)
    found: list[str] = []

    def steps(run: Any) -> Any:
        found.extend(run.store.driver.list("checkpoints/"))
        made = walker(run, Job(section))
        assert list(run.store.driver.list("checkpoints/")) == [], "those of a finished stage are deleted"
        return made

    made = make_run(home, steps)
    assert walked(log) == [1, 2, 3, 4, 5, 6]
    assert made.digest == undisturbed.digest
    assert {key.split("/")[1] for key in found} == {made.key}


def test_other_stages_and_other_keys_have_no_checkpoints(
    home: Path, make_run: Callable[..., Any], tmp_path: Path
) -> None:
    given: list[Any] = []

    def looks(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        given.append(job.checkpoints)
        write_text(job, inputs, workdir, progress)

    looks.__module__ = write_text.__module__
    make_run(home, lambda run: stage("looks", kind="toy")(looks)(run, Job(Knobs())))
    assert given == [None]
    knobs = Walk(log=str(tmp_path / "log"))
    keys = {walker.key(Job(one), {}) for one in (knobs, knobs.model_copy(update={"every": 3}))}
    assert keys == {walker.key(Job(knobs, watch=print, checkpoints=None), {})}
    assert walker.key(Job(knobs.model_copy(update={"steps": 7})), {}) not in keys


def test_a_disk_that_is_full_at_a_checkpoint_is_said_and_the_one_before_stays(
    home: Path, make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    real = StageCheckpoints.save

    def full(self: StageCheckpoints, folder: Path, step: int) -> None:
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, folder, step)

    monkeypatch.setattr(StageCheckpoints, "save", full)
    with pytest.raises(StageFailed, match=r"disk of .* is full in walk; free space there and run again"):
        make_run(home, lambda run: walker(run, Job(Walk(log=str(log)))))
    monkeypatch.setattr(StageCheckpoints, "save", real)
    make_run(home, lambda run: walker(run, Job(Walk(log=str(log)))))
    assert walked(log) == [1, 2, 3, 4, 3, 4, 5, 6]


def stage_run(tracker: Any, parent: str) -> Any:
    (found,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    return found


def curve(tracker: Any, run_id: str) -> list[tuple[int, float]]:
    return sorted((one.step, one.value) for one in tracker.client.get_metric_history(run_id, "loss"))


def test_curves_are_in_a_running_run_while_the_stage_works(
    home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_curves, "BATCH_SECONDS", 0.05)
    seen: list[Any] = []
    here: list[Any] = []

    def shows(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        for step in (1, 2, 3):
            job.watch(step, {"loss": 1.0 / step})
        end = time.monotonic() + 30
        while not seen or len(seen[-1][1]) < 3:
            assert time.monotonic() < end
            time.sleep(0.1)
            for run in here[0].client.search_runs([here[0].experiment_id], "attributes.run_name = 'shows'"):
                seen.append((run, curve(here[0], run.info.run_id)))
        rows = [{"step": step, "loss": 1.0 / step, "rate": 0.1} for step in (1, 2, 3, 4)]
        (workdir / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    shows.__module__ = write_text.__module__
    one = stage("shows", kind="toy")(shows)

    def steps(run: Any) -> Any:
        here.append(run.tracker)
        return one(run, Job(Knobs())), run.tracker, run.mlflow_run_id

    made, tracker, parent = make_run(home, steps)
    running, points = seen[-1]
    assert running.info.status == "RUNNING"
    assert points == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert running.data.tags["mlflow.parentRunId"] == parent
    done = stage_run(tracker, parent)
    assert (done.info.run_id, done.info.status) == (running.info.run_id, "FINISHED")
    assert curve(tracker, done.info.run_id) == [*points, (4, 0.25)]
    assert len(tracker.client.get_metric_history(done.info.run_id, "rate")) == 4
    assert done.data.tags["resprout.digest"] == made.digest
    assert done.data.params == {"text": "a"}
    again, tracker, later = make_run(home, steps)
    assert again == made
    assert len(curve(tracker, stage_run(tracker, later).info.run_id)) == 4


@pytest.mark.parametrize(
    ("error", "status"), [(StageFailed("the loss is NaN"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_with_curves_ends_as_its_stage_did(
    home: Path, make_run: Callable[..., Any], error: BaseException, status: str
) -> None:
    def fails(job: Any, inputs: Any, workdir: Path, progress: Any) -> None:
        job.watch(1, {"loss": 5.0})
        raise error

    fails.__module__ = write_text.__module__
    here: list[Any] = []

    def steps(run: Any) -> None:
        here.extend((run.tracker, run.mlflow_run_id))
        stage("fails", kind="toy")(fails)(run, Job(Knobs()))

    with pytest.raises(type(error)):
        make_run(home, steps)
    found = stage_run(*here)
    assert found.info.status == status
    assert curve(here[0], found.info.run_id) == [(1, 5.0)], "what led there is what people want to see"


def test_a_tracking_server_that_is_away_costs_no_step_and_no_point(
    home: Path, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(live_curves, "BATCH_SECONDS", 0.01)
    real, tries = Tracker.log_points, []

    def away(self: Any, run_id: str, points: Any) -> None:
        if threading.current_thread().name == "live-curves":
            tries.append(len(points))
            raise Transient("MLflow is away")
        real(self, run_id, points)

    monkeypatch.setattr(Tracker, "log_points", away)

    def steps(run: Any) -> Any:
        walker(run, Job(Walk(log=str(tmp_path / "log"))))
        return run.tracker, run.mlflow_run_id

    tracker, parent = make_run(home, steps)
    assert tries
    assert [step for step, _ in curve(tracker, stage_run(tracker, parent).info.run_id)] == [1, 2, 3, 4, 5, 6]
