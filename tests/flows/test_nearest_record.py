"""The nearest record, and what of its key differs, by the words that people read."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.flows.nearest_record import config_path, nearest, parts_of
from resprout.infra.store.record import Parent, Record
from resprout.tasks.core.stage import StepId

STEP = StepId("recover")
FILES = {"tasks/recover/stage.py": "aa", "tasks/core/job.py": "bb", "configs/schema.py": "cc"}


def record(**changes: Any) -> Record:
    base: dict[str, Any] = {
        "stage": "recover", "key": "k", "kind": "model", "content": "0" * 64, "seed": 1,
        "config": {"rank": 8, "method": "lora", "distill_weight": None}, "code": {"reached": "one"},
        "libraries": {"torch": "2.8"}, "machine": {}, "who": "ada", "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0, "files": FILES, "parents": (Parent(role="pruned", digest="1" * 64, record="r"),),
    }  # fmt: skip
    return Record(**{**base, **changes})


def words(now: Record, *before: Record, waits_for: tuple[str, ...] = ()) -> list[str]:
    records = [(str(number), one) for number, one in enumerate(before)]
    found = nearest(STEP, parts_of(now), records, waits_for)
    assert found is not None
    return [str(one) for one in found.differences]


def test_values_stand_under_their_path_in_the_config() -> None:
    now = record(config={"rank": 16, "method": "lora", "distill_weight": 0.5}, seed=2)
    assert words(now, record()) == [
        "recover.rank 8 -> 16",
        "recover.distill_weight none -> 0.5",
        "seed 1 -> 2",
    ]


@pytest.mark.parametrize(
    ("step", "key", "path"),
    [
        (StepId("plan"), "target.params_ratio", "prune.target.params_ratio"),
        (StepId("evaluate", "dense"), "zero_shot.limit", "evaluate.zero_shot.limit"),
        (StepId("acquire_rows", "pool"), "sources[0].where", "select.pool[0].where"),
        (StepId("acquire_model", "model"), "dtype", "model.dtype"),
        (StepId("export"), "credits[0].licence", "credits[0].licence"),
        (StepId("mask", "round 1"), "keep", "keep"),
    ],
)
def test_paths(step: StepId, key: str, path: str) -> None:
    assert config_path(step, key) == path


def test_files_that_changed_came_or_went_are_named() -> None:
    files = {"tasks/recover/stage.py": "other", "tasks/core/job.py": "bb", "infra/markdown.py": "dd"}
    now = record(code={"reached": "two"}, files=files)
    assert words(now, record()) == [
        "code: configs/schema.py (gone), infra/markdown.py (new), recover/stage.py"
    ]


def test_of_many_files_the_first_are_named() -> None:
    now = record(code={"reached": "two"}, files={f"tasks/recover/{name}.py": "x" for name in "abcde"})
    assert words(now, record(files={})) == [
        "code: recover/a.py (new), recover/b.py (new), recover/c.py (new) and 2 more"
    ]


def test_a_record_of_an_earlier_version_has_no_files() -> None:
    old = record(schema_version=3, files=None)
    again = Record.loads(old.dumps(), old.id)
    assert b"files" not in old.dumps()
    assert words(record(code={"reached": "two"}), again) == ["its code"]
    assert words(record(), again) == []


def test_the_record_with_the_fewest_differences_counts_and_then_the_newest() -> None:
    far = record(config={"rank": 4, "method": "full"}, started="2026-03-01T00:00:00+00:00")
    near = [
        record(config={"rank": rank, "method": "lora"}, started=f"2026-01-0{day}T00:00:00+00:00")
        for rank, day in ((2, 2), (3, 3))
    ]
    now = record(config={"rank": 16, "method": "lora"})
    assert words(now, far, *near) == ["recover.rank 3 -> 16"]
    assert nearest(STEP, parts_of(now), [("0", record(stage="prune"))]) is None


def test_inputs_libraries_and_hardware() -> None:
    now = record(
        parents=(Parent(role="pruned", digest="2" * 64, record="r"),),
        libraries={"torch": "2.9"},
        keyed={"parents": {"pruned": ["2" * 64, ""]}, "hardware": {"cores": 1}},
    )
    before = record(keyed={"parents": {"pruned": ["1" * 64, ""]}, "hardware": {"cores": 2}})
    assert words(now, before) == [
        "input pruned 11111111 -> 22222222", "hardware.cores 2 -> 1", "torch 2.8 -> 2.9",
    ]  # fmt: skip


def test_an_input_that_is_still_to_be_made_is_no_difference() -> None:
    now = record(parents=(), keyed={"parents": {}})
    assert words(now, record(), waits_for=("pruned",)) == []
    assert words(now, record()) == ["input pruned 11111111 -> none"]
