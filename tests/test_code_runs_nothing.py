"""The packages run no code that comes in data: no pickles, no eval, no shell, no YAML tags, no archives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from resprout.configs.errors import BadInput
from resprout.configs.load import read_yaml
from resprout.configs.schema import ModelConfig
from resprout.tasks.core.job import Job
from resprout.tasks.evaluate.task_files import read_task

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path for room in ("flows", "tasks", "infra", "configs") for path in sorted((ROOT / room).rglob("*.py"))
]
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "tarfile",
    "zipfile",
    "code",
}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "torch.load", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "shutil.unpack_archive", "np.load",
    "numpy.load",
    "pandas.read_pickle", "subprocess.getoutput", "jinja2.Template",
}  # fmt: skip


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def safe_loaders(tree: ast.AST) -> set[str]:
    """Names of the file's own subclasses of SafeLoader, and SafeLoader itself."""
    return {"yaml.SafeLoader", "yaml.CSafeLoader"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, node.bases)
    }


def faults(text: str) -> Iterator[str]:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield str(node.module)
        elif isinstance(node, ast.Call):
            name = called(node)
            given = {one.arg: one.value for one in node.keywords}
            if name in CALLS:
                yield name
            if name == "yaml.load" and ast.unparse(
                given.get("Loader", ast.Constant(None))
            ) not in safe_loaders(tree):
                yield name
            shell = given.get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                yield f"{name}(shell=)"
            trust = given.get("trust_remote_code")
            # Left out, transformers asks on the terminal and runs the code where somebody answers yes.
            if re.fullmatch(r"Auto\w+\.from_pretrained", name) and trust is None and None not in given:
                yield f"{name}() without trust_remote_code"
            if isinstance(trust, ast.Constant) and trust.value is not False:
                yield f"{name}(trust_remote_code={trust.value})"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_runs_nothing_that_comes_in_data(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from joblib import load", "yaml.load(x, Loader=yaml.Loader)", "yaml.load(x)",
        "class L(yaml.Loader): pass\nyaml.load(x, Loader=L)", "subprocess.run(x, shell=True)", "eval('1')",
        "run(x, shell=flag)", "torch.load(x)", "f(trust_remote_code=True)", "import tarfile",
    ],
)  # fmt: skip
def test_the_look_finds_what_it_looks_for(text: str) -> None:
    assert list(faults(text))


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch PLACE']",
        "!!python/name:os.system",
        "!function x.y",
        "!!set {a}",
    ],
)
def test_yaml_tags_run_nothing(tag: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"output_type: {tag.replace('PLACE', str(tmp_path / 'made'))}\n")
    if tag.startswith("!!set"):
        assert read_yaml(path) == {"output_type": {"a"}}
        return
    with pytest.raises((BadInput, yaml.YAMLError)):
        read_yaml(path)
    with pytest.raises(BadInput):
        read_task(str(path), tmp_path)
    assert not (tmp_path / "made").exists()


def test_code_of_a_model_is_off_unless_the_config_says_so() -> None:
    assert ModelConfig(source="x").trust_remote_code is False
    assert ModelConfig(source="x").allow_pickle is False
    assert Job(None).trust_remote_code is False
