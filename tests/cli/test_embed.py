"""`srattn embed`, and `srattn predict --out`, from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from srattn.cli.main import main
from srattn.data.digits import digits_preprocess
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import load_run, save_weights
from srattn.models import build_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=10, in_chans=1, img_size=8, stem_stride=1, embed_dims=(8, 8, 8, 8),
        depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1),
    )  # fmt: skip
    save_weights(folder / "model.safetensors", model, list("0123456789"), digits_preprocess(8))  # type: ignore[arg-type]
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    for name, level in [("dark", 10), ("light", 240)]:
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (9, 9), level + number).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_vectors_and_maps(run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.parquet"
    code, said, err = call(capsys, "embed", pictures, "--model", run, "--out", out)
    assert (code, said, err) == (0, f"{out}: 6 rows\n", "")
    table = pq.read_table(out)
    assert table.column("label").to_pylist() == ["dark"] * 3 + ["light"] * 3
    assert table.column("features").type.list_size == 8
    code, _, _ = call(
        capsys, "embed", pictures, "--model", run, "--out", tmp_path / "m.parquet", "--maps", "1,4", "--size", 16
    )
    assert code == 0
    row = pq.read_table(tmp_path / "m.parquet").to_pylist()[0]
    assert row["map_1_shape"] == [8, 16, 16] and len(row["map_1"]) == 2 * 8 * 16 * 16
    assert row["map_4_shape"] == [8, 2, 2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of whole models, by task."""
    from srattn.tasks.models import build_task_model

    numbers: dict[str, Any] = {
        "embed_dims": (8, 8, 8, 8),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "mlp_ratios": (1, 1, 1, 1),
    }
    found = {}
    for task, backbone, size, fit in (
        ("segmentation", "pvt_v2_b0", (32, 48), "shorter"),
        ("detection", "pvt_tiny", (64, 64), "inside"),
    ):
        options: dict[str, Any] = {"hidden": 8} if task == "segmentation" else {"width": 8, "convs": 1}
        model: Any = build_task_model(task, backbone, 2, head_options=options, img_size=size, **numbers)
        found[task] = tmp_path_factory.mktemp(task) / "model.safetensors"
        save_weights(found[task], model, ["a", "b"], Preprocess(size=size, fit=fit), task=task)
    return found


@pytest.mark.parametrize(("task", "part"), [("segmentation", "the centre"), ("detection", "all")])
def test_a_model_of_masks_or_boxes_gives_its_backbones_features(
    whole: dict[str, Path], task: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    sizes = [(70, 40), (40, 70), (33, 90)]
    for number, size in enumerate(sizes):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "pictures" / f"{number}.png")
    loaded = load_run(whole[task])
    body, preprocess = loaded.model.backbone, loaded.preprocess  # type: ignore[attr-defined]
    if task == "segmentation":
        preprocess = dataclasses.replace(preprocess, fit="crop", crop_fraction=1.0)
    pixels = [preprocess.pixels(Image.open(tmp_path / "pictures" / f"{number}.png")) for number in range(3)]
    with torch.inference_mode():
        inputs = preprocess.normalise(torch.stack(pixels).float() / 255)
        final, maps = body.forward_intermediates(inputs)  # type: ignore[operator]
        vectors = body.forward_head(final, pre_logits=True)  # type: ignore[operator]

    out, height, width = tmp_path / "v.parquet", *preprocess.size
    code, said, err = call(capsys, "embed", tmp_path / "pictures", "--model", whole[task], "--out", out)
    assert (code, said) == (0, f"{out}: 3 rows\n")
    assert err == (
        f"srattn: features of the backbone of a model for {task}, from {part} of each image at {height}x{width}\n"
    )
    assert torch.equal(torch.tensor(pq.read_table(out).column("features").to_pylist()), vectors)
    out = tmp_path / "m.parquet"
    arguments = ["embed", tmp_path / "pictures", "--model", whole[task], "--out", out, "--maps", "1,4"]
    assert call(capsys, *arguments, "--dtype", "float32")[0] == 0
    for row, first, last in zip(pq.read_table(out).to_pylist(), maps[0], maps[3], strict=True):
        for name, expected in (("map_1", first), ("map_4", last)):
            assert row[f"{name}_shape"] == list(expected.shape)
            found = torch.frombuffer(bytearray(row[name]), dtype=torch.float32).view(expected.shape)
            assert torch.equal(found, expected)


def test_predictions(run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "dark" / "1.png").write_bytes(b"no")
    out = tmp_path / "p.parquet"
    code, said, err = call(capsys, "predict", pictures, "--model", run, "--out", out, "--top", 2)
    assert (code, said) == (3, f"{out}: 6 rows\n")
    assert err == "srattn: 1 image(s) could not be read, see the column error\n"
    first, bad = pq.read_table(out).to_pylist()[:2]
    assert first["name"] == str(pictures / "dark" / "0.png") and first["class"] == first["top_classes"][0]
    assert len(first["top_probabilities"]) == 2 and first["probability"] == first["top_probabilities"][0]
    assert bad["class"] is None and "1.png" in bad["error"]
    code, _, err = call(
        capsys, "predict", pictures, "--model", run, "--out", tmp_path / "q.parquet", "--on_bad_image", "error"
    )
    assert code == 2 and "1.png" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "digits", "--model", "RUN"], "out"),
        (["embed", "digits", "--model", "RUN", "--out", "x.parquet", "--maps", "one"], "numbers of stages"),
        (["embed", "digits", "--model", "RUN", "--out", "x.parquet", "--maps", "9"], "from 1 to 4, got 9"),
        (["embed", "digits", "--model", "RUN", "--out", "x.csv"], "name it x.parquet"),
        (["embed", "digits", "--model", "RUN", "--out", "x.parquet", "--batch_size", "0"], "--batch_size"),
        (["embed", "digits", "--model", "RUN", "--out", "x.parquet", "--split", "test"], "splits train and val"),
        (["predict", "-", "--model", "RUN", "--out", "x.parquet"], "leave out --out"),
        (["predict", "nowhere", "--model", "RUN", "--out", "x.parquet"], "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = call(capsys, *(str(run) if argument == "RUN" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("srattn: error: ") and err.count("\n") == 1 and message in err
    assert not Path("x.parquet.parts").exists()


def test_interrupted(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("srattn.engine.rows.job.answer_all", interrupt)
    code, _, err = call(capsys, "embed", "digits", "--model", run, "--out", tmp_path / "x.parquet")
    assert code == 130 and "the same command goes on" in err
