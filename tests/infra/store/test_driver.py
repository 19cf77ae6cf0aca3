"""Which driver serves an address: a backend is one class and one line; nobody else asks for the scheme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store import driver
from resprout.infra.store.driver import driver_class, open_driver
from resprout.infra.store.local import LocalDriver
from resprout.infra.store.s3 import S3Driver
from resprout.infra.store.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[3]


class Elsewhere(LocalDriver):
    """A backend that nobody planned for."""

    @classmethod
    def from_config(cls, config: StoreConfig) -> Elsewhere:
        return cls(Path((config.uri or "").removeprefix("elsewhere:/")))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, LocalDriver),
        ("store", LocalDriver),
        ("/a/b:c", LocalDriver),
        ("file:///a/b", LocalDriver),
        ("s3://bucket/prefix", S3Driver),
    ],
)
def test_the_scheme_says_which_driver(uri: str | None, expected: type) -> None:
    assert driver_class(uri) is expected


def test_an_address_of_a_folder_may_be_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    assert open_driver(StoreConfig(uri=folder.as_uri())).uri("x") == (folder / "x").as_uri()


def test_an_unknown_scheme_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BadInput, match=r"infra.store.uri is 'gs://x'; give a folder or s3://bucket/prefix"):
        open_driver(StoreConfig(uri="gs://x"))
    with pytest.raises(BadInput, match="'gs://x' is no place for a backup; give a folder"):
        open_driver(StoreConfig(uri="gs://x"), "'{uri}' is no place for a backup")


def test_a_new_backend_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(driver.DRIVERS, "elsewhere", (f"{__name__}:Elsewhere", "elsewhere://folder"))
    monkeypatch.setattr(driver, "import_module", lambda name: __import__("sys").modules[__name__])
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a.txt").write_text("a")
    store = ArtifactStore.from_config(StoreConfig(uri=f"elsewhere:/{tmp_path}/store"), tmp_path / "home")
    digest = store.publish(tmp_path / "made").digest
    with store.open(digest) as folder:
        assert (folder / "a.txt").read_text() == "a"


def test_no_other_module_asks_for_the_scheme_of_a_store() -> None:
    switch = re.compile(r"startswith\(\"s3:|scheme == \"s3\"")
    asking = {
        str(path.relative_to(ROOT))
        for room in ("flows", "tasks", "infra", "configs")
        for path in (ROOT / room).rglob("*.py")
        if switch.search(path.read_text())
    }
    # Where models and data come from is another question: tasks/acquire has a source for each scheme.
    assert {path for path in asking if not path.startswith("tasks/acquire/")} == set()
