"""The code hash: what an edit re-runs and what it does not, on a copy of the real modules."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.schema import PruneConfig, RunConfig
from resprout.flows.stages import Steps
from resprout.tasks.core import cache_key as code
from resprout.tasks.core.job import Job
from resprout.tasks.prune.stage import plan, prune, score
from resprout.tasks.report.stage import report
from tiny_run import config

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = {"schedule": "prune_and_regrow", "criterion": "magnitude", "repair": "none", "layout": "uniform"}
RUNS = [
    RunConfig.model_validate(config(**changes))
    for changes in (
        {"recover": {"distill_weight": 0.5, "distill": {"teacher": "disk"}}},
        {"select": {**config()["select"], "targets": "mixed"}},
        {
            "select": {
                **config()["select"],
                "documents": [{"source": "docs"}],
                "max_len_tokens": 256,
                "compare": ["longest"],
            }
        },
        {"select": {**config()["select"], "paser": {"clusters": 3, "dense": "kept"}}},
        {"prune": {**ROUNDS, "target": {"params_ratio": 0.9}}},
        {"sparsify": {"method": "wanda"}, "draft": {}},
        {"quantize": {"formats": ["gguf:Q4_0"]}, "compare": {"baselines": ["source_file"]}},
    )
]
"""Runs that have all stages between them; of a stage that several have, the section of the last counts."""
MADE = {step.stage.name: (step.stage, step.section or {}) for run in RUNS for step in Steps(run)}
SHARDS = {one.shard.name: (one.shard, section) for one, section in MADE.values() if one.shard is not None}
STAGES: dict[str, tuple[Any, Any]] = {**MADE, **SHARDS, report.name: (report, {})}
"""Every stage with its section of a run."""
DATA = "configs.schema configs.section configs.infrastructure"
PRUNING = f"prune models configs.presets {DATA}"
USUAL = f"core data {PRUNING}"
SERVED = "evaluate data models gguf llama_cpp packed compressed_tensors torchao onnx_runtime"
ROOMS = {
    "acquire_model": f"acquire gguf models {DATA} configs.presets infra.licences infra.store.filesystem",
    "acquire_file": f"acquire gguf models {DATA} infra.licences infra.store.filesystem",
    "acquire_rows": f"acquire data {DATA} infra.licences infra.store.canonical infra.store.filesystem",
    "acquire_text": f"acquire data {DATA} infra.licences infra.store.canonical infra.store.filesystem",
    "acquire_task": f"acquire data {DATA} infra.licences infra.store.canonical infra.store.filesystem",
    "calibrate": f"calibrate data models {DATA} configs.presets",
    "score": PRUNING,
    "score-shard": PRUNING,
    "plan": PRUNING,
    "prune": PRUNING,
    "filter": f"select data {DATA}",
    "acquire_documents": f"acquire data {DATA} infra.licences infra.store.canonical infra.store.filesystem",
    "prepare": f"prepare data models infra.store.canonical configs.presets {DATA}",
    "selections": f"select {DATA}",
    "pool": f"select data models {DATA} configs.presets",
    "select": f"select data models {DATA} configs.presets",
    "dense_words": f"select data models {DATA} configs.presets",
    "divergence-shard": f"select data models {DATA} configs.presets",
    "answer": f"select data models {DATA} configs.presets",
    "teacher": f"recover data models {DATA} configs.presets",
    "recover": f"recover data models prune {DATA} configs.presets",
    "evaluation_data": f"evaluate data models configs.suites {DATA} configs.presets",
    "evaluate": f"{SERVED} configs.suites {DATA} configs.presets",
    "evaluate-shard": f"{SERVED} configs.suites {DATA} configs.presets",
    "measure": "measure models gguf llama_cpp packed compressed_tensors torchao onnx_runtime quantize "
    "configs.schema configs.section configs.presets",
    "draft": "draft evaluate data measure models configs.schema configs.section configs.presets",
    "sparsify": "sparsify prune models configs.schema configs.section configs.presets",
    "gate": "gate evaluate measure configs.result configs.schema configs.section configs.formats",
    "importance": "quantize models configs.schema configs.section configs.presets configs.formats",
    "quantize": "quantize models gguf llama_cpp configs.blocks configs.schema configs.section "
    "configs.presets configs.formats",
    "export": "export prune models quantize gguf llama_cpp configs.schema configs.section configs.presets "
    "infra.markdown infra.licences configs.formats",
    "report": "report recover select models configs.presets infra.markdown measure evaluate quantize "
    "configs.result",
}
"""Rooms of tasks, and modules of the others, that each stage reaches beside core."""


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose files stand in for the real ones, where `copied` put any."""
    real = code.module_path

    def stands_in(module: str) -> Path | None:
        base = tmp_path.joinpath(*module.split(".")[1:])
        files = (base.with_suffix(".py"), base / "__init__.py")
        return next((path for path in files if path.is_file()), real(module))

    monkeypatch.setattr(code, "module_path", stands_in)
    return tmp_path


def copied(copy: Path, file: str) -> Path:
    """A file of the copy, with its folder, since a stage may find what lies beside it."""
    path = copy / file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        for beside in (ROOT / file).parent.glob("*.*"):
            shutil.copy(beside, path.parent)
    return path


def hashes() -> dict[str, str]:
    found = {}
    for method in ("flap", "wanda_sp", "magnitude"):
        config = PruneConfig.model_validate(
            {"method": method, "layout": "uniform", "target": {"params_ratio": 0.9}}
        )
        for one in (score, plan, prune):
            found[f"{one.name} {method}"] = one.key_parts(Job(config), {})["code"]
    return found


def codes() -> dict[str, str]:
    """The code part of every stage's key."""
    return {name: one.key_parts(Job(section), {})["code"] for name, (one, section) in STAGES.items()}


def moved(copy: Path, file: str, old: str, new: str) -> set[str]:
    """Stages whose keys another text in a file moves."""
    before, path = codes(), copied(copy, file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    after = codes()
    return {name for name in before if before[name] != after[name]}


def changed(copy: Path, file: str, edit: Callable[[str], str]) -> set[str]:
    before = hashes()
    path = copied(copy, f"tasks/{file}")
    path.write_text(edit(path.read_text()))
    after = hashes()
    return {name for name in before if before[name] != after[name]}


def test_an_edit_in_flap_reruns_the_scores_of_flap_alone(copy: Path) -> None:
    assert changed(copy, "prune/criteria/flap.py", lambda text: text + "\nEXTRA = 1\n") == {"score flap"}


def test_a_comment_a_docstring_or_a_blank_line_reruns_nothing(copy: Path) -> None:
    def edit(text: str) -> str:
        assert text.startswith('"""')
        return text.replace('"""', '"""Other words. ', 1) + "\n\n# a comment\n"

    assert changed(copy, "prune/criteria/flap.py", edit) == set()


def test_an_edit_in_a_shared_module_reruns_all(copy: Path) -> None:
    def edit(text: str) -> str:
        return text.replace("class Anatomy:", "class Anatomy:\n    extra = 1\n", 1)

    assert changed(copy, "models/anatomy.py", edit) == set(hashes())


def test_a_new_entry_in_a_registry_reruns_nothing(copy: Path) -> None:
    def edit(text: str) -> str:
        return text + '\nREPAIRS.add("new", "resprout.tasks.prune.repairs.none:NoRepair", "again")\n'

    assert changed(copy, "prune/registry.py", edit) == set()


def test_an_edit_elsewhere_reruns_nothing(copy: Path) -> None:
    assert changed(copy, "evaluate/stage.py", lambda text: text + "\nEXTRA = 1\n") == set()
    assert changed(copy, "core/stage.py", lambda text: text + "\nEXTRA = 1\n") == set()


def test_imports_inside_functions_are_followed(copy: Path) -> None:
    scored = "tasks/evaluate/perplexity.py"
    assert moved(copy, scored, "def windows(", "def windows(  # other\n    *_: int,\n") >= {"evaluate"}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        # Text from outside is written by these into the card and the report.
        ("infra/markdown.py", "MAX_CHARS = 300", "MAX_CHARS = 301", {"export", "report"}),
        ("infra/markdown.py", 'fence = "`" * max(3,', 'fence = "`" * max(4,', {"report"}),
        ("infra/licences.py", "return self.licence or UNKNOWN", "return self.licence or 'none'", {"export"}),
        (
            "configs/result.py",
            "    passed: bool\n    checks:",
            "    met: bool = True\n    checks:",
            {"gate", "report"},
        ),
        ("configs/section.py", "def _key_value(", "def _key_value(*_: int,", None),
        # Nobody renders with these: links and licence rules are for pages that nobody caches.
        ("infra/markdown.py", 'return f"#/models/', 'return f"#/model/', set()),
        ("infra/licences.py", "DEEPEST = 50", "DEEPEST = 51", set()),
        (
            "configs/result.py",
            "class ExportResult(Plain):",
            "class ExportResult(Plain):\n    more: int = 0\n",
            set(),
        ),
    ],
)
def test_what_another_room_defines_moves_the_keys_of_the_stages_that_write_with_it(
    copy: Path, file: str, old: str, new: str, stages: set[str] | None
) -> None:
    found = moved(copy, file, old, new)
    if file == "infra/licences.py" and stages:
        # What is acquired states its licence by the same class.
        found -= {name for name in found if name.startswith("acquire")}
    if stages is None:
        assert {"calibrate", "score", "select", "recover", "evaluate", "export", "gate"} <= found
    else:
        assert found == stages


def test_a_helper_two_rooms_away_moves_the_keys_of_all_that_reach_it(copy: Path) -> None:
    """export -> export/card.py -> infra/markdown.py -> its private helper of another module."""
    notes = copied(copy, "infra/markdown.py")
    helper = copy / "infra" / "canonical_line.py"
    helper.write_text("def joined(text: object) -> str:\n    return ' '.join(str(text).split())\n")
    inside = "    from resprout.infra.canonical_line import joined\n\n    line = joined(text)\n"
    notes.write_text(notes.read_text().replace('    line = " ".join(str(text).split())\n', inside))
    assert "joined" in notes.read_text()
    assert moved(copy, "infra/canonical_line.py", "' '.join", "'  '.join") == {"export", "report"}


def test_a_comment_or_docstring_in_another_room_moves_no_key(copy: Path) -> None:
    words = '"""The text in a code span, on one line'
    assert moved(copy, "infra/markdown.py", words, f"{words} (other words)") == set()
    assert moved(copy, "infra/markdown.py", "MAX_CHARS = 300", "MAX_CHARS = 300  # characters") == set()


@pytest.mark.parametrize("name", STAGES)
def test_the_rooms_that_a_stage_reaches(name: str) -> None:
    one, section = STAGES[name]
    found = code.reached([f"{one.body.__module__}:{one.body.__name__}", *one.methods(section)])
    modules = {name.partition(":")[0].removeprefix("resprout.") for name in found if ":" in name}
    rooms = {one.split(".")[1] if one.startswith("tasks.") else one for one in modules}
    # Of a stage that is new, the rooms that any may reach.
    assert rooms == {"core", *ROOMS[name].split()} if name in ROOMS else rooms <= {one.name, *USUAL.split()}


def test_every_stage_with_rooms_of_its_own_is_one_that_runs_have() -> None:
    assert ROOMS.keys() <= STAGES.keys()


def test_orchestration_is_there_and_is_not_followed() -> None:
    """An entry of what was renamed would let its new name into every key."""
    for name, reason in code.ORCHESTRATION.items():
        module, _, wanted = name.partition(":")
        assert reason
        path = code.module_path(module)
        assert path is not None
        assert not wanted or re.search(rf"^(class|def) {wanted}\b", path.read_text(), re.M)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (
            "configs/schema.py",
            "class RunConfig(Section):",
            "class RunConfig(Section):\n    new: ProofConfig | None = None\n",
        ),
        (
            "configs/infrastructure.py",
            "class StoreConfig(Section):",
            "class StoreConfig(Section):\n    more: int = 0\n",
        ),
        (
            "configs/infrastructure.py",
            "class ProofConfig(Section):",
            "class ProofConfig(Section):\n    more: int = 0\n",
        ),
        (
            "configs/schema.py",
            "class RegisterConfig(Section):",
            "class RegisterConfig(Section):\n    more: int = 0\n",
        ),
    ],
)
def test_a_section_that_no_stage_reads_moves_no_key(copy: Path, file: str, old: str, new: str) -> None:
    assert moved(copy, file, old, new) == set()


def test_a_key_of_one_section_moves_the_stages_that_read_it(copy: Path) -> None:
    new = "class GateConfig(Section):\n    more: int = 0\n"
    assert moved(copy, "configs/schema.py", "class GateConfig(Section):", new) == {"gate"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("tasks/acquire/unpickle.py", {"acquire_model"}),
        (
            "tasks/data/confined_child.py",
            {
                "acquire_rows",
                "acquire_text",
                "acquire_documents",
                "acquire_task",
                "prepare",
                "calibrate",
                "pool",
                "select",
                "dense_words",
                "divergence-shard",
                "answer",
                "teacher",
                "recover",
                "evaluation_data",
                "evaluate",
                "evaluate-shard",
                "draft",
            },
        ),
        ("tasks/export/probe.py", {"export"}),
        ("tasks/measure/worker.py", {"measure"}),
        ("tasks/llama_cpp/worker.py", {"measure", "evaluate", "evaluate-shard", "quantize", "export"}),
    ],
)
def test_what_a_child_process_runs_moves_the_key_of_the_stage_that_starts_it(
    copy: Path, file: str, stages: set[str]
) -> None:
    begin = 'if __name__ == "__main__":\n'
    assert moved(copy, file, begin, f"{begin}    sys.stdout.flush()\n") == stages


def test_a_family_that_is_found_by_its_folder_moves_the_keys_of_what_reads_models(copy: Path) -> None:
    found = moved(copy, "tasks/models/families/llama.py", "FAMILY =", "FAMILY: Family =")
    assert {
        "acquire_model",
        "score",
        "plan",
        "prune",
        "recover",
        "evaluate",
        "measure",
        "export",
    } - found == set()
    assert found & {"gate", "acquire_text", "acquire_task"} == set()


def test_an_edit_of_one_stage_leaves_the_others_of_its_file(copy: Path) -> None:
    new = "def acquire_text(\n    *_: int,\n"
    assert moved(copy, "tasks/acquire/stage.py", "def acquire_text(", new) == {"acquire_text"}


@pytest.mark.parametrize("door", ["prune.stage", "select.stage", "evaluate.stage"])
def test_another_partition_of_the_work_makes_other_shards(copy: Path, door: str) -> None:
    """Shards that lie in a store must not be put together with ones that begin elsewhere."""
    before = code.code_hash([f"resprout.tasks.{door}"])
    path = copied(copy, "tasks/core/job.py")
    path.write_text(path.read_text().replace("items * self.index // self.count", "self.index"))
    assert code.code_hash([f"resprout.tasks.{door}"]) != before


@pytest.mark.parametrize(
    "template", ["base.html.j2", "style.css.j2", "report.html.j2", "report.md.j2", "summary.md.j2"]
)
def test_an_edit_in_a_template_reruns_the_report_alone(copy: Path, template: str) -> None:
    report, before = code.code_hash(["resprout.tasks.report.stage"]), hashes()
    path = copied(copy, f"tasks/report/{template}")
    path.write_text(path.read_text() + "more\n")
    assert code.code_hash(["resprout.tasks.report.stage"]) != report
    assert hashes() == before


def test_an_edit_shows_in_the_hash_of_its_file_alone(copy: Path) -> None:
    names = [
        f"resprout.{name}"
        for name in ("tasks.prune.criteria.flap", "tasks.report.stage", "configs.schema:GateConfig")
    ]
    before = code.file_hashes(names)
    assert before.keys() >= {
        "tasks/prune/criteria/flap.py", "configs/schema.py", "tasks/models/families/__init__.py",
        "tasks/report/report.md.j2",
    }  # fmt: skip
    flap = copied(copy, "tasks/prune/criteria/flap.py")
    flap.write_text(flap.read_text() + "\n\nEXTRA = 1\n")
    template = copied(copy, "tasks/report/report.md.j2")
    template.write_text(template.read_text() + "more\n")
    after = code.file_hashes(names)
    assert before.keys() == after.keys()
    changed = {file for file, digest in after.items() if digest != before[file]}
    assert changed == {"tasks/prune/criteria/flap.py", "tasks/report/report.md.j2"}


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"resprout\.tasks\.nowhere"):
        code.code_hash(["resprout.tasks.nowhere"])
