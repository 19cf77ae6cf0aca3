"""A finished run's model in any format, afterwards: which steps run, what is copied, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.tasks.models.load import save_model
from tiny_models import tiny_model, write_byte_tokenizer
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
    again = resprout("export", VERSION, "--to", tmp_path / "two", "--format", form, "--json", home=served)
    assert again.code == 0, again.err
    assert again.result["digest"] == found.result["digest"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert "done in" in found.err
    assert "done in" not in again.err
    assert not any(word in found.err for word in ("prune", "calibrate", "evaluate"))
    lineage = resprout("lineage", found.result["digest"], "--json", home=served)
    stages = {one["stage"] for one in lineage.result["records"].values()}
    assert {"acquire_model", "prune", "export"} <= stages
    assert ("quantize" in stages) == form.startswith("gguf")
    checked = resprout("verify", found.result["digest"], home=served)
    assert checked.code == 0, checked.err + checked.out
    everything = resprout("verify", "--all", home=served)
    assert everything.code == 0, everything.err + everything.out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--to", "{taken}"), "is there and not empty; give a new or an empty folder"),
        (("--to", "{new}", "--format", "gguf:Q4_KM"), "did you mean Q4_K_M?"),
        (("--to", "{new}", "--format", "ggfu:Q4_0"), "did you mean 'gguf'?"),
        (("--to", "{new}", "--format", "hf:Q4_0"), "give hf, not hf:Q4_0"),
        (("--format", "gguf:Q8_0"), "give --to FOLDER as well"),
    ],
)
def test_bad_input_is_one_sentence_and_makes_nothing(
    options: tuple[str, ...], sentence: str, finished: Any, resprout: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    given = [one.format(taken=tmp_path / "taken", new=tmp_path / "new") for one in options]
    found = resprout("export", VERSION, *given, home=finished.home)
    assert found.code == 2
    assert sentence in found.err
    assert found.err.strip().count("\n") == 0
    assert not (tmp_path / "new").exists()
