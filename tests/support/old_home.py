"""Make the home of an earlier version: its code runs two tiny configs, and what they leave is packed.

    python tests/support/old_home.py COMMIT tests/flows/whole/old_home.tar.xz

takes the code of COMMIT from this checkout's history, so it needs a full clone; tests read the packed file.
Nothing in it is from elsewhere: model and data are random and of this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
PLACE = Path("/tmp/old-home")
"""Where the run is made: its addresses stay in MLflow's database and in ledgers."""
WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 4}
KEPT = (
    "home/store",
    "home/mlartifacts",
    "home/reports",
    "home/mlflow.db",
    "model",
    "run.yaml",
    "sliced.yaml",
)
HOST, USER = "old-machine", "somebody"
"""Stand for the machine and the user, whose names a record holds."""


def make(commit: str, packed: Path) -> None:
    """Run the tiny config, and one that slices, with the code of `commit`; pack all that is there then."""
    from tiny_models import write_tiny_folder
    from tiny_run import write_data, write_run

    PLACE.mkdir()
    write_data(PLACE)
    write_tiny_folder(PLACE / "model", dtype="float32", **WIDTHS)
    uniform = {"layout": "uniform", "round_to": 8}
    sliced = {"method": "slicegpt", "units": ["hidden"], "target": {"params_ratio": 0.7}, **uniform}
    without: dict[str, Any] = dict.fromkeys(("select", "recover", "measure", "gate"))
    register = {"name": "tiny-sliced"}
    write_run(PLACE, name="sliced", prune=sliced, register=register, **without).rename(PLACE / "sliced.yaml")
    pruned = {"method": "flap", "units": ["ffn"], "target": {"params_ratio": 0.95}, "repair": "least_squares"}
    write_run(PLACE, prune={**pruned, **uniform}, gate={"max_perplexity_ratio": 10.0})
    with TemporaryDirectory() as scratch:
        code = Path(scratch, "resprout")
        code.mkdir()
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", code], input=archive.stdout, check=True)
        Path(scratch, "sitecustomize.py").write_text(
            f"import socket\nsocket.gethostname = lambda: {HOST!r}\n"
        )
        env = {"PYTHONPATH": scratch, "RESPROUT_HOME": str(PLACE / "home"), "LOGNAME": USER}
        for config in ("run.yaml", "sliced.yaml"):
            command = [sys.executable, "-m", "resprout.flows.cli.main", "run", str(PLACE / config)]
            subprocess.run(command, env=os.environ | env, cwd=PLACE, check=True)
    with tarfile.open(packed, "w:xz", preset=9) as archive_file:
        for name in (*KEPT, *sorted(one.name for one in PLACE.glob("*.jsonl")), "own.yaml"):
            archive_file.add(PLACE / name, name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uname = member.gname = ""
    member.uid = member.gid = 0
    return member


if __name__ == "__main__":
    with patch.object(sys, "path", [*sys.path, str(ROOT / "tests" / "support")]):
        make(sys.argv[1], Path(sys.argv[2]).resolve())
