"""The fingerprint names what a timing depends on, and nothing that changes from minute to minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from resprout.tasks.core import hardware


def test_fingerprint_is_stable_plain_data():
    found = hardware.fingerprint()
    assert json.loads(json.dumps(found)) == found == hardware.fingerprint()
    assert set(found) == {"machine", "cpu", "cores", "memory_gb", "gpus"}
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory_gb"] >= 1


def test_cpu_model_is_read_from_cpuinfo(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example CPU @ 2 GHz\n")
    assert hardware._cpu(tmp_path / "cpuinfo") == "Example CPU @ 2 GHz"
    assert hardware._cpu(tmp_path / "absent")


def fake_smi(tmp_path, monkeypatch, script):
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_gpu_names_come_from_nvidia_smi(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "echo 'NVIDIA A'; echo 'NVIDIA B'")
    assert hardware.fingerprint()["gpus"] == ["NVIDIA A", "NVIDIA B"]


def test_a_driver_that_does_not_answer_means_no_gpu(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "echo 'driver mismatch'; exit 9")
    assert hardware.fingerprint()["gpus"] == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert hardware.fingerprint()["gpus"] == []


def test_free_memory_is_that_of_machine_container_and_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "CGROUP", tmp_path / "none")
    here = hardware.free_memory("cpu")
    assert 10_000_000 < here < 10**14
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 1200\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.free_memory("cpu") == 3000 - 2500 + 1200
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.free_memory("cpu") > 10_000_000
    fake_smi(tmp_path, monkeypatch, "echo '4 MiB'; echo '2 MiB'")
    assert hardware.free_memory("cuda") == 2 * 1024**2
    fake_smi(tmp_path, monkeypatch, "echo '4 MiB'; echo '[N/A]'")
    assert hardware.free_memory("cuda") == 0


def test_hardware_needs_no_torch():
    code = "import sys, resprout.tasks.core.hardware; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
