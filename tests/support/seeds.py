"""Seeds of tests that draw what they do: all follow from TEST_SEED, which `make test-random` draws anew."""

from __future__ import annotations

import os
import random

VARIABLE = "TEST_SEED"
FIXED = "17"


def first_seed() -> str:
    """The seed of this session, drawn where TEST_SEED is "random"; workers of pytest-xdist inherit it."""
    given = os.environ.setdefault(VARIABLE, FIXED)
    if given == "random":
        os.environ[VARIABLE] = str(random.SystemRandom().randrange(10**9))
    return os.environ[VARIABLE]


def seed_of(test: str) -> str:
    """Seed of one test, for random.Random."""
    return f"{first_seed()} {test}"
