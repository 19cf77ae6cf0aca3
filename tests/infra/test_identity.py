"""Extras: what README, pages and messages say installs them, in a checkout and elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig
from resprout.flows.check import require_extra

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [
    path
    for place in ("README.md", "flows", "tasks", "infra", "configs", "tests")
    for path in ([ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")))
    if path.suffix in (".py", ".md", ".yaml") and path.resolve() != Path(__file__).resolve()
]


def test_no_text_asks_for_a_package_that_no_index_has() -> None:
    asked = [
        str(path.relative_to(ROOT))
        for path in TEXTS
        if re.search(r"resprout\[\w|pip install '?resprout", path.read_text(encoding="utf-8"))
    ]
    assert asked == []


def test_the_form_that_the_pages_give_installs_every_extra_that_they_name_from_a_checkout() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in TEXTS if path.suffix == ".md")
    named = set(re.findall(r"'\.\[(\w+)\]'", text))
    assert {"dask", "openlineage", "timestamp", "postgresql"} <= named
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-e", f".[{','.join(sorted(named))}]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Would install resprout-{PROJECT['version']}" in done.stdout
    assert "does not provide the extra" not in done.stdout + done.stderr


@pytest.mark.parametrize("extra", ["dask", "ray"])
def test_a_missing_extra_names_its_packages(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput) as caught:
        require_extra(InfraConfig(task_runner=extra))
    for package in PROJECT["optional-dependencies"][extra]:
        assert re.search(rf"pip install .*{re.escape(re.split('[>=]', package)[0])}", str(caught.value))
