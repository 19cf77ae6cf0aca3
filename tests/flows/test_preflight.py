"""What is said before any work: a dtype that this processor is slow in, processes, and their memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.stages import job_of
from resprout.tasks.models.shape import shape_of
from tiny_models import tiny_model
from tiny_run import config

AVX2 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n"
AVX512 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512bw\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"
SAID = "model.dtype is bfloat16, for which this processor has no instructions"
PLAN = """
import sys
from pathlib import Path
from resprout.flows import preflight
from resprout.flows.cli.main import main
preflight.CPUINFO = Path(sys.argv.pop(1))
main()
"""


@pytest.mark.parametrize(
    ("processor", "dtype", "device", "said"),
    [
        (AVX2, "bfloat16", "cpu", True),
        (AVX2, "float16", "cpu", True),
        (AVX2, "float32", "cpu", False),
        (AVX2, "bfloat16", "cuda", False),
        (AVX512, "bfloat16", "cpu", False),
        (ARM, "bfloat16", "cpu", False),
        (None, "bfloat16", "cpu", False),
    ],
)
def test_a_dtype_that_the_processor_is_slow_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processor: str | None,
    dtype: Any,
    device: Any,
    said: bool,
) -> None:
    monkeypatch.setattr(preflight, "CPUINFO", tmp_path / "cpuinfo")
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    run = config(model={"source": "model", "dtype": dtype, "device": device})
    found = preflight.slow_dtype(RunConfig.model_validate(run))
    assert bool(found) == said
    assert all("give model.dtype: float32" in one for one in found)


def processes(changes: dict[str, Any], **devices: Any) -> RunConfig:
    return RunConfig.model_validate({**config(), "recover": {"devices": devices, **changes}})


def test_no_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "devices", lambda device: 2)
    for allowed in (1, 2, "auto"):
        preflight.check_processes(processes({}, processes=allowed), lambda: False)
    preflight.check_processes(processes({}, processes=3), lambda: True)
    preflight.check_processes(processes({"method": "reconstruct"}, processes=3), lambda: False)
    with pytest.raises(BadInput, match=r"is 3, but this machine has 2 processor cores; give at most"):
        preflight.check_processes(processes({}, processes=3), lambda: False)
    rounds = processes({}, processes=2, sharding="fsdp").model_dump(mode="json")
    rounds["prune"] = {**rounds["prune"], "repair": "none", "schedule": "cubic"}
    with pytest.raises(BadInput, match=r"sharding is fsdp, but prune.schedule cubic trains between rounds"):
        preflight.check_processes(RunConfig.model_validate(rounds), lambda: False)


def test_a_teacher_is_not_spread_by_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "devices", lambda device: 4)
    monkeypatch.setattr(preflight, "_counted", lambda device: 4)
    spread = {"model": {"source": "model", "device": "cuda", "device_map": "auto"}}
    online, disk = {"distill_weight": 0.5}, {"distill_weight": 0.5, "distill": {"teacher": "disk"}}

    def given(changes: dict[str, Any], **devices: Any) -> RunConfig:
        return RunConfig.model_validate({**config(), **spread, "recover": {"devices": devices, **changes}})

    assert preflight.gpus(given(online), "cuda") == 0
    assert preflight.gpus(processes(online), "cuda") == 4
    for allowed in (given(online), given(online, processes=1), given(disk, processes=4)):
        preflight.check_processes(allowed, lambda: False)
    with pytest.raises(BadInput, match=r"processes is 4 and model.device_map auto, so that each would"):
        preflight.check_processes(given(online, processes=4), lambda: False)


def test_processes_are_counted_before_a_key_is_made() -> None:
    """auto is one for each GPU; the number is part of the key, the sharding of one process is not."""
    given = processes({}, sharding="fsdp").recover
    assert given is not None
    known = [given.on_machine(gpus).key_data()["devices"] for gpus in (0, 1, 4)]
    alone = {"processes": 1, "sharding": "ddp"}
    assert known == [alone, alone, {"processes": 4, "sharding": "fsdp"}]
    job = job_of(processes({}), given, "cpu")
    assert job.config.key_data()["devices"] == alone
    other = processes({"method": "reconstruct"}).recover
    assert other is not None
    assert other.on_machine(4) == other


@pytest.mark.parametrize(
    ("method", "count", "sharding", "bytes_a_parameter", "models"),
    [
        ("full", 1, "ddp", 16, 1),
        ("full", 2, "ddp", 32, 2),
        # Each loads float32 masters, and then keeps half of 16 bytes.
        ("full", 2, "fsdp", 16, 2),
        ("full", 8, "fsdp", 32, 8),
        ("lora", 2, "ddp", 8, 2),
        ("lora", 4, "fsdp", 16, 4),
    ],
)
def test_what_training_takes_by_process(
    method: str, count: int, sharding: str, bytes_a_parameter: int, models: int
) -> None:
    shape = shape_of(tiny_model("llama").config.to_dict())
    given = processes({"method": method}, processes=count, sharding=sharding)
    found = preflight.needs(given, shape, 0).memory
    assert found == bytes_a_parameter * shape.params + models * preflight.WORKING_BYTES
    taught = processes({"method": method, "distill_weight": 0.5}, processes=count, sharding=sharding)
    assert preflight.needs(taught, shape, 0).memory == found + models * 4 * shape.params


def test_plan_says_so(finished: Any, tmp_path: Path, resprout: Callable[..., Any]) -> None:
    (tmp_path / "cpuinfo").write_text(AVX2)

    def plan(dtype: str) -> str:
        words = (tmp_path / "cpuinfo", "plan", finished.config, f"model.dtype={dtype}")
        done = resprout(*words, home=tmp_path / "home", script=PLAN)
        assert done.code == 0, done.err
        return str(done.out)

    assert SAID in " ".join(plan("bfloat16").split())
    assert "has no instructions" not in plan("float32")
