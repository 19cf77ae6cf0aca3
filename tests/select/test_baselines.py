from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.schema import RowSource, SelectConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded, encode
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.select.embed import most_alike
from resprout.tasks.select.kept_rows import KeptRows
from resprout.tasks.select.likelihood import following_difficulty, response_nll
from resprout.tasks.select.methods.rds_plus import LIKED, REST, in_turn, representations
from resprout.tasks.select.stage import (
    METHODS,
    divergence_shard,
    reads_encoder,
    reads_pruned,
    reads_targets,
    select,
    selecting,
)

Rows = list[dict[str, Any]]


def run(
    method: str, rows: Rows, models: Path, folder: Path, seed: int = 17, **changes: Any
) -> tuple[list[dict], list[dict], Any]:
    workdir, given = folder / "out", folder / "in"
    workdir.mkdir(parents=True)
    given.mkdir()
    (given / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    inputs = {"rows": given, "dense": models / "dense", **changes.pop("inputs", {})}
    config = SelectConfig.model_validate(
        {
            "method": method,
            "pool": [{"source": "x"}],
            "budget_ratio": 0.3,
            "max_len_tokens": 400,
            **changes,
        }
    )
    select.body(Job(config, seed=seed, dtype="float32"), inputs, workdir, silent)
    selected = [json.loads(line) for line in (workdir / "selected.jsonl").read_text().splitlines()]
    decisions = [json.loads(line) for line in (workdir / "decisions.jsonl").read_text().splitlines()]
    return selected, decisions, json.loads((workdir / "summary.json").read_text())


def answer_losses(models: Path, row: dict[str, Any], prompt: bool) -> list[float]:
    """Losses of the answer's tokens, row by row with full logits."""
    tokenizer: Any = load_tokenizer(models / "dense")
    encoded = encode(tokenizer, row, "alpaca", 400)
    before = encoded.prompt_ids if prompt else []
    ids = torch.tensor([before + encoded.response_ids])
    with torch.no_grad():
        logs = load_model(models / "dense", "float32", "cpu")(ids).logits[0].double().log_softmax(-1)
    first = max(1, len(before))
    return [-float(logs[place - 1, ids[0, place]]) for place in range(first, ids.shape[1])]


def test_likelihoods_against_full_logits(models_folder: Path, pool_rows: Rows) -> None:
    rows = pool_rows[:6]
    tokenizer: Any = load_tokenizer(models_folder / "dense")
    model = load_model(models_folder / "dense", "float32", "cpu")
    encoded = [encode(tokenizer, row, "alpaca", 400) for row in rows]
    asked = [np.mean(answer_losses(models_folder, row, True)) for row in rows]
    alone = [np.mean(answer_losses(models_folder, row, False)) for row in rows]
    ids = [row["id"] for row in rows]
    kept = KeptRows(None, silent)
    assert response_nll(model, encoded, ids, kept) == pytest.approx(asked, abs=1e-4)
    expected = [math.exp(one - other) for one, other in zip(asked, alone, strict=True)]
    assert following_difficulty(model, encoded, ids, kept) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(response_nll(model, [Encoded([], [5])], ["a"], KeptRows(None, silent))[0])


def test_ifd_takes_the_hardest_that_the_question_helps(
    models_folder: Path, pool_rows: Rows, tmp_path: Path
) -> None:
    selected, decisions, _ = run("ifd", pool_rows, models_folder, tmp_path)
    ratio = {
        row["id"]: math.exp(
            np.mean(answer_losses(models_folder, row, True))
            - np.mean(answer_losses(models_folder, row, False))
        )
        for row in pool_rows
    }
    chosen = {row["id"] for row in selected}
    assert 0 < len(chosen) < len(pool_rows)
    assert all(ratio[one] < 1 for one in chosen)
    helped = sorted((one for one in ratio if ratio[one] < 1), key=lambda one: -ratio[one])
    # The budget ends within the hardest ones: but for rows that no longer fit, they are a first part.
    assert set(helped[: len(chosen) // 2]) <= chosen
    said = {one["id"]: one["reason"] for one in decisions}
    assert all(("does not help" in said[one]) == (ratio[one] >= 1) for one in ratio)


def test_of_an_answer_of_one_token_ifd_says_so(models_folder: Path, pool_rows: Rows, tmp_path: Path) -> None:
    """A prompt of 399 of 400 tokens leaves its answer one."""
    tokenizer: Any = load_tokenizer(models_folder / "dense")
    short = len(encode(tokenizer, pool_rows[0], "alpaca", 400).prompt_ids)
    long = {**pool_rows[0], "instruction": pool_rows[0]["instruction"] + "!" * (399 - short)}
    assert len(encode(tokenizer, long, "alpaca", 400).response_ids) == 1
    _, decisions, _ = run("ifd", [long, *pool_rows[1:]], models_folder, tmp_path)
    (said,) = (one["reason"] for one in decisions if one["id"] == long["id"])
    assert said == "its answer is one token, of which nothing is known without the question"


def test_perplexity_takes_the_middle(models_folder: Path, pool_rows: Rows, tmp_path: Path) -> None:
    selected, _, _ = run("perplexity", pool_rows, models_folder, tmp_path)
    nll = {row["id"]: np.mean(answer_losses(models_folder, row, True)) for row in pool_rows}
    order = sorted(nll, key=lambda one: nll[one])
    places = sorted(order.index(row["id"]) for row in selected)
    # A run around 44.5, the middle of 90, but for rows that no longer fit.
    middle = (places[0] + places[-1]) / 2
    assert abs(middle - 44.5) <= 3
    assert len(places) >= 0.8 * (places[-1] - places[0] + 1)


def test_longest_takes_the_longest_answers(models_folder: Path, pool_rows: Rows, tmp_path: Path) -> None:
    selected, _, _ = run("longest", pool_rows, models_folder, tmp_path)
    tokenizer: Any = load_tokenizer(models_folder / "dense")
    length = {row["id"]: len(encode(tokenizer, row, "alpaca", 400).response_ids) for row in pool_rows}
    chosen = {row["id"] for row in selected}
    longest = sorted(length, key=lambda one: (-length[one], one))
    assert set(longest[: len(chosen) - 3]) <= chosen


def test_stratified_gives_each_category_its_share(
    models_folder: Path, pool_rows: Rows, tmp_path: Path
) -> None:
    rows = [
        {**row, "category": "rare" if number < 15 else "frequent"} for number, row in enumerate(pool_rows)
    ]
    selected, _, summary = run("stratified", rows, models_folder, tmp_path)
    granted = {one["category"]: one["granted"] for one in summary["strata"]}
    assert sum(granted.values()) == summary["requested_tokens"]
    share = {
        name: sum(row["tokens"] for row in selected if row["category"] == name) / summary["filled_tokens"]
        for name in granted
    }
    assert share["rare"] == pytest.approx(granted["rare"] / summary["requested_tokens"], abs=0.05)
    assert 0.1 < share["rare"] < 0.25
    blind = [{**row, "category": ""} for row in pool_rows]
    with pytest.raises(BadInput, match=r"none of the pool has a category; give `category` in select\.pool"):
        run("stratified", blind, models_folder, tmp_path / "blind")


def test_full_takes_all_and_keeps_the_budget_for_training(
    models_folder: Path, pool_rows: Rows, tmp_path: Path
) -> None:
    selected, _, summary = run("full", pool_rows, models_folder, tmp_path)
    assert len(selected) == len(pool_rows)
    assert summary["filled_tokens"] == summary["pool_tokens"]
    assert summary["requested_tokens"] == int(0.3 * summary["pool_tokens"])
    assert summary["warnings"] == []


def test_representations_weigh_later_tokens_more(models_folder: Path) -> None:
    """Weights 1/6, 2/6, 3/6 for three tokens, whatever a batch is padded with."""
    model: Any = load_model(models_folder / "dense", "float32", "cpu")
    rows = [Encoded([5, 9], [77]), Encoded([1, 2, 3, 4, 5], [6, 7, 8])]
    with torch.no_grad():
        states = model(torch.tensor([[5, 9, 77]]), output_hidden_states=True).hidden_states[-1][0].numpy()
    expected = states[0] / 6 + states[1] / 3 + states[2] / 2
    found = representations(model, rows, ["a", "b"], KeptRows(None, silent), "pool")
    assert np.allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_a_round_robin_by_hand() -> None:
    """The first wants 2, 0, 1; the second wants 2 too, then 0: it takes 0, and the first what is left, 1."""
    assert in_turn(np.array([[2, 0, 1], [2, 0, 1]], dtype=np.int32), 3) == [2, 0, 1]
    # No more than two are taken from lists of two; the others come by number.
    assert in_turn(np.array([[3, 2], [3, 0]], dtype=np.int32), 5) == [3, 0, 1, 2, 4]


def test_a_round_robin_over_lists_is_that_over_all_rows() -> None:
    """Lists of 20 of 100 rows, held against a search of the best row that is left for each target in turn."""
    rng = np.random.default_rng(1)
    similarities = rng.random((7, 100)) + 3 * rng.random(100)
    expected, left = list[int](), set(range(100))
    for turn in range(100):
        row = max(left, key=lambda row: similarities[turn % 7, row])
        expected.append(row)
        left.remove(row)
    best = most_alike(similarities, np.eye(100), 20)
    assert in_turn(best, 100)[:20] == expected[:20]
    assert sorted(in_turn(best, 100)) == list(range(100))
    assert in_turn(most_alike(similarities, np.eye(100), 100), 100) == expected


def test_rds_plus_takes_rows_like_the_targets(models_folder: Path, pool_rows: Rows, tmp_path: Path) -> None:
    """Each target is a row of the pool with a mark more, so that this row is the most like it."""
    targets = tmp_path / "targets"
    targets.mkdir()
    like = [row for row in pool_rows if row["category"] == "sail"][:5]
    wanted = [{**row, "id": f"t{number}", "output": f"{row['output']}."} for number, row in enumerate(like)]
    (targets / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in wanted))
    selected, decisions, _ = run(
        "rds_plus", pool_rows, models_folder, tmp_path / "run", inputs={"targets": targets}, budget_ratio=0.1
    )
    assert {row["id"] for row in like} <= {row["id"] for row in selected}
    assert {one["reason"] for one in decisions if one["accepted"]} == {LIKED}
    # The target likes the ten longest rows most, of which two fit: the shortest is taken because it fits.
    long = {**wanted[0], "output": f"{wanted[0]['output']} {'and more ' * 80}"}
    (targets / "rows.jsonl").write_text(json.dumps(long))
    rows = [
        *pool_rows,
        *({**long, "id": f"l{number}", "output": f"{long['output']}{number}"} for number in range(10)),
    ]
    budget = {"budget_ratio": None, "budget_tokens": 2 * 400 + min(one["tokens"] for one in decisions)}
    selected, decisions, _ = run(
        "rds_plus", rows, models_folder, tmp_path / "long", inputs={"targets": targets}, **budget
    )
    assert sorted(row["tokens"] == 400 for row in selected) == [False, True, True]
    assert [one["reason"] for one in decisions if one["accepted"] and one["tokens"] < 400] == [REST]
    with pytest.raises(BadInput, match=r"there are none; give select\.capabilities\.rows"):
        run("rds_plus", pool_rows, models_folder, tmp_path / "none")


def test_every_method_says_which_models_it_reads() -> None:
    def section(method: str, **given: Any) -> SelectConfig:
        return SelectConfig(method=method, pool=(RowSource(source="x"),), budget_ratio=0.5, **given)

    names, wanted = [entry.name for entry in METHODS], {"rows": [{"source": "y"}]}
    assert [name for name in names if reads_pruned(section(name))] == ["paser"]
    aimed = [name for name in names if reads_targets(section(name, capabilities=wanted))]
    assert aimed == ["paser", "rds_plus"]
    assert not any(reads_targets(section(name)) for name in names), "without capabilities none is aimed"


def test_settings_of_paser_are_in_no_other_key() -> None:
    """Neither its settings nor its encoder nor the target rows change what another method chooses, or the
    divergence that shards share."""

    def section(method: str, **given: Any) -> SelectConfig:
        return SelectConfig(method=method, pool=(RowSource(source="x"),), budget_ratio=0.5, **given)

    changed: dict[str, Any] = {"paser": {"embedder": "minilm", "embedder_source": "z"}}
    changed |= {"capabilities": {"rows": [{"source": "y"}]}}
    for name in (entry.name for entry in METHODS):
        same = selecting(section(name)) == selecting(section(name, **changed))
        assert same == (name != "paser")
        assert reads_encoder(section(name, **changed)) == (name == "paser")
    assert set(divergence_shard.reads) == {"rows", "dense", "pruned"}


def test_a_method_that_does_not_draw_chooses_the_same_by_every_seed_and_has_one_key(
    models_folder: Path, pool_rows: Rows, tmp_path: Path
) -> None:
    def section(method: str) -> SelectConfig:
        return SelectConfig(method=method, pool=(RowSource(source="x"),), budget_ratio=0.5)

    names = [entry.name for entry in METHODS if not select.draws(section(entry.name))]
    assert names == ["full", "ifd", "longest", "perplexity", "rds_plus"]
    targets = tmp_path / "targets"
    targets.mkdir()
    (targets / "rows.jsonl").write_text(json.dumps(pool_rows[0]))
    for name in names:
        given: Any = {"inputs": {"targets": targets}} if name == "rds_plus" else {}
        one, another = (
            run(name, pool_rows, models_folder, tmp_path / f"{name}{seed}", seed, **given)
            for seed in (17, 99)
        )
        assert one == another
        assert select.key(Job(section(name), seed=17), {}) == select.key(Job(section(name), seed=99), {})
    drawn = section("random")
    assert select.key(Job(drawn, seed=17), {}) != select.key(Job(drawn, seed=99), {})
