"""What an exported file was made of: found by its weights, and explained and served in the file's place."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from srattn.cli.main import main
from srattn.data.preprocess import Preprocess
from srattn.engine.open_model import fingerprint
from srattn.engine.weights import load_run, save_weights
from srattn.errors import SrattnError
from srattn.export import Options, export_model
from srattn.export.opened import open_export
from srattn.export.source import open_source
from srattn.models import build_model

CLASSES = ["ant", "bee", "cat"]
EXPORTED = Preprocess(size=(32, 32), crop_fraction=0.8)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with an exported file in it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=3, img_size=32, stem_stride=1, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2), mlp_ratios=(1, 1, 1, 1),
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model, CLASSES, EXPORTED)
    loaded = load_run(folder)
    options = Options("torch", (32, 32), batch=1)
    export_model(loaded.model, folder / "model.pt2", options, labels=CLASSES, preprocess=EXPORTED)
    return folder


def test_a_source_is_known_by_its_weights(run: Path, tmp_path: Path) -> None:
    beside = open_source(run / "model.pt2")
    assert beside.path == run and beside.preprocess == EXPORTED
    elsewhere = tmp_path / "model.pt2"
    elsewhere.write_bytes((run / "model.pt2").read_bytes())
    named = open_source(elsewhere, str(run))
    assert fingerprint(named.model) == fingerprint(beside.model) == fingerprint(load_run(run).model)
    with pytest.raises(SrattnError, match="give --source the run or the checkpoint"):
        open_source(elsewhere)
    with pytest.raises(SrattnError, match="made of other weights than those of box"):
        open_source(elsewhere, "box")
    with pytest.raises(SrattnError, match="takes images of 32x32 alone"):
        open_source(elsewhere, str(run), size=64)


def test_the_model_in_the_box_needs_no_name(run: Path, tmp_path: Path) -> None:
    from srattn.engine.open_model import boxed_model

    box, facts = boxed_model(), open_export(run / "model.pt2").model.facts
    with torch.no_grad():
        assert fingerprint(box.model) != facts.weights  # of the run beside it
        next(box.model.parameters()).add_(1)
    assert fingerprint(box.model) != fingerprint(boxed_model().model)
    export_model(boxed_model().model, tmp_path / "box.pt2", Options("torch", (32, 32), batch=1))
    assert open_source(tmp_path / "box.pt2").path == boxed_model().path


def test_an_exported_file_is_explained_as_its_source(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((40, 30), 80).save(tmp_path / "photo.png")
    pages = []
    for name, model in (("file", run / "model.pt2"), ("run", run)):
        assert main(["explain", str(tmp_path / "photo.png"), "--model", str(model), "--out", str(tmp_path / name)]) == 0
        assert "1 image(s)" in capsys.readouterr().out
        pages.append((tmp_path / name / "index.html").read_text("utf-8"))
    data = [re.search(r'id="data">(.*?)</script>', page, re.DOTALL) for page in pages]
    assert data[0] and data[1] and data[0][1] == data[1][1]
    assert "model.pt2; the maps are its source" in pages[0] and "model.pt2" not in pages[1]


def test_a_served_file_has_the_vectors_and_maps_of_its_source(run: Path) -> None:
    pytest.importorskip("fastapi")
    client = pytest.importorskip("fastapi.testclient")
    from srattn.explain import attention
    from srattn.serve import make_app

    picture = io.BytesIO()
    Image.effect_noise((40, 30), 80).save(picture, "png")
    answers = {}
    for name in ("file", "file alone", "run"):
        loaded = load_run(run) if name == "run" else open_export(run / "model.pt2")
        source = open_source(run / "model.pt2") if name == "file" else None
        with client.TestClient(make_app(loaded, None, attention, source)) as http:
            sent = [
                http.post(path, files={"image": ("a.png", picture.getvalue())})
                for path in ("/predict", "/embed", "/explain?x=0.4&y=0.6")
            ]
            answers[name] = [(each.status_code, each.json()) for each in sent]
            assert bool(http.get("/model").json()["stages"]) == (name != "file alone")
    assert [status for status, _ in answers["file"]] == [200, 200, 200]
    assert answers["file"][1:] == answers["run"][1:]
    assert [status for status, _ in answers["file alone"]] == [200, 404, 404]
    assert "was not given the model that it was made of" in answers["file alone"][2][1]["error"]
    assert answers["file"][0] == answers["file alone"][0]
