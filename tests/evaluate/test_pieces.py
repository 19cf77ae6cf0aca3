"""Scores put together from shards are those of one piece, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resprout.configs.schema import EvaluateConfig
from resprout.tasks.core.job import Job, Share, silent
from resprout.tasks.evaluate import answers, perplexity
from resprout.tasks.evaluate.stage import evaluate, evaluate_shard
from tiny_models import write_tiny_folder
from tiny_run import TWO_CHOICES, words


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pieces")
    found = {name: root / name for name in ("text", "task_own", "task_other")}
    for folder in found.values():
        folder.mkdir()
    lines = [json.dumps({"text": words(400, seed), "source": f"s{seed % 2}"}) for seed in range(3)]
    (found["text"] / "text.jsonl").write_text("\n".join(lines))
    for name in ("task_own", "task_other"):
        (found[name] / "task.json").write_text(json.dumps(TWO_CHOICES))
        rows = [
            {"question": words(3 + i % 5, i), "a": words(2, i + 1), "b": words(1 + i % 4, i), "label": i % 2}
            for i in range(41)
        ]
        (found[name] / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found["dense"] = write_tiny_folder(root / "dense")
    found["model"] = write_tiny_folder(root / "model", seed=1, intermediate_size=96)
    return found


@pytest.mark.parametrize(("count", "dtype"), [(2, "float32"), (3, "bfloat16"), (20, "float32")])
def test_scores_from_shards_equal_those_of_one_piece(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, dtype: str
) -> None:
    monkeypatch.setattr(perplexity, "BATCH_TOKENS", 64)
    monkeypatch.setattr(perplexity, "CHUNK_ROWS", 20)
    monkeypatch.setattr(answers, "BLOCK_ITEMS", 8)
    tasks = [{"task": name, "data": {"source": "x"}} for name in ("own", "other")]
    config = EvaluateConfig.model_validate(
        {
            "perplexity": {
                "name": "words", "text": [{"source": "x"}], "window_tokens": 32, "stride_tokens": 24,
                "kl_tokens": 613,
            },
            "zero_shot": {"tasks": tasks, "limit": 37, "batch_size": 4},
        }
    )  # fmt: skip
    given = dict(inputs)
    for index in range(count):
        given[f"shard-{index:06d}"] = tmp_path / f"{index}"
        (tmp_path / f"{index}").mkdir()
        job = Job(config, dtype=dtype, share=Share(index, count))
        evaluate_shard.body(job, inputs, tmp_path / f"{index}", silent)
    for name, seen in (("whole", inputs), ("merged", given)):
        (tmp_path / name).mkdir()
        evaluate.body(Job(config, dtype=dtype), seen, tmp_path / name, silent)
    for file in ("metrics.json", "details.json", "samples.json", "answers.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    details = json.loads((tmp_path / "merged" / "details.json").read_text())
    assert details["perplexity"]["compared_tokens"] == 613
    assert sum(one["tokens"] for one in details["sources"].values()) == details["perplexity"]["scored_tokens"]
    assert min(one["kl"] for one in details["sources"].values()) > 0
    assert len(details["layer_distances"]) == 2
    assert all(0 < one < 2 for one in details["layer_distances"])
    assert {one["items"] for one in details["tasks"].values()} == {37}
    made = [json.loads((tmp_path / f"{index}" / "pieces.json").read_text()) for index in range(count)]
    assert count == 20 or all(part["scored"]["segments"] and part["answers"] for part in made), (
        "a shard had nothing to do"
    )
    assert [part["asked"] is not None for part in made] == [False] * (count - 1) + [True]
