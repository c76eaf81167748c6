"""Every format: converted, run at several sizes against eager, stamped, and read back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import srattn
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.export import Options, export_model, verify
from srattn.export.export import make
from srattn.export.facts import Facts
from srattn.export.formats import MODULES, format_of, get_format
from srattn.export.formats.torch_compiled import TRUST
from srattn.export.graph import make_graph, make_program
from srattn.export.opened import open_export, read_facts
from srattn.export.options import LEAST_OPSET, OPSET, SUFFIXES
from tests.models.small import short_numbers


def available(name: str) -> Any:
    for package in importlib.import_module(MODULES[name]).NEEDS:
        pytest.importorskip(package)
    return get_format(name)


def make_one(traced: Any, name: str, folder: Path) -> tuple[Path, Facts]:
    facts = dataclasses.replace(traced.facts, options=dataclasses.replace(traced.facts.options, format=name))
    path = folder / f"model{SUFFIXES[name]}"
    return path, Facts.from_text(make(traced.program, str(path), traced.cases, facts.to_text()), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("torch", "onnx", "openvino") for kind in ("dynamic", "pictures")],
)
def test_agrees_with_eager_and_says_so(name: str, kind: str, traced: dict[str, Any], tmp_path: Path) -> None:
    available(name)
    path, facts = make_one(traced[kind], name, tmp_path)
    assert 0 <= facts.verified["error"] <= facts.verified["tolerance"]
    assert len({tuple(shape) for shape in facts.verified["inputs"]}) == 3
    assert format_of(path) == name
    assert read_facts(path) == facts


def test_a_wrong_answer_is_refused(traced: dict[str, Any], tmp_path: Path) -> None:
    right = traced["fixed"]
    case = verify.read_case(right.cases[0])
    case["truth_0"] = case["truth_0"] + 1e-3
    from safetensors.torch import save_file

    save_file(case, tmp_path / "wrong.safetensors")
    wrong = dataclasses.replace(right, cases=[str(tmp_path / "wrong.safetensors")])
    with pytest.raises(SrattnError, match="differs from eager by"):
        make_one(wrong, "torch", tmp_path)


def test_answers_of_other_shapes_or_not_finite_are_refused() -> None:
    case = {"images": torch.zeros(1, 1), "truth_0": torch.ones(2, 3).double(), "allowed": torch.tensor([1e-5])}
    assert verify.judge([torch.ones(2, 3)], case) == (0.0, verify.FLOOR)
    with pytest.raises(SrattnError, match="shapes"):
        verify.judge([torch.ones(2, 4)], case)
    with pytest.raises(SrattnError, match="differs from eager by inf"):
        verify.judge([torch.full((2, 3), float("nan"))], case)


def test_onnx_holds_no_names_of_this_machine(traced: dict[str, Any], tmp_path: Path) -> None:
    available("onnx")
    path, _ = make_one(traced["fixed"], "onnx", tmp_path)
    assert str(tmp_path.parent).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize(("kind", "sizes"), [("fixed", [-1, 3, 40, 48]), ("dynamic", [-1, 3, -1, -1])])
def test_openvino_knows_the_sizes_that_are_fixed(
    kind: str, sizes: list[int], traced: dict[str, Any], tmp_path: Path
) -> None:
    available("openvino")
    path, _ = make_one(traced[kind], "openvino", tmp_path)
    shape = importlib.import_module("openvino").Core().read_model(path).input(0).get_partial_shape()
    assert [-1 if size.is_dynamic else size.get_length() for size in shape] == sizes


@pytest.mark.parametrize("opset", [LEAST_OPSET, OPSET])
def test_the_opset_is_the_one_that_is_asked_for(opset: int, traced: dict[str, Any], tmp_path: Path) -> None:
    available("onnx")
    import onnx

    facts = traced["fixed"].facts
    options = dataclasses.replace(facts.options, format="onnx", opset=opset)
    one = dataclasses.replace(traced["fixed"], facts=dataclasses.replace(facts, options=options))
    path, _ = make_one(one, "onnx", tmp_path)
    assert {each.domain: each.version for each in onnx.load(str(path)).opset_import}[""] == opset


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_ahead_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTInductor's archive of one block: verified, known for what it is, and run on trust."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"AOTInductor compiles with {compiler}, which is not here")
    numbers = {"embed_dims": (8,), "num_heads": (1,), "mlp_ratios": (1,), "depths": (1,), "sr_ratios": (2,)}
    model = srattn.create_model("pvt_v2_b0", num_classes=3, **numbers).eval()
    options = Options("torch-compiled", (16, 24), 2)
    graph = make_graph(model, options, None)
    program, absorbed = make_program(graph, options)
    torch.export.save(program, tmp_path / "program.pt2")
    facts = Facts(options, ["a", "b", "c"], Preprocess(size=(16, 24)), graph.outputs(), model.config, {}, absorbed)
    cases = verify.write_cases(graph, options, [], tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(TRUST, "0")  # `make` sets it, in a process of its own
    path = tmp_path / "model.pt2"
    facts = Facts.from_text(make(str(tmp_path / "program.pt2"), str(path), cases, facts.to_text()), path)
    assert 0 <= facts.verified["error"] <= facts.verified["tolerance"]
    assert format_of(path) == "torch-compiled" and read_facts(path) == facts
    monkeypatch.setenv(TRUST, "1")
    images = torch.randn(3, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(open_export(path).model(images), model(images), rtol=1e-4, atol=1e-5)
    monkeypatch.setenv(TRUST, "0")
    with pytest.raises(SrattnError, match=TRUST):
        get_format("torch-compiled").open_file(path)


def test_machine_code_is_run_on_trust_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(TRUST, raising=False)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data/aotinductor/model/code.so", b"")
    assert format_of(path) == "torch-compiled"
    with pytest.raises(SrattnError, match=TRUST):
        get_format("torch-compiled").open_file(path)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml"])
def test_a_damaged_file_is_one_line(suffix: str, tmp_path: Path) -> None:
    available({".pt2": "torch", ".onnx": "onnx", ".xml": "openvino"}[suffix])
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"nothing of the kind")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(SrattnError, match=r"is no whole"):
        read_facts(path)


def test_a_stamp_may_be_anything(traced: dict[str, Any]) -> None:
    facts = traced["fixed"].facts
    assert Facts.from_text(facts.to_text(), Path("x")) == facts
    values = json.loads(facts.to_text())
    for text in [None, "", "[]", "{}", json.dumps({**values, "labels": [1]}), json.dumps({**values, "options": 3})]:
        with pytest.raises(SrattnError, match="not written by srattn export"):
            Facts.from_text(text, Path("x"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pyramids_of_any_size(tmp_path: Path) -> None:
    """P2T's grids are rounded sizes, which are symbols here."""
    available("onnx")
    model = srattn.create_model("p2t_tiny", **short_numbers("p2t_tiny")).eval()
    options = Options(format="onnx", size=(40, 48), dynamic=("height", "width"))
    made = export_model(model, tmp_path / "model.onnx", options)
    inputs = made.facts.verified["inputs"]
    assert len({tuple(shape[2:]) for shape in inputs}) > 2
