"""The report's parts: the table by hand, the sentence on recovery, the pictures, and both templates."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from resprout.tasks.core.job import Job, silent
from resprout.tasks.evaluate.paired import MEAN
from resprout.tasks.models.shape import Shape
from resprout.tasks.report.past_run import PastRun
from resprout.tasks.report.shipped import Shipped
from resprout.tasks.report.stage import asked, kept_widths, measured_how, model_name, report
from resprout.tasks.report.table import comparison, recovery_sentence, summary_metrics
from tiny_report import DENSE, JOB, PRUNED, RECOVERED, SETTINGS, write_inputs


def cells(label: str, source: int | None = 1_000_000) -> tuple[str, ...]:
    rows = comparison({"dense": DENSE, "pruned": PRUNED, "recovered": RECOVERED}, source, "gguf:Q4_1")
    return {row.label: row.cells for row in rows}[label]


def test_ten_metrics_sum_a_run_up() -> None:
    dense = {"bytes": 200.0, "params": 100.0, "w_ppl_seq8": 20.0, MEAN: 0.5}
    ratio = {"decode4_tokens_per_s_ratio": 1.3, "decode4_tokens_per_s_ratio_low": 1.2}
    speed = {"decode4_tokens_per_s": 13.0, **ratio, "decode4_tokens_per_s_ratio_high": 1.4}
    final = {"bytes": 80e6, "params": 80.0, "w_ppl_seq8": 25.0, "w_kl_to_dense_seq8": 0.2, MEAN: 0.4, **speed}
    ships = Shipped(format="gguf:Q4_0", bytes=80e6, source_format="gguf:Q4_1", source_bytes=100e6)
    assert summary_metrics(dense, final, ships) == {
        "summary/file_mb": 80.0,
        "summary/file_ratio": 0.8,
        "summary/params": 80.0,
        "summary/params_ratio": 0.8,
        "summary/perplexity": 25.0,
        "summary/perplexity_ratio": 1.25,
        "summary/kl_to_dense_nats": 0.2,
        "summary/accuracy": 0.4,
        "summary/accuracy_kept": 0.8,
        "summary/speed_ratio": 1.3,
    }
    bare = {"bytes": 1.0, "params": 1.0, "w_ppl_seq8": 2.0}
    assert summary_metrics(bare, bare, None).keys() == {
        f"summary/{name}" for name in ("file_mb", "params", "params_ratio", "perplexity", "perplexity_ratio")
    }


def test_the_table_shows_values_and_their_ratio_to_dense() -> None:
    assert cells("parameters") == ("200", "150 (x0.75)", "150 (x0.75)")
    ratios = ("20.00", "30.00 (x1.50, x1.40-1.60)", "25.00 (no difference, x0.98-1.52)")
    assert cells("perplexity (w_ppl_seq8)") == ratios
    assert cells("KL to dense, nats (w_kl_to_dense_seq8)") == ("-", "0.2500", "0.2500")
    assert cells("t_acc") == (
        "0.500 ± 0.050",
        "0.400 ± 0.050 (-0.100)",
        "0.400 ± 0.050 (no difference)",
    )
    assert cells("peak memory, MB") == ("50", "50", "50"), "measured once, so without a ratio"
    speeds = ("10.0", "15.0 (x1.50, x1.25-1.75)", "15.0 (no difference, x0.75-1.75)")
    assert cells("prefill8, tokens/s") == speeds
    assert cells("MB of the file") == ("1.0 (gguf:Q4_1)", "-", "-")


def test_the_sentence_on_recovery_is_honest() -> None:
    ppl, kl = "perplexity (w_ppl_seq8) from 30.00 to", "KL to dense (w_kl_to_dense_seq8) from 0.2500 to"
    nearer = {"w_kl_to_dense_seq8": 0.125}
    assert (
        recovery_sentence(PRUNED, {**RECOVERED, **nearer}) == f"Recovery helped: {ppl} 25.00 and {kl} 0.1250."
    )
    assert recovery_sentence(PRUNED, RECOVERED) == (
        f"Recovery helped in part: {ppl} 25.00, which is better, but {kl} 0.2500, which is not."
    )
    assert recovery_sentence(PRUNED, {**PRUNED, **nearer}) == (
        f"Recovery helped in part: {kl} 0.1250, which is better, but {ppl} 30.00, which is not."
    )
    assert recovery_sentence(PRUNED, PRUNED).startswith(
        f"Recovery did not help: {ppl} 30.00 and {kl} 0.2500."
    )
    assert recovery_sentence({"w_ppl_seq8": 2.001}, {"w_ppl_seq8": 2.0}).startswith("Recovery did not help")
    assert recovery_sentence({"w_ppl_seq8": 2.0}, {"w_ppl_seq8": 1.0}) == (
        "Recovery helped: perplexity (w_ppl_seq8) from 2.00 to 1.00."
    )


@pytest.mark.parametrize(
    ("averaged", "label"),
    [
        (["a_acc_norm", "b_acc_norm"], "mean accuracy (acc_norm)"),
        (["a_acc", "b_acc"], "mean accuracy (acc)"),
        (["a_acc_norm", "b_acc"], "mean accuracy (a_acc_norm, b_acc)"),
    ],
)
def test_the_mean_accuracy_says_what_it_averages(averaged: list[str], label: str) -> None:
    rows = comparison({"dense": DENSE}, None, "", averaged)
    assert ("0.500",) in [row.cells for row in rows if row.label == label]


class Cells(HTMLParser):
    """The text of all table cells; complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag != "meta":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "code"):
            self.cells[-1] += data


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return write_inputs(tmp_path)


def test_both_forms_hold_the_same_table(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    report.body(JOB, inputs, out, silent)
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    parser = Cells()
    parser.feed(html)
    assert parser.open == []
    for text in (
        "25.00 (no difference, x0.98-1.52)",
        "0.500 ± 0.050",
        "1.0 (gguf:Q4_1)",
        "rank 1 of cluster 0",
        "ab" * 32,
    ):
        assert text in parser.cells
        assert text in markdown
    for text in ("http-equiv", "http://evil"):
        html = html.replace(text, "")
    assert "http" not in html, "the page loads nothing from elsewhere"
    assert "<script" not in html
    assert "Say &lt;b&gt;hi&lt;/b&gt;" in html, "text of the data is escaped"
    read = MarkdownIt("commonmark").enable("table").parse(markdown)
    inside = [child for token in read for child in token.children or ()]
    assert not [token for token in read if token.type == "heading_open" and token.tag == "h1"][1:]
    assert "link_open" not in {child.type for child in inside}
    assert "html_block" not in {token.type for token in read}
    assert "html_inline" not in {child.type for child in inside}
    assert "Say <b>hi</b> | now" in "".join(child.content for child in inside), "text stays text"
    blocks = [token.content for token in read if token.type == "fence"]
    assert [block for block in blocks if "<img src=q>" in block], "the config stays in its block"
    assert "resprout run tiny.yaml" in html
    for name in ("size", "speed", "accuracy", "scores-ffn", "widths", "layers", "sources", "loss"):
        assert f'id="figure-{name}"' in html
    rows = [row for row in markdown.splitlines() if row.startswith("| ")]
    header = next(row for row in rows if "dense" in row)
    assert header.count("|") == 5, "one header cell for each model"
    assert (out / "config.yaml").read_text().startswith("# resprout run tiny.yaml")
    summary = (out / "summary.md").read_text()
    assert "perplexity" in summary
    assert "| mean accuracy (acc) |" in summary
    assert f"Source model: `hf://org/name@main`, acquired as artifact {'cd' * 32}." in summary


def test_the_budget_of_a_search_stands_beside_its_result(inputs: dict[str, Path], tmp_path: Path) -> None:
    plan = json.loads((inputs["plan"] / "plan.json").read_text())
    plan |= {"allocator": "evolutionary", "allocator_settings": {"generations": 12, "children": 16}}
    (inputs["plan"] / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "out"
    out.mkdir()
    report.body(JOB, inputs, out, silent)
    for page in ("report.html", "report.md"):
        assert "evolutionary (children 16, generations 12), repair" in (out / page).read_text()


def test_what_a_config_leaves_out_is_absent(inputs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    few = {
        role: path for role, path in inputs.items() if role in ("source", "dense", "pruned", "plan", "export")
    }
    few_models = SETTINGS.model_copy(update={"models": {"dense": None, "pruned": None}})
    report.body(Job(few_models, digests=JOB.digests), few, out, silent)
    html = (out / "report.html").read_text()
    assert "Recovery data" not in html
    assert "No gate was set" in html


def test_the_same_inputs_give_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report.body(JOB, inputs, tmp_path / name, silent)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_speeds_say_how_and_where_they_were_measured_and_how_far_times_lay_apart() -> None:
    hardware = {"cpu": "A CPU", "cores": 2, "gpus": [], "machine": "x", "memory_gb": 8}
    models = {
        "dense": {"prefill8": {"spread": 0.05}, "decode4": {"spread": 0.125}},
        "pruned": {"prefill8": {"spread": 0.5}, "decode4": {"spread": 0.25}},
    }
    details = {"models": models, "rounds": 9, "coverage": 0.961, "threads": 1, "hardware": hardware}
    rest = (
        ", on A CPU, 2 cores, 1 threads; times of one model lay up to 50 % apart. A ratio is the median of "
        "the rounds' ratios to dense, with its interval of 96 %; where that holds 1, there is no "
        "measurable difference."
    )
    alike = "Speeds: medians of 9 rounds, all models in each"
    assert measured_how({**details, "order": "together"}) == alike + rest
    apart = "Speeds: medians of 9 rounds, one model after another"
    assert measured_how({**details, "order": "in turn"}) == apart + rest


def test_widths_tell_what_each_layer_of_the_source_keeps() -> None:
    """Layers of 8 channels and 2 groups of 2 heads.

    The first keeps 3 channels and a head of each group, the next is gone, the last lost its FFN and a group.
    """
    shape = Shape("mistral", 8, 10, 2, (8,) * 3, (2,) * 3, (2,) * 3)
    layers = [
        {"index": 0, "ffn": [0, 1, 5], "kv_groups": [0, 1], "heads": [0, 3], "experts": None},
        {"index": 2, "ffn": [], "kv_groups": [1]},
    ]
    names = ("FFN channels", "KV groups", "query heads")
    assert kept_widths(layers, shape) == [
        dict(zip(names, pairs, strict=True))
        for pairs in (((8, 3), (2, 2), (4, 2)), ((8, 0), (2, 0), (4, 0)), ((8, 0), (2, 1), (4, 2)))
    ]
    mixture = Shape("mixtral", 8, 10, 2, (8,) * 2, (2,) * 2, (2,) * 2, experts=(4, 4))
    kept = kept_widths([{"ffn": [0], "kv_groups": [0], "experts": [0, 2]}], mixture)
    assert [row["experts"] for row in kept] == [(4, 2), (4, 0)]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("package://llm/Some-1B.Q4.gguf", "Some-1B.Q4"),
        ("hf://org/name@main", "name"),
        ("models:/chat/3", "chat version 3"),
        ("models:/chat@candidate", "chat@candidate"),
        ("s3://bucket/models/chat/", "chat"),
        ("model", "model"),
    ],
)
def test_a_heading_names_the_model(source: str, name: str) -> None:
    assert model_name(source) == name


@pytest.mark.parametrize(
    ("prune", "recover", "words"),
    [
        (
            {"method": "flap", "units": ["ffn", "heads"], "target": {"params_ratio": 0.8, "bytes": None}},
            {"method": "lora"},
            "keep 80 % of the parameters, prune FFN channels and query heads by flap, recover by LoRA",
        ),
        (
            {"method": "shortgpt", "target": {"bytes": 250_000_000}},
            None,
            "keep 250 MB of weights, prune by shortgpt, no recovery",
        ),
        (
            {"method": "recommended", "units": ["ffn"], "target": {"params_ratio": 0.9}},
            None,
            "keep 90 % of the parameters, prune FFN channels by resprout's recommended method, no recovery",
        ),
        (
            {"method": None, "criterion": "wanda", "units": [], "target": {"latency_ratio": 0.75}},
            {"method": "full"},
            "keep 75 % of the time, prune by wanda, recover by full training",
        ),
    ],
)
def test_what_was_asked_in_words(prune: dict[str, Any], recover: dict[str, Any] | None, words: str) -> None:
    assert asked({"prune": prune, "recover": recover}) == words


def test_earlier_runs_are_drawn_and_make_no_report_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    before = PastRun(name="before", models={"dense": DENSE, "pruned": {**PRUNED, "bytes": 2e6}})
    later = SETTINGS.model_copy(update={"earlier": [before]})
    assert report.key(Job(later), {}) == report.key(Job(SETTINGS), {})
    assert report.key(Job(SETTINGS.model_copy(update={"name": "other"})), {}) != report.key(Job(SETTINGS), {})
    for name, settings in (("without", SETTINGS), ("with", later)):
        (tmp_path / name).mkdir()
        report.body(Job(settings, digests=JOB.digests), inputs, tmp_path / name, silent)
        assert ("earlier runs" in (tmp_path / name / "report.html").read_text()) == (name == "with")
