"""A deployed run: its config comes with it, and of the runs for one claim only the first does anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.load import document, load, load_data
from resprout.flows.again import standalone
from resprout.flows.compress import compress
from tiny_run import write_run


@pytest.fixture
def inline(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, api_url: str) -> dict[str, Any]:
    """A tiny config as a deployment keeps it, without what takes long; the current folder is another."""
    path = write_run(tmp_path, select=None, recover=None, measure=None, gate={"max_params_ratio": 0.86})
    monkeypatch.setenv("RESPROUT_HOME", str(home))
    monkeypatch.chdir(home)
    return standalone(load(path), document(path))


def test_a_config_that_came_with_the_run_is_compressed_once_for_a_claim(
    inline: dict[str, Any], home: Path
) -> None:
    first = compress(inline, ["seed=3"], claim="rule chat 7", return_state=True)
    assert first.is_completed(), first.message
    result = first.result()
    assert result["status"] == "done"
    assert result["registered"]["version"] == "1"
    report = yaml.safe_load((home / "reports" / "tiny" / "config.yaml").read_text())
    assert report["seed"] == 3
    second = compress(inline, ["seed=3"], claim="rule chat 7", return_state=True)
    assert second.name == "AlreadyClaimed"
    assert "rule chat 7" in second.message


def test_a_wrong_override_of_a_deployed_run_fails_with_the_sentence(inline: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="did you mean 'prune'"):
        compress(inline, ["prun.round_to=8"])


def test_a_document_keeps_secrets_as_variables(tmp_path: Path) -> None:
    path = write_run(tmp_path, infra={"store": {"uri": "s3://b/x", "secret_access_key": "${MY_SECRET}"}})
    data = document(path, ["seed=4", "infra.store.access_key_id=${MY_KEY}"])
    assert data["seed"] == 4
    assert data["infra"]["store"]["secret_access_key"] == "${MY_SECRET}"
    found = load_data(data, path, (), {"MY_SECRET": "hunter2", "MY_KEY": "key"}).config.infra.store
    assert found.secret_access_key is not None
    assert found.secret_access_key.get_secret_value() == "hunter2"
    assert data["infra"]["store"]["secret_access_key"] == "${MY_SECRET}"
