"""Every supported family."""

from __future__ import annotations

import pytest

from resprout.tasks.models.families import FAMILIES


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param
