"""By how much two artifacts differ, in terms of what a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resprout.tasks.compare.artifacts import compare, relative

PLAN: dict[str, Any] = {
    "reached": {"params": 100},
    "layers": [{"ffn": [0, 1, 2, 3], "kv_groups": [0]}, {"ffn": [0, 2], "kv_groups": [0, 1]}],
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "model").mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(PLAN))
        (folder / "metrics.json").write_text(json.dumps({"ppl": 10.0, "acc": 0.5, "name": "x"}))
        (folder / "rows.jsonl").write_text("".join(f'{{"n": {number}}}\n' for number in range(5)))
        tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
        save_file(tensors, folder / "model" / "model.safetensors")
    return first, second


def test_equal_folders_have_no_difference(pair: tuple[Path, Path]) -> None:
    assert compare(*pair) == []


def said(pair: tuple[Path, Path]) -> str:
    (found,) = compare(*pair)
    return f"{found.path} {found.says}"


def test_a_plan_says_how_many_units_differ_and_where(pair: tuple[Path, Path]) -> None:
    other = json.loads(json.dumps(PLAN))
    other["layers"][1]["ffn"] = [0, 3]
    other["layers"][0]["kv_groups"] = [1]
    (pair[1] / "plan.json").write_text(json.dumps(other))
    assert said(pair) == (
        "plan.json 2 ffn units that only one of both keeps and 2 kv_groups units that only one of both keeps"
        ", in layers 0, 1"
    )


def test_a_plan_with_the_same_units_says_which_value_differs(pair: tuple[Path, Path]) -> None:
    (pair[1] / "plan.json").write_text(json.dumps({**PLAN, "reached": {"params": 110}}))
    assert "1 of 10 values differ, at most by 9.09 % (reached.params: 100 then, 110 now)" in said(pair)


def test_tensors_say_absolute_and_relative_difference(pair: tuple[Path, Path]) -> None:
    changed = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    changed["a"][1, 2] += 0.5
    changed["b"][0] = 3.0
    save_file(changed, pair[1] / "model" / "model.safetensors")
    assert said(pair) == (
        "model/model.safetensors 2 of 2 tensors differ, at most by 2 absolute and 0.667 relative (in b)"
    )


def test_tensors_of_other_shapes_and_names_are_counted(pair: tuple[Path, Path]) -> None:
    save_file({"a": torch.zeros(3), "c": torch.zeros(1)}, pair[1] / "model" / "model.safetensors")
    assert "2 tensors are in one of both only, such as b, 1 tensors have other shapes or dtypes" in said(pair)


def test_a_file_that_is_no_safetensors_file_is_told(pair: tuple[Path, Path]) -> None:
    (pair[1] / "model" / "model.safetensors").write_bytes(b"nothing of the kind")
    assert "cannot be read as what its name says" in said(pair)


def test_numbers_say_the_largest_relative_difference(pair: tuple[Path, Path]) -> None:
    (pair[1] / "metrics.json").write_text(json.dumps({"ppl": 10.1, "acc": 0.4, "name": "x"}))
    assert said(pair) == "metrics.json 2 of 3 values differ, at most by 20 % (acc: 0.5 then, 0.4 now)"


def test_rows_are_counted_and_their_order_is_told(pair: tuple[Path, Path]) -> None:
    rows = (pair[0] / "rows.jsonl").read_text().splitlines(keepends=True)
    (pair[1] / "rows.jsonl").write_text("".join(reversed(rows)))
    assert said(pair) == "rows.jsonl the same 5 rows in another order"
    (pair[1] / "rows.jsonl").write_text("".join([*rows[:3], '{"n": 9}\n', *rows[4:]]))
    assert said(pair) == "rows.jsonl 1 of 5 rows differ"


def test_files_of_one_side_are_named(pair: tuple[Path, Path]) -> None:
    (pair[0] / "rows.jsonl").unlink()
    (pair[1] / "plan.json").unlink()
    assert [f"{one.path} {one.says}" for one in compare(*pair)] == [
        "plan.json was made the first time only",
        "rows.jsonl was made the second time only",
    ]


def test_the_relative_difference_is_of_the_larger_value() -> None:
    assert relative(2.0, 2.0) == relative(0.0, 0.0) == 0.0
    assert relative(1.0, 2.0) == relative(-2.0, -1.0) == 0.5
    assert relative(float("nan"), 1.0) == float("inf")
