"""Every command of infra/README.md's "## Audit" does what it says, on a finished run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from resprout.flows.cli.main import build

PAGE = Path(__file__).parents[3] / "infra" / "README.md"


def commands() -> list[list[str]]:
    """The commands of the section, without the long one, which tests/flows/cli/test_reproduce.py runs."""
    section = PAGE.read_text().partition("\n## Audit\n")[2].partition("\n## ")[0]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert all(line[0] == ".venv/bin/resprout" for line in lines)
    return [line[1:] for line in lines if line[1] != "reproduce"]


def test_the_commands_of_the_page(
    copied: Path, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("RESPROUT_HOME", str(copied))
    monkeypatch.chdir(tmp_path)
    source = str(finished.config.parent / "model")
    printed = {}
    for line in commands():
        line = [word.replace("smollm2-135m-resprout", "tiny-pruned") for word in line]
        line = [source if word.startswith("package://") else word for word in line]
        build(line)(line, standalone_mode=False)
        printed[" ".join(line[:2] + [word for word in line if word.startswith("--")])] = (
            capsys.readouterr().out
        )
    text = {key.partition(" ")[0]: value for key, value in printed.items()}
    assert "every byte as published, every link holds" in printed["verify models:/tiny-pruned@candidate"]
    assert "everything: " in text["verify"], "the last was --all"
    assert (tmp_path / "lineage.html").read_text().count("<svg") == 1
    assert any("tiny-pruned" in value for key, value in printed.items() if key.endswith("--derived"))
    assert any("application/vnd.in-toto+json" in value for key, value in printed.items())
    assert "config: the same" in text["diff"]
    assert "tiny-pruned" in text["audit"]
    assert "tiny-pruned@champion points at version 1" in text["alias"]
    assert (tmp_path / "BACKUP" / "backup.json").is_file()
    assert len(printed) == len(commands()) >= 9
