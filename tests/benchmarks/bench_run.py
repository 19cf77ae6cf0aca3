"""Orchestration of a whole run, first and cached: wall time outside the stages' own work, on a tiny model.

    PYTHONPATH=tests/support python tests/benchmarks/bench_run.py

Bound: 5 s or 2 % of the run, whichever is larger; imports and the start of Prefect's embedded server are
apart. Exits 1 where a run is over it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_run import write_run

BOUND_SECONDS, BOUND_SHARE = 5.0, 0.02


def main() -> int:
    over = 0
    with tempfile.TemporaryDirectory() as folder:
        config = write_run(Path(folder))
        env = {**os.environ, "RESPROUT_HOME": str(Path(folder) / "home")}
        command = [sys.executable, "-m", "resprout.flows.cli.main", "run", str(config), "--json"]
        for name in ("first run", "cached run"):
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
            if done.returncode:
                sys.stderr.write(done.stderr)
                return 1
            result = json.loads(done.stdout.strip().splitlines()[-1])
            spent = result["overhead"]
            bound = max(BOUND_SECONDS, BOUND_SHARE * result["seconds"])
            over += spent["orchestration_seconds"] > bound
            print(
                f"{name}: {result['seconds']:.1f} s, orchestration {spent['orchestration_seconds']:.2f} s "
                f"(bound {bound:.1f}) over {len(result['stages'])} stages, imports "
                f"{spent['imports_seconds']:.2f} s, "
                f"server start {spent['server_start_seconds']:.2f} s"
            )
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
