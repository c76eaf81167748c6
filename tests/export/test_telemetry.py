"""The makers of the runtimes hear nothing of their use, and no file of theirs appears in the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

USE = """
    import sys

    asked = []
    names = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")
    sys.addaudithook(lambda event, values: asked.append((event, values)) if event in names else None)

    import torch
    import srattn
    from srattn.export import Options, export_model, open_export

    small = {"embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "depths": (1, 1), "sr_ratios": (2, 1)}
    model = srattn.create_model("pvt_v2_b0", num_classes=5, **small).eval()
    images = [torch.rand(1, 3, 32, 32) for _ in range(8)]
    options = Options(WHAT, (32, 32), precision=PRECISION)
    out = export_model(model, "model." + SUFFIX, options, calibrate=images).path
    open_export(out).model(images[0])
    assert not asked, asked
"""


@pytest.mark.parametrize(
    ("name", "suffix", "precision", "packages"),
    [
        ("onnx", "onnx", "float32", ["onnx", "onnxscript", "onnxruntime"]),
        ("openvino", "xml", "int8", ["openvino", "nncf"]),
    ],
)
def test_nothing_is_asked_or_stored(
    name: str, suffix: str, precision: str, packages: list[str], tmp_path: Path
) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        pytest.skip(f"without {', '.join(missing)}")
    code = textwrap.dedent(USE).replace("WHAT", repr(name)).replace("SUFFIX", repr(suffix))
    home = tmp_path / "home"
    home.mkdir()
    switches = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "NNCF_CI", "XDG_CACHE_HOME")
    kept = {key: value for key, value in os.environ.items() if key not in switches}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("PRECISION", repr(precision))],
        env={**kept, "HOME": str(home), "SRATTN_NATIVE": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert not [path for path in found if "intel" in path or "Microsoft" in path], found
