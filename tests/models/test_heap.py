"""Freed memory is kept where the allocator is glibc's and has no settings of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from resprout.tasks.models.heap import OWN_SETTINGS

SCRIPT = """
import resource
import sys

import torch

from resprout.tasks.models.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
blocks = [torch.ones(3 * 2**18) for _ in range(4)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    blocks = [torch.ones(3 * 2**18) for _ in range(4)]
    del blocks
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Takes and frees four blocks of 3 MB fifty times and prints how many pages that brought."""


def faults(how: str, **more: str) -> tuple[str, int]:
    """What the script prints in a process with these settings more."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], env=own | more, check=True, capture_output=True, text=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_pages_that_were_freed_are_not_asked_for_again():
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept == "True"
    assert few * 10 < many


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_settings_of_the_environment_stay():
    kept, many = faults("keep", MALLOC_TOP_PAD_="131072")
    assert kept == "False"
    assert many > 1000
