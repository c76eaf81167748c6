"""Our own layout holds whole models of every kind, and says by what a head differs."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch

import srattn
from srattn.convert import convert_state_dict
from srattn.convert.files import convert_file
from srattn.convert.head_numbers import part_configs
from srattn.convert.heads import own_head
from srattn.convert.save import write_file
from srattn.convert.source import read_source
from srattn.heads import list_heads
from srattn.tasks.dense import DenseModel, build_dense, glpn, segmentation_model
from srattn.tasks.detection.model import build_detection, fcos, retinanet

SMALL: dict[str, Any] = {"embed_dims": (8, 16, 20, 32), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)}
DENSE: dict[str, dict[str, Any]] = {
    "segformer": {"hidden": 12},
    "semantic_fpn": {"width": 12, "hidden": 8},
    "upernet": {"width": 8},
    "unet": {"widths": [8, 8, 12]},
}
DETECTORS = {"fcos": fcos, "retinanet": retinanet}
KINDS = [*DENSE, "glpn", *DETECTORS]


def build(kind: str, classes: int = 5, backbone: str = "pvt_v2_b0", seed: int = 0, **numbers: Any) -> Any:
    """A small whole model; its batch norms count and its biases are no zeros."""
    torch.manual_seed(seed)
    if kind == "glpn":
        model: Any = glpn(backbone, hidden=8, **SMALL, **numbers)
    elif kind in DETECTORS:
        model = DETECTORS[kind](backbone, classes, **{"width": 12, "convs": 1, **SMALL, **numbers})
    else:
        model = segmentation_model(backbone, classes, kind, {**DENSE[kind], **numbers}, **SMALL)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + ("running_var" in key))
        else:
            tensor.fill_(7)
    return model.eval()


def copied(model: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_same(left: Any, right: Any) -> None:
    assert set(left) == set(right)
    for key, tensor in right.items():
        assert left[key].dtype == tensor.dtype and torch.equal(left[key], tensor), key


CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    ("semantic_fpn", {"norm": "group"}),
    ("upernet", {"norm": "group", "scales": [1, 3]}),
    ("unet", {"norm": "group"}),
    ("segformer", {"projection_norm": True}),
    ("fcos", {"norm": "batch", "first": 0, "extra_from": "pool"}),
    ("fcos", {"norm": "none", "levels": 3, "convs": 2}),
    ("retinanet", {"norm": "group", "extra_from": "output", "scales": 2, "ratios": (0.5, 1.0)}),
    ("retinanet", {"convs": 0, "levels": 6, "first": 2}),
]


def test_every_kind_of_head_is_among_the_cases() -> None:
    assert set(DENSE) == set(list_heads())


@pytest.mark.parametrize(("kind", "numbers"), CASES)
def test_every_whole_model_comes_back_bit_for_bit(kind: str, numbers: dict[str, Any], tmp_path) -> None:
    model, again = build(kind, **numbers), build(kind, seed=1, **numbers)
    model.backbone.set_norm_eps(1e-4, 1e-5, 1e-3)
    name = "whole.safetensors" if numbers else "whole.pth"
    path = srattn.save_checkpoint(model, tmp_path / name, metadata={"note": "kept"})
    report = srattn.load_checkpoint(again, path)
    assert_same(again.state_dict(), model.state_dict())
    assert len(report.loaded) == len(model.state_dict())
    assert not (report.missing or report.unexpected or report.adapted)
    assert report.norm_eps == {"block": 1e-4, "reduction": 1e-5, "patch": 1e-3} and report.layout == "srattn"
    said = read_source(path).metadata
    assert said["head"] == json.loads(json.dumps(model.config["head"])) and said["note"] == "kept"
    if kind in DETECTORS:
        rebuilt: Any = build_detection(said["model"], said["neck"], said["head"])
    else:
        rebuilt = build_dense(said["model"], said["head"])
    srattn.load_checkpoint(rebuilt, path)
    assert_same(rebuilt.state_dict(), model.state_dict())


@pytest.mark.parametrize(("kind", "numbers"), CASES)
def test_keys_alone_tell_the_kind_and_shapes_the_numbers(kind: str, numbers: dict[str, Any]) -> None:
    model, again = build(kind, **numbers), build(kind, seed=1, **numbers)
    state = {f"module.{key}": tensor for key, tensor in copied(model).items()}
    srattn.load_checkpoint(again, {"state_dict": state})
    assert_same(again.state_dict(), model.state_dict())
    assert_same(convert_state_dict(state, "srattn"), model.state_dict())
    head = own_head(model)
    assert head is not None
    told = part_configs(head.kind, head.state)
    for part, config in told.items():
        stated = model.config[part]
        assert config == {key: stated[key] for key in config}, part
    silent = {"drop_rate", "scales", "max_depth", "base", "ratios", "offset"}
    assert set(model.config["head"]) - set(told["head"]) <= silent | ({"norm"} if numbers.get("convs") == 0 else set())
    assert kind not in DETECTORS or {*told["neck"], "extra_relu"} == set(model.config["neck"])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: build(kind) for kind in KINDS}


@pytest.mark.parametrize(("theirs", "mine"), [*itertools.pairwise(KINDS), ("retinanet", "segformer")])
def test_a_head_of_another_kind_is_named(theirs: str, mine: str, models: dict[str, Any]) -> None:
    """The models stay as they are built but for the backbone, which the others' replaces."""
    state, model = copied(models[theirs]), models[mine]
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1.0)
    before = copied(model)
    named = f"have a {theirs} head, the model has a {mine} head; keep the model's own"
    with pytest.raises(srattn.SrattnError, match=named):
        srattn.load_checkpoint(model, state)
    assert_same(model.state_dict(), before)
    report = srattn.load_checkpoint(model, state, head="keep")
    assert report.adapted["head"] == "the model's own head is kept"
    beside = {key for key in state if not key.startswith("backbone.")}
    assert set(report.unexpected) == beside
    after = model.state_dict()
    assert all(torch.equal(after[key], t) for key, t in before.items() if not key.startswith("backbone."))
    assert all(torch.equal(after[key], t) for key, t in state.items() if key.startswith("backbone."))


@pytest.mark.parametrize("kind", [*DENSE, *DETECTORS])
def test_a_head_of_other_classes_is_named_and_can_be_left_out(kind: str) -> None:
    source, model = build(kind, classes=7), build(kind, seed=1)
    before = copied(model)
    with pytest.raises(srattn.SrattnError, match=r"'head.classifier.weight'.*num_classes=7.*head=\"keep\""):
        srattn.load_checkpoint(model, source.state_dict())
    assert_same(model.state_dict(), before)
    report = srattn.load_checkpoint(model, source.state_dict(), strict=False)
    left = {"head.classifier.weight", "head.classifier.bias"}
    assert left == set(report.adapted) == set(report.unexpected)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key] if key in left else source.state_dict()[key]), key


def shapeless() -> list[Any]:
    return [
        ("upernet", {"scales": [1, 2, 3, 5]}, {}, r"of a head with scales \[1, 2, 3, 5\], .* has \[1, 2, 3, 6\]"),
        ("retinanet", {"base": 3.0}, {}, "of a head with base 3.0, the model's has 4.0"),
        ("retinanet", {"scales": 1, "ratios": (1.0, 2.0)}, {"scales": 2, "ratios": (1.0,)}, "with scales 1, .* has 2"),
        ("fcos", {"extra_from": "pool"}, {"extra_from": "pool", "levels": 3}, r"'head.scales'.*\(5,\), .* \(3,\)"),
        ("retinanet", {"extra_from": "output", "width": 32}, {"width": 32}, "a neck with extra_from output, .* input"),
    ]


@pytest.mark.parametrize(("kind", "theirs", "mine", "message"), shapeless())
def test_numbers_that_no_shape_shows_are_compared_by_what_the_file_says(kind, theirs, mine, message, tmp_path) -> None:
    path = srattn.save_checkpoint(build(kind, **theirs), tmp_path / "whole.safetensors")
    model = build(kind, seed=1, **mine)
    before = copied(model)
    with pytest.raises(srattn.SrattnError, match=message):
        srattn.load_checkpoint(model, path)
    assert_same(model.state_dict(), before)
    srattn.load_checkpoint(model, path, head="keep")


@pytest.mark.parametrize("kind", ["unet", "retinanet"])
def test_a_backbone_takes_its_part(kind: str) -> None:
    whole, model = build(kind), srattn.create_model("pvt_v2_b0", num_classes=0, **SMALL)
    report = srattn.load_checkpoint(model, whole.state_dict())
    assert_same(model.state_dict(), whole.backbone.state_dict())
    assert set(report.unexpected) == {key for key in whole.state_dict() if not key.startswith("backbone.")}


@pytest.mark.parametrize("kind", ["unet", "fcos"])
def test_the_file_of_a_run_is_read_and_converted(kind: str, tmp_path) -> None:
    """It has the whole model's configuration in one entry."""
    model, again = build(kind), build(kind, seed=1)
    facts = {"model": model.config, "norm_eps": model.backbone.norm_eps, "edge": "floor", "classes": list("abcde")}
    write_file(tmp_path / "run.safetensors", model.state_dict(), False, facts)
    assert srattn.load_checkpoint(again, tmp_path / "run.safetensors").edge == "floor"
    assert_same(again.state_dict(), model.state_dict())
    done = convert_file(tmp_path / "run.safetensors", tmp_path / "own.pth", "srattn")
    said = read_source(tmp_path / "own.pth").metadata
    assert said["model"] == json.loads(json.dumps(model.config)) and said["classes"] == list("abcde")
    assert (done.family, done.model, done.tensors) == ("pvt_v2", "pvt_v2_b0", len(model.state_dict()))
    srattn.load_checkpoint(build(kind, seed=2), tmp_path / "own.pth")
    numbers: dict[str, Any] = {"convs": 2} if kind == "fcos" else {"widths": [8, 8, 8]}
    other = build(kind, seed=2, **numbers)
    with pytest.raises(srattn.SrattnError, match=f"these weights fit a {kind} head with num_classes=5, "):
        srattn.load_checkpoint(other, tmp_path / "run.safetensors")


@pytest.mark.parametrize(
    "said",
    [{"head": 3}, {"head": {"kind": 4}}, {"head": {"kind": "unet", "a": 1}, "neck": []}, {"model": {"backbone": 1}}],
)
def test_strange_words_of_a_file_do_no_harm(said: dict[str, Any], tmp_path) -> None:
    model, again = build("unet"), build("unet", seed=1)
    write_file(tmp_path / "whole.safetensors", model.state_dict(), False, said)
    srattn.load_checkpoint(again, tmp_path / "whole.safetensors")
    assert_same(again.state_dict(), model.state_dict())


def test_a_file_that_names_another_kind_is_believed(tmp_path) -> None:
    model = build("unet")
    write_file(tmp_path / "whole.safetensors", model.state_dict(), False, {"head": {"kind": "fcos"}})
    with pytest.raises(srattn.SrattnError, match="have a fcos head, the model has a unet head"):
        srattn.load_checkpoint(model, tmp_path / "whole.safetensors")


def test_a_head_of_another_package_has_our_layout_too(tmp_path) -> None:
    class Mean(torch.nn.Module):
        kind, config = "mean", {"kind": "mean"}

        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.Parameter(torch.rand(4))

    model, again = (DenseModel(build("unet", seed=seed).backbone, Mean()) for seed in (0, 1))
    srattn.load_checkpoint(again, srattn.save_checkpoint(model, tmp_path / "whole.pth"))
    assert_same(again.state_dict(), model.state_dict())
    srattn.load_checkpoint(again, copied(model))
    with pytest.raises(srattn.SrattnError, match="have a mean head, the model has a unet head"):
        srattn.load_checkpoint(build("unet"), tmp_path / "whole.pth")


def test_layouts_without_such_a_head_name_those_they_have(tmp_path) -> None:
    for kind, backbone, layout, message in (
        ("unet", "pvt_v2_b0", "official", "no unet head beside pvt_v2; it has: semantic_fpn, upernet, retinanet"),
        ("fcos", "pvt_v2_b0", "mmdet", "no fcos head beside pvt_v2; it has: semantic_fpn, upernet, retinanet"),
        ("unet", "mit_b0", "transformers", "no unet head beside mit; it has: segformer, glpn"),
        ("retinanet", "mit_b0", "mmseg", "no retinanet head beside mit; it has: segformer, semantic_fpn, upernet"),
    ):
        with pytest.raises(srattn.SrattnError, match=message):
            srattn.save_checkpoint(build(kind, backbone=backbone), tmp_path / "x.pth", layout=layout)
    assert list(tmp_path.iterdir()) == []
