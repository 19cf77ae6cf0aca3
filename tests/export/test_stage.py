"""An export counts only when stock transformers, without resprout, computes what the model does."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import ExportConfig
from resprout.infra.licences import Credit
from resprout.infra.store.record import ArtifactRef
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.stage import CardLine
from resprout.tasks.export import probe as script
from resprout.tasks.export.card import Use, card, carry_licences
from resprout.tasks.export.format import largest_difference, usage
from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.formats.hf_code import HuggingFaceCode
from resprout.tasks.export.judged import Metric, judged
from resprout.tasks.export.probe import Probed
from resprout.tasks.export.stage import Export, export
from resprout.tasks.models.load import load_model, save_model
from resprout.tasks.prune.plan import read_plan
from tiny_export import scores_of, write_plan
from tiny_models import tiny_model, with_layers_that_differ, write_tiny_folder

CONFIG = ExportConfig(prompts=("w5 w6", "w7", "w8 w9 w10", "w11 w12", "w200 w201"), greedy_tokens=5)


LORA = CardLine("; then recovery by lora", tag="lora")
PLAIN = Use("transformers", [])
CREDITS = (
    Credit("source model", "hf://acme/tiny@" + "1" * 40, "Apache-2.0"),
    Credit("calibration text", "hf-dataset://acme/words@2#train", None),
    Credit("recovery rows", "pool.jsonl", "a|b <c>"),
)


def run(model: Path, workdir: Path, config=CONFIG, credits=CREDITS):
    workdir.mkdir()
    plan = write_plan(workdir.parent / "plan")
    inputs = {"model": model, "plan": plan, "source": model, **scores_of(workdir.parent)}
    export.body(Job(Export(config, credits, (LORA,))), inputs, workdir, silent)


def digests(workdir):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (workdir / "hf").rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model folder with licence files, and its export."""
    root = tmp_path_factory.mktemp("exported")
    model = write_tiny_folder(root / "model", "qwen3", dtype="bfloat16")
    (model / "LICENSE").write_text("the terms\n")
    (model / "NOTICE.txt").write_text("the notice\n")
    run(model, root / "out")
    return model, root / "out"


def test_hf_export_is_verified_and_equal_runs_give_equal_bytes(exported, tmp_path):
    model, out = exported
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    beside = {"README.md", "LICENSE", "NOTICE.txt", "MLmodel", "resprout.json"}
    assert digests(out).keys() == files | {"tokenizer_config.json"} | beside
    again = tmp_path / "second" / "hf"
    HuggingFace().write(load_model(model, "bfloat16", "cpu"), model, again)
    files, scores = carry_licences(model, again), judged(**scores_of(tmp_path))
    plan = read_plan(write_plan(tmp_path))
    use = Use("transformers", usage("hf", '"."', chat=False))
    text = card(CREDITS, plan, [LORA], files, scores, use)
    (again / "README.md").write_text(text, encoding="utf-8")
    origin = {"licence": CREDITS[0].licence, "made_of": {}}
    (again / "resprout.json").write_text(json.dumps(origin, indent=1) + "\n")
    assert digests(out) == digests(tmp_path / "second")
    size = sum(p.stat().st_size for p in (out / "hf").rglob("*") if p.is_file())
    weights = (out / "hf" / "model.safetensors").stat().st_size
    row = {"format": "hf", "path": "hf", "bytes": size, "weight_bytes": weights, "verified": True}
    assert json.loads((out / "exports.json").read_text()) == [{**row, "max_abs_logit_diff": 0.0}]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {"hf_bytes": size, "hf_max_abs_logit_diff": 0.0}
    assert load_model(out / "hf", "bfloat16", "cpu").dtype == torch.bfloat16


def test_the_card_holds_licences_sizes_and_what_a_hub_reads(exported):
    from huggingface_hub import ModelCard

    model, out = exported
    folder = out / "hf"
    assert (folder / "LICENSE").read_bytes() == (model / "LICENSE").read_bytes()
    found = ModelCard.load(folder / "README.md")
    assert found.data.license == ["apache-2.0", "other"]
    assert found.data.license_name == "a|b c"
    assert found.data.base_model == "acme/tiny"
    assert found.data.datasets == ["acme/words"]
    assert found.data.library_name == "transformers"
    assert found.data.tags == ["resprout", "pruned", "flap", "lora"]
    assert "# tiny, pruned to 85.0 % of its parameters" in found.text
    assert "| this model | 850 | 600 | 2,000 |" in found.text
    assert "| calibration text | hf-dataset://acme/words@2\\#train | unknown |" in found.text
    assert "| recovery rows | pool.jsonl | a\\|b &lt;c&gt; |" in found.text
    assert "LICENSE, NOTICE.txt" in found.text
    results = {(one.dataset_type, one.metric_type, one.metric_value) for one in found.data.eval_results or ()}
    assert results == {
        ("words", "perplexity", 25.0), ("words", "kl_divergence", 0.125), ("own", "accuracy", 0.3),
    }  # fmt: skip
    assert found.data.model_name == "tiny-pruned"


def test_the_card_says_what_was_lost_and_how_it_was_measured(exported):
    text = (exported[1] / "hf" / "README.md").read_text()
    for row in (
        "| words\\_ppl\\_seq32 | 20.00 | 25.00 | +5.00 | windows of 32 tokens, 4,096 tokens scored |",
        "| words\\_kl\\_to\\_dense\\_seq32 | - | 0.1250 |  | nats a token, windows of 32 tokens, 2,048",
        "| own\\_acc | 0.500 ± 0.050 | 0.300 ± 0.050 | -0.200 | lm-eval, task version 1.0, 100 items |",
    ):
        assert row in text


def test_the_card_of_a_file_that_was_not_evaluated_states_the_scores_of_the_model_before(tmp_path):
    import yaml

    plan, scores = read_plan(write_plan(tmp_path)), judged(**scores_of(tmp_path))
    use = Use("gguf", [], stored="gguf:Q4_0", bytes=500, evaluated=False)
    text = card(CREDITS, plan, [], [], scores, use)
    assert "| source model | before it was stored as gguf:Q4_0 (this file was not evaluated) | change" in text
    assert "KL(source || the model before)" in text
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
    own = card(CREDITS, plan, [], [], scores, Use("gguf", [], stored="gguf:Q4_0", bytes=500))
    assert "| metric | source model | this model | change" in own
    assert "model-index" in yaml.safe_load(own.split("---")[1])


def test_a_difference_of_accuracies_inside_the_noise_is_none():
    def change(value: float) -> str:
        return Metric("own_acc", "accuracy", "own", value, 0.5, "", 0.03, 0.04).change

    # The standard error of the difference is 0.05, so its interval reaches 0.098 to either side.
    assert change(0.41) == "no measurable difference"
    assert change(0.40) == "-0.100"
    assert change(0.60) == "+0.100"


def test_the_snippet_of_the_card_runs_as_it_stands(exported):
    """In a process of its own, as a reader runs it beside the card."""
    folder = exported[1] / "hf"
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_nothing_that_came_from_outside_is_markdown_in_the_card(tmp_path):
    from markdown_it import MarkdownIt

    hostile = "![x](http://evil/p.png) [y](http://evil) `z` <img src=q>"
    hub = f"hf-dataset://{hostile.replace('/', '')}/{hostile.replace('/', '')}"
    credits = [Credit("source model", hostile, hostile), Credit("recovery rows", hostile, hostile)]
    plan = read_plan(write_plan(tmp_path))
    assert "<" not in card([Credit("recovery rows", hub, None)], plan, [], [], [], PLAIN)
    text = card(credits, plan, [], [hostile], [], PLAIN)
    assert "<" not in text.split("---\n")[1], "HTML in the front matter"
    read = MarkdownIt("commonmark").enable("table").parse(text.split("---\n")[2])
    inside = [child for token in read for child in token.children or ()]
    own = [child for child in inside if child.type == "code_inline"]
    assert {child.content for child in own} == {'"."'}
    assert {child.type for child in inside if child not in own} <= {"text", "text_special", "softbreak"}
    assert "".join(child.content for child in inside).count(hostile) == 5


@pytest.mark.parametrize(
    ("licence", "front"),
    [
        (None, {"license": "unknown"}),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Acme terms: v2", {"license": "other", "license_name": "Acme terms: v2", "license_link": "LICENSE"}),
    ],
)
def test_the_front_matter_names_the_licence_as_hubs_do(licence, front, tmp_path):
    import yaml

    plan = read_plan(write_plan(tmp_path))
    text = card([Credit("source model", "model", licence)], plan, [], ["LICENSE"], [], PLAIN)
    found = yaml.safe_load(text.split("---")[1])
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
    assert "base_model" not in found
    assert found["tags"] == ["resprout", "pruned", "flap"]


def test_licences_enter_the_key_and_machines_do_not():
    def key(credit, *lines):
        ref = ArtifactRef(kind="model", digest="a" * 64, key="k", record="b" * 64, uri="u", bytes=1)
        return export.key(Job(Export(CONFIG, (credit,), lines)), {"model": ref, "plan": ref, "source": ref})

    base = Credit("source model", "m", "mit")
    assert key(base) == key(Credit("source model", "m", "mit"))
    assert key(base) != key(Credit("source model", "m", "apache-2.0"))
    assert key(base) != key(Credit("source model", "m", None))
    assert key(base) != key(base, LORA)


def tamper_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 3] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def tamper_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


def tamper_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        text.replace('"w5": 5,', '"w5": 6,').replace('"w6": 6,', '"w6": 5,')
    )


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (tamper_weight, r"logits of the hf export differ by up to 0\.\d+ .* allows 0;"),
        (tamper_width, "transformers with stock classes cannot load and run the export"),
        (tamper_tokenizer, "tokenizes the prompts differently"),
    ],
)
def test_a_tampered_export_fails(tamper, says, tmp_path, monkeypatch):
    model = write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16")
    write = HuggingFace.write

    def write_then_tamper(self, model, source, folder):
        write(self, model, source, folder)
        tamper(folder)

    monkeypatch.setattr(HuggingFace, "write", write_then_tamper)
    with pytest.raises(StageFailed, match=says):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out" / "exports.json").exists()


def answers(logit=0.0, ids=(1, 2), greedy=(3,)):
    return Probed([list(ids)], [torch.tensor([[logit, 1.0]])], [list(greedy)])


def test_differences_by_hand():
    assert largest_difference("hf", answers(), answers(logit=0.25), bound=0.25) == 0.25
    for found, says in (
        (answers(logit=0.5), "up to 0.5"),
        (answers(logit=float("nan")), "up to nan"),
        (answers(greedy=(4,)), "continues prompt 0 differently"),
        (answers(ids=(1, 3)), "tokenizes"),
        (Probed([[1, 2]], [torch.zeros(1, 3)], [[3]]), "shapes"),
    ):
        with pytest.raises(StageFailed, match=says):
            largest_difference("hf", answers(), found, bound=0.25)


def test_layers_that_differ_are_refused(tmp_path):
    model = with_layers_that_differ(tiny_model("llama"))
    with pytest.raises(BadInput, match=r"layout: uniform, or give export.formats: \[hf_layouts\]"):
        HuggingFace().write(model, tmp_path, tmp_path / "out")


def test_layers_that_differ_load_by_the_registered_classes(tmp_path):
    source = write_tiny_folder(tmp_path / "source", "qwen3", dtype="bfloat16")
    pruned = tmp_path / "pruned"
    save_model(with_layers_that_differ(load_model(source, "bfloat16", "cpu")), pruned, tokenizer_from=source)
    config = ExportConfig(formats=("hf_layouts",), prompts=CONFIG.prompts, greedy_tokens=5)
    run(pruned, tmp_path / "out", config)
    (told,) = json.loads((tmp_path / "out" / "exports.json").read_text())
    assert (told["format"], told["verified"], told["max_abs_logit_diff"]) == ("hf_layouts", True, 0.0)
    assert not list((tmp_path / "out" / "hf_layouts").glob("*.py"))
    assert "register_layouts()" in (tmp_path / "out" / "hf_layouts" / "README.md").read_text()


def test_layers_that_differ_load_by_code_beside_the_weights(tmp_path):
    """Its card's lines run as they stand where resprout cannot be imported."""
    source = write_tiny_folder(tmp_path / "source", "qwen3", dtype="bfloat16")
    pruned = tmp_path / "pruned"
    save_model(with_layers_that_differ(load_model(source, "bfloat16", "cpu")), pruned, tokenizer_from=source)
    config = ExportConfig(formats=("hf_code",), prompts=CONFIG.prompts, greedy_tokens=5)
    run(pruned, tmp_path / "out", config)
    (told,) = json.loads((tmp_path / "out" / "exports.json").read_text())
    assert (told["format"], told["verified"], told["max_abs_logit_diff"]) == ("hf_code", True, 0.0)
    folder = tmp_path / "out" / "hf_code"
    text = (folder / "README.md").read_text()
    assert "`trust_remote_code=True` runs `modeling_resprout.py` of this folder" in text
    assert "register_layouts" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", 'import sys\nsys.modules["resprout"] = None\n' + code],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_code_beside_the_weights_that_computes_something_else_is_discarded(tmp_path, monkeypatch):
    source = write_tiny_folder(tmp_path / "source", "qwen3", dtype="bfloat16")
    pruned = tmp_path / "pruned"
    save_model(with_layers_that_differ(load_model(source, "bfloat16", "cpu")), pruned, tokenizer_from=source)
    write = HuggingFaceCode.write

    def write_then_tamper(self, model, source, folder):
        write(self, model, source, folder)
        path = folder / "modeling_resprout.py"
        path.write_text(path.read_text() + "\nraise ValueError('spoilt')\n")

    monkeypatch.setattr(HuggingFaceCode, "write", write_then_tamper)
    with pytest.raises(StageFailed, match=r"the code beside the weights cannot load .*spoilt"):
        run(pruned, tmp_path / "out", ExportConfig(formats=("hf_code",), prompts=CONFIG.prompts))


def test_no_formats_is_an_empty_export(tmp_path):
    run(tmp_path / "absent", tmp_path / "out", ExportConfig(formats=()))
    assert json.loads((tmp_path / "out" / "exports.json").read_text()) == []


def test_the_child_cannot_import_resprout():
    """The suite itself runs where resprout is installed: -I alone would let the child import it."""
    code = f"import runpy; runpy.run_path({script.__file__!r})['refuse_resprout'](); import resprout.tasks"
    child = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert child.returncode == 1
    assert "No module named 'resprout" in child.stderr


def test_the_door_imports_no_torch():
    code = "import sys, resprout.tasks.export.stage; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
