"""`srattn serve` from the command line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from srattn.cli.main import main
from srattn.cli.serve import token_of
from srattn.data.preprocess import Preprocess
from srattn.engine.predict import classify
from srattn.engine.rows.base import Source
from srattn.engine.weights import load_run, save_weights
from srattn.errors import SrattnError
from srattn.models import build_model

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=3, img_size=32, embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2),
        mlp_ratios=(2, 2), sr_ratios=(2, 1),
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model, CLASSES, Preprocess(size=(32, 32)))  # type: ignore[arg-type]
    return folder


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (50, 40), (200, 30, 90)).save(file, "PNG")
    return file.getvalue()


def post(url: str, token: str) -> dict[str, object]:
    headers = {"Content-Type": "image/png", "Authorization": f"Bearer {token}"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, png(), headers), timeout=60) as response:
        return json.load(response)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_a_run_answers_until_it_is_told_to_stop(run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    command = [sys.executable, "-m", "srattn", "serve", str(run), "--port", "0", "--max_batch", "4"]
    command += ["--token_file", str(tmp_path / "token")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith(f"srattn: {run} answers at http://127.0.0.1:"), process.stderr.read()
        url = line.split()[-1]
        answer = post(f"{url}/predict", "s3cret")
        attention = post(f"{url}/explain?stage=2&head=2", "s3cret")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(f"{url}/predict", "other")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    (expected,) = classify(load_run(run), [Source("x", png())])
    found = answer["answers"][0]["classes"]  # type: ignore[index]
    assert [each["name"] for each in found] == list(expected.classes)
    assert [each["probability"] for each in found] == pytest.approx(expected.probabilities, rel=1e-4)
    assert attention["grid"] == [4, 4] and attention["head"] == 2


def test_an_exported_file_answers(made_export: Path) -> None:
    from srattn.export.opened import open_export
    from srattn.serve import make_app

    service = make_app(open_export(made_export)).state.service
    service.start()
    assert not service.embeds and service.stages == []
    service.stop()


@pytest.fixture
def made_export(run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    assert main(["export", str(run), "--out", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["RUN", "--port", "70000"], "--port must be from 0 to 65535"),
        (["RUN", "--size", "0"], "--size must be at least 1"),
        (["RUN", "--max_batch", "0"], "max_batch must be at least 1"),
        (["RUN", "--max_mb", "0"], "--max_mb must be above 0"),
        (["RUN", "--timeout", "0"], "timeout_s must be above 0"),
        (["RUN", "--token_file", "EMPTY"], "holds no token"),
        (["RUN", "--token_file", "missing"], "No such file"),
        (["RUN", "--host", "no.such.host.invalid"], "no address to listen at"),
        (["RUN", "--prot", "80"], "did you mean '--port'"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").write_text(" \n")
    names = {"RUN": str(run), "EMPTY": str(tmp_path / "empty")}
    code = main(
        [
            "serve",
            *(names.get(argument, argument) for argument in arguments),
            *(["--port", "0"] if "70000" not in arguments else []),
        ]
    )
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("srattn: error: ") and captured.err.count("\n") == 1 and message in captured.err


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("of the file\n")
    monkeypatch.delenv("SRATTN_TOKEN", raising=False)
    assert token_of(None) is None
    monkeypatch.setenv("SRATTN_TOKEN", "of the environment")
    assert token_of(None) == "of the environment"
    assert token_of(str(file)) == "of the file"
    monkeypatch.setenv("SRATTN_TOKEN", "")
    with pytest.raises(SrattnError, match="SRATTN_TOKEN holds no token"):
        token_of(None)
