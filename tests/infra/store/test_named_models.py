"""Links to exported models under the names that people know."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from resprout.infra.store.named_models import drop_dangling, name_model


def exported(root: Path, digest: str) -> Path:
    folder = root / "content" / digest / "hf"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(digest)
    return folder


def test_a_link_leads_to_the_folder_and_follows_a_home_that_moves(tmp_path: Path) -> None:
    home = tmp_path / "home"
    link = name_model(home, "chat", "1", exported(home / "store", "aa"))
    assert link == home / "models" / "chat" / "1"
    assert (link / "config.json").read_text() == "aa"
    home.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "models" / "chat" / "1" / "config.json").read_text() == "aa"


def test_a_store_elsewhere_stays_where_it_is_when_the_home_moves(tmp_path: Path) -> None:
    home = tmp_path / "home"
    name_model(home, "chat", "1", exported(tmp_path / "disk", "aa"))
    (tmp_path / "deeper").mkdir()
    home.rename(tmp_path / "deeper" / "home")
    assert (tmp_path / "deeper" / "home" / "models" / "chat" / "1" / "config.json").read_text() == "aa"


def test_the_same_again_is_the_same_link_and_another_folder_replaces_it(tmp_path: Path) -> None:
    first, second = (exported(tmp_path / "store", digest) for digest in ("aa", "bb"))
    link = name_model(tmp_path, "chat", "1", first)
    assert name_model(tmp_path, "chat", "1", first) == link
    assert name_model(tmp_path, "chat", "1", second) == link
    assert (link / "config.json").read_text() == "bb"
    assert [one.name for one in link.parent.iterdir()] == ["1"]


def test_without_links_the_folder_itself_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = exported(tmp_path / "store", "aa")
    assert name_model(tmp_path, "chat", "1", folder) == folder


def test_links_go_with_what_they_lead_to(tmp_path: Path) -> None:
    kept, freed = (exported(tmp_path / "store", digest) for digest in ("aa", "bb"))
    name_model(tmp_path, "kept", "1", kept)
    name_model(tmp_path, "freed", "2", freed)
    shutil.rmtree(freed.parent)
    drop_dangling(tmp_path)
    assert [one.relative_to(tmp_path).as_posix() for one in (tmp_path / "models").glob("*/*")] == [
        "models/kept/1"
    ]
    assert not (tmp_path / "models" / "freed").exists()
