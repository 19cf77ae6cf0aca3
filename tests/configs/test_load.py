"""Loading: precedence, secrets, and one sentence for each fault."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import InfraConfig
from resprout.configs.keys import keys
from resprout.configs.load import home_of, load, load_infra
from resprout.configs.near_misses import INSTEAD

BOMB = (
    "[&a [x, x, x, x, x, x, x, x, x, x], "
    + ", ".join(f"&{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 10)}]" for level in range(9))
    + "]"
)
"""Nine aliases of ten aliases each: a billion values."""
MINIMAL = {
    "name": "tiny",
    "model": {"source": "model"},
    "calibrate": {"method": "random", "text": [{"source": "a.txt"}]},
    "prune": {"method": "flap", "target": {"params_ratio": 0.9}},
    "evaluate": {"perplexity": {"text": [{"source": "b.txt"}]}},
}


@pytest.fixture
def write(tmp_path: Path):
    def make(**changes: object) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
        return path

    return make


def test_command_line_wins_over_environment_over_yaml(write) -> None:
    path = write(seed=1)
    environ = {"RESPROUT_SEED": "2", "RESPROUT_PRUNE__ROUND_TO": "32"}
    assert load(path, environ={}).config.seed == 1
    from_environ = load(path, environ=environ).config
    assert (from_environ.seed, from_environ.prune.round_to) == (2, 32)
    assert load(path, ["seed=3"], environ).config.seed == 3


def test_a_source_on_the_command_line_is_looked_for_where_it_was_typed(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, here = write(), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("own.gguf", "own.txt", "both.gguf"):
        (here / name).touch()
    (tmp_path / "both.gguf").touch()
    text = 'calibrate.text=[{"source": "own.txt"}, {"source": "s3://bucket/own.txt"}]'
    config = load(path, ["model.source=own.gguf", text], {}).config
    assert config.model.source == str(here / "own.gguf")
    assert [one.source for one in config.calibrate.text] == [str(here / "own.txt"), "s3://bucket/own.txt"]
    for beside_the_config in ("both.gguf", "neither.gguf"):
        assert load(path, [f"model.source={beside_the_config}"], {}).config.model.source == beside_the_config


def test_a_list_is_reached_by_index(write) -> None:
    config = load(write(), ["calibrate.text.0.limit=5"], {}).config
    assert config.calibrate.text[0].limit == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.target.param_ratio=0.8", "did you mean 'params_ratio'"),
        ("prunes.round_to=8", "did you mean 'prune'"),
        ("calibrate.text.0.wher=x", "did you mean 'where'"),
        ("registre.name=x", "did you mean 'register'"),
        ("prune.target.params_ratio=1.2", "less than or equal to 1"),
        ("prune.target.params=1000", "give exactly one of"),
        ("prune.units=[ffn, ffn]", "each once"),
        ("calibrate.seq_len_tokens=0", "greater than or equal to 8"),
        ("evaluate.perplexity.stride_tokens=1024", "exceeds window_tokens"),
        ("gate.min_accuracy_kept=0.9", "give evaluate.zero_shot"),
        (
            "prune.target={bytes: much}",
            "target.bytes: no size of at least one byte; give a whole number",
        ),
        ("sparsify={pattern: '1:4'}", "sparsify.pattern: input should be '2:4' or '4:8'"),
        ("prune.sparsity=0.5", "prune.sparsity: unknown key; the size to reach is prune.target, which says"),
        ("prune.ratio=0.5", "prune.ratio: unknown key; the size to reach is prune.target"),
        ("prune.amount=0.5", "prune.amount: unknown key; the size to reach is prune.target"),
        ("prune.params_ratio=0.5", "prune.params_ratio: unknown key; it belongs to prune.target"),
        ("model.path=x", "model.path: unknown key; the model's address is model.source"),
        ("model.name=x", "model.name: unknown key; the model's address is model.source"),
        ("data=x.jsonl", "data: unknown key; data stands where it is used, in calibrate.text, evaluate"),
        (
            "evaluate.zero_shot.tasks=[piqa]",
            "evaluate.zero_shot.tasks.0: a task needs a file with its questions, as none is fetched by its "
            "name; give {task: piqa, data: {source: FILE}}, where task is one of arc_challenge, arc_easy, ",
        ),
        ("evaluate.zero_shot.tasks=[race]", "give {task: race.yaml, data: {source: FILE}}, where task is"),
        ("evaluate.zero_shot.tasks=['lm_eval:race']", "lm_eval:NAME, or the path of your own lm-eval YAML"),
        ("evaluate.suites=[zero_shot_sevn]", "no suite zero_shot_sevn; did you mean zero_shot_seven?"),
        ("evaluate.suites=[{suite: knowledge, limt: 5}]", "unknown key; did you mean 'limit'"),
        ("evaluate.suites=[none.yaml]", "no config at"),
        ("evaluate.zero_shot={tasks: [{task: piqa, data: {source: x}, few_shot: 2}]}", "into a suite"),
        ("evaluate.suites=[knowledge, knowledge]", "the task mmlu_high_school_geography is given twice"),
        ("gate={max_drop: {arithmetic: 0.05}}", "gate.max_drop needs accuracies; give evaluate.zero_shot or"),
        ("gate={max_drop: {piqa: {margin: 0.03, relative: 0.1}}}", "or {margin: 0.03, error_rate: 0.05}"),
        ("gate={max_drop: {piqa: {absolute: 0.03, error_rate: 0.1}}}", "or {margin: 0.03, error_rate: 0.05}"),
        ("evaluate.zero_shot.tasks=[{task: piqa}]", "tasks.0.data: missing"),
        ("recover.rank=8", "recover has nothing to train on; give select"),
        ("calibrate.text=[]", "name at least one source"),
        ("calibrate.text.3.limit=5", "index it from 0"),
        ("noequals", "is not key=value"),
        ("seed={", "not valid YAML"),
        ("name=2024-13-45", "the value of name: a value that YAML cannot read (month must be in 1..12)"),
        ("seed=!!int foo", "cannot read (invalid literal for int() with base 10: 'foo'); put it in quotes"),
        ("name=!!timestamp x", "put it in quotes where it is text"),
        ("seed=!!bool x", "put it in quotes where it is text"),
        ("prune={[1]: 2}", "put it in quotes where it is text"),
        (f"seed={'1' * 5000}", "put it in quotes where it is text"),
        (f"seed=0x{'f' * 5000}", "a number of 20000 bits; numbers have at most 1024"),
        (f"prune={'[' * 5000}", "nested too deeply"),
        ("prune=&a {units: *a}", "an anchor that holds itself"),
        ("model.source=s3://me:hunter2@bucket/model", "model.source: a password or key in the address"),
        ("calibrate.text.0.source=s3://me:hunter2@bucket/a.txt", "(given: 's3://bucket/a.txt')"),
        ("infra.store.uri=s3://me:hunter2@bucket/store", "infra.store.uri: a password in the address"),
        (f"prune={BOMB}", "more than 100000 values"),
        ("gate={max_perplexity_ratio: .inf}", "gate.max_perplexity_ratio: input should be a finite number"),
        ("recover.learning_rate=.nan", "input should be a finite number"),
        ("calibrate.text.0.hash_percent=[40, 40]", "give low < high"),
        ("calibrate.samples=true", "calibrate.samples: true and false are allowed only for a switch"),
        ("seed=false", "seed: true and false are allowed only for a switch"),
        ("register={name: x, alias: latest}", "register.alias: latest and v1, v2, ... are MLflow's own"),
        ("register={name: x, alias: v12}", "give another alias"),
        ("register={name: x, alias: v1.0}", "register.alias: string should match pattern"),
        ("select={pool: [], budget_ratio: 1, paser: {mode: paper, clusters: auto}}", "the paper"),
    ],
)
def test_bad_input_is_one_sentence_with_a_way_out(write, override: str, expected: str) -> None:
    with pytest.raises(BadInput, match=re.escape(expected)) as caught:
        load(write(), [override], {})
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_is_registered_is_an_export(write) -> None:
    with pytest.raises(BadInput, match=r"register needs an export.*set register: null or name a format"):
        load(write(), ["register={name: x}", "export={formats: []}"], {})


def test_an_override_reaches_one_of_two_sections_that_share_an_anchor(write) -> None:
    shared = [{"source": "a.txt"}]
    path = write(calibrate={"method": "random", "text": shared}, evaluate={"perplexity": {"text": shared}})
    assert "*id001" in path.read_text()
    config = load(path, ["calibrate.text.0.hash_percent=[40, 100]"], {}).config
    assert config.calibrate.text[0].hash_percent == (40, 100)
    assert config.evaluate.perplexity.text[0].hash_percent != (40, 100)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: &x {b: *x}\n", "has an anchor that holds itself"),
        (
            "a: &a [1, 1]\n"
            + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefg")),
            "more than 100000 values",
        ),
    ],
    ids=["itself", "powers of ten"],
)
def test_anchors_that_grow_without_end_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(BadInput, match=sentence):
        load(tmp_path / "run.yaml", environ={})


@pytest.mark.parametrize("password", ["123456", "on", "#abc", "@x:y", "null", "a: b"])
def test_a_secret_in_a_variable_is_taken_as_it_stands(write, password: str) -> None:
    loaded = load(write(), environ={"RESPROUT_INFRA__MLFLOW__PASSWORD": password})
    given = loaded.config.infra.mlflow.password
    assert given is not None
    assert given.get_secret_value() == password


@pytest.mark.parametrize("password", [123456, True, 1.5])
def test_a_secret_of_any_kind_in_the_file_is_refused_and_not_shown(write, password: object) -> None:
    with pytest.raises(BadInput, match=r"write \$\{ITS_NAME\}") as caught:
        load(write(infra={"mlflow": {"password": password}}), environ={})
    assert str(password) not in str(caught.value)


def test_a_secret_of_the_wrong_shape_is_not_shown(write) -> None:
    with pytest.raises(BadInput, match=r"infra\.mlflow\.password") as caught:
        load(write(infra={"mlflow": {"password": ["hunter2", {"x": "hunter2"}]}}), environ={})
    assert "hunter2" not in str(caught.value)


def test_a_variable_that_sets_nothing_is_named(write) -> None:
    with pytest.raises(BadInput, match=r"RESPROUT_PRUNES__X sets no key.*did you mean RESPROUT_PRUNE\?"):
        load(write(), environ={"RESPROUT_PRUNES__X": "3"})


def test_all_faults_are_reported_together(write) -> None:
    with pytest.raises(BadInput) as caught:
        load(write(), ["seed=-1", "prune.round_to=0", "colour=red"], {})
    for part in ("seed", "prune.round_to", "colour: unknown key"):
        assert part in str(caught.value)


def test_a_fault_of_an_item_is_no_fault_of_the_number_of_items(write) -> None:
    with pytest.raises(BadInput) as caught:
        load(write(), ["evaluate.zero_shot.tasks=[piqa, boolq]"], {})
    assert "at least 1 item" not in str(caught.value)
    with pytest.raises(BadInput, match="at least 1 item"):
        load(write(), ["evaluate.zero_shot.tasks=[]"], {})


def test_every_key_that_is_pointed_elsewhere_is_unknown() -> None:
    known = {".".join((*key.sections[0].split("."), key.name)).lstrip(".") for key in keys()}
    assert not known & INSTEAD.keys()


def test_a_sweep_is_no_run_config(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: a\nbase: run.yaml\nlist:\n- {seed: 1}\n")
    with pytest.raises(BadInput, match="is a sweep of run configs; give it to `resprout sweep`, or its base"):
        load(path, environ={})


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nseed: 1\nseed: 2\n")
    with pytest.raises(BadInput, match="line 3: key 'seed' is given twice"):
        load(path, environ={})


@pytest.mark.parametrize("content", ["- a\n", "a: [", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"odd\.yaml"):
        load(path, environ={})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config at .*none\.yaml"):
        load(tmp_path / "none.yaml", environ={})


def test_secrets_come_from_variables_only_and_are_never_shown(write) -> None:
    infra = {"store": {"uri": "s3://bucket/x", "secret_access_key": "${MY_SECRET}"}}
    config = load(write(infra=infra), environ={"MY_SECRET": "hunter2"}).config
    assert config.infra.store.secret_access_key is not None
    assert config.infra.store.secret_access_key.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(config) + str(config.public()) + config.model_dump_json()
    with pytest.raises(BadInput, match="MY_SECRET is not set"):
        load(write(infra=infra), environ={})
    with pytest.raises(BadInput, match=r"write \$\{ITS_NAME\}") as caught:
        load(write(infra={"store": {"secret_access_key": "hunter2"}}), environ={})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadInput, match="for secrets only"):
        load(write(name="${MY_NAME}"), environ={"MY_NAME": "x"})


def test_home_is_beside_the_project_unless_named(write, tmp_path: Path) -> None:
    inner = tmp_path / "project" / "configs"
    inner.mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    assert home_of(InfraConfig(), inner, {}) == tmp_path / "project" / ".resprout"
    assert home_of(InfraConfig(), inner, {"RESPROUT_HOME": "/data/x"}) == Path("/data/x")
    config = load(write(infra={"home": "/data/y"}), environ={"RESPROUT_HOME": "/data/x"})
    assert config.home == Path("/data/y")


def test_infra_without_a_config_comes_from_the_environment(tmp_path: Path) -> None:
    infra, home = load_infra(
        None,
        {
            "RESPROUT_HOME": str(tmp_path),
            "RESPROUT_INFRA__STORE__URI": "s3://bucket/x",
            "RESPROUT_INFRA__STORE__SECRET_ACCESS_KEY": "hunter2",
        },
    )
    assert (infra.store.uri, home) == ("s3://bucket/x", tmp_path)
    assert infra.store.secret_access_key is not None
    assert infra.store.secret_access_key.get_secret_value() == "hunter2"
    with pytest.raises(BadInput, match=r"infra\.store\.url: unknown key; did you mean 'uri'"):
        load_infra(None, {"RESPROUT_INFRA__STORE__URL": "x"})


@pytest.mark.parametrize(
    "override",
    [
        "infra.store.secret_access_key=hunter2",
        "infra.store={secret_access_key: hunter2}",
        "infra={store: {secret_access_key: hunter2}}",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_shown(write, override: str) -> None:
    with pytest.raises(BadInput, match=r"infra\.store\.secret_access_key: a secret .*ITS_NAME") as caught:
        load(write(), [override], {})
    assert "hunter2" not in str(caught.value)
    loaded = load(write(), ["infra.store.secret_access_key=${MY_SECRET}"], {"MY_SECRET": "hunter2"})
    assert loaded.config.infra.store.secret_access_key is not None
    assert loaded.config.infra.store.secret_access_key.get_secret_value() == "hunter2"


def test_credentials_in_addresses_are_not_public(write) -> None:
    infra = {"mlflow": {"tracking_uri": "https://user:hunter2@host:5000/x"}}
    public = load(write(infra=infra), environ={}).config.public()
    assert public["infra"]["mlflow"]["tracking_uri"] == "https://host:5000/x"
    assert "secret_access_key" not in public["infra"]["store"]
