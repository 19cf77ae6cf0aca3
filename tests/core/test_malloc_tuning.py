"""Freed memory is kept where the allocator is glibc's and has no settings of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from resprout.tasks.core.malloc_tuning import OWN_SETTINGS

SCRIPT = """
import resource
import sys

import torch

from resprout.tasks.core.malloc_tuning import keep_freed_memory

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

GIVEN_BACK = """
from pathlib import Path

import torch

from resprout.tasks.core.malloc_tuning import give_back_freed_memory, keep_freed_memory


def held():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024


keep_freed_memory()
block = torch.ones(400 * 2**18)
full = held()
del block
kept = held()
give_back_freed_memory()
print(full - kept, kept - held())
"""
"""Takes and frees 400 MB, and prints how many MB went with that and how many when they were given back."""


def printed(script: str, *arguments: str, **more: str) -> list[str]:
    """The words that a script prints in a process whose allocator has these settings alone."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=own | more, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_pages_that_were_freed_are_not_asked_for_again():
    kept, few = printed(SCRIPT, "keep")
    _, many = printed(SCRIPT, "leave")
    assert kept == "True"
    assert int(few) * 10 < int(many)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_settings_of_the_environment_stay():
    kept, many = printed(SCRIPT, "keep", MALLOC_TOP_PAD_="131072")
    assert kept == "False"
    assert int(many) > 1000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_was_kept_is_given_back_when_it_is_to_be():
    freed, given_back = map(int, printed(GIVEN_BACK))
    assert freed < 50
    assert given_back > 350
