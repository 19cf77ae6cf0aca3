"""Tiny random models of every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from resprout.tasks.models.families import FAMILIES
from tiny_models import tiny_model, write_tiny_tokenizer


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture
def tiny():
    return tiny_model


@pytest.fixture
def tokenizer_folder(tmp_path) -> Path:
    folder = tmp_path / "tokenizer"
    write_tiny_tokenizer(folder)
    return folder
