"""What a user may get wrong, and faults of the machine: the exit code, one sentence, nothing half done."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands import COMMAND
from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.infrastructure import MlflowConfig
from resprout.configs.load import load
from resprout.configs.schema import RunConfig
from resprout.flows import preflight
from resprout.flows.check import check
from resprout.flows.dry_run import Forecast, to_make
from resprout.flows.stages import Steps
from resprout.tasks.models.shape import Shape, shape_of
from tiny_run import write_run

CHEAP = ("acquire", "filter", "pool", "evaluation data")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, config and an empty MLflow database; tests change copies and overrides, never these."""
    from resprout.infra.mlflow.tracking import Tracker

    root = tmp_path_factory.mktemp("ground")
    write_run(root, measure=None)
    Tracker(MlflowConfig(), root / "template").connect()
    return root


@pytest.fixture
def ready(ground: Path, home: Path) -> Path:
    """A home whose MLflow database needs no migration."""
    shutil.copy(ground / "template" / "mlflow.db", home / "mlflow.db")
    return home


@pytest.fixture
def run_here(
    api_url: str,
    ground: Path,
    ready: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[..., Any]]:
    """`resprout run <config> <overrides> --json` in this process: exit code, stderr and result."""
    from resprout.flows.cli.main import main

    before = dict(os.environ)
    monkeypatch.setenv("RESPROUT_HOME", str(ready))
    # Where no server is named, each run would start one of its home's own.
    monkeypatch.setenv("PREFECT_API_URL", api_url)

    def call(*overrides: str, config: Path = ground / "run.yaml") -> Any:
        monkeypatch.setattr(sys, "argv", ["resprout", "run", str(config), *overrides, "--json"])
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, err=err, result=json.loads(out.strip().splitlines()[-1]))

    yield call
    os.environ.clear()
    os.environ.update(before)


def refused(found: Any, sentence: str, home: Path, code: int = 2, status: str = "bad_input") -> None:
    """One sentence, the right code, the same in the result, nothing expensive, nothing half written."""
    errors = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, found.err
    assert found.err.splitlines()[-1] == errors[0]
    assert re.search(sentence, errors[0]), errors[0]
    assert "Traceback" not in found.err
    assert found.code == code
    assert (found.result["status"], found.result["exit_code"]) == (status, code)
    assert found.result["message"] == errors[0].removeprefix("error: ")
    assert all(stage["name"].startswith(CHEAP) for stage in found.result["stages"])
    whole(home / "store")


def whole(store: Path) -> None:
    """Every artifact in a local store has its manifest, and no work folder is left."""
    shown = {path.stem for path in (store / "manifests").glob("*.json")}
    assert {path.name for path in (store / "content").glob("*")} == shown
    assert not list((store / "tmp").glob("work-*"))


def model_like(ground: Path, target: Path, *but: str) -> Path:
    shutil.copytree(ground / "model", target, ignore=shutil.ignore_patterns(*but))
    return target


def no_weights(ground: Path, tmp: Path) -> list[str]:
    return [f"model.source={model_like(ground, tmp / 'bare', '*.safetensors')}"]


def pickled(ground: Path, tmp: Path) -> list[str]:
    folder = model_like(ground, tmp / "pickled", "*.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")
    return [f"model.source={folder}"]


def other_family(ground: Path, tmp: Path) -> list[str]:
    folder = model_like(ground, tmp / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bloom"}))
    return [f"model.source={folder}"]


def cut_weights(ground: Path, tmp: Path) -> list[str]:
    folder = model_like(ground, tmp / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return [f"model.source={folder}"]


def empty(section: str) -> Callable[[Path, Path], list[str]]:
    def make(ground: Path, tmp: Path) -> list[str]:
        (tmp / "empty.jsonl").write_text("")
        return [f"{section}.0.source={tmp / 'empty.jsonl'}"]

    return make


def broken(section: str, source: str) -> Callable[[Path, Path], list[str]]:
    def make(ground: Path, tmp: Path) -> list[str]:
        lines = (ground / source).read_text().splitlines()
        lines[2] = lines[2][:-10]
        (tmp / "broken.jsonl").write_text("\n".join(lines) + "\n")
        return [f"{section}.source={tmp / 'broken.jsonl'}"]

    return make


def own_task(old: str, new: str) -> Callable[[Path, Path], list[str]]:
    def make(ground: Path, tmp: Path) -> list[str]:
        settings = (ground / "own.yaml").read_text()
        assert old in settings
        (tmp / "own.yaml").write_text(settings.replace(old, new))
        return [f"evaluate.zero_shot.tasks.0.task={tmp / 'own.yaml'}"]

    return make


def below_a_file(ground: Path, tmp: Path) -> list[str]:
    (tmp / "file").write_text("not a folder")
    return [f"infra.store.uri={tmp / 'file' / 'store'}"]


def a_file(ground: Path, tmp: Path) -> list[str]:
    (tmp / "file").write_text("not a folder")
    return [f"infra.store.uri={tmp / 'file'}"]


def always(*overrides: str) -> Callable[[Path, Path], list[str]]:
    return lambda ground, tmp: list(overrides)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(
            always("model.source=nowhere"),
            r"there is no nowhere \(.*/nowhere\); give an existing",
            id="no model",
        ),
        pytest.param(
            always("model.source=package://no_such_package/x.gguf"),
            "no package 'no_such_package' in .*; pip install it",
            id="no package",
        ),
        pytest.param(no_weights, "config.json but no weights; expected .safetensors", id="no weights"),
        pytest.param(pickled, r"pickled weights only \(pytorch_model.bin\).*allow_pickle", id="pickles"),
        pytest.param(
            other_family, "'bloom' is not supported; supported are .*llama, .*to add", id="unsupported family"
        ),
        pytest.param(cut_weights, "no complete safetensors file: .*fetch it again", id="truncated weights"),
        pytest.param(
            always("prune.target.params_ratio=0.1"), r"reaches \d+ .* at best; raise the target", id="target"
        ),
        pytest.param(
            always("prune.layout=per_layer", "export.formats=[hf]"),
            "export.formats: export.formats holds hf, .*layout: uniform, or formats: .hf_code, hf_layouts.",
            id="format that cannot hold the layout",
        ),
        pytest.param(
            always("export.formats=[hf, peft]", "recover.method=full"),
            "holds peft, the adapter of recovery by lora, but recover.method is full, .*; give method: lora",
            id="adapter of full training",
        ),
        pytest.param(
            always("export.formats=[hf, peft]", "select=null", "recover=null"),
            "but recover is left out; give select and recover, or leave peft out",
            id="adapter without recovery",
        ),
        pytest.param(
            always("export.formats=[hf, peft]", "sparsify={}"),
            "but sparsify changes the weights behind it; leave peft or sparsify out",
            id="adapter under zeros",
        ),
        pytest.param(
            always("export.formats=[hf, peft]", "prune.schedule=cubic", "prune.repair=none"),
            "but prune.schedule cubic trains between its rounds, .*give schedule: one_shot",
            id="adapter after rounds",
        ),
        pytest.param(
            always("export.formats=[peft, hf]"),
            r"begins with peft, but the first format is .*give formats: \[hf, peft\]",
            id="adapter as a version",
        ),
        pytest.param(
            always("export.formats=[hff]"), "unknown export format 'hff'; did you mean 'hf'", id="format"
        ),
        pytest.param(
            always("prune.target={params: 99999999}"), "but the model has .*smaller target", id="large target"
        ),
        pytest.param(empty("select.pool"), r"empty.jsonl.*(no row|holds no|empty)", id="empty pool"),
        pytest.param(
            empty("calibrate.text"), r"empty.jsonl.*(no row|holds no|empty)", id="empty calibration"
        ),
        pytest.param(
            empty("evaluate.perplexity.text"), r"empty.jsonl.*(no row|holds no|empty)", id="empty evaluation"
        ),
        pytest.param(
            broken("select.pool.0", "pool.jsonl"), "broken.jsonl, line 3.*expected", id="broken pool row"
        ),
        pytest.param(
            broken("evaluate.perplexity.text.0", "evaluation.jsonl"),
            "broken.jsonl, line 3.*expected",
            id="broken text row",
        ),
        pytest.param(
            broken("evaluate.zero_shot.tasks.0.data", "task.jsonl"),
            "broken.jsonl, line 3.*expected",
            id="broken task row",
        ),
        pytest.param(
            always("select.budget_ratio=null", "select.budget_tokens=1000000"),
            r"budget_tokens is 1000000 but the pool holds \d+ tokens in 60 rows; add",
            id="small pool",
        ),
        pytest.param(
            always("select.max_len_tokens=16"), "max_len_tokens.* 16.*raise", id="no token after the template"
        ),
        pytest.param(
            always("calibrate.samples=5000"),
            r"calibrate.text holds \d+ windows .*needs",
            id="little calibration",
        ),
        pytest.param(
            always("evaluate.perplexity.limit_tokens=16"),
            "has 16 tokens, fewer than one window of 32",
            id="little evaluation text",
        ),
        pytest.param(
            own_task("question", "quest"), "task own does not fit row 1 .*'quest'", id="task template"
        ),
        pytest.param(own_task("label", "question"), "the answer .* is none of the choices", id="task answer"),
        pytest.param(always("select.template=chat"), "chat template", id="no chat template"),
        pytest.param(
            below_a_file, "infra.store.uri: .*which is a file; give a folder", id="store below a file"
        ),
        pytest.param(a_file, "infra.store.uri: .*which is a file; give a folder", id="store is a file"),
    ],
)
def test_bad_input(
    make: Callable[[Path, Path], list[str]],
    sentence: str,
    ground: Path,
    ready: Path,
    tmp_path: Path,
    run_here: Callable[..., Any],
) -> None:
    refused(run_here(*make(ground, tmp_path)), sentence, ready)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prune.target.params_ratio=0.1", "models:/tiny/1: prune.target: .*raise the target"),
        ("measure.prefill_tokens=4096", "models:/tiny/1: measure.prefill.* 256 positions; give shorter"),
    ],
    ids=["target", "length"],
)
def test_what_a_model_elsewhere_cannot_do_is_said_once_it_is_here(
    override: str, sentence: str, ground: Path, ready: Path, run_here: Callable[..., Any]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{ready / 'mlflow.db'}")
    client.create_registered_model("tiny")
    client.create_model_version("tiny", (ground / "model").as_uri())
    refused(run_here("model.source=models:/tiny/1", override), sentence, ready)


def test_plan_says_that_a_model_elsewhere_would_be_acquired(
    ground: Path, ready: Path, resprout: Callable[..., Any]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{ready / 'mlflow.db'}")
    client.create_registered_model("tiny")
    client.create_model_version("tiny", (ground / "model").as_uri())
    found = resprout("plan", ground / "run.yaml", "model.source=models:/tiny/1", "--json", home=ready)
    assert found.code == 0, found.err
    assert not any(stage["cached"] for stage in found.result["stages"])


def test_a_home_that_cannot_be_made(
    ground: Path, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RESPROUT_HOME", str(tmp_path / "file" / "home"))
    refused(run_here(), "file/home cannot be made .*set RESPROUT_HOME", tmp_path)


def test_a_home_that_cannot_be_written_is_refused_before_any_server_starts(
    tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc, the folder that not even root can write")
    begun: list[Any] = []
    monkeypatch.setattr("resprout.flows.compress.compress_here", lambda *given: begun.append(given))
    monkeypatch.setenv("RESPROUT_HOME", "/proc")
    refused(run_here(), r"/proc cannot be written \(.*\); make it writable .*set RESPROUT_HOME", tmp_path)
    assert not begun


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"uri": "s3://no-such-bucket/x"}, "there is no bucket s3://no-such-bucket .*create it or give"),
        ({"secret_access_key": "wrong"}, "does not accept the credentials .*check infra.store.access_key_id"),
        ({"access_key_id": "nobody"}, "does not accept the credentials .*check infra.store.access_key_id"),
    ],
    ids=["bucket", "secret", "key"],
)
def test_a_bucket_that_cannot_be_used(
    change: dict[str, str],
    sentence: str,
    s3: Any,
    ready: Path,
    run_here: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**s3.settings("bad-input"), **change}
    for name, value in settings.items():
        monkeypatch.setenv(f"RESPROUT_INFRA__STORE__{name.upper()}", value)
    found = run_here()
    refused(found, sentence, ready)
    assert settings["secret_access_key"] not in found.err.replace("wrong credentials", "")


@pytest.fixture
def mute() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


@pytest.mark.parametrize("answers", ["nobody listens", "silence"])
def test_an_mlflow_server_that_does_not_answer(
    answers: str, ground: Path, home: Path, mute: int, resprout: Callable[..., Any]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    port = closed if answers == "nobody listens" else mute
    began = time.monotonic()
    # A user's environment, without the limits that the suite sets for itself.
    user = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "", "MLFLOW_HTTP_REQUEST_TIMEOUT": ""}
    kept = {name: os.environ.pop(name) for name in user if name in os.environ}
    try:
        found = resprout(
            "run", ground / "run.yaml", f"infra.mlflow.tracking_uri=http://user:hidden-word@127.0.0.1:{port}",
            "--json", home=home,
        )  # fmt: skip
    finally:
        os.environ.update(kept)
    seconds = time.monotonic() - began
    refused(found, rf"MLflow at http://127.0.0.1:{port} cannot be used .*start it, or set", home)
    assert "hidden-word" not in found.err + found.out
    assert seconds < 20, f"it took {seconds:.0f} s"


@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ("disk", "has 0.0 GB free, and this run needs about .*free space there or set RESPROUT_HOME"),
        ("memory", "has 0.0 GB of memory, and this run needs about .*smaller dtype or a larger machine"),
    ],
)
def test_a_machine_too_small(
    limit: str, sentence: str, ready: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit == "disk":
        monkeypatch.setattr("resprout.infra.store.store.free_bytes", lambda folder: 1000)
    else:
        small = SimpleNamespace(total=1000, available=1000)
        monkeypatch.setattr("resprout.tasks.core.hardware.psutil.virtual_memory", lambda: small)
    found = run_here()
    refused(found, sentence, ready)
    assert found.result["stages"] == []


def test_a_gpu_that_is_not_there(
    ready: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = run_here("model.device=cuda")
    refused(found, "model.device is cuda, which this machine .* does not have; give cpu, or auto", ready)
    assert found.result["stages"] == []
    preflight.check_device("cuda", lambda: True)
    preflight.check_device("auto", lambda: pytest.fail("no need to look"))


def given(ground: Path, *overrides: str) -> tuple[RunConfig, Shape, Steps]:
    config = load(ground / "run.yaml", ["model.dtype=float32", *overrides]).config
    return config, shape_of(ground / "model"), Steps(config)


def not_asked() -> list[bool]:
    pytest.fail("no need to look")


@pytest.mark.parametrize(
    ("there", "needed"),
    [(set(), 5), ({"source", "plan"}, 4), (None, 0)],
    ids=["nothing is there", "the dense model is there", "all is there"],
)
def test_models_in_the_store_need_no_room(ground: Path, there: set[str] | None, needed: int) -> None:
    """Dense, pruned and recovered model and the export, and one of them twice while it is made."""
    config, shape, steps = given(ground)
    room = needed * 4 * shape.params
    forecasts = [Forecast(step, there is None or step.gives in there, key=step.label) for step in steps]
    models = sum(step.writes_model for step in steps)
    assert models == 4
    preflight.check_room(config, shape, ground, room, models, lambda: to_make(forecasts))
    preflight.check_room(config, shape, ground, 5 * 4 * shape.params, models, not_asked)
    if needed:
        with pytest.raises(BadInput, match="free, and this run needs about"):
            preflight.check_room(config, shape, ground, room - 1, models, lambda: to_make(forecasts))


def test_rounds_of_a_schedule_need_room_for_their_models(ground: Path) -> None:
    """Of three: four models as ever, one masked for the selection, two masked, three trained; one twice."""
    schedule = ("prune.schedule=cubic", "prune.schedule_settings={rounds: 3}", "prune.repair=none")
    config, shape, steps = given(ground, *schedule)
    writes = [step.writes_model for step in steps]
    room = 11 * 4 * shape.params
    assert sum(writes) == 10
    preflight.check_room(config, shape, ground, room, 10, not_asked)
    with pytest.raises(BadInput, match="free, and this run needs about"):
        preflight.check_room(config, shape, ground, room - 1, 10, lambda: writes)


def test_training_all_weights_needs_sixteen_bytes_for_each(
    monkeypatch: pytest.MonkeyPatch, ground: Path
) -> None:
    config, shape, _ = given(ground, "model.dtype=bfloat16", "recover.distill_weight=0")
    need = 16 * shape.params + 1_000_000_000
    monkeypatch.setattr(
        "resprout.tasks.core.hardware.psutil.virtual_memory", lambda: SimpleNamespace(total=need - 1)
    )
    preflight.check_room(config, shape, ground, 10**12, 4, lambda: [True])
    full, _, _ = given(ground, "model.dtype=bfloat16", "recover.distill_weight=0", "recover.method=full")
    with pytest.raises(BadInput, match="to train all of its weights; use recover"):
        preflight.check_room(full, shape, ground, 10**12, 4, lambda: [True])


def test_a_pattern_of_zeros_is_one_more_model(ground: Path) -> None:
    _, _, steps = given(ground, "sparsify={pattern: '2:4', method: magnitude}")
    assert sum(step.writes_model for step in steps) == 5


def test_a_run_that_finds_everything_is_not_refused(
    ground: Path, ready: Path, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ground, tmp_path / "short", ignore=shutil.ignore_patterns("template"))
    changes: dict[str, Any] = dict.fromkeys(("select", "recover", "measure", "gate", "register"))
    config = write_run(tmp_path / "short", **changes)
    assert run_here(config=config).code == 0
    small = SimpleNamespace(total=1000, available=1000)
    monkeypatch.setattr("resprout.infra.store.store.free_bytes", lambda folder: 1000)
    monkeypatch.setattr("resprout.tasks.core.hardware.psutil.virtual_memory", lambda: small)
    again = run_here(config=config)
    assert again.code == 0, again.err
    assert all(stage["cached"] for stage in again.result["stages"])
    refused(run_here("prune.round_to=16", config=config), "GB free, and this run needs about", ready)


def test_a_disk_that_fills_up_while_publishing(
    ready: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from resprout.infra.store import local
    from resprout.tasks.calibrate.stage import calibrate

    real = local._seal

    def full(folder: Path) -> None:
        if (folder / "left_out.jsonl").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder)

    def stop(*_: Any) -> None:
        raise StageFailed("stopped here by the test")

    monkeypatch.setattr(local, "_seal", full)
    found = run_here()
    refused(found, "the disk under .* is full.*make room", ready, code=1, status="failed")
    done = [stage["name"] for stage in found.result["stages"]]
    assert done[-1] == "acquire model", "the stage before the full disk is the last that is done"

    monkeypatch.setattr(local, "_seal", real)
    object.__setattr__(calibrate, "body", real_body := calibrate.body)
    try:
        object.__setattr__(calibrate, "body", _moved(stop, real_body))
        again = run_here()
    finally:
        object.__setattr__(calibrate, "body", real_body)
    assert "stopped here by the test" in again.err
    assert {stage["name"]: stage["cached"] for stage in again.result["stages"]} == {
        **dict.fromkeys(done, True),
        "filter": False,
        "pool": False,
        "evaluation data": False,
    }


def _moved(body: Any, like: Any) -> Any:
    body.__module__ = like.__module__
    return body


LONG = ("calibrate.method=self_generated", "calibrate.samples=1024", "calibrate.seq_len_tokens=128")
"""Overrides with which calibrate takes many seconds on the tiny model: a signal comes in its middle."""


def interrupted(config: Path, home: Path, api_url: str, when: str, *overrides: str) -> Any:
    """Run, send SIGINT when the line `when` is on stderr, and return code, stderr and result."""
    env = {**os.environ, "RESPROUT_HOME": str(home), "PREFECT_API_URL": api_url, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "run", str(config), *overrides, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if line.startswith(when):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            break
    out, rest = process.communicate(timeout=60)
    result = json.loads(out.strip().splitlines()[-1]) if out.strip() else None
    return SimpleNamespace(code=process.returncode, err="".join(lines) + rest, result=result)


def test_ctrl_c_in_the_middle_of_a_stage(
    ground: Path, ready: Path, api_url: str, resprout: Callable[..., Any]
) -> None:
    first = interrupted(ground / "run.yaml", ready, api_url, "calibrate: started", *LONG)
    assert first.code == 130, first.err
    assert first.err.splitlines()[-1].startswith("cancelled; finished stages are kept"), first.err
    assert "Traceback" not in first.err
    assert (first.result["status"], first.result["exit_code"]) == ("cancelled", 130)
    done = [stage["name"] for stage in first.result["stages"]]
    assert done[-1] == "evaluation data"
    whole(ready / "store")

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{ready / 'mlflow.db'}")
    assert client.get_run(first.result["mlflow_run_id"]).info.status == "KILLED"

    second = interrupted(ground / "run.yaml", ready, api_url, "score: started", *LONG)
    assert second.code == 130, second.err
    stages = {stage["name"]: stage["cached"] for stage in second.result["stages"]}
    # Scoring the tiny model, and what follows it, may end before the signal comes.
    made = [name for name in stages if name not in done]
    assert made == ["calibrate", "score", "plan"][: len(made)]
    assert made, "the stage that ended before the signal is not in the result"
    assert stages == {**dict.fromkeys(done, True), **dict.fromkeys(made, False)}
    whole(ready / "store")
    planned = resprout("plan", ground / "run.yaml", *LONG, "--json", home=ready).result["stages"]
    kept = {stage["name"] for stage in planned if stage["cached"]}
    assert stages.keys() <= kept, "what the result lists is kept"


def test_a_fault_of_the_prune_section_is_told_once(ground: Path) -> None:
    with pytest.raises(BadInput, match="cannot score hidden") as told:
        check(load(ground / "run.yaml", ["prune.units=[hidden]", "prune.schedule=cubic"]))
    assert str(told.value).count("cannot score hidden") == 1
    with pytest.raises(BadInput, match="damping"):
        check(load(ground / "run.yaml", ["sparsify={method: sparsegpt, settings: {damping: -1}}"]))
