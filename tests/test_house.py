"""The house itself: one direction of imports, packages that say what they are for, YAML that loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from resprout.configs.presets import load_preset, preset_names
from resprout.configs.schema import RunConfig, SuiteConfig
from resprout.configs.suites import shipped_suite, shipped_suites, shipped_tasks
from resprout.configs.sweep import load_sweep
from resprout.flows.catalog import catalog
from resprout.tasks.data.read import read_rows
from resprout.tasks.evaluate.task_files import read_task

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "tasks", "infra", "configs")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "4 kept, 0 broken" in done.stdout


def test_every_package_says_what_it_is_for() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_the_top_level_holds_nothing_else() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in done.stdout.splitlines()}
    files = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "CHANGELOG.md", "constraints.txt"}
    assert {name for name in top if not name.startswith(".")} <= {*ROOMS, "tests", *files}


def test_every_shipped_yaml_loads_and_begins_with_its_command() -> None:
    loaded = 0
    for path in SHIPPED:
        verb = "sweep" if "base" in yaml.safe_load(path.read_text()) else "run"
        assert path.read_text().startswith(f"# resprout {verb} "), path
        room = path.parent.name
        if room == "methods":
            load_preset(path.stem)
        elif room == "evaluation":
            assert read_task(path.stem, ROOT)["metadata"]["capability"]
        elif room == "grammars":
            assert list(read_rows(path, "grammar"))
        elif room == "suites":
            SuiteConfig.model_validate(shipped_suite(path.stem))
        elif verb == "sweep":
            load_sweep(path, [])
        else:
            RunConfig.model_validate(yaml.safe_load(path.read_text()))
        loaded += 1
    assert loaded == len(preset_names()) + len(shipped_tasks()) + len(shipped_suites()) + 14


def test_constraints_pin_versions_and_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        name, _, version = line.partition("==")
        assert name, line
        assert version, line
        assert "+" not in version
        assert "://" not in line


def test_every_pruning_method_is_compared() -> None:
    _, variants = load_sweep(ROOT / "configs" / "compare_methods.yaml", [])
    compared = {variant.settings["prune.method"] for variant in variants}
    # evopress searches for days with the paper's budget; evopress_quick is compared.
    assert compared | {"random_init", "evopress"} == set(preset_names())


def test_the_page_of_methods_says_what_each_preset_scores_and_in_which_layout() -> None:
    page = (ROOT / "tasks" / "README.md").read_text()
    for preset in catalog()["prune.method"]:
        units = [f"**{unit}**" if unit in preset["own_units"] else unit for unit in preset["units"]]
        layouts = [
            layout if name == preset["name"] else f"{layout} as `{name}`"
            for layout, name in preset["layouts"].items()
        ]
        assert f"| `{preset['name']}` | {', '.join(units)} | {', '.join(layouts)} |\n" in page


@pytest.mark.parametrize("room", ["models", "prune", "select"])
def test_the_page_of_a_room_names_every_file(room: str) -> None:
    page = (ROOT / "tasks" / room / "README.md").read_text()
    files = {path.name for path in (ROOT / "tasks" / room).glob("*.py")} - {"__init__.py"}
    assert {name for name in files if f"`{name}`" not in page} == set()


PAGES = sorted(path for path in ROOT.rglob("README.md") if not {".venv", "build"} & set(path.parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("room", ["flows", "tasks", "infra", "configs"])
def test_the_page_of_a_folder_names_ten_files_to_read_first(room: str) -> None:
    page = (ROOT / room / "README.md").read_text()
    section = page.partition("\n## The files to read first\n")[2].partition("\n## ")[0]
    assert [int(number) for number in re.findall(r"^(\d+)\. ", section, re.M)] == [*range(1, 11)]
