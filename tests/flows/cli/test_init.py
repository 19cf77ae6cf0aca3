"""`resprout init`: a config that goes through, what is said, and files that are not overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_run import write_run


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its text and its pool."""
    root = tmp_path_factory.mktemp("ground")
    write_run(root)
    return root


@pytest.mark.parametrize("pool", [False, True], ids=["text alone", "with a pool"])
def test_a_run_of_what_it_wrote_goes_through(
    pool: bool, ground: Path, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    home, written = tmp_path / "home", tmp_path / "my.yaml"
    given = ["--pool", ground / "pool.jsonl"] if pool else []
    files = [ground / "model", "--text", ground / "calibration.jsonl", *given]
    made = resprout("init", *files, "--goal", "20 % smaller", "--output", written, home=home)
    assert made.code == 0, made.err
    assert "prune: goal 20 % smaller" in made.out
    learned = "on the text of the calibration and the rows" if pool else "on the text of the calibration"
    assert f"recover: trained towards the words of the dense model {learned}\n" in made.out
    checked = resprout("validate", written, home=home)
    assert (checked.code, checked.out) == (0, f"{written} is a valid run config (model)\n"), checked.err
    done = resprout("run", written, "--json", home=home)
    assert done.code == 0, done.err
    assert (done.result["status"], done.result["exit_code"]) == ("done", 0)
    config = yaml.safe_load(written.read_text())
    assert config["prune"]["target"] == {"params_ratio": 0.8}
    assert ("select" in config) == pool
    assert config["recover"]["text"] == config["calibrate"]["text"]
    assert "recovered" in done.result["models"]


def test_nothing_is_overwritten_unless_that_is_asked(
    ground: Path, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    written = tmp_path / "my.yaml"
    written.write_text("mine")
    arguments = ("init", ground / "model", "--text", ground / "calibration.jsonl", "--output", written)
    refused = resprout(*arguments, home=tmp_path / "home")
    assert (refused.code, written.read_text()) == (2, "mine")
    assert refused.err.strip() == (
        f"error: {written} is there already; give --output another name, or --force to overwrite it"
    )
    assert resprout(*arguments, "--force", home=tmp_path / "home").code == 0
    assert written.read_text().startswith("# resprout run my.yaml\n")


def test_what_fails_writes_nothing(ground: Path, tmp_path: Path, resprout: Callable[..., Any]) -> None:
    written = tmp_path / "my.yaml"
    arguments = ("init", ground / "model", "--text", ground / "calibration.jsonl", "--output", written)
    assert resprout(*arguments, "--goal", "99 %", home=tmp_path / "home").code == 2
    assert not written.exists()
    absent = resprout(*arguments[:-1], tmp_path / "none" / "my.yaml", home=tmp_path / "home")
    assert absent.code == 2
    assert "there is no folder" in absent.err


def test_without_text_the_config_is_written_and_says_what_it_lacks(
    ground: Path, tmp_path: Path, resprout: Callable[..., Any]
) -> None:
    written = tmp_path / "my.yaml"
    found = resprout("init", ground / "model", "--output", written, home=tmp_path / "home")
    assert found.code == 2
    assert found.err.strip().startswith(f"error: {written} lacks text to evaluate with; run init again with")
    text = written.read_text().replace("source: FILE", f"source: {ground / 'evaluation.jsonl'}")
    written.write_text(text)
    assert resprout("validate", written, home=tmp_path / "home").code == 0
