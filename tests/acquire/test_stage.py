from __future__ import annotations

import subprocess
import sys


def test_the_door_imports_no_heavy_library():
    heavy = ("torch", "transformers", "mlflow", "boto3", "datasets", "huggingface_hub", "pyarrow")
    program = (
        "import sys, resprout.tasks.acquire.stage\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
