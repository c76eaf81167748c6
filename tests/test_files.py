"""Nothing existing is overwritten, nothing is half-written, and nothing is left lying about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srattn.errors import SrattnError, missing_extra, nearest
from srattn.files import atomic_dir, atomic_path, check_writable


def test_file_appears_whole_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "weights.safetensors"
    with atomic_path(target) as aside:
        aside.write_text("whole")
        assert not target.exists()
        assert aside.parent == target.parent
        assert aside.suffix == ".safetensors"
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_path(tmp_path / "new" / "report.html") as aside:
        aside.write_text("half")
        raise error
    with pytest.raises(error), atomic_dir(tmp_path / "new" / "run") as folder:
        (folder / "part").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_error_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target, overwrite=True) as aside:
        aside.write_text("half")
        raise RuntimeError
    run = tmp_path / "run"
    run.mkdir()
    (run / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_dir(run, overwrite=True) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert (run / "weights").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_existing_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    run = tmp_path / "run"
    run.mkdir()
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (target, dangling):
        with pytest.raises(SrattnError, match="exists and is not overwritten"), atomic_path(path):
            pytest.fail("the block ran")
    with pytest.raises(SrattnError, match="exists and is not overwritten"), atomic_dir(run):
        pytest.fail("the block ran")


def test_existing_is_replaced_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with atomic_path(target, overwrite=True) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    run = tmp_path / "run"
    run.mkdir()
    (run / "stale").touch()
    with atomic_dir(run, overwrite=True) as folder:
        (folder / "weights").touch()
        assert (run / "stale").exists()
    assert target.read_text() == "new"
    assert [path.name for path in run.iterdir()] == ["weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_target_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*args: object) -> None:
            raise OSError("no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "weights.pth"
    with pytest.raises(SrattnError, match="exists"), atomic_path(target) as aside:
        aside.write_text("ours")
        target.write_text("theirs")
    run = tmp_path / "run"
    with pytest.raises(SrattnError, match="exists"), atomic_dir(run):
        run.mkdir()
    assert target.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.pth"]


def test_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    with atomic_path(tmp_path / "a") as aside:
        aside.write_text("whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link", overwrite=True) as aside:
        aside.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "new" / "file")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file", overwrite=True)
    for path, overwrite, words in (
        (tmp_path / "file", False, "exists and is not overwritten"),
        (tmp_path, True, "not a regular file"),
        (tmp_path / "file" / "below", False, r"cannot be written \(not a directory: .*file\); choose another path"),
    ):
        with pytest.raises(SrattnError, match=words):
            check_writable(path, overwrite)


def test_wrong_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SrattnError, match="not a regular file"), atomic_path(tmp_path, overwrite=True):
        pytest.fail("the block ran")
    with pytest.raises(SrattnError, match="not a regular file"), atomic_path(os.devnull, overwrite=True):
        pytest.fail("the block ran")
    with pytest.raises(SrattnError, match="not a folder"), atomic_dir(tmp_path / "file", overwrite=True):
        pytest.fail("the block ran")


def test_nearest() -> None:
    assert nearest("pvt_v2_bo", ["pvt_tiny", "pvt_v2_b0"]) == "; did you mean 'pvt_v2_b0'?"
    assert nearest("PVT_TINY", ["pvt_tiny"]) == "; did you mean 'pvt_tiny'?"
    assert nearest("resnet50", ["pvt_tiny", "pvt_v2_b0"]) == ""
    assert nearest("anything", []) == ""


def test_missing_extra_names_the_command() -> None:
    error = missing_extra("scikit-learn", "train")
    assert isinstance(error, SrattnError)
    assert str(error).startswith("scikit-learn is not installed")
    assert 'pip install "srattn[train]"' in str(error)
