"""A finished run's model in any format, afterwards: which steps run, what is copied, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_hub import TOKEN, FakeHub, fake_hub
from planted import files as files_below
from planted import leaks
from resprout.configs.errors import BadInput
from resprout.flows import formats
from resprout.flows.formats import FurtherFormat
from resprout.flows.recorded_run import RecordedRun, recorded_run
from resprout.flows.workspace import open_workspace
from resprout.infra.store.store import ArtifactStore
from resprout.tasks.llama_cpp import library
from resprout.tasks.models.load import save_model
from resprout.tasks.models.shape import shape_of
from tiny_models import tiny_model, write_byte_tokenizer
from tiny_run import config as tiny_config
from tiny_run import write_data, write_run

VERSION = "models:/tiny-pruned@candidate"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any]) -> Path:
    """The home of a finished run whose model has a tokenizer that llama.cpp knows."""
    root = tmp_path_factory.mktemp("served")
    write_data(root)
    write_byte_tokenizer(root / "tokenizer")
    save_model(tiny_model("llama"), root / "model", tokenizer_from=root / "tokenizer")
    path = write_run(root, select=None, recover=None, measure=None)
    outcome = resprout("run", path, home=root / "home")
    assert outcome.code == 0, outcome.err
    return root / "home"


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_without_a_folder_the_formats_are_listed_that_are_there(
    finished: Any, resprout: Callable[..., Any]
) -> None:
    found = resprout("export", VERSION, home=finished.home)
    assert found.code == 0, found.err
    size = finished.result["exports"][0]["bytes"]
    assert found.out.split() == ["hf", f"{size / 1e6:.1f}", "MB"]


def test_the_registered_format_is_copied_byte_by_byte_and_loads_where_it_is_moved(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    found = resprout("export", VERSION, "--to", tmp_path / "new", "--json", home=finished.home)
    assert found.code == 0, found.err
    assert found.err.startswith("copying hf, ")
    export = next(one for one in finished.result["stages"] if one["name"] == "export")["artifact"]["digest"]
    assert (found.result["digest"], found.result["made_afterwards"]) == (export, False)
    assert files(tmp_path / "new") == files(finished.home / "store" / "content" / export / "hf")
    shutil.move(tmp_path / "new", tmp_path / "moved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert sum(one.numel() for one in model.parameters()) == finished.result["models"]["recovered"]["params"]


@pytest.mark.parametrize("form", ["gguf:Q8_0", "hf_layouts"])
def test_another_format_is_made_of_the_final_model_by_its_own_steps_alone(
    form: str, served: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout("export", VERSION, "--to", tmp_path / "one", "--format", form, "--json", home=served)
    assert found.code == 0, found.err
    assert found.result["made_afterwards"]
    again = resprout(
        "export", VERSION, "--to", tmp_path / "two", "--format", form.replace("Q", "q"), "--json", home=served
    )
    assert again.code == 0, again.err
    assert again.result["digest"] == found.result["digest"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert "done in" in found.err
    assert "done in" not in again.err
    assert not any(line.startswith(("prune", "calibrate", "evaluate")) for line in found.err.splitlines())
    lineage = resprout("lineage", found.result["digest"], "--json", home=served)
    stages = {one["stage"] for one in lineage.result["records"].values()}
    assert {"acquire_model", "prune", "export"} <= stages
    assert ("quantize" in stages) == form.startswith("gguf")
    card = (tmp_path / "one" / "README.md").read_text()
    assert ("not evaluated" in card, "model-index" in card) == (
        (True, False) if form.startswith("gguf") else (False, True)
    )
    checked = resprout("verify", found.result["digest"], home=served)
    assert checked.code == 0, checked.err + checked.out
    everything = resprout("verify", "--all", home=served)
    assert everything.code == 0, everything.err + everything.out


def test_an_adapter_alone_is_a_format_of_a_run_with_recovery(
    copied: Path, finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    """Onto the pruned model, which a run without recovery exports, peft loads it as the recovered model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = resprout(
        "export", VERSION, "--to", tmp_path / "adapter", "--format", "peft", "--json", home=copied
    )
    assert found.code == 0, found.err
    artifacts = {one["name"]: one["artifact"] for one in finished.result["stages"]}
    made_of = json.loads((tmp_path / "adapter" / "resprout.json").read_text())["made_of"]
    assert made_of["pruned"] == artifacts["prune"]["digest"]
    assert made_of["model"] == artifacts["recover"]["digest"]
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    assert "This is an adapter alone." in (tmp_path / "adapter" / "README.md").read_text()
    content = copied / "store" / "content"
    base = AutoModelForCausalLM.from_pretrained(content / made_of["pruned"])
    recovered = AutoModelForCausalLM.from_pretrained(content / made_of["model"] / "model")
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits.detach()
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
    expected = recovered(ids).logits
    assert (with_adapter - expected).abs().max() < 0.2 * (before - expected).abs().max()
    checked = resprout("verify", found.result["digest"], home=copied)
    assert checked.code == 0, checked.err + checked.out


def test_an_adapter_of_a_run_without_recovery_is_refused(
    served: Path, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    found = resprout("export", VERSION, "--to", tmp_path / "new", "--format", "peft", home=served)
    assert found.code == 2
    assert "peft, the adapter of recovery by lora, but recover is left out; give select and" in found.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--to", "{taken}"), "is there and not empty; give a new or an empty folder"),
        (("--to", "{new}", "--format", "gguf:Q4_KM"), "did you mean Q4_K_M?"),
        (("--to", "{new}", "--format", "ggfu:Q4_0"), "did you mean 'gguf'?"),
        (("--to", "{new}", "--format", "hf:Q4_0"), "give hf, not hf:Q4_0"),
        (("--format", "gguf:Q8_0"), "give --to FOLDER or --push"),
        (("--to", "{new}", "--format", "onnx"), "give it with its type, say onnx:F32"),
        (("--to", "{new}", "--format", "nope"), "unknown export format 'nope'. Known: "),
        (("--to", ""), "--to is empty; give a new or an empty folder"),
        (("--to", "/proc/new", "--format", "hf_layouts"), "/proc/new cannot be used ("),
    ],
)
def test_bad_input_is_one_sentence_and_makes_nothing(
    options: tuple[str, ...], sentence: str, finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    given = [one.format(taken=tmp_path / "taken", new=tmp_path / "new") for one in options]
    found = resprout("export", VERSION, *given, "--json", home=finished.home)
    assert found.code == 2
    assert (found.result["status"], found.result["exit_code"]) == ("bad_input", 2)
    assert sentence in found.result["message"]
    assert "done in" not in found.err
    assert sentence in found.err
    assert found.err.strip().count("\n") == 0
    assert not (tmp_path / "new").exists()


def test_a_store_that_has_lost_the_model_says_what_to_do(
    copied: Path, finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    model = next(one for one in finished.result["stages"] if one["name"] == "recover")["artifact"]["digest"]
    shutil.rmtree(copied / "store" / "content" / model)
    found = resprout("export", VERSION, "--to", tmp_path / "new", "--format", "hf_layouts", home=copied)
    assert found.code == 2
    assert f"made of the run's model (artifact {model}), which" in found.err
    assert "no longer has whole; run its config again" in found.err
    whole = resprout("export", VERSION, "--to", tmp_path / "new", home=copied)
    assert whole.code == 0, "the export itself is there"


def test_a_folder_that_cannot_be_written_is_one_sentence(
    finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    found = resprout("export", VERSION, "--to", tmp_path / "file" / "below", home=finished.home)
    assert found.code == 2
    assert "cannot be " in found.err
    assert found.err.strip().count("\n") == 0


@pytest.fixture
def recorded(finished: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[RecordedRun, ArtifactStore]:
    """The finished run as the verb reads it back."""
    monkeypatch.setenv("RESPROUT_HOME", str(finished.home))
    workspace = open_workspace(None, VERSION, read_only=True)
    return recorded_run(workspace, VERSION), workspace.store


def test_a_format_that_cannot_hold_the_layers_names_those_that_can(
    recorded: tuple[RecordedRun, ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = recorded
    uneven = shape_of(tiny_model("qwen3").config.to_dict()).with_counts("ffn", (128, 96))
    monkeypatch.setattr(formats, "shape_of", lambda config: uneven)
    for form in ("hf", "gguf:Q8_0"):
        with pytest.raises(BadInput, match=f"{form} holds a qwen3 .* those of this one differ; .*hf_layouts"):
            FurtherFormat(run, store, form, trust_remote_code=False)
    FurtherFormat(run, store, "hf_layouts", trust_remote_code=False)


def test_a_runtime_that_is_not_installed_is_named_with_what_brings_it(
    recorded: tuple[RecordedRun, ArtifactStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "PACKAGE", "not_installed_here")
    library.require_llama_cpp.cache_clear()
    try:
        with pytest.raises(BadInput, match="which is not installed; pip install"):
            FurtherFormat(*recorded, "gguf:Q8_0", trust_remote_code=False)
    finally:
        library.require_llama_cpp.cache_clear()


STATED = {
    "model": {**tiny_config()["model"], "licence": "Apache-2.0"},
    "calibrate": {
        **tiny_config()["calibrate"],
        "text": [{"source": "calibration.jsonl", "licence": "CC-BY-SA-4.0"}],
    },
    **dict.fromkeys(("select", "recover", "measure")),
}
"""Changes of the tiny config: a licence for all that shapes the model."""


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as found:
        yield found


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory, resprout: Callable[..., Any], hub: FakeHub) -> Any:
    """A finished run that pushed: its outcome and its config."""
    root = tmp_path_factory.mktemp("stated")
    path = write_run(root, **STATED, push={"to": "hf://org/tiny"})
    hub.faults = [("/api/repos/create", 503)]
    outcome = resprout("run", path, "--json", home=root / "home", env=hub.environment())
    assert outcome.code == 0, outcome.err
    return outcome, path


def test_a_run_that_passed_its_gate_pushes_once_through_a_fault_and_says_where(
    stated: Any, resprout: Callable[..., Any], hub: FakeHub
) -> None:
    outcome, path = stated
    there, home = hub.repositories["org/tiny"], path.parent / "home"
    assert not hub.faults, "the hub failed for a moment, and the push was tried again"
    assert outcome.result["pushed"] == {
        "to": f"hf://org/tiny@{there.head}", "url": f"{hub.endpoint}/org/tiny", "changed": True,
    }  # fmt: skip
    export = next(one for one in outcome.result["stages"] if one["name"] == "export")["artifact"]["digest"]
    content = home / "store" / "content" / export / "hf"
    assert there.files["model.safetensors"] == (content / "model.safetensors").read_bytes()
    assert "MLmodel" not in there.files
    _, title, about = there.commits[-1]
    assert title.startswith("tiny, run ")
    assert outcome.result["mlflow_run_id"] in title
    assert export in about
    card = there.card
    assert card["license"] == ["apache-2.0", "cc-by-sa-4.0"]
    assert {one["name"] for one in card["model-index"][0]["results"][0]["metrics"]}
    again = resprout("run", path, "--json", home=home, env=hub.environment())
    assert again.result["pushed"]["changed"] is False
    assert len(there.commits) == 2
    checked = resprout("verify", "--all", home=home)
    assert checked.code == 0, checked.err
    kept = {**files_below(home), "out": outcome.out.encode(), "err": outcome.err.encode()}
    assert leaks({"token": TOKEN}, kept) == []


def test_the_verb_pushes_a_version_where_the_run_did_not(
    stated: Any, resprout: Callable[..., Any], hub: FakeHub
) -> None:
    home = stated[1].parent / "home"
    options = ("--push", "hf://org/by-hand", "--public", "--json")
    found = resprout("export", VERSION, *options, home=home, env=hub.environment())
    assert found.code == 0, found.err
    assert found.result["pushed"]["changed"]
    assert not hub.repositories["org/by-hand"].private
    again = resprout("export", VERSION, *options, home=home, env=hub.environment())
    assert again.result["pushed"] == {**found.result["pushed"], "changed": False}


def test_nothing_is_pushed_without_a_known_licence(
    finished: Any, resprout: Callable[..., Any], hub: FakeHub
) -> None:
    options = ("--push", "hf://org/unknown")
    found = resprout("export", VERSION, *options, home=finished.home, env=hub.environment())
    assert found.code == 2
    assert "no licence is known of source model model (unknown)" in found.err
    assert "org/unknown" not in hub.repositories


def test_a_run_whose_source_forbids_it_ends_before_anything_starts(
    resprout: Callable[..., Any], hub: FakeHub, tmp_path: Path
) -> None:
    model = {**tiny_config()["model"], "licence": "CC-BY-NC-ND-4.0"}
    path = write_run(tmp_path, **{**STATED, "model": model}, push={"to": "hf://org/forbidden"})
    found = resprout("run", path, "--json", home=tmp_path / "home", env=hub.environment())
    assert found.code == 2
    assert "CC-BY-NC-ND-4.0) forbids to pass on" in found.err
    assert found.result["stages"] == []
    assert "org/forbidden" not in hub.repositories


def test_what_failed_its_gate_is_not_pushed_but_copied_with_a_remark(
    stated: Any, resprout: Callable[..., Any], hub: FakeHub, tmp_path: Path
) -> None:
    home, path = stated[1].parent / "home", stated[1]
    gate = ("gate.max_params_ratio=0.5", "push.to=hf://org/failed")
    failed = resprout("run", path, *gate, "--json", home=home, env=hub.environment())
    assert failed.code == 3, failed.err
    assert failed.result["pushed"] is None
    run = failed.result["mlflow_run_id"]
    refused = resprout("export", run, "--push", "hf://org/failed", home=home, env=hub.environment())
    assert refused.code == 3
    assert "max_params_ratio" in refused.err
    assert "org/failed" not in hub.repositories
    copy = resprout("export", run, "--to", tmp_path / "own", "--json", home=home)
    assert copy.code == 0, copy.err
    assert "did not pass its gate: max_params_ratio" in copy.err
    assert (tmp_path / "own" / "config.json").is_file()
