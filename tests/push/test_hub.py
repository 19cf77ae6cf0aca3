"""Pushing to a fake of the hub, by the real client: one commit, or none where nothing changed; refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_hub import TOKEN, FakeHub, Repository, fake_hub
from resprout.tasks.push.hub import RECORD

DIGEST = "ab" * 32
CARD = "---\ntags:\n- resprout\n---\n# A model\n"
CALL = """
import json, sys
from pathlib import Path
from resprout.configs.errors import ResproutError
from resprout.tasks.push.hub import push
folders, address, digest, private = json.loads(sys.argv[1])
try:
    found = {at: Path(one) for at, one in folders.items()}
    made = push(found, address, digest, "run: export", "about", private)
    print(json.dumps(vars(made)))
except ResproutError as error:
    print(json.dumps({"error": type(error).__name__, "says": str(error)}))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as found:
        yield found


def pushed(
    hub: FakeHub, folders: dict[str, Path], to: str = "hf://org/small", digest: str = DIGEST, **env: str
) -> dict[str, Any]:
    """What a process of its own says of a push: the client reads the hub's address when it is imported."""
    given = json.dumps([{at: str(one) for at, one in folders.items()}, to, digest, True])
    environment = {**os.environ, **hub.environment(), **env}
    done = subprocess.run(
        [sys.executable, "-c", CALL, given], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    (folder / "components" / "tokenizer").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "components" / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


def test_all_files_go_into_one_private_tagged_commit(hub: FakeHub, export: Path) -> None:
    found = pushed(hub, {"": export})
    assert found.get("changed"), found
    there = hub.repositories["org/small"]
    assert found["to"] == f"hf://org/small@{there.head}"
    assert found["url"] == f"{hub.endpoint}/org/small"
    assert there.private
    sent = {path: data for path, data in there.files.items() if path != ".gitattributes"}
    assert json.loads(sent.pop(RECORD)) == {"files": sorted(sent)}
    assert sent == {
        name: (export / name).read_bytes() for name in ("README.md", "config.json", "model.safetensors")
    }
    assert [title for _, title, _ in there.commits] == ["initial commit", "run: export"]
    assert there.commits[-1][2] == "about"
    assert there.tags == {f"resprout-{DIGEST[:12]}": there.head}
    assert len(hub.large) == 1, "weights go by git-lfs"


def test_the_same_again_makes_no_commit_and_sends_no_byte(hub: FakeHub, export: Path) -> None:
    first = pushed(hub, {"": export})
    hub.requests.clear()
    again = pushed(hub, {"": export})
    assert again == {**first, "changed": False}
    assert not any("commit" in one or "upload" in one for one in hub.requests)


def folder_of(at: Path, *names: str) -> Path:
    for name in names:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(os.urandom(40))
    (at / "README.md").write_text(CARD)
    return at


def test_another_version_deletes_what_the_last_one_put_there_and_nothing_else(
    hub: FakeHub, export: Path, tmp_path: Path
) -> None:
    gguf = folder_of(tmp_path / "gguf", "model.gguf")
    onnx = folder_of(tmp_path / "onnx", "model.onnx", "model.onnx.data")
    pushed(hub, {"": export, "gguf-Q8_0": gguf, "onnx-F32": onnx})
    there = hub.repositories["org/small"]
    added = {"notes.md": b"a person's", "gguf-Q8_0/chart.png": b"theirs", "lora/other.safetensors": b"theirs"}
    there.files |= added
    found = pushed(hub, {"": gguf}, digest="cd" * 32)
    assert found["changed"]
    assert there.files.keys() == {".gitattributes", "README.md", "model.gguf", RECORD, *added}
    assert json.loads(there.files[RECORD]) == {"files": ["README.md", "model.gguf"]}
    assert len(there.commits) == 3
    assert len(there.tags) == 2


def test_a_whole_model_after_an_adapter_leaves_nothing_for_peft_to_find(
    hub: FakeHub, export: Path, tmp_path: Path
) -> None:
    pushed(hub, {"": folder_of(tmp_path / "peft", "adapter_config.json", "adapter_model.safetensors")})
    pushed(hub, {"": export})
    files = hub.repositories["org/small"].files
    assert files.keys() == {".gitattributes", "README.md", "config.json", "model.safetensors", RECORD}


@pytest.mark.parametrize("record", [None, b"[]", b"not JSON", b'{"files": 1}', b'{"files": [{}]}'])
def test_where_no_record_is_weights_of_other_names_go_and_what_may_be_others_stays(
    hub: FakeHub, export: Path, tmp_path: Path, record: bytes | None
) -> None:
    old = ("onnx-F32/model.onnx", "onnx-F32/model.onnx.data", "adapter_config.json", "modeling_resprout.py")
    before = folder_of(tmp_path / "old", *old, "model-00001-of-00001.safetensors", "gguf/model.gguf")
    pushed(hub, {"": before})
    there = hub.repositories["org/small"]
    there.files["notes.md"] = b"a person's"
    if record is None:
        del there.files[RECORD]
    else:
        there.files[RECORD] = record
    pushed(hub, {"": export})
    kept = {"README.md", "config.json", "model.safetensors", "notes.md"}
    assert there.files.keys() == {".gitattributes", RECORD, *kept}


def test_a_repository_of_someone_else_is_left_alone(hub: FakeHub, export: Path) -> None:
    hub.repositories["org/small"] = Repository(False, {"README.md": b"# Mine", "model.safetensors": b"x"})
    found = pushed(hub, {"": export})
    assert found["error"] == "BadInput"
    assert "holds a model that resprout did not push" in found["says"]
    assert hub.repositories["org/small"].files["README.md"] == b"# Mine"


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"HF_TOKEN": ""}, "BadInput", "HF_TOKEN is not set"),
        ({"HF_TOKEN": "hf_another"}, "BadInput", "the hub refuses access (401)"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Transient", "cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "BadInput", "HF_HUB_OFFLINE is set"),
    ],
)
def test_no_token_and_no_access_are_one_sentence(
    hub: FakeHub, export: Path, change: dict[str, str], error: str, sentence: str
) -> None:
    found = pushed(hub, {"": export}, **change)
    assert found["error"] == error
    assert sentence in found["says"]
    assert not hub.repositories


@pytest.mark.parametrize("to", ["hf://org", "org/name", "hf://org/name@main", "s3://bucket/name"])
def test_an_address_that_is_no_repository_is_refused(hub: FakeHub, export: Path, to: str) -> None:
    assert "give hf://org/name" in pushed(hub, {"": export}, to=to)["says"]


def test_a_fault_that_passes_is_told_apart_and_the_next_try_goes_through(hub: FakeHub, export: Path) -> None:
    hub.faults = [("/api/repos/create", 503)]
    assert pushed(hub, {"": export})["error"] == "Transient"
    assert pushed(hub, {"": export})["changed"]


def test_a_commit_of_someone_else_in_between_is_not_overwritten(hub: FakeHub, export: Path) -> None:
    hub.faults = [("/commit/", 412)]
    found = pushed(hub, {"": export})
    assert found["error"] == "Transient"
    assert "someone else pushed" in found["says"]
