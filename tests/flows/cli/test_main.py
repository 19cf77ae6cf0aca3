"""The command line: quick answers, help with examples, one sentence for each error."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.presets import preset_names
from resprout.flows.cli.main import VERBS
from resprout.flows.cli.methods import methods
from resprout.flows.cli.triggers import triggers
from tiny_run import write_run

PROBE = """
import sys
sys.argv = ["resprout", *{arguments!r}]
from resprout.flows.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "prefect", "mlflow", "transformers", "sklearn", "boto3"}} & set(sys.modules)
sys.stderr.write("heavy " + ",".join(sorted(heavy)))
"""


def light(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=list(arguments))],
        capture_output=True, text=True, check=False, env=env or None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("cli"))


def test_validate_offline_answers_in_under_a_second_without_torch_or_prefect(config: Path) -> None:
    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    # As on a user's machine: the first compiles what no one has run before, the others read that.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Processor seconds, which are the wall seconds of an idle machine and suffer little from a busy one.
    seconds = []
    for _ in range(3):
        began = used()
        done = light("validate", str(config), "--offline", **usual)
        seconds.append(used() - began)
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith("heavy "), done.stderr
    assert min(seconds) < 1.0


@pytest.mark.parametrize("arguments", [("schema",), ("schema", "--result"), ("methods", "--json")])
def test_what_needs_no_run_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = light(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("heavy "), done.stderr
    assert json.loads(done.stdout)


def test_the_schema_describes_every_key(config: Path) -> None:
    schema = json.loads(light("schema").stdout)
    assert schema["additionalProperties"] is False
    assert "register" in schema["properties"]
    undocumented = [
        f"{name}.{key}"
        for name, section in {**schema["$defs"], "RunConfig": schema}.items()
        for key, field in section.get("properties", {}).items()
        if "description" not in field
    ]
    assert undocumented == []


WORDS = [f"triggers {command.name or command.callback.__name__}" for command in triggers.registered_commands]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "triggers"] + WORDS)
def test_each_help_has_three_examples_that_name_real_options(
    verb: str, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout(*verb.split(), "--help", home=tmp_path)
    assert found.code == 0
    examples = [
        line.strip() for line in found.out.splitlines() if line.strip().startswith(f"resprout {verb}")
    ]
    assert len(examples) == 3
    for option in re.findall(r"--[a-z-]+", " ".join(examples).replace("python -m json.tool", "")):
        assert found.out.count(option) > " ".join(examples).count(option), f"{option} is no option of {verb}"


def test_help_lists_every_verb(resprout: Callable[..., Any], tmp_path: Path) -> None:
    found = resprout("--help", home=tmp_path)
    assert all(verb in found.out for verb in VERBS)


@pytest.mark.parametrize("arguments", [(), ("triggers",)], ids=["resprout", "triggers"])
def test_no_summary_of_a_command_is_cut(
    arguments: tuple[str, ...], resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout(*arguments, "--help", home=tmp_path).out
    listed = found.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed
    assert max(map(len, found.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lineage", "nonsense"), "is no reference; give models:/name/3"),
        (("verify", "models:/none@candidate"), "no model version models:/none@candidate"),
        (("lineage", "a" * 64), "give a digest that a run printed"),
        (("lineage", "0" * 32), f"no run {'0' * 32} in MLflow at sqlite"),
        (("report", "nonsense"), "is no reference"),
    ],
)
def test_bad_references_are_one_sentence(
    resprout: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    found = resprout(*arguments, home=tmp_path)
    assert found.code == 2
    assert sentence in found.err
    assert found.err.strip().count("\n") == 0


@pytest.mark.parametrize("verb", ["lineage", "verify", "report"])
def test_where_nothing_ran_a_reference_is_refused_and_nothing_is_made(
    verb: str, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / ".resprout"
    found = resprout(verb, "models:/none@candidate", home=home)
    assert found.code == 2
    assert f"no data folder {home}" in found.err
    assert "--config" in found.err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_and_nothing_else_does(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    plain = resprout("validate", "none.yaml", home=tmp_path)
    debug = resprout("validate", "none.yaml", "--debug", home=tmp_path)
    assert plain.code == 2
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert debug.code == 2, "a traceback changes no exit code"
    assert plain.err.strip() in debug.err


def test_an_unknown_verb_and_option_exit_with_two(resprout: Callable[..., Any], tmp_path: Path) -> None:
    assert resprout("prune", home=tmp_path).code == 2
    assert resprout("run", "--jsn", "x.yaml", home=tmp_path).code == 2


def test_methods_list_every_registry(resprout: Callable[..., Any], tmp_path: Path) -> None:
    listed = resprout("methods", "--json", home=tmp_path).result
    names = {section: {entry["name"] for entry in entries} for section, entries in listed.items()}
    assert names["prune.method"] == set(preset_names()) > {"flap", "magnitude", "wanda_sp"}
    assert names["select.method"] >= {"paser", "random", "longest", "rds_plus", "ifd", "full"}
    assert names["calibrate.method"] == {"cola", "random", "self_generated"}
    assert all(entry["summary"] for entries in listed.values() for entry in entries)
    by_name = {entry["name"]: entry for entry in listed["prune.method"]}
    assert by_name["flap"].get("layouts") == {"per_layer": "flap", "uniform": "flap (uniform widths)"}
    assert by_name["ecoflap"]["layouts"] == {"per_layer": "ecoflap"}
    assert (by_name["apoz"]["units"], by_name["cfsp"]["units"]) == (["ffn"], ["ffn"])
    flap = next(entry for entry in listed["prune.criterion"] if entry["name"] == "flap")
    assert flap["source"] == "arXiv 2312.11983"
    assert flap["units"] == ["ffn", "kv_groups", "heads"]
    assert (flap["needs"], flap["cost"]) == ("inputs", "a forward pass, layer by layer")
    assert all(entry["cost"] and entry["units"] for entry in listed["prune.criterion"])


@pytest.mark.parametrize("arguments", [{}, {"units": "ffn"}, *({"name": name} for name in preset_names())])
def test_what_methods_prints_is_at_most_100_columns_wide(
    arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in ("60", "250"):
        monkeypatch.setenv("COLUMNS", columns)
        methods(**arguments)
        out = capsys.readouterr().out
        assert 60 < max(map(len, out.splitlines())) <= 100
        assert not any(line.endswith(" ") for line in out.splitlines())


def test_a_method_is_shown_whole(resprout: Callable[..., Any], tmp_path: Path) -> None:
    spdy = resprout("methods", "spdy", home=tmp_path).out
    for part in ("prune.allocator: spdy", "arXiv 2201.13096", "units         ffn, kv_groups, heads"):
        assert part in spdy
    settings = resprout("methods", "spdy", "--json", home=tmp_path).result[0]["settings"]
    assert settings["steps"] == "50: Changes of the best weights that are tried."
    assert {f"{key} = {value.partition(':')[0]}" for key, value in settings.items()} <= {
        re.sub(":.*", "", line).removeprefix("settings").strip() for line in map(str.strip, spdy.splitlines())
    }
    flap = resprout("methods", "flap", home=tmp_path).out
    for part in (
        "prune.method: flap",
        "units         ffn (by default), kv_groups (by default), heads",
        "layouts       per_layer; uniform, then called flap (uniform widths)",
        "criterion     flap",
        "allocator     uniform: uniform; per_layer: global_standardised",
        "repair        bias",
        "costs         scoring takes a forward pass, layer by layer",
        "The score of feature j is its weighted input feature variance",
    ):
        assert part in flap


def test_methods_of_one_name_are_all_shown_and_methods_of_units_alone(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout("methods", "magnitude", "--json", home=tmp_path).result
    assert [one["section"] for one in found] == ["prune.criterion", "prune.method", "sparsify.method"]
    listed = resprout("methods", "--units", "experts", "--json", home=tmp_path).result
    assert "calibrate.method" not in listed
    assert all("experts" in entry["units"] for entries in listed.values() for entry in entries)
    assert {"magnitude", "taylor"} <= {entry["name"] for entry in listed["prune.method"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("flp",), "there is no method 'flp'; did you mean flap or"),
        (("zzzzzz",), "there is no method 'zzzzzz'; `resprout methods` lists all"),
        (("--units", "channels"), "--units is channels; give one of ffn, kv_groups, heads"),
        (("flap", "--units", "ffn"), "not both"),
    ],
)
def test_a_method_that_is_not_there_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout("methods", *arguments, home=tmp_path)
    assert found.code == 2
    assert sentence in found.err
    assert found.err.strip().count("\n") == 0
