"""Every supported family; one thread, because threads cost more than they bring on tiny models."""

from __future__ import annotations

import pytest
import torch

from resprout.tasks.models.families import FAMILIES


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
