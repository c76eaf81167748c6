"""What the files of an answer are called: short where that is enough, longer where names meet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srattn.engine.rows import Rows, Source, open_rows
from srattn.engine.rows.base import Listed
from srattn.engine.scene_folder import _places
from srattn.errors import SrattnError


def names_of(rows: Rows) -> list[str]:
    return [place.name for place in _places(rows)]


def named(*names: str) -> list[str]:
    return names_of(Listed([Source(name, b"") for name in names]))


def lay(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_simple_names_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay(tmp_path, "drive/a.png", "drive/left/b.jpg"))
    assert names_of(open_rows(["drive"])) == ["drive/a", "drive/left/b"]
    assert names_of(open_rows([str(tmp_path / "drive")])) == ["drive/a", "left/b"]
    assert named("-", "digits/0001", "shard.v2/x.y.png") == ["-", "digits/0001", "shard.v2/x.y"]


def test_whole_paths_go_up_as_far_as_tells_them_apart(tmp_path: Path) -> None:
    lay(tmp_path, "one/left/a.png", "two/left/a.png", "two/right/a.png")
    assert names_of(open_rows([str(tmp_path)])) == ["one/left/a", "two/left/a", "right/a"]


def test_suffixes_stay_where_they_alone_differ(tmp_path: Path) -> None:
    lay(tmp_path, "all/a.jpg", "all/a.png", "all/b.png")
    assert names_of(open_rows([str(tmp_path / "all")])) == ["all/a.jpg", "all/a.png", "all/b"]
    assert named("sample.v1", "sample.v2") == ["sample.v1", "sample.v2"]


def test_ways_up_are_told_apart_by_where_they_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "a/x.png", "here/a/x.png")
    monkeypatch.chdir(tmp_path / "here")
    assert names_of(open_rows(["a/x.png", "../a/x.png"])) == ["here/a/x", f"{tmp_path.name}/a/x"]


def test_an_image_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = str(lay(tmp_path, "a/x.png") / "a/x.png")
    with pytest.raises(SrattnError, match=r"would both be written as a/x\.png; predict them apart"):
        names_of(open_rows([path, path]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(lay(tmp_path, "a.png") / "b.png")
    assert [source.name for source in open_rows([str(tmp_path)]).read(0, 9)] == [str(tmp_path / "a.png")]
