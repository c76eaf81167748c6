"""`export_model` from end to end, and what becomes of steps that fail or crash."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.errors import SrattnError
from srattn.export import Options, export, export_model
from srattn.export.child import in_child
from srattn.export.export import files_of
from srattn.export.opened import open_export
from srattn.models.backbone import Backbone


def test_a_file_in_its_place_answers_like_the_model(tiny: Backbone, tmp_path: Path) -> None:
    options = Options(format="torch", size=(48, 48), batch=2)
    real = [torch.rand(2, 3, 48, 48)]
    found = export_model(tiny, tmp_path / "new" / "model.pt2", options, real=real, card={"source": "here"})
    assert found.facts.verified["inputs"] == [[2, 3, 48, 48]] * 4
    assert found.bytes == found.path.stat().st_size
    assert [path.name for path in found.path.parent.iterdir()] == ["model.pt2"]
    run = open_export(found.path)
    assert run.classes == ["0", "1", "2", "3", "4"] and run.preprocess.size == (48, 48)
    images = torch.randn(5, 3, 48, 48)  # two batches of two, and one that is filled up
    with torch.inference_mode():
        torch.testing.assert_close(run.model(images), tiny(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        export_model(tiny, found.path, options)
    with pytest.raises(SrattnError, match="alone: leave out --size"):
        open_export(found.path, size=64)


@pytest.mark.parametrize(
    ("out", "change", "words"),
    [
        ("model.onnx", {"format": "torch"}, "called NAME.pt2"),
        ("model.pt2", {"batch": 0}, "at least 1, got 0"),
        ("model.pt2", {"size": (32, 32), "dynamic": ("height",)}, "at least 33"),
        ("model.pt2", {"dynamic": ("depth",)}, "of height, width, got 'depth'"),
        ("model.pt2", {"dynamic": ("height",), "preprocess": True}, "leave out --dynamic"),
        ("model.pt2", {"dynamic": ("width",), "format": "torch-compiled"}, "has one size"),
        ("model.pt2", {"opset": 17}, "at least 18, got 17"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    out: str, change: dict[str, Any], words: str, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srattn.export.export.make_graph", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(SrattnError, match=words):
        export_model(tiny, tmp_path / out, Options(**{"format": "torch", "size": (64, 64), **change}))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_the_comparison_fails(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise SrattnError("the file differs")

    monkeypatch.setattr("srattn.export.export.in_child", refuse)
    with pytest.raises(SrattnError, match="the file differs"):
        export_model(tiny, tmp_path / "a" / "model.pt2", Options(format="torch", size=(48, 48)))
    assert list(tmp_path.iterdir()) == []


def test_a_crash_in_the_child_is_one_clear_error() -> None:
    with pytest.raises(SrattnError, match=r"the compiler crashed \(aborted\); nothing was written"):
        in_child("the compiler", "os", "abort")


def test_an_error_in_the_child_is_told() -> None:
    assert in_child("it", "os.path", "join", a="x") == "x"
    with pytest.raises(SrattnError, match="the reader failed: FileNotFoundError"):
        in_child("the reader", "os", "listdir", path="/no/such/folder")
    with pytest.raises(SrattnError, match="the step ended with 3"):
        in_child("the step", "os", "_exit", status=3)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="the system has no groups of processes")
@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_the_child_and_what_it_started_end_with_the_parent(number: str, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    order = f"trap '' INT; echo $$ > {mark}; mv {mark} {mark}.whole; sleep 300"
    call = f"in_child('it', 'subprocess', 'call', args=['sh', '-c', {order!r}])"
    # A shell's background jobs begin with SIGINT ignored, and so would this one's.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from srattn.export.child import in_child; {call}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not mark.with_suffix(".whole").exists():
            assert process.poll() is None
            time.sleep(0.05)
        started = int(mark.with_suffix(".whole").read_text())
        process.send_signal(getattr(signal, number))
        process.wait(60)
    end = time.monotonic() + 10
    while Path(f"/proc/{started}/cmdline").exists() and Path(f"/proc/{started}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("step", ["copyfile", "flush_to_disk"])
@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_pair_of_files_is_replaced_together_or_not_at_all(
    suffix: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, there = tmp_path / "made" / "model.xml", tmp_path / "there" / "model.xml"
    for path, text in ((made, "new"), (there, "old")):
        path.parent.mkdir()
        for each in files_of(path):
            each.write_text(text)
    owner = export.shutil if step == "copyfile" else export
    work = getattr(owner, step)

    def full(*paths: Path) -> Any:
        if Path(paths[-1]).suffix == suffix:
            raise OSError(errno.ENOSPC, "no space left")
        return work(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, full)
        with pytest.raises(OSError, match="no space left"):
            export._place(made, there, overwrite=True)
    assert [each.read_text() for each in files_of(there)] == ["old", "old"]
    assert len(list(there.parent.iterdir())) == 2
    assert export._place(made, there, overwrite=True) == 6
    assert [each.read_text() for each in files_of(there)] == ["new", "new"]
