"""The evaluate stage on a tiny model: names carry the protocol, lm-eval agrees with a loop, edited tasks
change the key."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.schema import DataSource, EvaluateConfig
from resprout.configs.suites import shipped_tasks
from resprout.tasks.acquire.jobs import AcquireData, AcquireTask
from resprout.tasks.acquire.source import Context
from resprout.tasks.acquire.stage import acquire_task
from resprout.tasks.core.job import Job, silent
from resprout.tasks.evaluate.stage import evaluate, evaluation_data, kl_metric, perplexity_metric
from resprout.tasks.evaluate.task_files import read_task
from resprout.tasks.models.load import load_model, load_tokenizer
from tiny_models import write_tiny_folder
from tiny_run import TWO_CHOICES


def config(**changes: Any) -> EvaluateConfig:
    ppl = {"name": "words", "text": [{"source": "x"}], "window_tokens": 16, **changes}
    return EvaluateConfig.model_validate({"perplexity": ppl})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_tiny_folder(root / "dense"), write_tiny_folder(root / "pruned", seed=1, intermediate_size=96)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    document = " ".join(f"w{4 + index * 7 % 200}" for index in range(60))
    (folder / "text.jsonl").write_text(json.dumps({"text": document, "source": "t"}) + "\n")
    return folder


def run(job_config: EvaluateConfig, out: Path, **inputs: Path) -> tuple[dict[str, float], dict[str, Any]]:
    out.mkdir(exist_ok=True)
    evaluate.body(Job(job_config, dtype="float32"), inputs, out, silent)
    return json.loads((out / "metrics.json").read_text()), json.loads((out / "details.json").read_text())


def test_dense_has_no_divergence_and_pruned_has(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    dense, pruned = models
    of_dense, _ = run(config(), tmp_path / "a", model=dense, text=text)
    of_pruned, details = run(config(), tmp_path / "b", model=pruned, text=text, dense=dense)
    assert "words_kl_to_dense_seq16" not in of_dense
    assert of_pruned["words_kl_to_dense_seq16"] > 0
    assert of_pruned["params"] < of_dense["params"]
    assert details["perplexity"]["scored_tokens"] == 60 - 4, (
        "the first token of each of four windows is not scored"
    )


@pytest.mark.parametrize(
    ("changes", "ppl", "kl"),
    [
        ({}, "words_ppl_seq16", "words_kl_to_dense_seq16"),
        ({"stride_tokens": 16}, "words_ppl_seq16", "words_kl_to_dense_seq16"),
        (
            {"stride_tokens": 4, "bos": True},
            "words_ppl_seq16_stride4_bos",
            "words_kl_to_dense_seq16_stride4_bos",
        ),
    ],
)
def test_names_carry_the_protocol(changes: dict[str, Any], ppl: str, kl: str) -> None:
    made = config(**changes).perplexity
    assert (perplexity_metric(made), kl_metric(made)) == (ppl, kl)


def test_too_little_text_is_said(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has 60 tokens, fewer than one window of 64"):
        run(config(window_tokens=64), tmp_path / "a", model=models[0], text=text)


def own_task(folder: Path) -> list[dict[str, Any]]:
    """A two-choice task as the acquire stage leaves it; its rows."""
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps(TWO_CHOICES))
    rows = [
        {"question": f"w{5 + i} w{9 + i}", "a": f"w{20 + i}", "b": f"w{90 - i} w7", "label": i % 2}
        for i in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_accuracy_equals_a_loop_over_choices(
    models: tuple[Path, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = own_task(tmp_path / "task")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base = config().model_dump(mode="json")
    base["zero_shot"] = {"tasks": [{"task": "own.yaml", "data": {"source": "x"}}], "batch_size": 4}
    scored = EvaluateConfig.model_validate(base)
    inputs = {"model": models[0], "text": text, "task_own": tmp_path / "task"}
    metrics, details = run(scored, tmp_path / "a", **inputs)

    model, tokenizer = load_model(models[0], "float32", "cpu"), load_tokenizer(models[0])
    right = 0
    for row in rows:
        sums = []
        for choice in (row["a"], row["b"]):
            before = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            ids = before + tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logp[i - 1, ids[i]]) for i in range(len(before), len(ids))))
        right += int(sums[1] > sums[0]) == row["label"]
    assert metrics["own_acc"] == pytest.approx(right / len(rows))
    assert details["tasks"]["own"]["items"] == len(rows)
    assert metrics["zero_shot_mean_acc"] == metrics["own_acc_norm"]


def task_key(folder: Path, text: str) -> str:
    """Key of acquiring a task whose YAML is `text`."""
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text(text)
    (folder / "rows.jsonl").write_text('{"q": "w5"}\n')
    here = Context(home=folder / "home", base=folder)
    data = AcquireData.pin((DataSource(source="rows.jsonl"),), here)
    return acquire_task.key(Job(AcquireTask(data, read_task("own.yaml", folder))), {})


def test_a_tokenizer_without_bos_and_eos_is_refused_before_any_weight_is_loaded(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[0], folder)
    (folder / "model.safetensors").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if name not in ("bos_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    asked = EvaluateConfig.model_validate(
        {
            **config().model_dump(mode="json"),
            "zero_shot": {"tasks": [{"task": "own.yaml", "data": {"source": "x"}}]},
        }
    )
    with pytest.raises(BadInput, match="names a BOS or an EOS token, and the model's names neither"):
        evaluation_data.body(Job(asked), {"dense": folder, "text": text}, tmp_path, silent)


def test_an_edited_task_is_scored_again_a_comment_or_another_folder_is_not(tmp_path: Path) -> None:
    text = "task: own\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
    key = task_key(tmp_path / "a", text)
    assert task_key(tmp_path / "a", "# a comment\n" + text) == key
    assert task_key(tmp_path / "b", text) == key
    assert task_key(tmp_path / "a", text.replace("{{q}}", "Q: {{q}}")) != key


def test_evaluator_settings_are_in_the_key_and_source_paths_are_not() -> None:
    base = evaluate.key(Job(config()), {})
    assert evaluate.key(Job(config(window_tokens=32)), {}) != base
    assert evaluate.key(Job(config(bos=True)), {}) != base
    assert evaluate.key(Job(config(limit_tokens=64)), {}) != base
    assert evaluate.key(Job(config(text=[{"source": "/elsewhere/x"}])), {}) == base


def test_overlapping_windows_are_joined_to_blocks_that_do_not_overlap(
    models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    for stride, blocks in ((None, 4), (4, 4)):
        out = tmp_path / str(stride)
        run(config(stride_tokens=stride), out, model=models[0], text=text)
        samples = json.loads((out / "samples.json").read_text())["windows"]
        assert len(samples) == blocks, stride
        assert sum(tokens for _, tokens in samples) == (56 if stride is None else 59)
        assert min(tokens for _, tokens in samples[:-1]) >= 15


GOOD_TASK = "task: x\noutput_type: multiple_choice\nmetric_list: [{metric: acc}]\n"


def test_bad_tasks_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"'pica'; did you mean piqa\? give one of arc_challenge, arc_easy, .* or "
    ):
        read_task("pica", tmp_path)
    for content, expected in (
        ("task: x\ndoc: !function f.g\n", "tags such as !function are not run"),
        ("task: x\n", "not an lm-eval task: an lm-eval task needs at least"),
        (GOOD_TASK + "include: z.yaml\n", "write the settings of both into one file"),
        (GOOD_TASK + "unsafe_code: true\n", "runs the code that the model writes"),
        (GOOD_TASK + "class: lm_eval:squadv2/task.SQuAD2\n", "a Python class of lm-eval"),
        (GOOD_TASK + "repeats: 4\n", "draws its answers; set do_sample: false"),
        ("task: x\noutput_type: loglikelihood_rolling\n", "evaluate.perplexity is for text"),
        ("task: x\noutput_type: multiple_choice\nmetric_list: [{metric: f1}]\n", r"metrics \['f1'\]; give"),
        ("task: x\ninclude: lm_eval:gsm8q\n", "no task gsm8q; did you mean lm_eval:gsm8k?"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        with pytest.raises(BadInput, match=expected):
            read_task(str(path), tmp_path)


def test_each_shipped_task_reads() -> None:
    for name in shipped_tasks():
        assert read_task(name, Path())["task"] == name


def test_perplexity_equals_a_loop_of_ten_lines(models: tuple[Path, Path], text: Path, tmp_path: Path) -> None:
    documents = [" ".join(f"w{4 + at * step % 200}" for at in range(40)) for step in (7, 11, 13)]
    rows = [json.dumps({"text": one, "source": "t"}) for one in documents]
    (text / "text.jsonl").write_text("\n".join(rows))
    metrics, _ = run(config(), tmp_path / "a", model=models[0], text=text)

    model, tokenizer = load_model(models[0], "float32", "cpu"), load_tokenizer(models[0])
    ids = tokenizer("\n\n".join(documents), add_special_tokens=False)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(ids), 16):
        window = torch.tensor([ids[start : start + 16]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
        total, count = total + float(losses.sum()), count + len(losses)
    assert metrics["words_ppl_seq16"] == pytest.approx(math.exp(total / count), rel=1e-4)
    bits = total / math.log(2) / count * len(ids) / len("\n\n".join(documents).encode())
    assert metrics["words_bits_per_byte_seq16"] == pytest.approx(bits, rel=1e-4)
