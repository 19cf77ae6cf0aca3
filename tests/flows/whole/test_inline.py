"""A deployed run: its config comes with it, and of the runs for one claim only the first does anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)

from resprout.configs.errors import BadInput
from resprout.configs.load import document, load, load_data
from resprout.flows.compress import compress
from resprout.flows.rerun_command import standalone
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


def test_a_run_outside_its_gate_ends_in_a_state_of_that_name_with_its_log_and_artifacts(
    inline: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    state = compress(
        {**inline, "name": "Too.big"}, ["gate.max_params_ratio=0.5", "infra.logs=json"], return_state=True
    )
    assert (state.type.value, state.name) == ("FAILED", "GateNotPassed")
    assert "params_ratio 0.8" in state.message
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    done = [line for line in lines if line.get("stage") == "plan" and "seconds" in line]
    assert len(done) == 1
    assert done[0]["cached"] is False
    assert done[0]["run"] == "Too.big"
    assert len(done[0]["flow_run"]) == 36
    assert len(done[0]["mlflow_run"]) == 32
    last = lines[-1]
    assert (last["status"], last["mlflow_run"]) == ("gate_not_passed", done[0]["mlflow_run"])
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[UUID(done[0]["flow_run"])]))
        )
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    kept = {one.key: one for one in found if one.type != "progress"}
    assert set(kept) == {"too-big-summary", "too-big-result"}
    rows = json.loads(kept["too-big-result"].data)
    assert [row["model"] for row in rows] == ["dense", "pruned"]
    assert rows[1]["params"] < rows[0]["params"]
    assert "words_ppl_seq32" in rows[0]


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
