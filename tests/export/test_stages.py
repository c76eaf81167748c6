"""Files of detectors of two stages: the steps of the graph, how a broken one is caught, and the whole way of a user."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srattn.cli.main import main
from srattn.data.preprocess import Preprocess
from srattn.engine.scene_predict import Looking, predict_objects
from srattn.engine.weights import LoadedRun, load_run, save_weights
from srattn.errors import SrattnError
from srattn.export import Options, export_model, make_stages, verify
from srattn.export.formats import onnx_file, operators_openvino
from srattn.export.graph import Graph, make_graph
from srattn.export.opened import open_export
from srattn.export.operators import align_regions, unsuppressed
from srattn.export.stages import align, all_outputs_of, choice_of
from srattn.export.verify_stages import Judge, judge_proposals
from srattn.heads.roi import pyramid_align
from srattn.ops.nms import nms
from srattn.tasks.detection.model import faster_rcnn, mask_rcnn
from srattn.tasks.detection.stages.model import TwoStageModel

TINY = {"embed_dims": (4, 4, 8, 8), "num_heads": (1, 1, 2, 2), "mlp_ratios": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
SMALL = {"width": 8, "levels": 4, "hidden": 16, "proposals": 40, "regions": 16, "answers": 12}
SIZE = (64, 96)
CLASSES = ["disc", "square"]
Found = dict[str, Tensor]


def finder(maker: Callable[..., TwoStageModel] = mask_rcnn, classes: int = 3) -> TwoStageModel:
    """Fresh weights that find something: proposals and boxes overlap, and masks are no grey."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = {"mask_hidden": 8, "mask_convs": 1} if maker is mask_rcnn else {}
        model = maker("pvt_v2_b0", classes, **SMALL, **own, **TINY).eval()
    head: Any = model.head
    with torch.no_grad():
        for layer, factor in ((head.rpn.classifier, 30), (head.rpn.regressor, 10), (head.box.classifier, 40)):
            layer.weight.mul_(factor)
        head.box.regressor.weight.mul_(100)
        head.box.classifier.bias[-1] = -1.0
        if maker is mask_rcnn:
            head.mask.classifier.weight.mul_(300)
    return model


def available(name: str) -> None:
    for package in {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}[name]:
        pytest.importorskip(package)


def answers_of(graph: Graph, images: Tensor) -> Found:
    names = all_outputs_of(cast(TwoStageModel, graph.model), graph.pictures is not None)
    with torch.no_grad():
        return {name: value.clone() for name, value in zip(names, graph(images), strict=True)}


@pytest.fixture(scope="module")
def model() -> TwoStageModel:
    return finder()


@pytest.fixture(scope="module")
def graph(model: TwoStageModel) -> Graph:
    return make_graph(model, Options(size=SIZE, task="detect", outputs="detections"), None)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("maker", [mask_rcnn, faster_rcnn])
def test_the_graph_is_the_model(maker: Any, images: Tensor) -> None:
    model = finder(maker)
    graph = make_graph(model, Options(size=SIZE, task="detect", outputs="detections"), None)
    found = answers_of(graph, images)
    with torch.inference_mode():
        wanted = model(images)
    assert bool((wanted[:, 8, 5] >= 0).all()), "hardly anything was found, so nothing was compared"
    torch.testing.assert_close(found["detections"], wanted[..., :6], rtol=0, atol=1e-5)
    assert ("masks" in found) == model.has_masks
    assert graph.outputs() == ["detections", "masks"] if model.has_masks else ["detections"]
    if model.has_masks:
        assert float(found["masks"].std()) > 0.05
        torch.testing.assert_close(found["masks"].flatten(2), wanted[..., 8:], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_where_nothing_is_found(model: TwoStageModel, images: Tensor) -> None:
    model = copy.deepcopy(model)
    cast(Any, model.head).box.classifier.bias[-1] = 1000.0
    found = answers_of(Graph(model, Options(task="detect")), images)
    assert (found["detections"][..., 5] == -1).all() and not found["detections"][..., :5].any()
    assert found["masks"].shape == (2, 12, 28, 28) and not found["masks"].any()


def boxes_of_all_kinds() -> Tensor:
    """(40, 4): small and large, at the edges and beyond them, two of zeros."""
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([90.0, 60.0]) - 4
    boxes = torch.cat([corner, corner + 4 + 60 * torch.rand(40, 2, generator=generator)], 1)
    boxes[3:5] = 0
    boxes[5] = torch.tensor([0.0, 0.0, 96.0, 64.0])
    return boxes


class Steps(nn.Module):
    """Both operators by themselves."""

    def forward(self, x: Tensor, y: Tensor, boxes: Tensor, labels: Tensor, able: Tensor) -> tuple[Tensor, ...]:
        own = torch.where(able[0], labels[0] % 2, -1)
        image = labels[1] % 2
        kept = unsuppressed(boxes, labels, able, 0.3, 3, boxes.shape[1])
        return kept, align_regions([x, y], boxes[0], image, own, [4, 8], 5)


def given_steps() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(2, 3, 16, 24, generator=generator), torch.randn(2, 3, 8, 12, generator=generator)
    boxes = torch.stack([boxes_of_all_kinds(), boxes_of_all_kinds().flip(0)])
    labels = torch.randint(0, 3, (2, 40), generator=generator)
    able = (boxes[..., 2:] > boxes[..., :2]).all(2)
    able[1] &= torch.rand(40, generator=generator) > 0.2
    return x, y, boxes, labels, able


class TestOperators:
    def test_are_what_they_say(self) -> None:
        x, y, boxes, labels, able = given_steps()
        kept, _ = Steps()(x, y, boxes, labels, able)
        for image in range(2):
            places = able[image].nonzero().squeeze(1)
            wanted = places[nms(boxes[image, places], -places.float(), 0.3, labels[image, places])]
            assert kept[image].nonzero().squeeze(1).tolist() == sorted(wanted.tolist()) and len(wanted) < len(places)
        maps = [torch.randn(2, 3, 64 // n, 64 // n) for n in (1, 2, 4, 8)]
        strides, large = (4, 8, 16, 32), torch.stack([4 * boxes_of_all_kinds(), 2 * boxes_of_all_kinds()])
        head: Any = type("Head", (), {"strides": list(strides), "read": 4})
        found = align(head, maps, large.flatten(0, 1), torch.arange(2).repeat_interleave(40), 7)
        torch.testing.assert_close(found.unflatten(0, (2, 40)), pyramid_align(maps, large, strides, 7))

    def test_say_their_shapes(self) -> None:
        x, y, boxes, labels, able = given_steps()
        checks: Any = torch.library.opcheck
        checks(unsuppressed, (boxes, labels, able, 0.3, 3, 40), test_utils=("test_schema", "test_faketensor"))
        given = ([x, y], boxes[0], labels[0] % 2, labels[1] % 2, [4, 8], 5)
        checks(align_regions, given, test_utils=("test_schema", "test_faketensor"))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
    @pytest.mark.parametrize("name", ["onnx", "openvino"])
    def test_are_the_same_in_every_runtime(self, name: str, tmp_path: Path) -> None:
        available(name)
        given = given_steps()
        program = torch.export.export(Steps(), given, strict=False)
        run: Any
        if name == "onnx":
            torch.export.save(program, tmp_path / "program.pt2")
            names = ["x", "y", "boxes", "labels", "able"]
            file = str(tmp_path / "steps.onnx")
            onnx_file.write(str(tmp_path / "program.pt2"), file, names, ["kept", "regions"], 20)
            import onnxruntime as ort

            session: Any = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
            run = lambda values: session.run(None, dict(zip(names, values, strict=True)))  # noqa: E731
        else:
            import openvino as ov

            converted = ov.convert_model(program, extension=operators_openvino.extensions())
            compiled: Any = ov.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            run = lambda values: list(compiled(values).to_tuple())  # noqa: E731
        nothing = (*given[:4], torch.zeros_like(given[4]))
        for values in (given, nothing):
            kept, regions = (torch.from_numpy(each.copy()) for each in run([value.numpy() for value in values]))
            wanted = Steps()(*values)
            assert torch.equal(kept.bool(), wanted[0])
            torch.testing.assert_close(regions, wanted[1], rtol=0, atol=1e-5)


def _swapped(found: Found) -> None:
    """Two proposals in each other's place are the same proposals, but what is said of them is not."""
    found["scores"][0, [0, 1]] = found["scores"][0, [1, 0]]


def _other_box(found: Found) -> None:
    found["boxes"][0, 2, 1, 0] += 1.0


def _missing_proposal(found: Found) -> None:
    found["proposals"][0, 5], found["sources"][0, 5] = 0.0, -1


def _moved_proposal(found: Found) -> None:
    found["proposals"][0, 5, 0] += 1.0


def _twice_proposed(found: Found) -> None:
    found["proposals"][0, 6], found["sources"][0, 6] = found["proposals"][0, 5], found["sources"][0, 5]


def _no_anchor(found: Found) -> None:
    found["sources"][0, 5] = found["places"].shape[1]


def _missing_detection(found: Found) -> None:
    found["detections"][0, 2, 5] = -1


def _mask_of_another_class(found: Found) -> None:
    found["masks"][0, 0] = 1 - found["masks"][0, 0]


def _no_number(found: Found) -> None:
    found["objectness"][0, 0] = torch.nan


def _shorter(found: Found) -> None:
    found["proposals"] = found["proposals"][:, 1:]


def _off_by(name: str, value: float) -> Callable[[Found], None]:
    def change(found: Found) -> None:
        found[name] += value * found[name].abs().max()

    return change


class TestJudge:
    @pytest.fixture
    def judge(self, graph: Graph, images: Tensor) -> Judge:
        with torch.inference_mode():
            return Judge(*verify.references(graph, graph.options), images)

    def test_takes_what_is_right(self, judge: Judge, graph: Graph, images: Tensor) -> None:
        found = answers_of(graph, images)
        judge.judge(found)
        left = {name: found[name] for name in ("detections", "masks")}
        judge.judge_trimmed(left, [found])
        left["masks"] = left["masks"] + 1e-6  # a runtime that takes another way
        judge.judge_trimmed(left, [found])
        error, allowed = judge.worst
        assert 0 < error <= allowed

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (_off_by("places", 1e-3), "places differ from eager's by"),
            (_off_by("objectness", 1e-3), "objectness differ from eager's by"),
            (_no_number, "objectness are not finite"),
            (_shorter, "shapes"),
            (_missing_proposal, "drops boxes that its suppression should keep"),
            (_moved_proposal, "none of the model's"),
            (_twice_proposed, "keeps boxes that its suppression should drop"),
            (_no_anchor, "none of its anchors'"),
            (_swapped, "scores differ from eager's by"),
            (_other_box, "boxes differ from eager's by"),
            (_missing_detection, "drops boxes"),
            (_mask_of_another_class, "masks differ from eager's by"),
        ],
    )
    def test_refuses_a_step_that_is_wrong(
        self, change: Any, words: str, judge: Judge, graph: Graph, images: Tensor
    ) -> None:
        found = answers_of(graph, images)
        change(found)
        with pytest.raises(SrattnError, match=words):
            judge.judge(found)

    def test_refuses_a_trimmed_file_that_answers_otherwise(self, judge: Judge, graph: Graph, images: Tensor) -> None:
        found = answers_of(graph, images)
        for change in (_missing_detection, _mask_of_another_class):
            left = {name: found[name].clone() for name in ("detections", "masks")}
            change(left)
            with pytest.raises(SrattnError, match=r"drops boxes|masks differ"):
                judge.judge_trimmed(left, [found])

    def test_of_two_that_are_as_good_either_may_be_proposed(self) -> None:
        # Two anchors that overlap, with one score but for rounding, and a third.
        places = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        found = {"places": places, "objectness": torch.tensor([[1.0, 1.0 + 1e-7, 0.5]])}
        for first in (0, 1):
            sources = torch.tensor([[first, 2, -1]])
            proposals = torch.cat([places[:, [first, 2]], torch.zeros(1, 1, 4)], 1)
            judge_proposals(found | {"sources": sources, "proposals": proposals}, [3], 3)
        found["objectness"][0, 0] = 1.1
        with pytest.raises(SrattnError, match="drops boxes"):
            judge_proposals(found | {"sources": sources, "proposals": proposals}, [3], 3)

    def test_answers_in_pixels_of_the_picture(self, model: TwoStageModel) -> None:
        kept = Preprocess(size=SIZE, fit="inside")
        options = Options(size=SIZE, task="detect", outputs="detections", preprocess=True)
        graph = make_graph(model, options, kept)
        pictures = torch.randint(0, 256, (1, 50, 120, 3), dtype=torch.uint8)
        with torch.inference_mode():
            judge = Judge(*verify.references(graph, options), pictures)
        found = answers_of(graph, pictures)
        assert float(found["detections"][..., 2].max()) > SIZE[1]
        judge.judge(found)
        judge.judge_trimmed({name: found[name] for name in ("detections", "masks")}, [found])
        found["detections"][0, 0, 0] += 1
        with pytest.raises(SrattnError, match="elsewhere in the picture"):
            judge.judge(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "torch"}, "onnx and openvino: torch has no step"),
        ({"format": "torch-compiled", "batch": 1}, "onnx and openvino"),
        ({"outputs": "boxes"}, "answers with detections alone; leave out --outputs and --nms out"),
        ({"outputs": "rows"}, "answers with detections alone"),
        ({"dynamic": ("height",)}, "at one size.*--dynamic, got height"),
        ({"precision": "int8"}, "float32 or float16, got 'int8'"),
        ({"format": "openvino", "precision": "bfloat16"}, "float32 or float16, got 'bfloat16'"),
        ({"task": "segment"}, "--task detect or features"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str, model: TwoStageModel, tmp_path: Path) -> None:
    options = Options(**{"format": "onnx", "size": SIZE, "task": "detect", **change})
    if options.format in ("onnx", "openvino"):
        available(options.format)
    suffix = {"onnx": ".onnx", "openvino": ".xml"}.get(options.format, ".pt2")
    with pytest.raises(SrattnError, match=words):
        export_model(model, tmp_path / f"model{suffix}", options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_written(
    model: TwoStageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child answers with another model's masks."""
    available("onnx")
    other = copy.deepcopy(model)
    with torch.no_grad():
        cast(Any, other.head).mask.classifier.bias += 0.1
    ran: list[str] = []

    def child(who: str, module: str, function: str, **order: Any) -> None:
        ran.append(function)
        Path(order["target"]).write_bytes(b"a file")
        graph = make_graph(other, Options(size=SIZE, task="detect", outputs="detections"), None)
        for case in order["cases"]:
            found = answers_of(graph, load_file(case)["images"])
            assert list(found) == order["written"]
            for number in range(2):
                save_file(found, f"{case}.whole{number}")

    monkeypatch.setattr(make_stages, "in_child", child)
    options = Options("onnx", SIZE, task="detect")
    with pytest.raises(SrattnError, match=r"masks differ from eager's by .* at 1x3x64x96, .* nothing was written"):
        export_model(model, tmp_path / "model.onnx", options)
    assert ran == ["write_and_run"] and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "model.safetensors"
    model: Any = finder(classes=len(CLASSES))
    save_weights(path, model, CLASSES, Preprocess(size=SIZE, fit="inside"), task="detection")
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "options"), [("model.onnx", []), ("model.xml", ["--preprocess", "--batch", "1"])])
def test_the_whole_way(
    name: str,
    options: list[str],
    run: Path,
    coco_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    available("onnx" if name.endswith("onnx") else "openvino")
    file, pictures = tmp_path / name, coco_folder / "val"
    assert main(["export", str(run), "--out", str(file), "--images", str(pictures), *options]) == 0
    shown = capsys.readouterr().out
    assert "verified against eager" in shown and "outputs detections, masks" in shown
    ours, theirs = load_run(run), open_export(file)
    assert (theirs.task, theirs.classes, cast(Any, theirs.model).has_masks) == ("detection", CLASSES, True)
    facts: Any = theirs.model.facts
    assert facts.choice == dataclasses.asdict(choice_of(cast(Any, ours.model).head))
    assert 0 < facts.verified["error"] <= facts.verified["tolerance"]
    close = 1e-3 if not options else 0.5
    for path in sorted(pictures.iterdir()):
        _alike(ours, theirs, path, close)
    found = []
    for model in (run, file):
        assert main(["predict", str(pictures), "--model", str(model), "--out", str(tmp_path / f"{model.suffix}")]) == 0
        capsys.readouterr()
        if options:  # targets would not follow a graph that resizes pictures
            continue
        given = ["eval", "--model", str(model), "--data", str(coco_folder), "--num_workers", "0", "--format", "json"]
        assert main(given) == 0
        shown = capsys.readouterr()
        assert "without a loss" not in shown.err
        found.append(json.loads(shown.out))
    if found:
        for figure in ("map50", "segm_map50", "segm_map"):
            assert found[1][figure] == pytest.approx(found[0][figure], abs=1e-3)
    entries = json.loads((tmp_path / file.suffix / "coco.json").read_text())
    assert entries and all(entry["segmentation"]["counts"] for entry in entries)
    assert list((tmp_path / file.suffix).rglob("overlays/**/*.png"))


def _alike(ours: LoadedRun, theirs: LoadedRun, path: Path, close: float) -> None:
    """Boxes and masks of a picture are those of the run, in pixels of the picture."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    (boxes, masks), (found, parts) = (predict_objects(each, image, Looking(threshold=0.2)) for each in (ours, theirs))
    assert masks is not None and parts is not None and len(boxes) > 3
    assert len(boxes) == len(found) == len(parts)
    torch.testing.assert_close(found, boxes, rtol=0, atol=close)
