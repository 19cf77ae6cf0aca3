"""The data scan: what it finds is told, what it raises ends the run, what is no function is bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.data_scan import load_scan


@pytest.fixture
def scanner(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("own_scanner")
    monkeypatch.setitem(sys.modules, "own_scanner", module)
    return module


def test_findings_are_sentences(scanner: Any, tmp_path: Path) -> None:
    scanner.look = lambda folder: [f"a name\nin {folder.name}", 7]
    assert load_scan("own_scanner:look")(tmp_path) == [f"a name in {tmp_path.name}", "7"]
    scanner.look = lambda folder: None
    assert load_scan("own_scanner:look")(tmp_path) == []


def test_what_it_raises_ends_the_run_in_a_sentence(scanner: Any, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise ValueError("row 3 holds\nan address")

    scanner.look = refuse
    with pytest.raises(StageFailed, match="own_scanner:look refuses the data: row 3 holds an address"):
        load_scan("own_scanner:look")(tmp_path)


@pytest.mark.parametrize("target", ["no_such_module_x:look", "own_scanner:absent", "own_scanner:number"])
def test_what_is_no_function_is_bad_input(scanner: Any, target: str) -> None:
    scanner.number = 3
    with pytest.raises(BadInput, match="give module:function"):
        load_scan(target)
