"""Pooled vectors and maps are those that the model gives, in the precision that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from srattn.data.preprocess import Preprocess
from srattn.engine.embed import Maps, Vectors, part_rows_for
from srattn.engine.open_model import boxed_model, model_facts, open_model
from srattn.engine.rows import Source
from srattn.engine.rows.base import Listed
from srattn.engine.rows.job import answer_all
from srattn.engine.weights import LoadedRun, save_weights
from srattn.errors import SrattnError
from srattn.models import build_model

SMALL = {"embed_dims": (8, 8, 16, 24), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "stem_stride": 1}


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    torch.manual_seed(0)
    model = build_model("pvt_v2_b0", num_classes=3, img_size=32, **SMALL).eval()
    return LoadedRun(model, ["a", "b", "c"], Preprocess(size=(32, 32)), {}, Path("here"))


@pytest.fixture(scope="module")
def rows() -> Listed:
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randint(256, (3, 40, 36), generator=generator, dtype=torch.uint8) for _ in range(5)]
    return Listed([Source(str(i), picture, "b") for i, picture in enumerate(pictures)])


def inputs(run: LoadedRun, rows: Listed) -> torch.Tensor:
    from srattn.data.preprocess import to_image

    pictures = [source.data for source in rows.read(0, 5)]
    pixels = [run.preprocess.pixels(to_image(each)) for each in pictures if isinstance(each, torch.Tensor)]
    return run.preprocess.normalise(torch.stack(pixels).float() / 255)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors(run: LoadedRun, rows: Listed, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "v.parquet"
    answer_all(out, rows, run, Vectors(run, dtype), batch_size=5)  # type: ignore[arg-type]
    table = pq.read_table(out)
    assert str(table.schema.field("features").type) in ("fixed_size_list<element: float>[24]",
                                                        "fixed_size_list<element: halffloat>[24]")  # fmt: skip
    with torch.inference_mode():
        expected = run.model.forward_head(run.model.forward_features(inputs(run, rows)), pre_logits=True)
    found = np.array(table.column("features").to_pylist(), dtype=dtype)
    assert np.array_equal(found, expected.numpy().astype(dtype))
    assert table.column("label").to_pylist() == ["b"] * 5


def test_maps(run: LoadedRun, rows: Listed, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    answer_all(out, rows, run, Maps(run, [4, 1]), batch_size=5)
    table = pq.read_table(out)
    assert table.column_names == ["name", "label", "map_1", "map_1_shape", "map_4", "map_4_shape", "error"]
    with torch.inference_mode():
        expected = run.model.forward_intermediates(inputs(run, rows), intermediates_only=True)
    for stage in (1, 4):
        for row, reference in zip(table.to_pylist(), expected[stage - 1], strict=True):
            found = np.frombuffer(row[f"map_{stage}"], np.float16).reshape(row[f"map_{stage}_shape"])
            assert np.array_equal(found, reference.numpy().astype(np.float16))


def test_stages_and_precision_that_do_not_fit(run: LoadedRun, rows: Listed, tmp_path: Path) -> None:
    for stages in ([0], [5], [1, 1], []):
        with pytest.raises(SrattnError, match="different stages from 1 to 4"):
            Maps(run, stages)
    big = LoadedRun(build_model("pvt_v2_b0", **SMALL).eval(), [], run.preprocess, {}, Path("here"))
    with torch.no_grad():
        big.model.stages[-1].norm.weight.fill_(1e6)  # type: ignore[union-attr, operator]
    with pytest.raises(SrattnError, match="float16 cannot hold; give --dtype float32"):
        answer_all(tmp_path / "v.parquet", rows, big, Vectors(big, "float16"))
    assert answer_all(tmp_path / "v.parquet", rows, big, Vectors(big)) is not None


def test_parts_stay_small() -> None:
    assert part_rows_for([torch.zeros(0, 512)], 1024) == 1024
    assert part_rows_for([torch.zeros(0, 64, 56, 56, dtype=torch.float16)], 1024) == (64 << 20) // (64 * 56 * 56 * 2)
    assert part_rows_for([torch.zeros(0, 10**9)], 1024) == 1


def test_a_checkpoint_of_another_layout(tmp_path: Path) -> None:
    from srattn.convert import save_checkpoint

    torch.manual_seed(0)
    model = build_model("pvt_v2_b0", num_classes=7).eval()
    for name in ("official.pth", "ours.safetensors"):
        layout = "official" if name.startswith("official") else "srattn"
        with pytest.warns(UserWarning) if layout == "official" else _nothing():
            save_checkpoint(model, tmp_path / name, layout=layout)
        run = open_model(str(tmp_path / name), size=64)
        assert run.classes == [str(index) for index in range(7)] and run.preprocess.size == (64, 64)
        assert run.preprocess.interpolation == "bicubic"
        state = run.model.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
        assert run.model.edge == ("floor" if layout == "official" else model.edge)


def test_what_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in [
        ("pvt_v2_b00", "did you mean 'pvt_v2_b0'"),
        ("timm/pvt_v2_b00.in1k", "did you mean 'pvt_v2_b0'"),
        ("pvt_v2_b0.in21k", r"those published are pvt_v2_b0\.in1k"),
        (str(tmp_path), "is not a run"),
    ]:
        with pytest.raises(SrattnError, match=words):
            open_model(name)
    monkeypatch.setattr("srattn.engine.open_model.files", lambda name: tmp_path)
    with pytest.raises(SrattnError, match="no model comes with this installation: give --model"):
        boxed_model()
    with pytest.raises(SrattnError, match="give --model"):
        open_model(None)


def test_the_model_in_the_box(run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "README.md").write_text("a card")
    save_weights(tmp_path / "weights" / "cifar10.safetensors", run.model, run.classes, run.preprocess)
    monkeypatch.setattr("srattn.engine.open_model.files", lambda name: tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (None, "box"):
        boxed = open_model(name)
        assert boxed.classes == ["a", "b", "c"]
        assert model_facts(boxed) == model_facts(run)
    with pytest.raises(SrattnError, match="no model comes with this installation"):
        open_model("box-small")
    (tmp_path / "box").mkdir()  # a folder of that name is meant first
    with pytest.raises(SrattnError, match="box is not a run"):
        open_model("box")


def _nothing():
    import contextlib

    return contextlib.nullcontext()
