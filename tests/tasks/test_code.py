"""The code hash: what an edit re-runs and what it does not, on a copy of the real modules."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resprout.configs.schema import PruneConfig
from resprout.tasks import code
from resprout.tasks.prune.stage import plan, prune, score

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the science whose files stand in for the real ones."""
    shutil.copytree(ROOT / "tasks", tmp_path / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    real = code.module_path

    def stands_in(module: str) -> Path | None:
        found = real(module)
        return tmp_path / found.relative_to(ROOT) if found else None

    monkeypatch.setattr(code, "module_path", stands_in)
    return tmp_path / "tasks"


def hashes() -> dict[str, str]:
    found = {}
    for method in ("flap", "wanda_sp", "magnitude"):
        config = PruneConfig.model_validate(
            {"method": method, "layout": "uniform", "target": {"params_ratio": 0.9}}
        )
        for one in (score, plan, prune):
            found[f"{one.name} {method}"] = code.code_hash([one.body.__module__, *one.methods(config)])
    return found


def changed(copy: Path, file: str, edit: Callable[[str], str]) -> set[str]:
    before = hashes()
    path = copy / file
    path.write_text(edit(path.read_text()))
    code._parse.cache_clear()
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
    assert changed(copy, "models/anatomy.py", lambda text: text + "\nEXTRA = 1\n") == set(hashes())


def test_a_new_entry_in_a_registry_reruns_nothing(copy: Path) -> None:
    def edit(text: str) -> str:
        return text + '\nREPAIRS.add("new", "resprout.tasks.prune.repairs.none:NoRepair", "again")\n'

    assert changed(copy, "prune/registry.py", edit) == set()


def test_an_edit_elsewhere_reruns_nothing(copy: Path) -> None:
    assert changed(copy, "evaluate/stage.py", lambda text: text + "\nEXTRA = 1\n") == set()
    assert changed(copy, "stage.py", lambda text: text + "\nEXTRA = 1\n") == set()


def test_imports_inside_functions_are_followed(copy: Path) -> None:
    before = code.code_hash(["resprout.tasks.evaluate.stage"])
    path = copy / "evaluate" / "perplexity.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    code._parse.cache_clear()
    assert code.code_hash(["resprout.tasks.evaluate.stage"]) != before


@pytest.mark.parametrize("door", ["prune.stage", "select.shard_stage", "evaluate.stage"])
def test_another_partition_of_the_work_makes_other_shards(copy: Path, door: str) -> None:
    """Shards that lie in a store must not be put together with ones that begin elsewhere."""
    before = code.code_hash([f"resprout.tasks.{door}"])
    path = copy / "share.py"
    path.write_text(path.read_text().replace("items * self.index // self.count", "self.index"))
    code._parse.cache_clear()
    assert code.code_hash([f"resprout.tasks.{door}"]) != before


@pytest.mark.parametrize("template", ["report.html.j2", "report.md.j2", "summary.md.j2"])
def test_an_edit_in_a_template_reruns_the_report_alone(copy: Path, template: str) -> None:
    report, before = code.code_hash(["resprout.tasks.report.stage"]), hashes()
    path = copy / "report" / template
    path.write_text(path.read_text() + "more\n")
    assert code.code_hash(["resprout.tasks.report.stage"]) != report
    assert hashes() == before


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"resprout\.tasks\.nowhere"):
        code.code_hash(["resprout.tasks.nowhere"])
