"""Configs that the pages show as whole are whole: they validate on a model and files of those names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from resprout.configs.load import load
from resprout.flows.check import check
from resprout.flows.cli.init import init
from resprout.flows.first_config.goal import parse_goal
from resprout.flows.validate import probe
from tiny_models import write_tiny_folder
from tiny_run import words

ROOT = Path(__file__).resolve().parents[1]
WHOLE = [
    (page, text)
    for page in ("README.md", "configs/README.md")
    for text in re.findall(r"```yaml\n(name: .*?)```", (ROOT / page).read_text(), re.DOTALL)
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the files that the pages name, as large as their configs ask for."""
    root = tmp_path_factory.mktemp("pages")
    write_tiny_folder(root / "path" / "to" / "model", intermediate_size=1024, max_position_embeddings=1024)
    rows = {
        "text.jsonl": [{"text": words(300, seed)} for seed in range(300)],
        "instructions.jsonl": [{"instruction": words(6, i), "output": words(8, i + 500)} for i in range(90)],
        "rows.jsonl": [{"question": words(6, i), "answer": words(8, i + 500)} for i in range(90)],
        "piqa.jsonl": [{"goal": "w5", "sol1": "w6", "sol2": "w7", "label": 0}],
        "word_problems.jsonl": [{"question": "w5", "answer": "w6 #### 7"}],
        "word_problems_solved.jsonl": [{"question": "w5", "answer": f"w6 #### {i}"} for i in range(9)],
        "science.jsonl": [
            {"question": "w5", "choices": {"text": ["w6", "w7"], "label": ["A", "B"]}, "answerKey": "B"}
        ],
    }
    for name, found in rows.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    return root


def test_both_pages_have_a_whole_config() -> None:
    assert [page for page, _ in WHOLE] == ["README.md", "configs/README.md", "configs/README.md"]


@pytest.mark.parametrize(("page", "text"), WHOLE, ids=[text.splitlines()[0] for _, text in WHOLE])
def test_the_whole_config_of_a_page_validates(
    page: str, text: str, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "RESPROUT_HOME": str(tmp_path / "home")})
    path = ground / f"{page.replace('/', '-')}.yaml"
    path.write_text(text)
    check(load(path), probe)
    for other in ("select", "recover", "evaluate"):
        assert other in yaml.safe_load(text)


def test_the_init_of_the_page_names_options_and_a_goal_that_are() -> None:
    (command,) = re.findall(r"^\.venv/bin/resprout init .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"--(\w+)", command)) <= set(init.__annotations__)
    assert parse_goal(re.findall(r'--goal "(.*)"', command)[0]).target == {"params_ratio": 0.8}
