"""A model is looked at wherever it lies, and its weights stay there."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, LlamaFileType
from mlflow import MlflowClient
from safetensors.numpy import save_file

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StoreConfig
from resprout.flows.first_config import model
from resprout.flows.first_config.model import CHARACTERS_PER_TOKEN, look_at_model
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile
from tiny_models import write_tiny_folder

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_tiny_folder(tmp_path / "tiny")
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    return made


def test_a_folder_without_reading_its_weights(folder: Path, tmp_path: Path) -> None:
    save_file({"other": np.zeros(1)}, folder / WEIGHTS)
    found = look_at_model("tiny", Context(tmp_path / "home", tmp_path))
    assert found.shape is not None
    assert (found.name, found.licence, found.shape.layers, found.chat) == ("tiny", "mit", 2, None)
    assert not (tmp_path / "home").exists()


def test_a_token_is_as_long_as_the_tokenizer_says(folder: Path, tmp_path: Path) -> None:
    here = Context(tmp_path / "home", tmp_path)
    each = look_at_model("tiny", here).characters_per_token(["w10 w20 w30 w40"])
    assert each == pytest.approx(1.1 * 15 / 4)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert look_at_model("tiny", here).characters_per_token(["w10 w20"]) == CHARACTERS_PER_TOKEN


def test_the_transformers_flavour_of_mlflow(folder: Path, tmp_path: Path) -> None:
    flavour = tmp_path / "flavour"
    shutil.copytree(folder, flavour / "model")
    (flavour / "components" / "tokenizer").mkdir(parents=True)
    (flavour / "model" / "tokenizer.json").rename(flavour / "components" / "tokenizer" / "tokenizer.json")
    (flavour / "MLmodel").write_text("flavors: {}")
    found = look_at_model("flavour", Context(tmp_path / "home", tmp_path))
    assert found.shape is not None
    assert found.tokenizer is not None


def write_gguf(path: Path) -> None:
    writer = GGUFWriter(str(path), "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_license("mit")
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list([f"token {index}" for index in range(50)])
    writer.add_tensor("token_embd.weight", np.zeros((50, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_by_its_header(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.q4_1.gguf")
    found = look_at_model("small.q4_1.gguf", Context(tmp_path / "home", tmp_path))
    assert found.shape is not None
    assert (found.name, found.licence, found.shape.ffn) == ("small", "mit", (48, 48))
    assert (found.gguf_type, found.bytes) == ("Q4_1", (tmp_path / "small.q4_1.gguf").stat().st_size)
    assert found.chat is not None
    assert found.tokenizer is None


def test_a_registered_version(folder: Path, tmp_path: Path, mlflow_template: Path) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    client.create_registered_model("chat")
    client.create_model_version("chat", folder.as_uri())
    found = look_at_model("models:/chat/1", Context(tmp_path / "home", tmp_path, tracking_uri=uri))
    assert found.shape is not None
    assert (found.name, found.licence) == ("chat", "mit")
    with pytest.raises(BadInput, match="check name, version and alias"):
        look_at_model("models:/chat/2", Context(tmp_path / "home", tmp_path, tracking_uri=uri))


def test_a_prefix_of_a_bucket_of_which_no_weights_are_brought(
    s3: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreConfig(**s3.settings(uuid.uuid4().hex))
    prefix = str(store.uri).rpartition("/")[2]
    for path in folder.iterdir():
        s3.client().upload_file(str(path), s3.bucket, f"{prefix}/tiny/{path.name}")
    # Whatever asks for the weights gets what is no model.
    s3.client().put_object(Bucket=s3.bucket, Key=f"{prefix}/tiny/{WEIGHTS}", Body=b"no weights at all")
    write_gguf(tmp_path / "small.gguf")
    whole = (tmp_path / "small.gguf").read_bytes()
    s3.client().put_object(Bucket=s3.bucket, Key=f"{prefix}/one/small.gguf", Body=whole)
    here = Context(tmp_path / "home", tmp_path, store=store)
    found = look_at_model(f"s3://{s3.bucket}/{prefix}/tiny", here)
    assert found.shape is not None
    assert (found.name, found.licence, found.tokenizer is not None) == ("tiny", "mit", True)
    monkeypatch.setattr(model, "HEADER_BYTES", len(whole) - 1000)
    for address in (f"s3://{s3.bucket}/{prefix}/one", f"s3://{s3.bucket}/{prefix}/one/small.gguf"):
        found = look_at_model(address, here)
        assert found.shape is not None
        assert (found.name, found.licence, found.shape.ffn) == ("small", "mit", (48, 48))


def test_a_gguf_file_that_is_given_as_a_whole_only_is_not_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PinnedFile("small.gguf", 10**9, "mlflow-artifacts:/1/small.gguf", "mark")
    pinned = Pinned("models:/chat/1", "models", "chat", (file,), {}, "digest")
    monkeypatch.setattr(model, "find", lambda *_: None)
    monkeypatch.setattr(model, "pin", lambda *_: pinned)
    found = look_at_model("models:/chat/1", Context(tmp_path / "home", tmp_path))
    assert (found.name, found.shape) == ("chat", None)
