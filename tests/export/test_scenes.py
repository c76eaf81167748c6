"""Files of models of masks and boxes: the same answers in every runtime, at sizes of their own, and the rule of NMS."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.export import Options, answers, export_model, verify
from srattn.export.export import make
from srattn.export.facts import Facts
from srattn.export.formats.suppression import suppression_model
from srattn.export.graph import Graph, make_graph, make_program
from srattn.export.opened import open_export
from srattn.export.options import SUFFIXES
from srattn.heads.rows import split_rows
from srattn.tasks.dense import DenseModel, segmentation_model
from srattn.tasks.detection import Choice
from srattn.tasks.detection.decode import decode
from srattn.tasks.detection.model import fcos, retinanet

TINY = {"embed_dims": (4, 4, 8, 8), "num_heads": (1, 1, 2, 2), "mlp_ratios": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
SHORT = {"embed_dims": (4, 8), "num_heads": (1, 2), "mlp_ratios": (1, 1), "depths": (1, 1), "sr_ratios": (2, 1)}
CLASSES = ["sky", "road", "tree"]


def masks(head: str = "segformer", classes: int = 3, **options: Any) -> nn.Module:
    return segmentation_model("pvt_v2_b0", classes, head, options or {"hidden": 8}, **SHORT).eval()


def boxes(maker: Any = fcos, **options: Any) -> nn.Module:
    """A detector that finds something: its logits lie about -1, and boxes overlap."""
    model = maker("pvt_v2_b0", 3, width=8, convs=1, **TINY, **options).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(60)
        model.head.classifier.bias.fill_(-1.0)
        model.head.regressor.bias.fill_(0.7 if maker is fcos else 0.0)
    return model


def available(name: str) -> None:
    for package in {"torch": (), "onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnx")}[name]:
        pytest.importorskip(package)


@dataclasses.dataclass
class Traced:
    program: str
    cases: list[str]
    facts: Facts


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traced]:
    """Class maps and boxes at any size, and boxes at one, traced once."""
    found = {}
    finder, size = boxes(levels=3, norm="none"), (40, 48)
    for name, task, model in (
        ("classes", "segment", masks()),
        ("boxes", "detect", finder),
        ("fixed", "detect", finder),
    ):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            folder = tmp_path_factory.mktemp(name)
            answer = "classes" if name == "classes" else "boxes"
            dynamic = () if name == "fixed" else ("height", "width")
            options = Options("torch", size, None, dynamic, task, outputs=answer)  # type: ignore[arg-type]
            graph = make_graph(model, options, None)
            program, absorbed = make_program(graph, options)
            torch.export.save(program, folder / "program.pt2")
            colours = [[0, 0, 0], [9, 9, 9], [99, 0, 0]]
            kept = Preprocess(size=size)
            facts = Facts(options, CLASSES, kept, graph.outputs(), {}, {}, absorbed, colours=colours)
            found[name] = Traced(str(folder / "program.pt2"), verify.write_cases(graph, options, [], folder), facts)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "name"),
    [("classes", "torch"), ("classes", "onnx"), ("classes", "openvino"), ("boxes", "onnx"), ("fixed", "openvino")],
)
def test_agrees_with_eager_at_sizes_of_all_kinds(
    kind: str, name: str, traced: dict[str, Traced], tmp_path: Path
) -> None:
    available(name)
    one, few = traced[kind], Choice(0.05, 0.5, 200, 30)
    changed: dict[str, Any] = {"format": name}
    outputs, choice = one.facts.outputs, {}
    if kind != "classes":  # boxes and scores are held against eager on the way
        changed["outputs"], outputs, choice = "detections", ["detections"], dataclasses.asdict(few)
    options = dataclasses.replace(one.facts.options, **changed)
    facts = dataclasses.replace(one.facts, options=options, outputs=outputs, choice=choice)
    path = tmp_path / f"model{SUFFIXES[name]}"
    found = Facts.from_text(make(one.program, str(path), one.cases, facts.to_text()), path)
    assert 0 <= found.verified["error"] <= found.verified["tolerance"]
    assert len({tuple(shape[2:]) for shape in found.verified["inputs"]}) == (1 if kind == "fixed" else 3)
    run = open_export(path)
    assert (run.task, run.classes) == ("segmentation" if kind == "classes" else "detection", CLASSES)
    assert run.palette is not None and run.palette.colours[2] == (99, 0, 0)
    height, width = options.size
    with pytest.raises(SrattnError, match="of 40x48, got 40x20" if kind == "fixed" else "from 33 pixels a side"):
        run.model(torch.zeros(1, 3, height, 20))
    if kind != "fixed":
        height, width = height + 9, width + 1
    rows = run.model(torch.randn(2, 3, height, width))
    if kind == "classes":
        assert rows.shape == (2, 3, height, width)
    else:
        left = decode(split_rows(rows, 3), few)
        assert bool((left[:, 0, 5] >= 0).all()), "nothing was found, so nothing was compared"


def test_a_wrong_class_is_refused(traced: dict[str, Traced]) -> None:
    case = verify.read_case(traced["classes"].cases[0])
    size = case["images"].shape[2:]
    right = answers.classes_of(case["truth_0"], *size)
    assert verify.judge([right], case, "classes") == (0.0, verify.FLOOR)
    for wrong in (right.clone(), right.clone()):
        wrong[0, 3, 4] = (wrong[0, 3, 4] + 1) % 3
        with pytest.raises(SrattnError, match="differs from eager by"):
            verify.judge([wrong], case, "classes")
    with pytest.raises(SrattnError, match="by inf"):
        verify.judge([right + 3], case, "classes")
    with pytest.raises(SrattnError, match="shapes"):
        verify.judge([right[:, 1:]], case, "classes")


def test_an_error_is_held_against_numbers_of_its_own_kind() -> None:
    rows = torch.cat([torch.ones(1, 5, 4), 500 * torch.ones(1, 5, 6), torch.ones(1, 5, 3)], 2)
    truth = answers.parts_of([rows.double()], "rows")
    case = {"images": torch.zeros(1, 1), "allowed": torch.tensor([1e-5] * 3)}
    case |= {f"truth_{i}": part for i, part in enumerate(truth)}
    assert verify.judge([rows], case, "rows")[0] == 0
    rows[0, 2, 11] += 1e-4  # of a logit; of the largest number it would be 2e-7
    with pytest.raises(SrattnError, match=r"differs from eager by 1\.0e-04"):
        verify.judge([rows], case, "rows")


class TestSuppression:
    choice = Choice(score=0.05, overlap=0.5, candidates=60, most=20)

    def scene(self, images: int, places: int, classes: int, best: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        corner, side = 60 * torch.rand(images, places, 2), 30 * torch.rand(images, places, 2)
        side *= torch.rand(images, places, 1) > 0.1  # some have no area
        return torch.cat([corner, corner + side], 2), best * torch.rand(images, places, classes)

    @pytest.mark.parametrize("runtime", ["onnx", "openvino"])
    def test_is_the_rule_of_decode(self, runtime: str, tmp_path: Path) -> None:
        available(runtime)
        path = tmp_path / "suppression.onnx"
        path.write_bytes(suppression_model(self.choice, 20).SerializeToString())
        run: Any
        if runtime == "onnx":
            import onnxruntime as ort

            session: Any = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            run = lambda *given: session.run(None, dict(zip(("boxes", "scores"), given, strict=True)))[0]  # noqa: E731
        else:
            import openvino as ov

            compiled: Any = ov.Core().compile_model(ov.convert_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            run = lambda *given: compiled(list(given))[0]  # noqa: E731
        # Fewer places than candidates, nothing that is good enough, one place, one class.
        for shape in ((2, 50, 3, 1.0), (1, 3, 2, 1.0), (2, 40, 3, 0.01), (1, 1, 1, 1.0), (3, 200, 1, 1.0)):
            places, scores = self.scene(*shape)  # type: ignore[arg-type]
            found = torch.from_numpy(run(places.numpy(), scores.numpy()).copy())
            wanted = decode(split_rows(answers.rows_of_boxes(places, scores, (999, 999)), shape[2]), self.choice)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # logits there and back
            verify.judge_detections(found, places, scores, self.choice)

    def test_what_breaks_the_rule_is_refused(self) -> None:
        places, scores = self.scene(1, 50, 3)
        right = decode(split_rows(answers.rows_of_boxes(places, scores, (999, 999)), 3), self.choice)
        verify.judge_detections(right, places, scores, self.choice)
        missing, moved, twice = right.clone(), right.clone(), right.clone()
        missing[0, 3, 5] = -1
        moved[0, 3, 0] += 1
        twice[0, -1] = twice[0, 0]
        for wrong, words in ((missing, "drops boxes"), (moved, "none of the model's"), (twice, "keeps boxes")):
            with pytest.raises(SrattnError, match=words):
                verify.judge_detections(wrong, places, scores, self.choice)
        with pytest.raises(SrattnError, match="shapes"):
            verify.judge_detections(right[:, 1:], places, scores, self.choice)


@pytest.mark.parametrize("maker", [fcos, retinanet])
@torch.no_grad()
def test_boxes_and_scores_are_what_decode_chooses_from(maker: Any) -> None:
    model = boxes(maker)
    rows = model(torch.randn(2, 3, 96, 128))
    places, scores = answers.boxes_of(rows, 3)
    choice = Choice(0.05, 0.6, 500, 40)
    wanted = decode(split_rows(rows, 3), choice)
    found = decode(split_rows(answers.rows_of_boxes(places, scores, (96, 128)), 3), choice)
    assert bool((wanted[:, 0, 5] >= 0).all())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    again = answers.rows_of_detections(found, 3, (96, 128))
    torch.testing.assert_close(decode(split_rows(again, 3), choice), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fit", ["inside", "squash", "crop"])
def test_boxes_come_to_lie_where_the_picture_has_them(fit: str) -> None:
    preprocess = Preprocess(size=(32, 24), fit=fit, crop_fraction=0.8)
    for height, width in ((50, 90), (90, 50), (11, 13)):
        top, left, rows, columns = 0, 0, 32, 24
        if fit == "inside":
            (top, left), (rows, columns) = preprocess.corner(height, width), preprocess.sides(height, width)
        seen = torch.tensor([[[left, top, left + columns, top + rows]]], dtype=torch.float32)
        found = answers.in_picture(seen, preprocess, height, width)
        scale = 0.8 * min(width / 24, height / 32)
        half = [12 * scale, 16 * scale] if fit == "crop" else [width / 2, height / 2]
        wanted = [width / 2 - half[0], height / 2 - half[1], width / 2 + half[0], height / 2 + half[1]]
        assert found[0, 0].tolist() == pytest.approx(wanted, abs=1e-4)
        torch.testing.assert_close(answers.of_picture(found, preprocess, height, width), seen, rtol=0, atol=1e-4)


def test_two_classes_by_one_logit() -> None:
    logits = torch.randn(2, 1, 5, 7)
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    assert torch.equal(answers.classes_of(logits, 20, 30), answers.classes_of(both, 20, 30))
    assert answers.logits_of_classes(torch.tensor([[[0, 2]]]), 3)[0, :, 0].T.tolist() == [[30, 0, 0], [0, 0, 30]]


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        (masks, {"task": "classify"}, "--task segment or features, got classify"),
        (boxes, {"task": "segment"}, "--task detect or features, got segment"),
        (masks, {"task": "segment", "outputs": "boxes"}, "logits or classes, got 'boxes'"),
        (boxes, {"task": "detect", "outputs": "detections"}, "--nms in is for onnx and openvino"),
        (boxes, {"task": "detect", "dynamic": ("height",), "size": (128, 128)}, "at least 129"),
    ],
)
def test_what_cannot_be_is_refused(model: Any, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=words):
        export_model(model(), tmp_path / "model.pt2", Options(**{"format": "torch", **change}))
    assert list(tmp_path.iterdir()) == []


def test_of_a_model_of_another_kind_there_are_features(tmp_path: Path) -> None:
    from srattn.tasks.dense import glpn

    model = glpn("pvt_v2_b0", **TINY)
    with pytest.raises(SrattnError, match="--task depth or features, got classify"):
        export_model(model, tmp_path / "model.pt2", Options(format="torch"))
    other = DenseModel(model.backbone, nn.Identity())
    with pytest.raises(SrattnError, match="got DenseModel; --task features exports the maps of its backbone"):
        export_model(other, tmp_path / "model.pt2", Options(format="torch"))
    options = Options(format="torch", task="features", size=(64, 64), batch=1)
    facts = export_model(model, tmp_path / "model.pt2", options, labels=[]).facts
    assert facts.outputs == [f"map_{n}" for n in range(1, 5)] and facts.verified["error"] < 1e-5


@torch.no_grad()
def test_features_are_those_of_the_backbone() -> None:
    model = masks()
    graph = Graph(model, Options(task="features"))
    images = torch.randn(1, 3, 64, 64)
    assert graph.outputs() == ["map_1", "map_2"]
    for a, b in zip(graph(images), model.features(images), strict=True):  # type: ignore[operator]
        assert torch.equal(a, b)


def test_repeating_by_a_symbol(tmp_path: Path) -> None:
    """onnxscript repeats along the wrong axis; detectors lay out their grids with it."""
    available("onnx")
    from srattn.export.formats import onnx_file

    class Repeat(nn.Module):
        def forward(self, x: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
            n = like.shape[0]
            return x.repeat_interleave(n), x.repeat_interleave(n, dim=1), x.repeat_interleave(n, dim=0)

    x, example = torch.arange(6.0).view(2, 3), torch.zeros(4)
    shapes = (None, {0: torch.export.Dim("n", min=2, max=9)})
    program = torch.export.export(Repeat(), (x, example), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, tmp_path / "program.pt2")
    onnx_file.write(str(tmp_path / "program.pt2"), str(tmp_path / "m.onnx"), ["x", "like"], ["a", "b", "c"], 20)
    import onnxruntime as ort

    session: Any = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for n in (4, 5):
        found = session.run(None, {"x": x.numpy(), "like": torch.zeros(n).numpy()})
        for a, b in zip(found, Repeat()(x, torch.zeros(n)), strict=True):
            assert torch.equal(torch.from_numpy(a), b)
