from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_checkpoints import Kept, Killed
from pydantic import ValidationError
from safetensors.numpy import load_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import CapabilitiesConfig, PaserConfig, RowSource, SelectConfig
from resprout.tasks.core.job import Job, Share, silent
from resprout.tasks.core.stage import Volume
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.select import auto, compared, divergence, kept_rows, paser_size
from resprout.tasks.select.concept_graph import phrases
from resprout.tasks.select.stage import (
    METHODS,
    check_compared,
    compared_bytes,
    dense_words,
    divergence_shard,
    pool,
    reads_pruned,
    select,
    selecting,
)

Rows = list[dict[str, Any]]
Write = Callable[..., Path]


def settings(method: str, **changes: Any) -> SelectConfig:
    given: dict[str, Any] = {
        "budget_ratio": 0.3,
        "max_len_tokens": 400,
        "paser": PaserConfig(clusters=4),
        **changes,
    }
    return SelectConfig(method=method, pool=(RowSource(source="x"),), **given)


class Result:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.selected = [json.loads(line) for line in (folder / "selected.jsonl").read_text().splitlines()]
        self.decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
        self.summary = json.loads((folder / "summary.json").read_text())
        self.metrics = json.loads((folder / "metrics.json").read_text())
        self.ids = [row["id"] for row in self.selected]


@pytest.fixture
def run(tmp_path: Path, models_folder: Path, write_rows: Write) -> Callable[..., Result]:
    number = iter(range(99))

    def call(
        method: str, rows: Rows, seed: int = 17, more: dict[str, Path] | None = None, **changes: Any
    ) -> Result:
        count = next(number)
        workdir = tmp_path / f"out{count}"
        workdir.mkdir()
        inputs = {name: models_folder / name for name in ("dense", "pruned")} | (more or {})
        inputs["rows"] = write_rows(rows, f"rows{count}")
        if method == "rds_plus":
            first = sorted(rows, key=lambda row: row["instruction"])[:4]
            wanted = [{**row, "id": f"t{number}"} for number, row in enumerate(first)]
            inputs["targets"] = write_rows(wanted, f"targets{count}")
        job = Job(settings(method, **changes), seed=seed, dtype="float32")
        select.body(job, inputs, workdir, silent)
        return Result(workdir)

    return call


FILLING = [entry.name for entry in METHODS if entry.name != "full"]
"""Methods that choose: the whole pool is no choice."""


@pytest.mark.parametrize("method", FILLING)
def test_contract(method: str, run: Callable[..., Result], pool_rows: Rows) -> None:
    """Every method: the budget is filled to within a row, each row has a reason, order changes no byte."""
    result = run(method, pool_rows)
    tokens = sum(row["tokens"] for row in result.selected)
    summary = result.summary
    pool_tokens = sum(decision["tokens"] for decision in result.decisions)
    assert summary["pool_tokens"] == pool_tokens
    assert summary["requested_tokens"] == 3 * pool_tokens // 10
    assert summary["filled_tokens"] == tokens <= summary["requested_tokens"]
    assert 0 < summary["answer_tokens"] < tokens
    assert summary["granted_tokens"] == summary["requested_tokens"]
    left = summary["requested_tokens"] - tokens
    refused = [one for one in result.decisions if not one["accepted"]]
    assert all(left < one["tokens"] for one in refused if "does not help" not in one["reason"])
    assert result.metrics["selected_rows"] == len(result.selected) == len(set(result.ids))

    by_id = {row["id"]: row for row in pool_rows}
    assert all({**by_id[row["id"]], "tokens": row["tokens"]} == row for row in result.selected)
    assert [decision["id"] for decision in result.decisions] == sorted(by_id)
    assert {decision["id"] for decision in result.decisions if decision["accepted"]} == set(result.ids)
    assert all(decision["reason"] for decision in result.decisions)
    expected = {"id", "tokens", "cluster", "jsd", "efficiency", "concepts", "accepted", "reason"}
    expected |= {"source", "file", "row"}
    assert all(set(decision) == expected for decision in result.decisions)
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in result.metrics.values())

    shuffled = run(method, random.Random(3).sample(pool_rows, len(pool_rows)))
    for name in ("selected.jsonl", "decisions.jsonl", "summary.json", "metrics.json"):
        assert (result.folder / name).read_bytes() == (shuffled.folder / name).read_bytes()


@pytest.mark.parametrize("method", [name for name in FILLING if name != "stratified"])
def test_category_decides_nothing(method: str, run: Callable[..., Result], pool_rows: Rows) -> None:
    blind = [{**row, "category": "", "source": ""} for row in pool_rows]
    assert run(method, blind).ids == run(method, pool_rows).ids


@pytest.mark.parametrize("method", [entry.name for entry in METHODS])
def test_rows_that_cannot_be_chosen(method: str, run: Callable[..., Result], pool_rows: Rows) -> None:
    rows = [
        *pool_rows,
        {**pool_rows[0], "id": "z-twin"},
        {**pool_rows[0], "id": "z-empty", "output": ""},
        {**pool_rows[0], "id": "z-long", "instruction": "x" * 500},
    ]
    result = run(method, rows, budget_ratio=1.0)
    reasons = {
        decision["id"]: decision["reason"] for decision in result.decisions if not decision["accepted"]
    }
    assert reasons.pop("z-twin") == "the same as another row"
    assert reasons.pop("z-empty") == reasons.pop("z-long") == "no response token left after the template"
    assert result.summary["left_out_rows"] == 3
    assert method in ("paser", "ifd") or not reasons


def test_rows_that_cannot_be_chosen_are_warned_of(run: Callable[..., Result], pool_rows: Rows) -> None:
    long = {**pool_rows[0], "id": "a", "instruction": "x" * 500, "file": "pool.jsonl", "row": 7}
    said = [one for one in run("random", [*pool_rows, long]).summary["warnings"] if "cannot be chosen" in one]
    first = (
        f"1 of {len(pool_rows) + 1} rows cannot be chosen, the first row 7 of pool.jsonl: no response token"
    )
    assert [one[: len(first)] for one in said] == [first]
    assert not any("cannot be chosen" in one for one in run("random", pool_rows).summary["warnings"])


def test_a_selection_of_no_row_is_none(run: Callable[..., Result], pool_rows: Rows) -> None:
    paper = PaserConfig(mode="paper", clusters=4)
    with pytest.raises(BadInput, match=r"paser chose none of \d+ rows for a budget of 1 rows that gives no"):
        run("paser", pool_rows, paser=paper, budget_rows=1, budget_ratio=None)


def test_the_row_on_which_a_model_gives_no_numbers_is_named_by_its_file(
    run: Callable[..., Result], pool_rows: Rows, models_folder: Path, tmp_path: Path
) -> None:
    rows = [
        {**row, "source": "pool", "file": "pool.jsonl", "row": 1 + place}
        for place, row in enumerate(pool_rows)
    ]
    broken = load_model(models_folder / "pruned", "float32", "cpu")
    broken.model.norm.weight.data.fill_(math.nan)
    broken.save_pretrained(tmp_path / "broken")
    for file in (models_folder / "pruned").glob("*token*"):
        shutil.copy(file, tmp_path / "broken")
    with pytest.raises(
        StageFailed, match=r"pruned model's logits .* on the row \S+ .*; it is row (\d+) of pool"
    ) as told:
        run("paser", rows, more={"pruned": tmp_path / "broken"})
    id, number = re.findall(r"the row (\S+) .*it is row (\d+) of", str(told.value))[0]
    assert rows[int(number) - 1]["id"] == id


def test_instructions_without_words_are_found_before_a_model_is_loaded(
    run: Callable[..., Result], pool_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(compared, "load_pair", load)
    rows = [{**row, "instruction": "-"} for row in pool_rows]
    paper = PaserConfig(mode="paper", clusters=4)
    with pytest.raises(BadInput, match="no words"):
        run("paser", rows, paser=paper)


def test_compared_selections_have_names_of_their_own() -> None:
    with pytest.raises(ValidationError, match=r"compare holds paser; name one of its forms: auto, aimed"):
        settings("random", compare=("paser",))
    config = settings("random", compare=("nosuch",))
    with pytest.raises(BadInput, match=r"unknown selection method 'nosuch'.* Or forms of paser: auto, aimed"):
        check_compared(config, Path())
    with pytest.raises(BadInput, match=r"select\.compare holds rds_plus, which chooses rows like given"):
        check_compared(settings("random", compare=("rds_plus",)), Path())
    wanted = CapabilitiesConfig(rows=(RowSource(source="y"),))
    kmeans = PaserConfig(clusterer="kmeans")
    labels = [settings("paser", paser=kmeans, capabilities=given).label for given in (None, wanted)]
    assert labels == ["kmeans", "kmeans_aimed"]


def test_answers_that_are_cut_are_counted(run: Callable[..., Result], pool_rows: Rows) -> None:
    whole = run("random", pool_rows)
    assert whole.summary["cut_rows"] == 0
    assert not any("are cut" in one for one in whole.summary["warnings"])
    long = [
        {**row, "output": "word " * 400} if place % 5 == 0 else row for place, row in enumerate(pool_rows)
    ]
    cut = run("random", long)
    assert cut.summary["cut_rows"] == cut.metrics["cut_rows"] == 18
    assert any("answers of 18 of 90 rows are cut" in one for one in cut.summary["warnings"])
    chosen = cut.summary["selected_cut_rows"]
    assert chosen == sum(row["output"].startswith("word word") for row in cut.selected)
    assert not any("chosen rows are cut" in one for one in cut.summary["warnings"])
    longest = run("longest", long)
    assert longest.summary["selected_cut_rows"] == 0, "an answer without its end comes last"
    most = run("longest", [{**row, "output": "word " * 400} for row in pool_rows])
    said = f"answers of {len(most.selected)} of {len(most.selected)} chosen rows are cut"
    assert any(said in one for one in most.summary["warnings"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budget_ratio": None, "budget_tokens": 10**6},
            r"budget_tokens is 1000000 but the pool holds \d+ tokens in 90",
        ),
        ({"budget_ratio": None, "budget_tokens": 20}, "budget of 20 tokens holds no row: the shortest takes"),
        ({"max_len_tokens": 50}, "no tokens left after the template"),
        ({"template": "chat"}, "no chat template"),
    ],
)
def test_pools_and_budgets_that_do_not_fit(
    run: Callable[..., Result], pool_rows: Rows, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run("random", pool_rows, **changes)


def test_random_reads_no_weights(
    models_folder: Path, write_rows: Write, pool_rows: Rows, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((models_folder / "dense" / name).read_bytes())
    job = Job(settings("random"), dtype="float32")
    select.body(job, {"rows": write_rows(pool_rows), "dense": bare}, tmp_path, silent)
    assert Result(tmp_path).selected


def test_random_follows_the_seed(run: Callable[..., Result], pool_rows: Rows) -> None:
    assert run("random", pool_rows).ids != run("random", pool_rows, seed=18).ids


def reference(
    models_folder: Path, rows: Rows, clusters: int, ratio: float, seed: int, mode: str
) -> list[str]:
    """PASER as the paper has it, or its code, with loops: ids of the chosen rows."""
    from sklearn.decomposition import NMF

    from resprout.tasks.data.template import encode
    from resprout.tasks.select.embed import tfidf

    released = mode == "released"
    rows = sorted(rows, key=lambda row: row["id"])
    tokenizer: Any = load_tokenizer(models_folder / "dense")
    dense, pruned = (load_model(models_folder / name, "float32", "cpu") for name in ("dense", "pruned"))
    lengths, jsd = [], []
    for row in rows:
        encoded = encode(tokenizer, row, "alpaca", 400)
        ids = torch.tensor([encoded.prompt_ids + encoded.response_ids])
        lengths.append(ids.shape[1])
        # The logits that predict the response, or all tokens of the prompt but the first.
        border = len(encoded.prompt_ids) - 1
        places = slice(0, border) if released else slice(border, -1)
        with torch.no_grad():
            p, q = (m(ids).logits[0, places].double().softmax(-1) for m in (pruned, dense))
        m = (p + q) / 2
        each = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        jsd.append(float(each.sum() if released else each.mean()))
    points = tfidf([row["instruction"] for row in rows], seed)
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    sigma = np.median(far[np.triu_indices(len(rows), 1)])
    kernel = np.exp(-(far**2) / (2 * sigma**2))
    values, vectors = np.linalg.eig(np.eye(len(rows)) - kernel / kernel.sum(1, keepdims=True))
    phi = vectors[:, np.argsort(values.real)[:clusters]].real
    start = "random" if released else "nndsvda"
    weights = NMF(clusters, init=start, random_state=seed, max_iter=400, tol=1e-3).fit_transform(
        np.abs(phi @ phi.T)
    )
    members = defaultdict(list)
    for index, label in enumerate(weights.argmax(1)):
        members[label].append(index)
    cds = {label: np.mean([jsd[index] for index in found]) for label, found in members.items()}
    budget = int(ratio * len(rows))
    vertices: set[str] = set()
    edges: set[frozenset[str]] = set()
    chosen = []
    for label in sorted(members) if released else sorted(members, key=lambda k: -cds[k]):
        left = min(int(budget * cds[label] / sum(cds.values())), len(members[label]))
        for index in sorted(members[label], key=lambda i: -jsd[i] / math.log(lengths[i] ** 2)):
            row = rows[index]
            concepts = set(phrases("\n".join(row[column] for column in ("instruction", "input", "output"))))
            pairs = [frozenset(pair) for pair in combinations(concepts, 2)]
            if left < 1 or any(pair not in edges and pair <= vertices for pair in pairs):
                continue
            left -= 1
            chosen.append(row["id"])
            vertices |= concepts
            edges |= set(pairs)
    return sorted(chosen)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_published_modes_against_an_independent_reference(
    mode: str, run: Callable[..., Result], pool_rows: Rows, models_folder: Path
) -> None:
    result = run("paser", pool_rows, paser=PaserConfig(mode=mode, clusters=4))  # type: ignore[arg-type]
    expected = reference(models_folder, pool_rows, 4, 0.3, 17, mode)
    assert 5 < len(expected) <= 27
    assert result.ids == expected
    path = result.summary["path"]
    assert (path["mode"], path["graph"], path["clusters"]) == (mode, "literal", 4)
    assert any("the release" in line for line in path["decided"]) == (mode == "released")
    assert path["sigma"] > 0
    assert result.summary["requested_rows"] == 27
    assert result.summary["granted_rows"] <= 27
    pool_tokens = result.summary["pool_tokens"]
    assert result.summary["requested_tokens"] == pool_tokens * 27 // 90
    assert [cluster["cds_half_interval"] for cluster in result.summary["clusters"]] == [0.0] * 4


def test_a_budget_in_rows(run: Callable[..., Result], pool_rows: Rows) -> None:
    for method in ("random", "paser"):
        result = run(method, pool_rows, budget_ratio=None, budget_rows=20)
        assert len(result.selected) == result.summary["requested_rows"] == 20
        assert result.summary["budget_unit"] == "rows"
    with pytest.raises(BadInput, match=r"budget_rows is 91 but the pool holds 90 rows"):
        run("random", pool_rows, budget_ratio=None, budget_rows=91)


def test_a_budget_is_the_share_as_it_is_written(run: Callable[..., Result], pool_rows: Rows) -> None:
    """0.7 of 90 rows are 63, while the product of the binary numbers is 62.99 and more."""
    assert int(0.7 * 90) == 62
    result = run("paser", pool_rows, budget_ratio=0.7, paser=PaserConfig(mode="paper", clusters=4))
    assert result.summary["requested_rows"] == 63


def test_a_budget_that_is_not_filled_says_why(run: Callable[..., Result], pool_rows: Rows) -> None:
    """Published modes round each grant down and fill no further; `random` lacks less than a row."""
    paper = run("paser", pool_rows, budget_ratio=0.1, paser=PaserConfig(mode="paper", clusters=4)).summary
    filled, granted = paper["selected_rows"], paper["granted_rows"]
    assert filled <= granted < paper["requested_rows"] == 9
    said = (
        f"filled {filled} of 9 rows: its clusters were granted {granted}, and {90 - filled} rows that would "
        "fit are refused, as decisions.jsonl says of each; recovery still trains as many steps"
    )
    assert any(one.startswith(said) for one in paper["warnings"])
    assert not any("filled" in one for one in run("random", pool_rows, budget_ratio=0.3).summary["warnings"])


@pytest.mark.parametrize(
    "changes", [{"clusterer": "kmeans"}, {"clusters": "auto"}, {"graph": "top3"}, {"pilot_tokens": 100}]
)
def test_published_modes_take_no_rule_of_ours(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"mode is paper but {next(iter(changes))} is"):
        PaserConfig(**{"mode": "paper", "clusters": 4, **changes})  # type: ignore[arg-type]


def test_published_modes_count_rows_and_drop_nothing_alike() -> None:
    published = settings("paser", paser=PaserConfig(mode="paper"))
    assert published.counts_rows
    assert not published.filter.near_duplicates
    assert published.filter.contaminated_words == 13
    assert settings("paser").filter.near_duplicates
    with pytest.raises(ValidationError, match="whose budget counts rows"):
        settings("paser", paser=PaserConfig(mode="released"), budget_ratio=None, budget_tokens=100)
    capabilities = {"rows": [{"source": "y"}]}
    with pytest.raises(ValidationError, match=r"mode paper does not know"):
        settings("paser", paser={"mode": "paper"}, capabilities=capabilities)


@pytest.mark.parametrize(
    "changes", [{"clusterer": "kmeans"}, {"clusters": "auto"}, {"embedder": "hidden"}, {"graph": "literal"}]
)
def test_auto_in_all_its_forms(run: Callable[..., Result], pool_rows: Rows, changes: dict[str, Any]) -> None:
    config = PaserConfig(**{"clusters": 4, **changes})  # type: ignore[arg-type]
    result = run("paser", pool_rows, paser=config)
    assert 0 <= result.summary["requested_tokens"] - result.summary["filled_tokens"] < 200
    name, value = next(iter(changes.items()))
    assert name == "clusters" or result.summary["path"][name] == value
    assert result.summary["path"]["clusters_by"] == (
        "elbow, eigengap and stability" if name == "clusters" else "paser.clusters"
    )


def test_minilm_from_a_folder(run: Callable[..., Result], pool_rows: Rows, models_folder: Path) -> None:
    config = PaserConfig(clusters=4, embedder="minilm", embedder_source="anywhere")
    result = run("paser", pool_rows, paser=config, more={"embedder": models_folder / "encoder"})
    assert result.summary["path"]["embedder"] == "minilm"
    assert result.selected
    with pytest.raises(BadInput, match="holds no sentence encoder"):
        run("paser", pool_rows, paser=config, more={"embedder": models_folder})
    with pytest.raises(BadInput, match="no input `embedder`"):
        run("paser", pool_rows, paser=config)


def test_minilm_is_the_mean_over_real_tokens(models_folder: Path) -> None:
    from transformers import AutoModel

    from resprout.tasks.select.embed import minilm

    texts = ["boil the soup", "a"]
    found, cut = minilm(models_folder / "encoder", texts, texts, "float32", "cpu", silent)
    assert not cut.any()
    model = AutoModel.from_pretrained(models_folder / "encoder").eval()
    tokenizer: Any = load_tokenizer(models_folder / "encoder")
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0)
        assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    rough, _ = minilm(models_folder / "encoder", texts, texts, "bfloat16", "cpu", silent)
    assert not np.array_equal(rough, found)
    assert np.allclose(rough, found, atol=0.02)


def test_what_the_encoder_did_not_see_makes_no_rivals(
    run: Callable[..., Result], pool_rows: Rows, models_folder: Path
) -> None:
    """Two questions that differ behind the 256 tokens of the encoder, and two that are equal."""
    config = PaserConfig(clusters=4, embedder="minilm", embedder_source="anywhere")
    asked = ["France", "Spain", "Rome", "Rome"]
    rows = [
        {**row, "id": f"long{number}", "instruction": f"{'Think. ' * 40}{asked[number]}", "input": ""}
        for number, row in enumerate(pool_rows[:4])
    ]
    result = run(
        "paser",
        [*rows, *pool_rows[4:]],
        paser=config,
        more={"embedder": models_folder / "encoder"},
        max_len_tokens=800,
    )
    rivals = {one["id"] for one in result.decisions if "the question of" in one["reason"]}
    assert {one for one in rivals if one.startswith("long")} in ({"long2"}, {"long3"})
    assert any(one.startswith("4 instructions fill the 256 tokens") for one in result.summary["warnings"])


def test_an_encoder_without_numbers_names_the_row(models_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from resprout.tasks.select.embed import minilm

    folder = Path(shutil.copytree(models_folder / "encoder", tmp_path / "ill"))
    tensors = load_file(folder / "model.safetensors")
    (token,) = load_tokenizer(folder)("z")["input_ids"]
    tensors["embeddings.word_embeddings.weight"][token] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = r"the encoder model's .* not finite on the row r1 .*float32, or another paser\.embedder"
    with pytest.raises(StageFailed, match=sentence):
        minilm(folder, ["a", "jazz"], ["r0", "r1"], "float32", "cpu", silent)


def test_settings_that_a_mode_does_not_read_are_in_no_key() -> None:
    def key(stage: Any, **paser: Any) -> Any:
        config = settings("paser", paser=PaserConfig(clusters=4, **paser))
        return stage.settings(config)

    ours: list[dict[str, Any]] = [{"sample_rows": None}, {"landmarks": 300}, {"duplicate_cosine": 0.9}]
    for changes in ours:
        assert key(select, mode="paper", **changes) == key(select, mode="paper")
        assert key(select, **changes) != key(select)
        # What is kept of the dense model is of all rows, whichever are compared.
        assert key(dense_words, **changes) == key(dense_words)
    assert key(select, top_k=8) == key(select)
    assert key(select, dense="kept", top_k=8) != key(select, dense="kept")
    assert key(dense_words, top_k=8) != key(dense_words)
    assert key(dense_words, mode="released") != key(dense_words)


def test_more_is_spent_where_more_was_lost(run: Callable[..., Result], pool_rows: Rows) -> None:
    clusters = run("paser", pool_rows).summary["clusters"]
    free = [cluster for cluster in clusters if cluster["granted"] < cluster["held"]]
    for first, second in combinations(free, 2):
        share = first["granted"] / second["granted"]
        assert share == pytest.approx(first["cds"] / second["cds"], rel=0.02)


def test_near_duplicates_are_reduced(run: Callable[..., Result], pool_rows: Rows) -> None:
    """A twin with another answer: exactly one of the two stays in the running, and the decision says why."""
    twin = {**pool_rows[0], "id": "z-twin", "output": "anchor"}
    result = run("paser", [*pool_rows, twin], budget_ratio=1.0)
    gone = [decision for decision in result.decisions if "likes better" in decision["reason"]]
    assert len(gone) == 1
    assert gone[0]["id"] in ("z-twin", pool_rows[0]["id"])
    assert result.metrics["rival_rows"] == 1


def test_an_unhurt_model_gives_equal_shares_and_says_so(
    models_folder: Path, write_rows: Write, pool_rows: Rows, tmp_path: Path
) -> None:
    inputs = {
        "rows": write_rows(pool_rows),
        "dense": models_folder / "dense",
        "pruned": models_folder / "dense",
    }
    select.body(Job(settings("paser"), dtype="float32"), inputs, tmp_path, silent)
    result = Result(tmp_path)
    assert any("equal shares" in warning for warning in result.summary["warnings"])
    assert {decision["jsd"] for decision in result.decisions} == {0.0}


def test_limits(run: Callable[..., Result], pool_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"5 rows, which are too few for paser\.clusters: 4; it needs 8"):
        run("paser", pool_rows[:5])
    monkeypatch.setattr(paser_size, "MOST_ROWS", 80)
    with pytest.raises(BadInput, match=r"90 rows, and paser\.mode paper holds every row .* up to 80"):
        run("paser", pool_rows, paser=PaserConfig(mode="paper", clusters=4))


def test_limits_show_before_a_weight_is_loaded(
    models_folder: Path, write_rows: Write, pool_rows: Rows, tmp_path: Path
) -> None:
    inputs = {"rows": write_rows(pool_rows), "dense": models_folder / "dense"}
    pool.body(Job(settings("paser")), inputs, tmp_path, silent)
    assert json.loads((tmp_path / "metrics.json").read_text())["pool_rows"] == 90
    file = inputs["rows"] / "rows.jsonl"
    file.write_text("".join(f"{line}\n" for line in file.read_text().split("\n")[:5]))
    with pytest.raises(BadInput, match="5 rows, which are too few"):
        pool.body(Job(settings("paser")), inputs, tmp_path, silent)
    left_out = "395 of 400 rows of the pool were left out before the selection"
    (inputs["rows"] / "warnings.json").write_text(json.dumps([left_out]))
    with pytest.raises(BadInput, match=f"or set fewer clusters; {left_out}"):
        pool.body(Job(settings("paser")), inputs, tmp_path, silent)


def test_progress_reaches_the_end(
    models_folder: Path, write_rows: Write, pool_rows: Rows, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    inputs = {
        "rows": write_rows(pool_rows),
        "dense": models_folder / "dense",
        "pruned": models_folder / "pruned",
    }
    select.body(Job(settings("paser"), dtype="float32"), inputs, tmp_path, lambda *told: seen.append(told))
    assert (90, 90, "rows compared") in seen
    assert seen[-1][0] == seen[-1][1]


def test_an_encoder_without_all_its_weights(models_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from resprout.tasks.select.embed import minilm

    def cut(part: str) -> Path:
        folder = Path(shutil.copytree(models_folder / "encoder", tmp_path / part))
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if part not in name}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    texts = ["boil the soup", "hoist the sail"]
    expected, _ = minilm(models_folder / "encoder", texts, texts, "float32", "cpu", silent)
    assert np.array_equal(minilm(cut("pooler"), texts, texts, "float32", "cpu", silent)[0], expected)
    with pytest.raises(BadInput, match=r"lacks 2 of the weights .*encoder\.layer\.0\.output\.dense"):
        minilm(cut("layer.0.output.dense"), texts, texts, "float32", "cpu", silent)


@pytest.mark.parametrize("embedder", ["tfidf", "hidden"])
def test_a_selection_from_shards_equals_that_of_one_piece(
    models_folder: Path,
    pool_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    embedder: str,
) -> None:
    monkeypatch.setitem(divergence.PASS_TOKENS, "cpu", 300)
    inputs = {name: models_folder / name for name in ("dense", "pruned")} | {"rows": write_rows(pool_rows)}
    config = settings("paser", paser=PaserConfig(clusters=4, embedder=embedder))
    given = dict(inputs)
    for index in range(3):
        folder = given[f"shard-{index:06d}"] = tmp_path / f"{index}"
        folder.mkdir()
        divergence_shard.body(Job(config, dtype="float32", share=Share(index, 3)), inputs, folder, silent)
    sizes = [len(load_file(tmp_path / f"{index}" / "divergence.safetensors")["rows"]) for index in range(3)]
    assert min(sizes) > 0
    assert sum(sizes) == len(pool_rows)
    for name, seen in (("whole", inputs), ("merged", given)):
        (tmp_path / name).mkdir()
        select.body(Job(config, dtype="float32"), seen, tmp_path / name, silent)
    for file in ("selected.jsonl", "decisions.jsonl", "summary.json", "metrics.json"):
        assert (tmp_path / "merged" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_divergence_serves_every_budget_and_clustering() -> None:
    def key(**changes: Any) -> str:
        return divergence_shard.key(Job(settings("paser", **changes), share=Share(0, 2)), {})

    assert key() == key(budget_ratio=0.5) == key(paser=PaserConfig(clusters=7))
    assert key() != key(max_len_tokens=300)
    assert key() != key(paser=PaserConfig(temperature=2.0))
    assert not reads_pruned(settings("random"))


def test_rows_that_were_compared_are_not_compared_again(
    models_folder: Path,
    pool_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(divergence.PASS_TOKENS, "cpu", 2000)
    monkeypatch.setattr(kept_rows, "CHECKPOINT_MINUTES", 1e-9)
    inputs = {name: models_folder / name for name in ("dense", "pruned")} | {"rows": write_rows(pool_rows)}
    kept, seen = Kept(tmp_path / "kept"), list[int]()

    def run(name: str, checkpoints: Kept | None, progress: Any = silent) -> dict[str, bytes]:
        (tmp_path / name).mkdir()
        job = Job(settings("paser"), dtype="float32", checkpoints=checkpoints)
        select.body(job, inputs, tmp_path / name, progress)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    whole = run("whole", None)

    def progress(done: int, total: int, what: str) -> None:
        if what == "rows compared" and len(kept.steps) == 3:
            raise Killed

    with pytest.raises(Killed):
        run("half", kept, progress)
    real = divergence.Comparison.of

    def counted(self: Any, rows: Any, *others: Any) -> Any:
        seen.append(len(rows))
        return real(self, rows, *others)

    monkeypatch.setattr(divergence.Comparison, "of", counted)
    assert run("again", kept) == whole
    assert sum(seen) == len(pool_rows) - kept.steps[2]


def test_hidden_states_come_with_the_comparison_where_all_rows_are_compared(
    run: Callable[..., Result], pool_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool above the size from which rows are sampled: a pass over the prompts would be one too many."""

    def prompts(*given: Any) -> Any:
        raise AssertionError

    for module in (paser_size, auto):
        monkeypatch.setattr(module, "MOST_ROWS", 50)
    monkeypatch.setattr(compared, "prompt_states", prompts)
    whole = PaserConfig(clusters=2, embedder="hidden", landmarks=100, sample_rows=None)
    assert run("paser", pool_rows, paser=whole).summary["path"]["divergence"] == "every row"
    with pytest.raises(AssertionError):
        run("paser", pool_rows, paser=whole.model_copy(update={"sample_rows": 30}))


def test_shards_have_nothing_to_do_where_a_sample_is_compared(
    models_folder: Path,
    pool_rows: Rows,
    write_rows: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (paser_size, auto):
        monkeypatch.setattr(module, "MOST_ROWS", 50)
    inputs = {name: models_folder / name for name in ("dense", "pruned")} | {"rows": write_rows(pool_rows)}
    config = settings(
        "paser", budget_ratio=0.05, paser=PaserConfig(clusters=2, landmarks=100, sample_rows=30)
    )
    folder = tmp_path / "shard"
    folder.mkdir()
    divergence_shard.body(Job(config, dtype="float32", share=Share(0, 2)), inputs, folder, silent)
    assert len(load_file(folder / divergence.FILE)["rows"]) == 0
    for name, given in (("alone", inputs), ("sharded", {**inputs, "shard-000000": folder})):
        (tmp_path / name).mkdir()
        select.body(Job(config, dtype="float32"), given, tmp_path / name, silent)
    alone, sharded = Result(tmp_path / "alone"), Result(tmp_path / "sharded")
    assert alone.metrics["compared_rows"] < len(pool_rows)
    assert alone.decisions == sharded.decisions


def test_paper_auto_and_kmeans_share_a_comparison_of_all_rows() -> None:
    def key(seed: int, **paser: Any) -> str:
        config = settings("paser", paser=PaserConfig(sample_rows=None, **paser))
        return divergence_shard.key(Job(config, seed=seed, share=Share(0, 2)), {})

    assert key(17) == key(18, mode="paper") == key(19, clusterer="kmeans")
    assert key(17) != key(17, temperature=2.0)


def test_of_a_large_pool_a_sample_is_counted_when_time_is_predicted() -> None:
    """By hand: 10 clusters of 300 rows of 64 tokens of 4 bytes, and 4 times a tenth of 100 MB."""
    section = selecting(SelectConfig(pool=({"source": "rows.jsonl"},), budget_ratio=0.1, max_len_tokens=128))
    assert compared_bytes(section, Volume(0, rows_bytes=100_000_000)) == 10 * 300 * 64 * 4 + 40_000_000
    assert compared_bytes(section, Volume(0, rows_bytes=1000)) == 1000
    assert compared_bytes(section, Volume(0)) is None
    drawn = {**section, "method": "random"}
    del drawn["paser"]
    assert compared_bytes(drawn, Volume(0, rows_bytes=1000)) == 1000
