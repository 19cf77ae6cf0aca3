"""A system on which resprout cannot run is refused in a sentence, and an untested one is named."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resprout.flows.cli import supported

COMMAND = """
import sys
{change}
sys.argv = ["resprout", "validate", "none.yaml"]
from resprout.flows.cli.main import main
main()
"""
README = Path(__file__).resolve().parents[3] / "README.md"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            'sys.platform = "win32"',
            "resprout does not run on Windows, which lacks the signals and file locks",
        ),
        ("sys.version_info = (3, 10, 4)", "resprout needs Python 3.11 or later, and this is 3.10"),
    ],
)
def test_a_system_that_will_not_do_is_refused_before_anything(change: str, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(change=change)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_untested_system_is_named_and_goes_on() -> None:
    change = 'import platform; platform.machine = lambda: "riscv64"'
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(change=change)], capture_output=True, text=True, check=False
    )
    first, second = done.stderr.splitlines()
    assert first.startswith("note: resprout is tested on Linux x86_64 with Python 3.11 to 3.13, and not on")
    assert "Linux riscv64 with Python" in first
    assert second.startswith("error: no config at none.yaml")


@pytest.mark.parametrize("python", [(3, 10), (3, 11), (3, 13), (3, 14)])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("machine", ["x86_64", "arm64"])
def test_every_system_is_refused_cautioned_or_tested(
    system: str, python: tuple[int, int], machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "version_info", (*python, 1, "final", 0))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert bool(supported.refusal()) == (system == "win32" or python < (3, 11))
    tested = (system, machine) == ("linux", "x86_64") and python in supported.TESTED_PYTHONS
    assert bool(supported.caution()) == (not tested)


def test_readme_names_the_tested_pythons() -> None:
    page = README.read_text().partition("\n## Where it runs\n")[2].partition("\n## ")[0]
    (sentence,) = re.findall(r"^Tested: (.*?);", page, re.MULTILINE | re.DOTALL)
    assert sorted(re.findall(r"3\.\d+", sentence)) == [
        supported._shown(one) for one in supported.TESTED_PYTHONS
    ]
