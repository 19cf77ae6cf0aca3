"""The main job on a tiny model, through the command line, in processes of their own."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from commands import mlflow_of, versions_in
from resprout.configs.result import RunResult
from resprout.flows.cli.reproduce import new_folder
from resprout.flows.stages import models
from tiny_run import write_run

STAGES = [
    "acquire calibration text", "acquire evaluation text", "acquire pool", "acquire task own",
    "acquire model", "filter", "pool", "evaluation data", "calibrate", "score", "plan",
    "evaluate dense", "prune", "evaluate pruned", "select", "recover", "evaluate recovered",
    "gate", "export", "measure", "report",
]  # fmt: skip


def digests(result: Any, *but: str) -> dict[str, str]:
    return {
        stage["name"]: stage["artifact"]["digest"]
        for stage in result["stages"]
        if not stage["name"].startswith(but)
    }


def gate_tag(home: Path, result: Any) -> str:
    return mlflow_of(home).get_run(result["mlflow_run_id"]).data.tags["resprout.gate"]


def test_the_result_says_all_that_happened(finished: Any) -> None:
    result = RunResult.model_validate(finished.result)
    assert (result.status, result.exit_code) == ("done", 0)
    assert [stage.name for stage in result.stages] == STAGES
    assert not any(stage.cached for stage in result.stages)
    assert result.models is not None
    assert list(result.models) == models()
    assert list(result.made_models()) == ["dense", "pruned", "recovered"]
    dense, pruned, recovered = result.made_models().values()
    assert pruned.params == recovered.params < 0.85 * dense.params
    assert dense.metrics["words_ppl_seq32"] > 1
    assert "words_kl_to_dense_seq32" in recovered.metrics
    speeds = {"prefill16_tokens_per_s", "decode4_tokens_per_s"}
    assert speeds | {"peak_memory_mb"} <= set(dense.metrics)
    assert dense.speeds == {}
    for model in (pruned, recovered):
        assert set(model.speeds) == speeds
        for name, speed in model.speeds.items():
            ratio = (model.metrics[f"{name}{end}"] for end in ("_ratio", "_ratio_low", "_ratio_high"))
            assert [*ratio] == [speed.ratio, speed.low, speed.high]
            assert speed.different == (not speed.low <= 1 <= speed.high)
    assert result.gate is not None
    assert result.gate.passed
    (export,) = result.exports
    assert export.verified
    assert export.max_abs_logit_diff == 0.0
    assert result.registered is not None
    assert (result.registered.name, result.registered.alias) == ("tiny-pruned", "candidate")
    assert result.report is not None
    assert Path(result.report).is_file()
    assert result.overhead is not None


def test_the_end_of_a_run_can_be_read_by_a_person(finished: Any) -> None:
    text = finished.outcome.err
    for part in (
        "without embeddings",
        "gate: passed",
        "registered: models:/tiny-pruned/1 (@candidate)",
        "report: ",
        "mlflow ui --backend-store-uri",
        "orchestration",
        "imports",
        "start of Prefect's server",
    ):
        assert part in text


def loading_lines(shown: str) -> str:
    """The lines of Python that a run ends with."""
    _, found, lines = shown.partition("load it:\n")
    assert found
    return textwrap.dedent(lines)


def test_a_run_ends_with_a_short_way_to_the_model_and_the_lines_that_load_it(finished: Any) -> None:
    (export,) = finished.result["exports"]
    link = finished.home / "models" / "tiny-pruned" / "1"
    assert Path(export["path"]) == link
    assert link.resolve() == Path(unquote(urlsplit(export["uri"]).path)).resolve()
    assert f"verified at {link}\n" in finished.outcome.err
    names: dict[str, Any] = {}
    exec(loading_lines(finished.outcome.err), names)  # noqa: S102
    assert names["model"].num_parameters() == finished.result["models"]["recovered"]["params"]
    assert names["tokenizer"].name_or_path == str(link)


def test_without_a_section_register_a_run_says_that_it_registered_nothing(
    finished: Any, copied: Path, resprout: Callable[..., Any]
) -> None:
    again = resprout("run", finished.config, "register=null", "--json", home=copied)
    assert again.code == 0, again.err
    assert "not registered: the config has no section register" in again.err
    digest = digests(again.result)["export"]
    assert Path(again.result["exports"][0]["path"]) == copied / "models" / "tiny" / digest[:12]


def test_uniform_widths_of_a_method_with_widths_by_layer_are_called_so_everywhere(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    """Plan, terminal, report, model card, MLflow and the result: nowhere the bare name of the paper."""
    from mlflow import MlflowClient

    name = "flap (uniform widths)"
    assert name in resprout("plan", finished.config, home=finished.home).out
    assert f"method: {name}" in finished.outcome.err
    assert finished.result.get("method") == name
    reports = finished.home / "reports" / "tiny"
    for page in ("report.html", "report.md", "summary.md"):
        assert name in (reports / page).read_text()
    content = finished.home / "store" / "content" / digests(finished.result)["export"]
    assert f"{name}, criterion flap" in (content / "hf" / "README.md").read_text()
    client = MlflowClient(f"sqlite:///{finished.home / 'mlflow.db'}")
    assert client.get_run(finished.result["mlflow_run_id"]).data.tags.get("resprout.method") == name
    assert client.get_model_version("tiny-pruned", "1").tags.get("resprout.method") == name


def test_a_second_run_finds_everything_and_imports_no_torch(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    probe = (
        "import sys\n"
        f"sys.argv = ['resprout', 'run', {str(finished.config)!r}, '--json']\n"
        "from resprout.flows.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    loaded = sorted({'torch', 'transformers', 'peft', 'lm_eval', 'sklearn'} & set(sys.modules))\n"
        "    sys.stdout.write('\\n' + str(loaded) + '\\n')\n"
    )
    import os
    import subprocess

    from prefect.settings import get_current_settings

    env = {
        **os.environ,
        "RESPROUT_HOME": str(finished.home),
        "PREFECT_API_URL": str(get_current_settings().api.url),
    }
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    *_, line, loaded = done.stdout.strip().splitlines()
    assert loaded == "[]"
    again = json.loads(line or done.stdout.strip().splitlines()[-3])
    assert all(stage["cached"] for stage in again["stages"])
    assert digests(again) == digests(finished.result)
    assert again["registered"] == finished.result["registered"], "no second version of the same bytes"
    assert "no weight was loaded" in done.stderr


def test_plan_says_that_all_is_cached_and_what_a_change_would_run(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    found = resprout("plan", finished.config, "--json", home=finished.home)
    assert found.code == 0, found.err
    assert all(stage["cached"] for stage in found.result["stages"])
    assert found.result["pruned"]["params"] == finished.result["models"]["pruned"]["params"]
    changed = resprout("plan", finished.config, "recover.rank=3", "--json", home=finished.home).result
    assert [stage["name"] for stage in changed["stages"] if not stage["cached"]] == [
        "recover", "evaluate recovered", "gate", "export", "measure",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("evaluate.perplexity.window_tokens=16", "evaluation data"),
        ("prune.round_to=4", "plan"),
        ("select.paser.clusters=4", "pool"),
        ("measure.repeats=4", "measure"),
        ("gate.max_perplexity_ratio=11", "gate"),
    ],
)
def test_a_changed_knob_reruns_only_what_it_reaches(
    finished: Any, resprout: Callable[..., Any], override: str, first: str
) -> None:
    stages = resprout("plan", finished.config, override, "--json", home=finished.home).result["stages"]
    reruns = [stage["name"] for stage in stages if not stage["cached"]]
    assert reruns[0] == first
    untouched = {
        # Not the export, whose model card states the scores.
        "evaluate": {"score", "plan", "prune", "select", "recover", "measure"},
        "prune": {"calibrate", "score", "evaluate dense", "acquire model", "pool"},
        "select": {"score", "plan", "prune", "evaluate pruned", "calibrate"},
        "measure": {"evaluate dense", "prune", "recover", "gate", "export"},
        "gate": {"evaluate recovered", "export", "recover"},
    }[override.partition(".")[0]]
    assert not untouched & set(reruns)


def test_one_changed_pool_row_reruns_what_depends_on_it(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(finished.config.parent, root, ignore=shutil.ignore_patterns("home"))
    moved = resprout("plan", root / "run.yaml", "--json", home=finished.home).result["stages"]
    reruns = [stage["name"] for stage in moved if not stage["cached"]]
    assert reruns == [], "another folder with the same bytes finds the cache"
    lines = (root / "pool.jsonl").read_text().splitlines()
    (root / "pool.jsonl").write_text(
        "\n".join([lines[0].replace('"output": "w', '"output": "w9 w'), *lines[1:]]) + "\n"
    )
    changed = resprout("plan", root / "run.yaml", "--json", home=finished.home).result["stages"]
    reruns = {stage["name"] for stage in changed if not stage["cached"]}
    assert {"acquire pool", "pool", "select", "recover", "evaluate recovered", "export"} <= reruns
    assert not {"calibrate", "plan", "prune", "acquire model", "evaluate dense"} & reruns


def test_a_deleted_mlflow_database_ends_with_the_model_registered_again(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    (home / "mlflow.db").unlink()
    again = resprout("run", finished.config, "--json", home=home)
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.result["stages"])
    assert again.result["registered"] == {"name": "tiny-pruned", "version": "1", "alias": "candidate"}
    assert versions_in(home) == [("tiny-pruned", "1")]


def test_a_recovery_is_continued_from_its_last_weights(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    """All that came before is found, which the recovery itself is, and what it left is trained on."""
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    asked = ("run", finished.config, "--continue-recovery", "2x", "--json")
    found = resprout(*asked, "measure=null", home=home)
    assert found.code == 0, found.err
    made = [stage["name"] for stage in found.result["stages"] if not stage["cached"]]
    assert made == ["recover", "evaluate recovered", "gate", "export", "report"]
    digest = {stage["name"]: stage["artifact"]["digest"] for stage in found.result["stages"]}
    assert digest["recover first"] == digests(finished.result)["recover"] != digest["recover"]
    run = mlflow_of(home).get_run(found.result["mlflow_run_id"])
    assert run.data.params["recovery_continued"] == "2.0"
    other = resprout(*asked, "seed=18", home=home)
    assert other.code == 2
    assert other.err.strip().endswith(
        "is not in the store, so there is nothing to continue; run it without --continue-recovery first, or "
        "set recover.continued to train both at once"
    )


def test_the_gate_fails_with_exit_code_three_and_registers_nothing(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(finished.home, home)
    found = resprout(
        "run",
        finished.config,
        "gate.max_params_ratio=0.5",
        "register.name=never",
        "--json",
        home=home,
    )
    assert found.code == 3
    assert found.result["status"] == "gate_not_passed"
    assert found.result["registered"] is None
    assert [check["passed"] for check in found.result["gate"]["checks"]] == [True, False]
    assert "not passed, nothing registered" in found.err
    assert not mlflow_of(home).search_registered_models("name = 'never'")
    assert gate_tag(home, found.result) == "failed", "the run is kept and tagged"


def test_mlflow_holds_the_whole_run(finished: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{finished.home / 'mlflow.db'}")
    run_id = finished.result["mlflow_run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["recovered.params"] == finished.result["models"]["recovered"]["params"]
    assert run.data.metrics.get("pool_rows") == 60
    assert 0 < run.data.metrics["selected_rows"] < 60
    assert run.data.params == {
        "model": "model",
        "dtype": "float32",
        "seed": "17",
        "calibration": "cola",
        "calibration_samples": "8",
        "calibration_seq_len_tokens": "16",
        "method": "flap (uniform widths)",
        "criterion": "flap",
        "allocator": "uniform",
        "repair": "least_squares",
        "schedule": "one_shot",
        "units": "ffn",
        "layout": "uniform",
        "target": "params_ratio=0.85",
        "round_to": "8",
        "selection": "paser",
        "selection_budget": "budget_ratio=0.5",
        "selection_max_len_tokens": "128",
        "selection_targets": "original",
        "recovery": "lora",
        "rank": "2",
        "alpha": "16.0",
        "learning_rate": "0.0001",
        "optimizer": "adamw",
        "epochs": "1.0",
        "batch_tokens": "512",
        "distill_weight": "0.5",
    }
    nested = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    by_name = {one.info.run_name: one for one in nested}
    assert set(by_name) == {*STAGES, "system metrics"}
    assert not any(name.startswith("system/") for name in run.data.metrics)
    for stage in finished.result["stages"]:
        assert by_name[stage["name"]].data.tags["resprout.digest"] == stage["artifact"]["digest"]
    loss = client.get_metric_history(by_name["recover"].info.run_id, "loss")
    assert [point.step for point in loss] == sorted(point.step for point in loss)
    assert loss
    assert {one.path for one in client.list_artifacts(run_id)} >= {"report", "config.json"}
    assert {one.dataset.name for one in run.inputs.dataset_inputs} >= {
        "pool",
        "calibration text",
    }
    version = client.get_model_version_by_alias("tiny-pruned", "candidate")
    assert version.run_id == run_id
    assert version.tags["resprout.digest"] == digests(finished.result)["export"]
    assert version.tags["resprout.source_digest"] == digests(finished.result)["acquire model"]
    assert "perplexity" in version.description


def test_a_stock_process_loads_the_registered_version(finished: Any, tmp_path: Path) -> None:
    import subprocess

    uri = finished.result["exports"][0]["uri"].removeprefix("file://")
    code = (
        "import sys; sys.modules['resprout'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained({uri!r}); AutoTokenizer.from_pretrained({uri!r})\n"
        "print(sum(p.numel() for p in model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == finished.result["models"]["recovered"]["params"]


def test_lineage_goes_back_to_source_and_data(finished: Any, resprout: Callable[..., Any]) -> None:
    found = resprout("lineage", "models:/tiny-pruned@candidate", "--json", home=finished.home)
    assert found.code == 0, found.err
    stages = {record["stage"] for record in found.result["records"].values()}
    assert {
        "acquire_model",
        "acquire_rows",
        "acquire_text",
        "calibrate",
        "score",
        "plan",
        "prune",
        "select",
        "recover",
    } <= stages
    shown = resprout("lineage", "models:/tiny-pruned/1", home=finished.home)
    assert shown.code == 0
    assert "acquire_model" in shown.out
    assert "None" not in shown.out
    pool = finished.config.parent / "pool.jsonl"
    digest = hashlib.sha256(pool.read_bytes()).hexdigest()
    assert f"from {pool.as_uri()} (sha256 {digest[:12]})" in shown.out
    model = finished.config.parent / "model"
    of_config = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    assert f"from {model.as_uri()} (" in shown.out
    assert f" files, config.json sha256 {of_config[:12]})" in shown.out


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (
            {"distribution": "llm-tiny", "version": "0.2", "sha256": {"a.gguf": "ab" * 32}},
            "from u (llm-tiny 0.2; sha256 abababababab)",
        ),
        ({"revision": "main", "commit": "cd" * 20}, "from u (revision main; commit cdcdcdcdcdcd)"),
        ({"name": "m", "version": 3, "objects": {"a": "b", "c": "d"}}, "from u (version 3; 2 objects)"),
        ({}, "from u"),
    ],
)
def test_lineage_names_what_a_source_was_pinned_to(origin: dict[str, Any], line: str) -> None:
    from resprout.flows.audit.render import origin_lines

    assert origin_lines({"uri": "u", **origin}) == [line]
    assert origin_lines({"sources": [{"uri": "u", **origin}]}) == [line]


def test_verify_passes_and_finds_a_flipped_byte(
    finished: Any, copied: Path, resprout: Callable[..., Any]
) -> None:
    good = resprout("verify", "models:/tiny-pruned@candidate", home=copied)
    assert good.code == 0, good.err
    weights = next((copied / "store" / "content" / digests(finished.result)["prune"]).glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    bad = resprout("verify", "models:/tiny-pruned@candidate", "--json", home=copied)
    assert bad.code == 4
    assert weights.name in bad.err
    assert "was changed" in bad.err
    assert "Traceback" not in bad.err
    assert bad.result["problems"]


@pytest.mark.parametrize(("stage", "file"), [("report", "report.md"), ("gate", "gate.json")])
def test_verify_hashes_what_the_report_was_made_from(
    finished: Any, copied: Path, resprout: Callable[..., Any], stage: str, file: str
) -> None:
    edited = copied / "store" / "content" / digests(finished.result)[stage] / file
    edited.chmod(0o644)
    edited.write_text(edited.read_text().replace("1", "2"))
    found = resprout("verify", "models:/tiny-pruned@candidate", home=copied)
    assert found.code == 4
    assert f"{file} was changed" in found.err


def test_the_report_of_a_version_is_written(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout(
        "report", "models:/tiny-pruned@candidate", "--output", tmp_path / "r", home=finished.home
    )
    assert found.code == 0, found.err
    assert {file.name for file in (tmp_path / "r").iterdir()} == {
        "report.html", "report.md", "summary.md", "verdict.json", "config.yaml", "accuracy_by_task.svg",
        "quality_against_size.svg", "quality_against_speed.svg", "flips.jsonl",
    }  # fmt: skip


def test_several_runs_are_compared_on_one_page(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    references = ("models:/tiny-pruned@candidate", finished.result["mlflow_run_id"])
    found = resprout("report", *references, "--output", tmp_path / "r", home=finished.home)
    assert found.code == 0, found.err
    assert found.out.strip() == str(tmp_path / "r" / "comparison.html")
    page = (tmp_path / "r" / "comparison.html").read_text()
    assert "2 runs compared" in page
    assert page.count("flap (uniform widths)") == 2
    assert page.count(found_verdict := finished.result["verdict"]["judgement"]) >= 2, found_verdict
    weights = finished.result["ships"]["bytes"] / finished.result["ships"]["source_bytes"]
    assert page.count(f"(x{weights:.2f})") >= 2
    assert "All settings are the same." in page
    stage = next(one for one in mlflow_of(finished.home).search_runs(
        [mlflow_of(finished.home).get_run(references[1]).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{references[1]}'", max_results=1,
    ))  # fmt: skip
    bad = resprout("report", references[0], stage.info.run_id, "--output", tmp_path / "b", home=finished.home)
    assert bad.code == 2
    assert "has no scores of a dense and a pruned model" in bad.err
    assert not (tmp_path / "b").exists()


def test_a_report_is_not_written_to_a_file(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for output in (taken, taken / "below"):
        found = resprout("report", "models:/tiny-pruned/1", "--output", output, home=finished.home)
        assert found.code == 2
        assert f"cannot be written to {output}" in found.err
        assert "give a folder in --output" in found.err
    assert taken.read_text() == "mine"


def test_commands_write_below_the_data_folder_unless_a_folder_is_named(
    copied: Path, resprout: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is a file left in the folder where a person is, which may be a repository."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = resprout("report", "models:/tiny-pruned@candidate", home=copied, anew=True)
    assert found.out.strip() == str(copied / "reports" / "tiny-pruned-1" / "report.html")
    assert new_folder(None, copied).parent == copied / "reproduced"
    assert list(work.iterdir()) == []


def test_the_id_that_runs_lists_names_a_run_to_the_other_commands(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    run_id = finished.result["mlflow_run_id"]
    flow_run = mlflow_of(finished.home).get_run(run_id).data.tags["resprout.flow_run"]
    for name in (flow_run, flow_run[:8]):
        found = resprout("verify", name, home=finished.home)
        assert found.code == 0, found.err
        shown = resprout("why", name, "prune", home=finished.home)
        assert f"ran in run tiny ({run_id})" in " ".join(shown.out.split()), shown.err
    assert resprout("verify", "0" * 8, home=finished.home).code == 2


def test_the_in_toto_statement_can_be_read_as_text(finished: Any, resprout: Callable[..., Any]) -> None:
    found = resprout("lineage", "models:/tiny-pruned/1", "--in-toto", "--text", home=finished.home)
    assert json.loads(found.out)["predicateType"] == "https://slsa.dev/provenance/v1"
    assert '\n  "predicate": {\n' in found.out
    alone = resprout("lineage", "models:/tiny-pruned/1", "--text", home=finished.home)
    assert (alone.code, "--text decodes the statement of --in-toto" in alone.err) == (2, True)


def test_the_same_config_twice_from_scratch_gives_equal_digests(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    again = resprout("run", finished.config, "--json", home=tmp_path / "home")
    assert again.code == 0, again.err
    assert not any(stage["cached"] for stage in again.result["stages"])
    # Timings differ between runs, and the report shows them.
    assert digests(again.result, "measure", "report") == digests(finished.result, "measure", "report")


def test_a_run_without_recovery_and_gate_exports_the_pruned_model(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_run(tmp_path, select=None, recover=None, gate=None, measure=None)
    name = "_".join(["words"] * 15)
    found = resprout("run", path, f"evaluate.perplexity.name={name}", "--json", home=tmp_path / "home")
    assert found.code == 0, found.err
    assert "…" not in found.err, "a metric's long name is broken, not cut"
    assert found.result["models"]["recovered"] is None
    assert found.result["gate"] == {"passed": True, "checks": []}
    assert found.result["exports"][0]["verified"]
    assert "no gate was set" in found.err
    assert "gate: passed" not in found.err
    assert gate_tag(tmp_path / "home", found.result) == "none"
