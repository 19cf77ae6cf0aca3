"""Open-domain text beside the domain's: brought, calibrated, weighed, credited, and found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_run import words, write_run

PRUNE = {
    "method": "d_pruner",
    "units": ["ffn"],
    "target": {"params_ratio": 0.9},
    "round_to": 8,
    "general": [{"source": "general.jsonl"}],
}
SHORT = {"select": None, "recover": None, "measure": None, "gate": None, "register": None}


def test_general_text_goes_through_the_run_and_its_reproduction(
    resprout: Callable[..., Any], tmp_path: Path
) -> None:
    path = write_run(tmp_path, prune=PRUNE, **SHORT)
    rows = "".join(json.dumps({"text": words(90, 900 + seed)}) + "\n" for seed in range(9))
    (tmp_path / "general.jsonl").write_text(rows)
    home = tmp_path / "home"
    done = resprout("run", path, "--json", home=home)
    assert done.code == 0, done.err
    stages = {stage["name"]: stage["artifact"]["digest"] for stage in done.result["stages"]}
    assert "acquire general text" in stages
    assert stages["calibrate general"] != stages["calibrate"]
    card = Path(done.result["exports"][0]["uri"].removeprefix("file://")) / "README.md"
    assert "| general text | general.jsonl | unknown |" in card.read_text()

    (tmp_path / "general.jsonl").rename(tmp_path / "gone.jsonl")
    folder, digest = tmp_path / "again", stages["export"]
    again = resprout("reproduce", digest, "--into", folder, "--json", home=home)
    assert again.code == 0, again.err
    assert again.result["outcome"] == "identical"
    assert "calibrate general" in {one["stage"] for one in again.result["stages"]}
    missing = resprout("validate", path, home=home)
    assert missing.code == 2
    assert "prune.general.0.source" in missing.err
