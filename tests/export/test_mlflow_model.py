"""MLmodel beside an export: MLflow loads the folder by its transformers flavour, without resprout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.mlflow_model import FILE
from tiny_models import tiny_model, write_tiny_tokenizer

SCRIPT = """
import sys
sys.modules["resprout"] = None
import mlflow
found = mlflow.transformers.load_model(sys.argv[1])
said = found("w40 w41", max_new_tokens=4, do_sample=False, return_full_text=False)
print(found.model.num_parameters(), found.model.dtype, said[0]["generated_text"])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mlmodel")
    write_tiny_tokenizer(root / "tokenizer")
    (root / "hf").mkdir()
    HuggingFace().write(tiny_model("llama", dtype="bfloat16"), root / "tokenizer", root / "hf")
    return root / "hf"


def test_the_file_holds_no_date_no_id_and_no_path(folder: Path, tmp_path: Path) -> None:
    stated = yaml.safe_load((folder / FILE).read_text())
    assert stated.keys() == {"flavors"}
    assert stated["flavors"]["transformers"]["model_binary"] == "."
    (tmp_path / "hf").mkdir()
    HuggingFace().write(tiny_model("llama", dtype="bfloat16"), folder.parent / "tokenizer", tmp_path / "hf")
    assert (tmp_path / "hf" / FILE).read_bytes() == (folder / FILE).read_bytes()


def test_mlflow_loads_model_and_tokenizer_out_of_the_folder(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    env = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("w40 w41", return_tensors="pt").input_ids
    text = tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :])
    assert done.stdout.split() == [str(model.num_parameters()), "torch.bfloat16", *text.split()]
