"""Files in whole numbers and halves: what is quantised, what it costs, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.errors import SrattnError
from srattn.export import Options, export_model, verify
from srattn.export.facts import Facts
from srattn.export.formats import get_format
from srattn.export.formats.halves import in_half
from srattn.export.graph import make_graph, make_program
from srattn.export.opened import open_export
from srattn.export.quantise import steps
from srattn.export.quantise.measure import MOST, decibels, same
from srattn.export.quantise.parts import matching, part_of, worst
from srattn.models.backbone import Backbone
from srattn.tasks.detection.model import retinanet

PARTS = [f"stages.{n}.{each}" for n in (0, 1) for each in ("patch_embed", "blocks.0.attn", "blocks.0.mlp")]


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("model.stages.0.blocks.11.attn.k", "stages.0.blocks.11.attn"),
        ("model.backbone.stages.2.blocks.0.mlp", "backbone.stages.2.blocks.0.mlp"),
        ("model.stages.3.patch_embed.proj", "stages.3.patch_embed"),
        ("model.head", "head"),
        ("model.head.class_tower.0.conv", "head.class_tower"),
        ("pictures", None),
        ("", None),
    ],
)
def test_parts(scope: str, part: str | None) -> None:
    assert part_of(scope) == part


def test_patterns_name_parts() -> None:
    assert matching(PARTS, []) == []
    assert matching(PARTS, ["*.mlp", "stages.1"]) == ["stages.0.blocks.0.mlp", *PARTS[3:]]
    assert matching(PARTS, ["stages.0.blocks.0.attn"]) == [PARTS[1]]
    with pytest.raises(SrattnError, match=r"stages\.0\.blocks\.0\.att names no part.*did you mean"):
        matching(PARTS, ["stages.0.blocks.0.att"])


def test_the_fewest_parts_are_kept() -> None:
    alone = {"a": 30.0, "b": 20.0, "c": 30.0, "d": 60.0}  # powers 0.001, 0.01, 0.001, 0.000001
    assert worst(alone, 19) == []  # 0.012001 is 19.2 dB
    assert worst(alone, 19.3) == ["b"]
    assert worst(alone, 26.9) == ["b"]  # 0.002001 is 26.99 dB
    assert worst(alone, 27) == ["b", "a"]
    assert worst(alone, 100) == ["b", "a", "c", "d"]


def test_noise_is_counted_over_all_batches_and_by_kind() -> None:
    truth = [[torch.full((2, 4), 3.0)], [torch.full((1, 4), 3.0)]]
    found = [[truth[0][0].clone()], [truth[1][0] + 1]]
    assert decibels(found, truth, "logits") == pytest.approx(10 * math.log10(12 * 9 / 4))
    assert decibels(truth, truth, "logits") == MOST
    assert decibels([[truth[0][0] * math.nan], found[1]], truth, "logits") == -MOST
    boxes, scores = torch.full((1, 5, 4), 100.0), torch.full((1, 5, 2), 0.1)
    worse = decibels([[boxes, scores + 0.01]], [[boxes, scores]], "boxes")
    assert worse == pytest.approx(20, abs=1e-3), "of the scores, which the boxes' size does not hide"
    classes = torch.zeros(1, 10, 10, dtype=torch.uint8)
    other = classes.clone()
    other[0, 0] = 1
    assert decibels([[other]], [[classes]], "classes") == pytest.approx(10)
    assert same([[other]], [[classes]], "classes") == 0.9
    logits = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert same([[logits]], [[logits.flip(1)]], "logits") == 0
    assert same([[logits[:1]], [logits[1:]]], [[logits[:1]], [logits[1:].flip(1)]], "logits") == 0.5
    assert same([[boxes, scores]], [[boxes, scores]], "boxes") == 1


@dataclasses.dataclass
class Made:
    path: Path
    program: str
    cases: list[str]
    options: Options


def make_float(model: Backbone, name: Any, precision: str, folder: Path) -> Made:
    options = Options(name, (40, 48), precision=precision)
    graph = make_graph(model, options, None)
    program, _ = make_program(graph, options)
    torch.export.save(program, folder / "program.pt2")
    path = folder / {"onnx": "model.onnx", "openvino": "model.xml"}[name]
    get_format(name).write(str(folder / "program.pt2"), str(path), ["images"], ["logits"], 20)
    return Made(path, str(folder / "program.pt2"), verify.write_cases(graph, options, [], folder), options)


@pytest.fixture(scope="module")
def onnx_files(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    return {
        precision: make_float(tiny, "onnx", precision, tmp_path_factory.mktemp(precision))
        for precision in ("int8", "int8-weights")
    }


def images(count: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 3, 40, 48, generator=generator) for _ in range(count)]


def quantised(made: Made, folder: Path, **change: Any) -> tuple[Path, dict[str, Any]]:
    path = Path(shutil.copy(made.path, folder / made.path.name))
    return path, steps.quantise(path, made.program, images(), dataclasses.replace(made.options, **change))


class TestONNX:
    def kinds(self, path: Path) -> list[str]:
        import onnx

        return [node.op_type for node in onnx.load(str(path)).graph.node]

    def test_int8(self, onnx_files: dict[str, Made], tmp_path: Path) -> None:
        path, found = quantised(onnx_files["int8"], tmp_path, sensitivity=True, keep_float=("head", "*.mlp"))
        assert (found["images"], found["held"]) == (6, 2)
        assert sorted(found["parts"]) == sorted([*PARTS, "head"])
        assert found["kept"] == [part for part in found["parts"] if part == "head" or part.endswith("mlp")]
        assert found["decibels"] > 15 and min(found["parts"].values()) > 15
        # What is quantised alone adds less noise than all together, and no part none at all.
        assert max(found["parts"].values()) < MOST
        run = get_format("onnx").open_file(path)
        again = get_format("onnx").open_file(onnx_files["int8"].path)
        held = images()[::4]
        assert decibels([run(x) for x in held], [again(x) for x in held], "logits") == found["decibels"]
        import onnx

        weights = [each for each in onnx.load(str(path)).graph.initializer if each.data_type == onnx.TensorProto.INT8]
        scales = [each for each in weights if len(each.dims) > 1]
        # Two patch embeddings; keys and values of both attentions, the reduction of the first.
        assert len(scales) >= 7
        assert not any("head" in each.name or ".mlp" in each.name for each in scales)

    def test_auto_keeps_what_loses_most(
        self, onnx_files: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, plain = quantised(onnx_files["int8"], tmp_path)
        assert plain["parts"] == {} and plain["kept"] == []
        monkeypatch.setattr(steps, "WANTED", plain["decibels"] + 3)
        _, found = quantised(onnx_files["int8"], tmp_path, keep_float=("auto",))
        order = sorted(found["parts"], key=lambda part: found["parts"][part])
        assert 0 < len(found["kept"]) < len(order)
        assert set(found["kept"]) == set(order[: len(found["kept"])])
        assert found["decibels"] > plain["decibels"]

    def test_weights_alone(self, onnx_files: dict[str, Made], tmp_path: Path) -> None:
        path, found = quantised(onnx_files["int8-weights"], tmp_path)
        assert found["decibels"] > 20 and found["parts"] == {}
        assert "MatMulInteger" in self.kinds(path) and "ConvInteger" not in self.kinds(path)

    def test_too_much_noise_is_refused(
        self, onnx_files: dict[str, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps, "LEAST", 100.0)
        with pytest.raises(SrattnError, match="dB below the signal, and at least 100 are wanted"):
            quantised(onnx_files["int8"], tmp_path)
        with pytest.raises(SrattnError, match="at least 2 batches"):
            steps.quantise(tmp_path / "model.onnx", "", images(1), onnx_files["int8"].options)

    def test_halves(self, onnx_files: dict[str, Made], tiny: Backbone, tmp_path: Path) -> None:
        made = onnx_files["int8"]
        path = Path(shutil.copy(made.path, tmp_path / "model.onnx"))
        get_format("onnx").halve(str(path))  # type: ignore[attr-defined]
        import onnx

        kinds = {each.data_type for each in onnx.load(str(path)).graph.initializer if math.prod(each.dims) >= 16}
        assert kinds == {onnx.TensorProto.FLOAT16}
        graph = make_graph(tiny, dataclasses.replace(made.options, precision="float16"), None)
        run = get_format("onnx").open_file(path)
        for file in verify.write_cases(graph, graph.options, [], tmp_path):
            case = verify.read_case(file)
            error, allowed = verify.judge(run(case["images"]), case)
            assert 1e-6 < error < allowed < 1e-2


def test_places_are_not_stored_in_half() -> None:
    np = pytest.importorskip("numpy")
    weights = np.linspace(-16, 16, 33, dtype=np.float32)
    half = in_half(weights)
    assert half.dtype == np.float16 and (half == weights).all()
    for kept in (weights * 1.01, weights[:15], weights.astype(np.int64), np.full(16, np.nan, np.float32)):
        assert in_half(kept) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_anchors_in_a_file_of_halves(name: str, tmp_path: Path) -> None:
    """They lie hundreds of pixels outside of the image, where float16 has steps of half a pixel."""
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}[name])
    model = retinanet("pvt_v2_b0", 2, width=16, convs=1, depths=(1, 1, 1, 1)).eval()
    options = Options(name, (96, 64), 1, task="detect", outputs="boxes", precision="float16")
    done = export_model(model, tmp_path / f"boxes.{'onnx' if name == 'onnx' else 'xml'}", options)
    assert done.path.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestOpenVINO:
    @pytest.fixture(scope="class")
    def made(self, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Made:
        pytest.importorskip("openvino")
        return make_float(tiny, "openvino", "int8", tmp_path_factory.mktemp("openvino"))

    def copied(self, made: Made, folder: Path) -> Path:
        for suffix in (".xml", ".bin"):
            shutil.copy(made.path.with_suffix(suffix), folder)
        return folder / made.path.name

    def test_int8(self, made: Made, tmp_path: Path) -> None:
        pytest.importorskip("nncf")
        path = self.copied(made, tmp_path)
        options = dataclasses.replace(made.options, keep_float=("head",))
        found = steps.quantise(path, made.program, images(), options)
        assert found["kept"] == ["head"] and 10 < found["decibels"] < MOST
        assert path.with_suffix(".bin").stat().st_size < 0.6 * made.path.with_suffix(".bin").stat().st_size

    def test_missing_nncf_is_told_before_any_work(
        self, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        pytest.importorskip("openvino")
        monkeypatch.setitem(sys.modules, "nncf", None)
        monkeypatch.setattr("srattn.export.export.make_graph", lambda *_: pytest.fail("work has begun"))
        options = Options("openvino", (40, 48), precision="int8")
        with pytest.raises(SrattnError, match="nncf is not installed"):
            export_model(tiny, tmp_path / "model.xml", options, calibrate=images())

    def test_shapes_that_come_again_get_the_same_answers(self, made: Made) -> None:
        run = get_format("openvino").open_file(made.path)
        for size in range(1, 7):  # more shapes than get a request of their own
            x = torch.randn(size, 3, 40, 48)
            first, second, third = (run(x)[0] for _ in range(3))
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(second, third, rtol=0, atol=0)

    def test_bfloat16_is_in_the_file(self, made: Made, tmp_path: Path) -> None:
        path = self.copied(made, tmp_path)
        file: Any = get_format("openvino")
        file.compute_in_bfloat16(str(path))
        file.stamp(str(path), "{}")
        import openvino as ov

        model: Any = ov.Core().read_model(path)
        assert model.get_rt_info(["srattn_precision"]).value == "bf16"
        x = images()[0]
        assert decibels([file.open_file(path)(x)], [file.open_file(made.path)(x)], "logits") > 20


def test_bfloat16_of_torch(tiny: Backbone, tmp_path: Path) -> None:
    options = Options("torch", (40, 48), precision="bfloat16")
    exported = export_model(tiny, tmp_path / "model.pt2", options)
    assert 1e-4 < exported.facts.verified["error"] < exported.facts.verified["tolerance"] < 0.1
    x = torch.randn(2, 3, 40, 48)
    with torch.inference_mode():
        found = open_export(exported.path).model(x)
        assert found.dtype == torch.float32
        assert float((found - tiny(x)).abs().max()) < 0.05 * float(tiny(x).abs().max())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "torch", "precision": "int8"}, "--precision of torch is float32, bfloat16, got 'int8'"),
        ({"format": "onnx", "precision": "bfloat16"}, "--precision of onnx is float32, float16, int8, int8-weights"),
        ({"format": "onnx", "keep_float": ("head",)}, "are for --precision int8, got float32"),
        ({"format": "onnx", "precision": "int8"}, "needs images: --calibrate FOLDER"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str, tiny: Backbone, tmp_path: Path) -> None:
    suffix = ".onnx" if change["format"] == "onnx" else ".pt2"
    pytest.importorskip("onnxscript")
    with pytest.raises(SrattnError, match=words):
        export_model(tiny, tmp_path / f"model{suffix}", Options(**{"size": (64, 64), **change}))


def test_the_stamp_holds_it(traced: dict[str, Any]) -> None:
    facts = traced["fixed"].facts
    options = dataclasses.replace(facts.options, precision="int8", keep_float=("head",), sensitivity=True)
    facts = dataclasses.replace(facts, options=options, quantised={"decibels": 24.0, "kept": ["head"]})
    assert Facts.from_text(facts.to_text(), Path("x")) == facts
