"""`resprout diff`: what differs between two versions is shown with both values, and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lineages import Writer, nodes, write_lineage
from resprout.configs.infrastructure import StoreConfig
from resprout.flows.audit.diff import Side, differences, lines, side, tables
from resprout.flows.audit.lineage import Lineage, read_results
from resprout.infra.store.store import ArtifactStore

OTHER = {
    "model": {"source": "hf://acme/tiny@dev", "dtype": "bfloat16", "licence": None},
    "prune": {"method": "magnitude", "target": {"params_ratio": 0.85}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore.from_config(StoreConfig(), tmp_path_factory.mktemp("compared"))


def of(writer: Writer) -> Side:
    made, report = nodes(writer)
    story = Lineage("x", "x", (("report", report),), made, report)
    return side(story, read_results(writer.store, story))


@pytest.fixture(scope="module")
def pair(store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    scratch = tmp_path_factory.mktemp("scratch")
    return of(write_lineage(store, scratch / "a")), of(write_lineage(store, scratch / "b", OTHER))


def test_a_version_is_as_itself(pair: tuple[Side, Side]) -> None:
    assert set(map(bool, differences(pair[0], pair[0]).values())) == {False}
    assert list(tables(pair[0], pair[0])) == [f"{name}: the same" for name in differences(pair[0], pair[0])]


def test_config_and_plan_differ_by_key_and_nothing_else_does(pair: tuple[Side, Side]) -> None:
    found = differences(*pair)
    assert found["config"] == {
        "model.dtype": ["float32", "bfloat16"],
        "model.source": ["hf://acme/tiny@main", "hf://acme/tiny@dev"],
        "prune.method": ["flap", "magnitude"],
    }
    assert found["plan"] == {"criterion": ["flap", "magnitude"]}
    assert set(found["artifacts"]) == {"plan", "prune", "export", "report"}
    for section in ("metrics", "data", "code", "libraries", "machine"):
        assert found[section] == {}, section


def test_other_bytes_of_equal_settings_are_told_by_stage(
    pair: tuple[Side, Side], store: ArtifactStore, tmp_path: Path
) -> None:
    writer = write_lineage(store, tmp_path / "d")
    report = store.get_record(writer.made["report"][1])
    was = writer.made["export"][0]
    writer.add("export", "export", "export", {"hf/model.safetensors": "other bytes"}, {"model": "pruned"})
    given = {name: name for name in ("export", "dense", "gate", "plan")} | {
        "pruned": "cut",
        "source": "model",
    }
    writer.add("report", "report", "report", {"report.html": "d"}, given, config=report.config)
    found = differences(pair[0], of(writer))
    assert set(found["artifacts"]) == {"export", "report"}
    assert found["artifacts"]["export"] == [was, writer.made["export"][0]]
    assert not any(rows for section, rows in found.items() if section != "artifacts")


def test_data_code_libraries_metrics_and_layers_are_named(
    pair: tuple[Side, Side], store: ArtifactStore, tmp_path: Path
) -> None:
    writer = write_lineage(store, tmp_path / "c")
    plan = json.loads(store.read(writer.made["plan"][0], "plan.json"))
    plan["layers"][1]["ffn"] = [0, 2]
    code = {"resprout": "0.2.0", "commit": "d" * 40, "dirty": "true", "reached": "cd" * 32}
    writer.add("plan", "plan", "plan", {"plan.json": plan}, {"model": "model"}, code=code, config={})
    writer.add("text", "acquire_text", "text", {"text.jsonl": "{}"}, {}, licence="mit", config={},
               origin={"sources": [{"given": "n", "uri": "file:///n.jsonl", "licence": "mit"}]})  # fmt: skip
    writer.add("cut", "evaluate", "scores", {"metrics.json": {"perplexity": 13.0}},
               {"model": "pruned", "text": "text"}, libraries={"torch": "2.14.0"})  # fmt: skip
    writer.add("report", "report", "report", {"report.html": "c"},
               {"export": "export", "gate": "gate", "plan": "plan", "pruned": "cut"},
               config={"name": "small", "config": {}, "command": "", "digests": {}})  # fmt: skip
    # Without the old text, which dense scores brought along.
    other = of(writer)
    found = differences(pair[0], other)
    assert found["plan"] == {"layer 001: ffn": [[0, 3], [0, 2]]}
    assert found["metrics"]["evaluate pruned.perplexity"] == [12.5, 13.0]
    assert found["code"]["plan: reached"] == ["ab" * 6, "cd" * 6]
    assert found["code"]["plan: version"][1] == f"0.2.0 {'d' * 40} dirty"
    assert found["libraries"]["torch"] == ["2.13.0+cpu", "2.13.0+cpu, 2.14.0"]
    assert found["data"]["text for evaluate: licence"] == ["cc-by-4.0, unknown", "mit"]
    assert found["data"]["text for evaluate: source"] == [
        "file:///data/a.jsonl, s3://data/b",
        "file:///n.jsonl",
    ]


def test_of_speeds_only_the_ratios_to_dense_are_compared(store: ArtifactStore, tmp_path: Path) -> None:
    """Absolute ones are of another hour each, and two intervals that hold 1 do not differ."""

    def timed(name: str, seconds: float, low: float) -> Side:
        writer = write_lineage(store, tmp_path / name)
        found = {}
        for speed, least in (("decode4_tokens_per_s", low), ("prefill16_tokens_per_s", 0.5)):
            found |= {f"dense.{speed}": 10.0 * seconds, f"pruned.{speed}": 20.0 * seconds}
            ends = zip(("", "_low", "_high"), (1.5, least, 1.75 + seconds), strict=True)
            found |= {f"pruned.{speed}_ratio{end}": value for end, value in ends}
        writer.add("speeds", "measure", "measurement", {"metrics.json": found}, {"dense": "model"})
        given = {name: name for name in ("export", "dense", "gate", "plan", "speeds")}
        given |= {"pruned": "cut", "source": "model"}
        writer.add("report", "report", "report", {"report.html": name}, given,
                   config={"name": "small", "config": {}, "command": "", "digests": {}})  # fmt: skip
        return of(writer)

    assert differences(timed("e", 1.0, 0.75), timed("f", 2.0, 1.25))["metrics"] == {
        "measure speeds.pruned.decode4_tokens_per_s to dense": ["no difference", "x1.50, x1.25-3.75"]
    }


def test_the_table_shows_how_far_a_metric_moved(pair: tuple[Side, Side]) -> None:
    from rich.console import Console

    says = {name: dict(values) for name, values in pair[0].values.items()}
    says["metrics"]["evaluate pruned.perplexity"] = 12.0
    says["plan"]["layer 000: ffn"] = list(range(20))
    console = Console(width=300, file=io.StringIO())
    for table in tables(pair[0], Side("y", says)):
        console.print(table)
    shown = console.file.getvalue()
    assert "evaluate pruned.perplexity" in shown
    assert "-0.5" in shown
    assert "20 kept: 0, 1, 2, 3, 4, 5, ..." in shown


def test_in_a_pipe_each_item_is_one_line_with_whole_digests(pair: tuple[Side, Side]) -> None:
    found = list(lines(*pair))
    assert "config: prune.method: flap -> magnitude" in found
    assert "metrics: the same" in found
    (plan,) = [line for line in found if line.startswith("artifacts: plan: ")]
    before, _, after = plan.removeprefix("artifacts: plan: ").partition(" -> ")
    assert len(before) == len(after) == 64
    says = {**pair[0].values, "metrics": {**pair[0].values["metrics"], "evaluate pruned.perplexity": 12.0}}
    (moved,) = [one for one in lines(pair[0], Side("y", says)) if one.startswith("metrics: ")]
    assert moved == "metrics: evaluate pruned.perplexity: 12.5 -> 12 (-0.5)"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_on_a_screen_both_values_stand_side_by_side_and_nothing_is_wider(
    pair: tuple[Side, Side], width: int
) -> None:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    for table in tables(*pair):
        console.print(table)
    shown = console.file.getvalue().splitlines()
    assert max(map(len, shown)) <= width
    (method,) = [line for line in shown if line.startswith("prune.method")]
    assert method.split() == ["prune.method", "flap", "magnitude"]
    assert pair[0].values["artifacts"]["plan"][:12] in console.file.getvalue()
    assert pair[0].values["artifacts"]["plan"] not in console.file.getvalue()
