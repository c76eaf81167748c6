"""What can go wrong before there are kernels: a reason in words and torch's own operators, never a model's error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from srattn.ops.native import build

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no kernels for this system")

ANSWERS = "import srattn, torch; m = srattn.create_model('pvt_v2_b0', num_classes=3).eval()\n"
ANSWERS += "with torch.inference_mode(): print(m(torch.ones(1, 3, 32, 32)).isfinite().all().item())\n"
ANSWERS += "from srattn.ops import native; print(native.why_not())"


def answers(**environment: str) -> list[str]:
    """Lines of a fresh process that runs a model and says why there are no kernels."""
    paths = os.pathsep.join([str(Path(build.__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", ANSWERS], env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_compiler(tmp_path: Path) -> None:
    finite, reason = answers(PATH=str(tmp_path), SRATTN_CACHE=str(tmp_path))
    assert finite == "True" and "compiler" in reason


def test_a_compiler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_compiler", lambda: "sleep")

    def sleeps(*args: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("sleep", 1)

    monkeypatch.setattr(subprocess, "run", sleeps)
    with pytest.raises(build.Unavailable, match=r"the compiler sleep failed: .*timed out"):
        build.library_path()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRATTN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(build.Unavailable, match="there is no home folder for the cache: set SRATTN_CACHE"):
        build.cache_folder()


def test_a_damaged_library_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path))
    try:
        path = build.library_path()
    except build.Unavailable as error:
        pytest.skip(str(error))
    size = path.stat().st_size
    path.write_bytes(b"no library")
    assert answers(SRATTN_CACHE=str(tmp_path)) == ["True", "None"]
    assert path.stat().st_size == size
