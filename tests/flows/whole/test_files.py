"""A run that ends with files of few bits: made, judged in llama.cpp beside the dense model's, exported."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.load import save_model
from resprout.tasks.models.shape import shape_of
from tiny_models import tiny_model, write_byte_tokenizer
from tiny_run import config, write_data

SHORT = {"select": None, "recover": None}
WIDE = {"hidden_size": 64, "intermediate_size": 256}


def write(root: Path, family: str = "llama", **changes: Any) -> Path:
    """A run whose model and tokenizer llama.cpp knows."""
    write_data(root)
    write_byte_tokenizer(root / "tokenizer")
    save_model(tiny_model(family, **WIDE), root / "model", tokenizer_from=root / "tokenizer")
    made = config(**{**SHORT, **changes})
    (root / "run.yaml").write_text(yaml.safe_dump(made))
    return root / "run.yaml"


def test_a_file_is_made_judged_exported_and_found_again(tmp_path: Path, resprout: Callable[..., Any]) -> None:
    folder = tmp_path
    path = write(
        folder,
        prune={**config()["prune"], "round_to": "auto"},
        quantize={"formats": ["gguf:Q8_0"]},
        compare={"baselines": ["gguf:Q4_0", "gguf:Q8_0"]},
        gate={"of": "gguf:Q8_0", "max_perplexity_ratio": 10.0},
        draft={"prompts": ["The river", "the"], "new_tokens": 8, "repeats": 3},
    )
    done = resprout("run", path, "--json", home=folder / "home")
    assert done.code == 0, done.err
    files = done.result["files"]
    assert sorted(files) == ["dense gguf:Q4_0", "dense gguf:Q8_0", "gguf:Q8_0"]
    sizes = {name: one["bytes"] for name, one in files.items()}
    assert sizes["dense gguf:Q4_0"] < sizes["gguf:Q8_0"] < sizes["dense gguf:Q8_0"]
    assert files["gguf:Q8_0"]["metrics"]["fallback_tensors"] == 0
    # Eight bits change next to nothing; the perplexity is that of llama.cpp's own logits.
    ours, whole = (
        found["metrics"]["words_ppl_seq32"] for found in (files["gguf:Q8_0"], done.result["models"]["pruned"])
    )
    assert ours == pytest.approx(whole, rel=0.02)
    assert ours != whole
    assert files["gguf:Q8_0"]["speeds"]["decode4_tokens_per_s"]["ratio"] > 0, "against the dense model's file"
    assert len(done.result["against_fewer_bits"]) == 1
    value = next(
        one["value"] for one in done.result["gate"]["checks"] if one["name"] == "max_perplexity_ratio"
    )
    dense = done.result["models"]["dense"]["metrics"]["words_ppl_seq32"]
    assert value == pytest.approx(ours / dense), "the gate is about the file"
    assert "gate: passed by gguf:Q8_0; " in done.err
    exports = {one["format"]: one for one in done.result["exports"]}
    assert list(exports) == ["hf", "gguf:Q8_0"]
    linked = Path(exports["gguf:Q8_0"]["path"])
    assert linked.name.endswith("-gguf-Q8_0")
    assert (linked / "model.gguf").stat().st_size == sizes["gguf:Q8_0"]
    assert exports["gguf:Q8_0"]["mean_kl_nats"] < 0.05
    card = (linked / "README.md").read_text()
    assert f"| {dense:.2f} | {ours:.2f} |" in card, "the scores are the file's"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=linked, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("The river")
    page = html.unescape((folder / "home" / "reports" / "tiny" / "report.html").read_text())
    assert "Files of few bits" in page
    assert "passed</strong> by gguf:Q8_0: " in page
    assert 'id="figure-files-size"' in page
    assert done.result["against_fewer_bits"][0] in page
    drafted = done.result["draft"]
    assert 0 <= drafted["draft_acceptance_rate"] <= 1
    assert drafted["draft_same_text_share"] == 1.0
    for shown in (done.err, page):
        assert f"As a draft for the dense model: {100 * drafted['draft_acceptance_rate']:.0f} %" in shown
    _found_again(folder, resprout)


def _found_again(folder: Path, resprout: Callable[..., Any]) -> None:
    """Nothing is made twice, the version's bytes are verified, and its lineage names the file."""
    again = resprout("run", folder / "run.yaml", "--json", home=folder / "home")
    assert again.code == 0, again.err
    made = [one["name"] for one in again.result["stages"] if not one["cached"]]
    assert made == []
    version = "models:/tiny-pruned@candidate"
    checked = resprout("verify", version, "--config", folder / "run.yaml", home=folder / "home")
    assert checked.code == 0, checked.err
    drawn = resprout("lineage", version, "--config", folder / "run.yaml", home=folder / "home")
    assert "gguf:Q8_0: quantize" in drawn.out
    # The same in words, a table of at most 100 columns.
    shown = resprout("run", folder / "run.yaml", home=folder / "home", env={"COLUMNS": "100"})
    lines = (shown.out + shown.err).splitlines()
    row = next(line for line in lines if line.startswith("dense gguf:Q4_0"))
    assert len(row) <= 100
    assert any("Llama(" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantize": {"formats": ["gguf:Q4_K_N"]}}, "'Q4_K_N' is not a type of a GGUF file"),
        ({"quantize": {"formats": ["gguff:Q4_0"]}}, "unknown quantised format 'gguff'; did you mean 'gguf'"),
        ({"gate": {"of": "gguf:Q4_0", "max_kl_nats": 1.0}}, "gate.of is gguf:Q4_0, which quantize.formats"),
        ({"compare": {"baselines": ["quantized"]}}, "compare is about files of few bits, but quantize"),
        (
            {"quantize": {"formats": ["gguf:Q8_0"]}, "compare": {"baselines": ["dense"]}},
            "compare.baselines holds dense; give quantized, source_file, or a format",
        ),
        (
            {"quantize": {"formats": ["gguf:Q8_0"]}, "compare": {"baselines": ["gguf:Q9"]}},
            "'Q9' is not a type of a GGUF file",
        ),
        (
            {"export": {**config()["export"], "formats": ["gguf:Q8_0"]}},
            "export.formats holds gguf:Q8_0, which quantize.formats does not make",
        ),
        (
            {"export": {**config()["export"], "formats": ["hf", "onnx"]}},
            "onnx is made by quantize in one of its types; give it with its type, say onnx:F32",
        ),
        ({"quantize": {"formats": ["onnx:INT8"]}}, "'INT8' is no type of ONNX file; give onnx:F32 or"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_runs(
    changes: dict[str, Any], said: str, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(config(**{**SHORT, **changes})))
    refused = resprout("run", path, home=tmp_path / "home")
    assert refused.code == 2
    assert said in " ".join(refused.err.split())


@pytest.mark.parametrize(
    ("family", "layout", "said"),
    [
        ("opt", "uniform", "llama.cpp has no architecture for the family opt"),
        (
            "qwen3",
            "per_layer",
            "gguf:Q8_0, which for qwen3 has one width for all layers, but prune.layout is per_layer; give "
            "layout: uniform, or onnx:F32",
        ),
    ],
)
def test_a_model_that_no_file_can_hold_is_refused_before_anything_runs(
    family: str, layout: str, said: str, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    changes = {} if layout == "uniform" else {"layout": layout, "repair": "none"}
    prune = {**config()["prune"], **changes}
    path = write(tmp_path, family, prune=prune, quantize={"formats": ["gguf:Q8_0"]})
    refused = resprout("run", path, home=tmp_path / "home")
    assert refused.code == 2
    assert said in " ".join(refused.err.split())


def test_layers_of_different_widths_are_served_by_llama_cpp(
    tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    prune = {**config()["prune"], "layout": "per_layer", "repair": "none", "round_to": 64}
    prune["target"] = {"params_ratio": 0.93}
    more = {"measure": None, "gate": None, "register": None}
    path = write(tmp_path, prune=prune, quantize={"formats": ["gguf:Q8_0"]}, **more)
    done = resprout("run", path, "--json", home=tmp_path / "home")
    assert done.code == 0, done.err
    exports = {one["format"]: Path(one["path"]) for one in done.result["exports"]}
    assert len(set(shape_of(exports["hf_layouts"]).ffn)) == 2
    scores = {
        name: one["metrics"]["words_ppl_seq32"]
        for name, one in (done.result["files"] | {"pruned": done.result["models"]["pruned"]}).items()
    }
    assert scores["gguf:Q8_0"] == pytest.approx(scores["pruned"], rel=0.02)
    metadata, _ = read_header(exports["gguf:Q8_0"] / "model.gguf")
    assert metadata["general.architecture"] == "deci"


def test_a_graph_is_judged_and_timed_by_onnx_runtime_against_the_dense_model_there(
    tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    path = write(
        tmp_path,
        quantize={"formats": ["onnx:F32"]},
        compare={"baselines": ["onnx:F32"]},
        measure={**config()["measure"], "grid": [{"prefill_tokens": 8, "batch_size": 2}]},
        gate=None,
        register=None,
    )
    done = resprout("run", path, "--json", home=tmp_path / "home")
    assert done.code == 0, done.err
    files = done.result["files"]
    assert sorted(files) == ["dense onnx:F32", "onnx:F32"]
    ours, whole = (
        found["metrics"]["words_ppl_seq32"] for found in (files["onnx:F32"], done.result["models"]["pruned"])
    )
    assert ours == pytest.approx(whole, rel=1e-4)
    assert ours != whole, "the perplexity is that of ONNX Runtime's own logits"
    for speed in ("prefill16_tokens_per_s", "decode4_tokens_per_s"):
        assert files["onnx:F32"]["speeds"][speed]["ratio"] > 0, "against the dense model's graph"
        assert speed not in files["dense onnx:F32"]["speeds"], "held against nothing in another program"
    exports = {one["format"]: one for one in done.result["exports"]}
    assert list(exports) == ["hf", "onnx:F32"]
    assert exports["onnx:F32"]["max_abs_logit_diff"] < 1e-3
    assert (Path(exports["onnx:F32"]["path"]) / "model.onnx.data").is_file()
    # The grid: rows of the models, lines below the files, and how far times lay apart beside them.
    shown = resprout("run", path, home=tmp_path / "home", env={"COLUMNS": "100"})
    lines = (shown.out + shown.err).splitlines()
    assert [line.split(",")[0] for line in lines if ", tokens/s" in line] == [
        "decode4", "decode4_after8_batch2", "prefill16", "prefill8_batch2"
    ]  # fmt: skip
    assert any(line.startswith("decode4_after8_batch2, tok/s: dense onnx:F32 ") for line in lines)
    assert sum("times of one model lay up to" in line for line in lines) == 1
