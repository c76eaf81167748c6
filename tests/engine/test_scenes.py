"""Masks and boxes through the engine: trained, resumed, divided, measured and predicted."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scenes import CLASSES, HEIGHT, SMALL, VAL, WIDTH, shapes

from srattn.data.mask_files import read_mask
from srattn.data.preprocess import Preprocess, to_tensor
from srattn.engine import Interrupted, TrainConfig, train
from srattn.engine.defaults import resolve
from srattn.engine.hub import save_pretrained
from srattn.engine.open_model import open_model, task_of
from srattn.engine.rows import open_rows
from srattn.engine.scene_exam import measure_scenes
from srattn.engine.scene_folder import write_folder
from srattn.engine.scene_predict import Looking, likeliest, objects_in_image, predict_boxes, predict_mask
from srattn.engine.start import prepare_model
from srattn.engine.weights import load_run, save_weights
from srattn.errors import SrattnError
from srattn.tasks.models import task_options

Launch = Callable[..., list[Any]]  # see conftest

HEADS: dict[str, dict[str, Any]] = {
    "segment": {"head_options": {"hidden": 16}, "augment": "scale=0.8-1.2,flip,jitter=0.2"},
    "detect": {"head_options": {"width": 16, "convs": 1}},
}


@pytest.fixture(scope="module")
def options(mask_folder: Path, box_folder: Path) -> Callable[[str], dict[str, Any]]:
    data = {"segment": mask_folder, "detect": box_folder}
    return lambda task: SMALL | HEADS[task] | {"task": task, "data": str(data[task])}


@pytest.fixture(scope="module", params=["segment", "detect"])
def run(request: pytest.FixtureRequest, options: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(TrainConfig(**options(request.param), out=str(folder)))
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_says_what_it_is(run: Path) -> None:
    loaded, result = load_run(run), result_of(run)
    classes = list(CLASSES) if loaded.task == "segmentation" else sorted(CLASSES[1:])
    assert result["task"] == loaded.task == task_of(str(run)) and loaded.classes == result["classes"] == classes
    assert 0 <= result[result["headline"]] <= 1
    assert loaded.palette is not None and len(loaded.palette) == len(classes)
    assert loaded.name == "pvt_v2_b0"
    again = open_model(str(run / "model.safetensors"))
    image = torch.randn(1, 3, 32, 48)
    assert torch.equal(again.model(image), loaded.model(image))


def test_measured_again_it_is_worth_the_same(run: Path) -> None:
    loaded, result = load_run(run), result_of(run)
    found = measure_scenes(loaded, str(loaded.config["data"]))
    assert len(found.data.val) == VAL and found.split == "the validation part"
    names = [name for name in found.figures if name != "loss"]
    assert names and {name: found.figures[name] for name in names} == {name: result[name] for name in names}


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_interrupted_and_resumed_it_ends_in_the_same_bits(task: str, options: Any, tmp_path: Path) -> None:
    given = options(task) | {"ema_decay": 0.9, "drop_path_rate": 0.3, "passes": 2, "epochs": 1}
    train(TrainConfig(**given, out=str(tmp_path / "whole")))

    def on_step(step: int) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train(TrainConfig(**given, out=str(tmp_path / "run")), on_step=on_step)
    train(TrainConfig(resume=str(tmp_path / "run")))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_two_processes_do_what_one_does(task: str, options: Any, launch: Launch, tmp_path: Path) -> None:
    # No batch norm of halves; one group is a layer norm.
    head = {"segment": {"head": "semantic_fpn", "head_options": {"width": 16, "hidden": 32, "norm": "group"}}}
    given = options(task) | {"augment": "flip", "drop_path_rate": 0.0, **head.get(task, {})}
    if task == "segment":
        given["head_options"] = given["head_options"] | {"drop_rate": 0.0}
    (one,) = launch(1, options=given | {"out": str(tmp_path / "one")})
    two = launch(2, options=given | {"out": str(tmp_path / "two"), "distributed": "ddp"})
    assert [process.code for process in (one, *two)] == [0] * 3, [process.text for process in (one, *two)]
    if task == "segment":  # of boxes the number of matches divides, which differs from half to half
        assert two[0].report["losses"] == pytest.approx(one.report["losses"], rel=1e-4)
        assert two[0].report["history"][-1]["val_miou"] == pytest.approx(
            one.report["history"][-1]["val_miou"], abs=0.01
        )
    assert two[0].report["history"] == two[1].report["history"]
    assert two[0].report["answers"] == VAL
    if task == "segment":  # of each image as one process has it, in the order of the data
        found = measure_scenes(load_run(tmp_path / "two"), given["data"]).details["per_image"]
        assert len(found) == VAL and two[0].report["per_image"] == pytest.approx(found)


def test_it_learns_to_segment(options: Any, tmp_path: Path) -> None:
    given = options("segment") | {"epochs": 40, "lr": 4e-3, "augment": "flip", "drop_path_rate": 0.0}
    found = train(TrainConfig(**given, out=str(tmp_path / "run")))
    assert found.result["miou"] > 0.6  # background alone is 0.25


@pytest.mark.parametrize("loss", ["dice", "0.5*ce+lovasz"])
@pytest.mark.parametrize("head", ["upernet", "unet"])
def test_heads_and_losses_by_name(head: str, loss: str, options: Any, tmp_path: Path) -> None:
    given = options("segment") | {"head": head, "loss": loss, "epochs": 1, "head_options": {}}
    beside = {"auxiliary": 0.4, "auxiliary_width": 8}
    given["head_options"] = {"width": 16, **beside} if head == "upernet" else {"widths": [8, 8, 8]}
    train(TrainConfig(**given, out=str(tmp_path / "run")))
    loaded = load_run(tmp_path / "run")
    assert loaded.model.config["head"]["kind"] == head
    assert task_options(loaded.model) == ({"auxiliary": 0.4} if head == "upernet" else {})


def test_weights_of_a_classifier_start_a_segmenter(finished: Path, mask_folder: Path, tmp_path: Path) -> None:
    given = {"task": "segment", "data": str(mask_folder), "init": str(finished), "channels": 1, "size": 16}
    given |= {"epochs": 1, "batch_size": 12, "lr": 1e-12, "min_lr": 0.0, "threads": 1, "augment": "none"}
    train(TrainConfig(**given, weight_decay=0.0, out=str(tmp_path / "run")))
    before, after = load_run(finished).model, load_run(tmp_path / "run").model
    assert after.config["backbone"]["embed_dims"] == before.config["embed_dims"]
    theirs = before.state_dict()
    own = {name: tensor for name, tensor in after.state_dict().items() if name.startswith("backbone.")}
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, theirs[name.removeprefix("backbone.")], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"task": "segmant"}, "segment"),
        ({"task": "segment", "loss": "diec"}, "dice"),
        ({"task": "segment", "head": "segfromer"}, "segformer"),
        ({"task": "segment", "head_options": {"hiden": 3}}, "hidden"),
        ({"task": "segment", "augment": "crop"}, "scale"),
        ({"task": "segment", "distill": "box"}, "no meaning for segmentation"),
        ({"task": "segment", "data": "digits"}, "takes a folder"),
        ({"task": "classification", "loss": "dice"}, "no meaning for classification"),
        ({"task": "detect", "void": [3]}, "no meaning for detection"),
    ],
)
def test_what_is_refused_before_a_folder_is_made(
    wrong: dict[str, Any], words: str, options: Any, tmp_path: Path
) -> None:
    given = options("segment") if wrong["task"] != "detect" else options("detect")
    if wrong["task"] == "classification":
        given = {"data": "digits"}
    with pytest.raises(SrattnError, match=words):
        train(TrainConfig(**given | wrong, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("chooses", [{"keep": "best"}, {"patience": 2}])
def test_test_images_choose_nothing(chooses: dict[str, Any], mask_folder: Path, options: Any, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for part, source in (("train", "train"), ("test", "val")):
            (tmp_path / "data" / folder / part).symlink_to(mask_folder / folder / source)
    given = options("segment") | {"data": str(tmp_path / "data"), "epochs": 1, "classes": ",".join(CLASSES)}
    for val in ({}, {"val": "test"}):
        with pytest.raises(SrattnError, match=r"would choose weights by the test images .* --val split"):
            train(TrainConfig(**given | val | chooses, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    train(TrainConfig(**given | chooses, val="split", out=str(tmp_path / "run")))


def test_a_head_is_taken_for_the_same_classes_alone(run: Path, options: Any) -> None:
    task = load_run(run).task
    classes = list(load_run(run).classes)
    config = resolve(TrainConfig(**options("segment" if task == "segmentation" else "detect") | {"init": str(run)}))
    theirs = load_run(run).model.state_dict()
    for names, taken in ((classes, True), ([str(n) for n in range(len(classes))], True), (classes[::-1], False)):
        model, notes = prepare_model(config, names)
        heads = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.")}
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in heads.items()) == taken
        told = "those of its head" if taken else f"a new head: class 0 is {names[0]!r} here and {classes[0]!r} in {run}"
        assert any(told in note for note in notes)


def test_what_255_was_in_the_masks_stays_with_a_model(options: Any, tmp_path: Path) -> None:
    """It has learnt masks of 0, 1 and void, and is measured where there is no object."""
    for part, count, levels in (("data/{}/train", 4, (0, 1)), ("data/{}/val", 2, (0, 1)), ("other/{}/test", 2, (0, 0))):
        for folder in ("images", "masks"):
            (tmp_path / part.format(folder)).mkdir(parents=True)
        for number, (image, mask, _) in enumerate(shapes(count, 0)):
            told = np.array(levels, np.uint8)[mask.clip(0, 1)]
            told[:8] = 255
            Image.fromarray(image).save(tmp_path / part.format("images") / f"{number}.png")
            Image.fromarray(told).save(tmp_path / part.format("masks") / f"{number}.png")
    given = options("segment") | {"data": str(tmp_path / "data"), "epochs": 1}
    train(TrainConfig(**given, out=str(tmp_path / "run")))
    for model in (tmp_path / "run", save_pretrained(tmp_path / "run", tmp_path / "saved")):
        loaded = open_model(str(model))
        assert loaded.of_255 == "void" and loaded.classes == ["background", "object"]
        found = measure_scenes(loaded, str(tmp_path / "other"))
        assert found.split == "the test part"  # the only one there
        mask = found.data.val.scene(0)[1].mask
        assert mask is not None and mask.unique().tolist() == [0, 255]
        assert len(found.data.notes) == 1 and "255 is taken for no class" in found.data.notes[0]


def test_an_auxiliary_head_begins_anew_where_the_other_model_has_none(options: Any, tmp_path: Path) -> None:
    given = options("segment") | {"head": "upernet", "head_options": {"width": 16}}
    plain: Any = prepare_model(resolve(TrainConfig(**given)), list(CLASSES))[0]
    torch.nn.init.normal_(plain.head.classifier.weight)
    file = tmp_path / "plain.safetensors"
    save_weights(file, plain, list(CLASSES), Preprocess(size=(32, 32), fit="shorter"), task="segmentation")
    given |= {"init": str(file), "head_options": {"width": 16, "auxiliary": 0.4, "auxiliary_width": 8}}
    model, notes = prepare_model(resolve(TrainConfig(**given)), list(CLASSES))
    state = model.state_dict()
    assert "and those of its head" in notes and any(name.startswith("head.auxiliary.") for name in state)
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_a_folder_of_predictions(run: Path, mask_folder: Path, tmp_path: Path) -> None:
    loaded, rows = load_run(run), open_rows([str(mask_folder / "images" / "val")])
    answered: list[str] = []

    def draw(pixels: torch.Tensor, answer: torch.Tensor, of: Any, path: Path) -> None:
        answered.append(path.name)
        if len(answered) == 3:
            raise KeyboardInterrupt
        path.write_bytes(b"")

    out, masks = tmp_path / "out", loaded.task == "segmentation"
    looking, other = (Looking(), Looking(flip=True)) if masks else (Looking(threshold=0.0), Looking(threshold=0.5))
    with pytest.raises(KeyboardInterrupt):
        write_folder(out, loaded, rows, looking, draw, pytest.fail)
    assert write_folder(out, loaded, rows, looking, draw, pytest.fail) == VAL
    assert sorted(answered) == ["00.png", "01.png", "02.png", "02.png", "03.png"]  # the third was begun twice
    records = json.loads((out / "predictions.json").read_text())["images"]
    assert [record["width"] for record in records] == [WIDTH] * VAL
    if masks:
        mask = read_mask(out / records[0]["mask"], classes=len(CLASSES))
        assert mask.shape == (HEIGHT, WIDTH)
        shares = [float((mask == number).float().mean()) for number in range(len(CLASSES))]
        assert records[0]["shares"] == pytest.approx(
            {name: share for name, share in zip(CLASSES, shares, strict=True) if share}, abs=1e-5
        )
    else:
        boxes = [box for record in records for box in record["boxes"]]
        assert boxes and len(json.loads((out / "coco.json").read_text())) == len(boxes)
        assert all(0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT for x1, y1, x2, y2 in (box["box"] for box in boxes))
    with pytest.raises(SrattnError, match="another job"):
        write_folder(out, loaded, rows, other, draw, pytest.fail)


def test_enlarged_by_strips_it_is_the_interpolation() -> None:
    scores = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(0))
    for size in ((300, 41), (7, 9), (5, 3), (1, 1)):
        whole = torch.nn.functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        best, second = whole.topk(2, 0).values
        clear = best - second > 1e-5  # elsewhere rounding decides
        assert torch.equal(likeliest(scores, *size).long()[clear], whole.argmax(0)[clear])


@pytest.mark.parametrize("looking", [Looking(flip=True), Looking(scales=(0.5, 1.0)), Looking(native=True)])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (HEIGHT, WIDTH)])
def test_masks_of_any_size(options: Any, tmp_path_factory: Any, looking: Looking, size: tuple[int, int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-size"
    if not folder.exists():
        train(TrainConfig(**options("segment") | {"epochs": 1}, out=str(folder)))
    image = Image.new("RGB", (size[1], size[0]), (200, 50, 40))
    found = predict_mask(load_run(folder), image, looking)
    assert found.shape == size and found.dtype == torch.uint8 and int(found.max()) < len(CLASSES)


def test_boxes_come_back_to_the_image(run: Path) -> None:
    loaded = load_run(run)
    if loaded.task != "detection":
        pytest.skip("of boxes")
    size = (HEIGHT, 3 * WIDTH)
    top, left = loaded.preprocess.corner(*size)
    rows, columns = loaded.preprocess.sides(*size)
    inside = torch.tensor([[left, top, left + columns, top + rows, 0.9, 1.0]], dtype=torch.float32)
    whole, _ = objects_in_image(loaded, inside, inside, size, 0.0)
    assert whole[0, :4].tolist() == pytest.approx([0, 0, size[1], size[0]])
    image = Image.fromarray(next(shapes(1, 5))[0])
    assert to_tensor(image).shape == (3, HEIGHT, WIDTH)
    found = predict_boxes(loaded, image, Looking(threshold=0.0))
    assert (found[:, 4].diff() <= 0).all() and (found[:, :4] >= 0).all()
