"""The hub's client is replaced by local folders: that the real hub answers alike is not tested here."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from resprout.configs.errors import BadInput, Transient
from resprout.configs.schema import ModelConfig, RowSource
from resprout.tasks.acquire.jobs import AcquireModel
from resprout.tasks.acquire.source import head
from resprout.tasks.acquire.stage import acquire_rows

COMMIT = "a" * 40
MOVED = "b" * 40


class Hub:
    """One repository with a branch `main`; commits are folders."""

    def __init__(self, folder: Path) -> None:
        self.commits = {COMMIT: folder}
        self.branches = {"main": COMMIT}
        self.downloads: list[list[str]] = []
        self.fault: Exception | None = None

    def model_info(self, repo_id, *, revision, files_metadata, timeout):
        if self.fault:
            raise self.fault
        assert files_metadata
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise failure(errors.RevisionNotFoundError, 404)
        files = [path for path in sorted(self.commits[commit].rglob("*")) if path.is_file()]
        siblings = [
            SimpleNamespace(
                rfilename=path.relative_to(self.commits[commit]).as_posix(),
                size=path.stat().st_size,
                lfs=None,
            )
            for path in files
        ]
        return SimpleNamespace(sha=commit, siblings=siblings, card_data={"license": "apache-2.0"})

    def dataset_info(self, repo_id, *, revision, timeout):
        if self.fault:
            raise self.fault
        return SimpleNamespace(
            sha=self.branches.get(revision, revision), card_data={"license": ["mit", "cc0"]}
        )

    def snapshot_download(self, repo_id, *, revision, allow_patterns=None, local_files_only=False):
        self.downloads.append(sorted(allow_patterns or []))
        return str(self.commits[revision])


def failure(kind, status):
    response = httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co"))
    return kind("no", response=response)


@pytest.fixture
def hub(tiny_folder, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "repository"))
    (folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (folder / "README.md").write_text("# Model")
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_branch_is_pinned_to_its_commit_and_only_the_model_is_downloaded(acquire, hub, tiny_folder):
    content, job = acquire("hf://org/tiny")
    assert job.pinned.uri == f"hf://org/tiny@{COMMIT}"
    assert job.origin()["commit"] == COMMIT
    assert job.licence_note() == "apache-2.0"
    (patterns,) = hub.downloads
    assert "model.safetensors" in patterns
    assert "pytorch_model.bin" not in patterns
    assert "README.md" not in patterns
    assert (content / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_the_head_of_a_file_is_read_at_the_pinned_commit(hub, context, monkeypatch):
    opened = []

    class FileSystem:
        def open(self, place, mode, cache_type):
            opened.append(place)
            return (hub.commits[COMMIT] / place.removeprefix(f"org/tiny@{COMMIT}/")).open(mode)

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FileSystem)
    pinned = AcquireModel.pin(ModelConfig(source="hf://org/tiny"), context).pinned
    weights = next(file for file in pinned.files if file.path == "model.safetensors")
    start = (hub.commits[COMMIT] / "model.safetensors").read_bytes()[:100]
    assert head(pinned, weights, context, 100) == start
    assert opened == [f"org/tiny@{COMMIT}/model.safetensors"]


def test_the_key_follows_the_commit_not_the_name_of_the_branch(hub, context):
    def key(source):
        return AcquireModel.pin(ModelConfig(source=source), context).key_data()

    first = key("hf://org/tiny")
    assert first == key("hf://org/tiny@main") == key(f"hf://org/tiny@{COMMIT}")
    hub.commits[MOVED] = hub.commits[COMMIT]
    hub.branches["main"] = MOVED
    assert key("hf://org/tiny") != first
    assert key(f"hf://org/tiny@{COMMIT}") == first


def test_one_file_of_a_repository(hub, context):
    (hub.commits[COMMIT] / "tiny.gguf").write_bytes(b"GGUF")
    pinned = AcquireModel.pin(ModelConfig(source="hf://org/tiny/tiny.gguf@main"), context).pinned
    assert [file.path for file in pinned.files] == ["tiny.gguf"]


def test_offline_with_the_commit_in_the_cache(acquire, hub, context):
    online = AcquireModel.pin(ModelConfig(source=f"hf://org/tiny@{COMMIT}"), context)
    hub.fault = errors.OfflineModeIsEnabled("offline")
    _, job = acquire(f"hf://org/tiny@{COMMIT}")
    assert job.key_data() == online.key_data()
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set"):
        acquire("hf://org/tiny@main")


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        (failure(errors.RepositoryNotFoundError, 404), BadInput, "no such repository, or it is private"),
        (failure(errors.GatedRepoError, 403), BadInput, "is gated: accept its terms"),
        (failure(errors.HfHubHTTPError, 401), BadInput, "refuses access"),
        (failure(errors.HfHubHTTPError, 503), Transient, "busy or failing"),
        (failure(errors.HfHubHTTPError, 429), Transient, "busy or failing"),
        (httpx2.ConnectError("no route"), Transient, "cannot be reached"),
        (httpx2.ReadTimeout("slow"), Transient, "cannot be reached"),
    ],
)
def test_faults(acquire, hub, fault, kind, sentence):
    hub.fault = fault
    with pytest.raises(kind, match=sentence):
        acquire("hf://org/tiny")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("hf://tiny", "is no hub address"),
        ("hf://org/tiny@", "is no hub address"),
        ("hf://org/tiny@absent", "no such branch, tag or commit"),
        ("hf://org/tiny/absent.gguf", "the repository has no absent.gguf"),
        ("hf-dataset://org/data#train", "is a dataset"),
    ],
)
def test_bad_addresses(acquire, hub, source, sentence):
    with pytest.raises(BadInput, match=sentence):
        acquire(source)


class TestDataset:
    @pytest.fixture
    def asked(self, hub, monkeypatch):
        import datasets

        asked = []

        def load_dataset(repository, config, *, split, revision):
            asked.append((repository, config, split, revision))
            if config == "script":
                raise RuntimeError("Dataset scripts are no longer supported, but found data.py")
            if config == "torn":
                raise datasets.exceptions.DatasetGenerationError("An error") from httpx2.ReadError("reset")
            if config == "broken":
                raise datasets.exceptions.DatasetGenerationError("An error occurred")
            if split == "absent":
                raise ValueError("Unknown split \"absent\". Should be one of ['train'].")
            return datasets.Dataset.from_list([{"instruction": "a", "output": "b"}])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    def test_a_split_is_pinned_and_read(self, bring, hub, asked):
        found = bring(acquire_rows, RowSource(source="hf-dataset://org/data/small#train"))
        assert asked == [("org/data", "small", "train", COMMIT)]
        assert [(one["instruction"], one["source"]) for one in found] == [("a", "org/data/small#train")]

    def test_an_unknown_split(self, bring, asked):
        with pytest.raises(BadInput, match=r"Unknown split .*one of \['train'\]"):
            bring(acquire_rows, RowSource(source="hf-dataset://org/data@main#absent"))

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ("script", "scripts are no longer supported, but found data.py; "),
            ("broken", "An error occurred; "),
        ],
    )
    def test_what_the_library_cannot_load(self, bring, asked, config, says):
        with pytest.raises(
            BadInput, match=f"org/data/{config}@.* cannot be loaded: .*{says}.*give their path"
        ):
            bring(acquire_rows, RowSource(source=f"hf-dataset://org/data/{config}#train"))

    def test_a_network_fault_stays_one(self, bring, asked):
        with pytest.raises(Transient, match=r"huggingface\.co cannot be reached"):
            bring(acquire_rows, RowSource(source="hf-dataset://org/data/torn#train"))

    def test_a_split_must_be_named(self, bring, asked):
        with pytest.raises(BadInput, match="is no dataset address"):
            bring(acquire_rows, RowSource(source="hf-dataset://org/data"))
