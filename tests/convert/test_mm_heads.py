"""mmsegmentation's and mmdetection's heads: their keys by hand, and what they compute, plainly, in float64.

The state dicts are made of the modules that their public code names, so that a rule which is wrong in both directions
shows; the backbone's part is in layouts that other tests hold against published files.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import srattn
from srattn.convert import convert_state_dict, detect_layout
from srattn.convert.files import convert_file
from srattn.convert.layouts.keys import fill, match
from srattn.convert.source import read_source
from srattn.heads.rows import split_rows
from srattn.tasks.dense import build_dense, segmentation_model
from srattn.tasks.detection.coding import boxes_of_steps
from srattn.tasks.detection.model import build_detection, retinanet

State = dict[str, Tensor]
DIMS = (8, 16, 20, 32)
SMALL: dict[str, Any] = {"embed_dims": DIMS, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)}
WIDTH, HIDDEN, CLASSES = 12, 8, 5
_AFFINE = ("weight", "bias")


def conv(state: State, name: str, out: int, channels: int, kernel: int, norm: str | None = None, bias: bool = True):
    """The tensors of their ConvModule, or with `norm` "" of a bare convolution."""
    at = name if norm == "" else f"{name}.conv"
    state[f"{at}.weight"] = torch.randn(out, channels, kernel, kernel).double() / math.sqrt(channels * kernel**2)
    if not norm and bias:
        state[f"{at}.bias"] = torch.randn(out).double()
    if norm:
        for part in ("weight", "bias", *(("running_mean", "running_var") if norm == "bn" else ())):
            state[f"{name}.{norm}.{part}"] = torch.rand(out).double() + 0.5 * (part != "bias")
    if norm == "bn":
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(11)


def fpn(state: State, channels: tuple[int, ...], extra: int = 0, source: int = 0) -> State:
    for n, c in enumerate(channels):
        conv(state, f"neck.lateral_convs.{n}", WIDTH, c, 1)
        conv(state, f"neck.fpn_convs.{n}", WIDTH, WIDTH, 3)
    for n in range(extra):
        conv(state, f"neck.fpn_convs.{len(channels) + n}", WIDTH, WIDTH if n else source, 3)
    return state


def semantic_fpn(norm: str = "bn") -> State:
    state = fpn({}, DIMS)
    for level in range(4):
        for k in range(max(level, 1)):
            conv(state, f"decode_head.scale_heads.{level}.{2 * k}", HIDDEN, HIDDEN if k else WIDTH, 3, norm)
    conv(state, "decode_head.conv_seg", CLASSES, HIDDEN, 1, "")
    return state


def upernet(norm: str = "bn") -> State:
    state: State = {}
    for n in range(4):
        conv(state, f"decode_head.psp_modules.{n}.1", WIDTH, DIMS[-1], 1, norm)
    conv(state, "decode_head.bottleneck", WIDTH, DIMS[-1] + 4 * WIDTH, 3, norm)
    for n in range(3):
        conv(state, f"decode_head.lateral_convs.{n}", WIDTH, DIMS[n], 1, norm)
        conv(state, f"decode_head.fpn_convs.{n}", WIDTH, WIDTH, 3, norm)
    conv(state, "decode_head.fpn_bottleneck", WIDTH, 4 * WIDTH, 3, norm)
    conv(state, "decode_head.conv_seg", CLASSES, WIDTH, 1, "")
    conv(state, "auxiliary_head.convs.0", HIDDEN, DIMS[2], 3, norm)
    conv(state, "auxiliary_head.conv_seg", CLASSES, HIDDEN, 1, "")
    return state


def retina(norm: str | None = None, extra: int = 2) -> State:
    state = fpn({}, DIMS[1:], extra, DIMS[-1])
    for n in range(2):
        conv(state, f"bbox_head.cls_convs.{n}", WIDTH, WIDTH, 3, norm)
        conv(state, f"bbox_head.reg_convs.{n}", WIDTH, WIDTH, 3, norm)
    conv(state, "bbox_head.retina_cls", 9 * CLASSES, WIDTH, 3, "")
    conv(state, "bbox_head.retina_reg", 9 * 4, WIDTH, 3, "")
    return state


MAKERS: dict[str, Any] = {"semantic_fpn": semantic_fpn, "upernet": upernet, "retinanet": retina}


def whole(kind: str, backbone: str, layout: str, norm: str | None) -> State:
    """A checkpoint of a whole model as its code would save it, and its training wrap it."""
    body = srattn.create_model(backbone, features_only=True, **SMALL).model
    mine = {key: torch.randn_like(tensor).double() / 4 for key, tensor in body.state_dict().items()}
    state = {f"backbone.{key}": tensor for key, tensor in convert_state_dict(mine, layout, "srattn").items()}
    return state | MAKERS[kind](norm)


def model_for(kind: str, backbone: str, norm: str | None, **numbers: Any) -> Any:
    ours = {"bn": "batch", "gn": "group", None: "none"}[norm]
    if kind == "retinanet":
        numbers = {"width": WIDTH, "convs": 2, "norm": ours, **numbers}
        return retinanet(backbone, CLASSES, **numbers, **SMALL).double().eval()
    sizes = {"semantic_fpn": {"width": WIDTH, "hidden": HIDDEN}, "upernet": {"width": WIDTH}}[kind]
    return segmentation_model(backbone, CLASSES, kind, {**sizes, "norm": ours, **numbers}, **SMALL).double().eval()


PUBLISHED = [
    ("semantic_fpn", "pvt_tiny", "official", "bn"),
    ("semantic_fpn", "p2t_tiny", "official", "bn"),
    ("semantic_fpn", "twins_svt_small", "mmseg", "bn"),
    ("semantic_fpn", "pvt_v2_b0", "mmdet", "gn"),
    ("upernet", "twins_pcpvt_small", "official", "bn"),
    ("upernet", "twins_svt_small", "mmseg", "bn"),
    ("upernet", "mit_b0", "mmseg", "gn"),
    ("retinanet", "pvt_tiny", "mmdet", None),
    ("retinanet", "pvt_v2_b0", "mmdet", "bn"),
    ("retinanet", "pvt_v2_b0", "official", None),
    ("retinanet", "twins_svt_small", "official", "gn"),
]


@pytest.mark.parametrize(("kind", "backbone", "layout", "norm"), PUBLISHED)
def test_every_tensor_is_read_and_written_back_by_its_name(kind, backbone, layout, norm, tmp_path) -> None:
    state, model = whole(kind, backbone, layout, norm), model_for(kind, backbone, norm)
    assert detect_layout(state)[0] == layout
    report = srattn.load_checkpoint(model, {"meta": {"epoch": 12}, "state_dict": state})
    auxiliary = {key for key in state if key.startswith("auxiliary_head.")}
    assert not report.missing and set(report.unexpected) == auxiliary and report.layout == layout
    assert len(report.loaded) == len(model.state_dict())
    assert all("serves training alone" in report.adapted[key] and key in str(report) for key in auxiliary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = read_source(srattn.save_checkpoint(model, tmp_path / "theirs.pth", layout=layout)).state
    assert set(written) == set(state) - auxiliary
    for key, tensor in written.items():
        assert tensor.dtype == state[key].dtype and torch.equal(tensor, state[key]), key


def module(state: State, name: str, x: Tensor, stride: int = 1, relu: bool = False) -> Tensor:
    """Their ConvModule, or a bare convolution."""
    at = f"{name}.conv" if f"{name}.conv.weight" in state else name
    weight = state[f"{at}.weight"]
    x = F.conv2d(x, weight, state.get(f"{at}.bias"), stride, weight.shape[-1] // 2)
    if f"{name}.bn.weight" in state:
        mean, variance, scale, shift = (state[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", *_AFFINE))
        x = F.batch_norm(x, mean, variance, scale, shift)
    if f"{name}.gn.weight" in state:
        scale, shift = (state[f"{name}.gn.{p}"] for p in _AFFINE)
        x = F.group_norm(x, math.gcd(32, x.shape[1] // 4, x.shape[1]), scale, shift)
    return x.relu() if relu else x


def plain_fpn(state: State, maps: list[Tensor], levels: int) -> list[Tensor]:
    """With extra maps from the input, and as published no ReLU between them."""
    x = [module(state, f"neck.lateral_convs.{n}", m) for n, m in enumerate(maps)]
    for n in range(len(maps) - 1, 0, -1):
        x[n - 1] = x[n - 1] + F.interpolate(x[n], size=x[n - 1].shape[2:], mode="nearest")
    out = [module(state, f"neck.fpn_convs.{n}", m) for n, m in enumerate(x)]
    for n in range(len(maps), levels):
        out.append(module(state, f"neck.fpn_convs.{n}", maps[-1] if n == len(maps) else out[-1], stride=2))
    return out


def resized(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def plain_semantic_fpn(state: State, maps: list[Tensor]) -> Tensor:
    """Twice the size after each convolution but for the finest map's, then to the finest grid, and added."""
    total: Tensor | None = None
    for level, x in enumerate(plain_fpn(state, maps, 4)):
        for k in range(max(level, 1)):
            x = module(state, f"decode_head.scale_heads.{level}.{2 * k}", x, relu=True)
            x = resized(x, (2 * x.shape[2], 2 * x.shape[3])) if level else x
        total = x if total is None else total + resized(x, total.shape[2:])
    assert total is not None
    return module(state, "decode_head.conv_seg", total)


def plain_upernet(state: State, maps: list[Tensor]) -> Tensor:
    pooled = [maps[-1]]
    for n, size in enumerate((1, 2, 3, 6)):
        x = module(state, f"decode_head.psp_modules.{n}.1", F.adaptive_avg_pool2d(maps[-1], size), relu=True)
        pooled.append(resized(x, maps[-1].shape[2:]))
    x = [module(state, f"decode_head.lateral_convs.{n}", m, relu=True) for n, m in enumerate(maps[:-1])]
    x.append(module(state, "decode_head.bottleneck", torch.cat(pooled, 1), relu=True))
    for n in (3, 2, 1):
        x[n - 1] = x[n - 1] + resized(x[n], x[n - 1].shape[2:])
    x[:3] = [module(state, f"decode_head.fpn_convs.{n}", x[n], relu=True) for n in range(3)]
    joined = torch.cat([x[0], *(resized(m, x[0].shape[2:]) for m in x[1:])], 1)
    return module(state, "decode_head.conv_seg", module(state, "decode_head.fpn_bottleneck", joined, relu=True))


def plain_retina(state: State, maps: list[Tensor], levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits, steps and anchors of all places, each (places, columns), of the first image."""
    logits, steps, anchors = [], [], []
    for n, x in enumerate(plain_fpn(state, maps, levels)):
        c, r = x, x
        for k in range(2):
            c = module(state, f"bbox_head.cls_convs.{k}", c, relu=True)
            r = module(state, f"bbox_head.reg_convs.{k}", r, relu=True)
        logits.append(module(state, "bbox_head.retina_cls", c)[0].permute(1, 2, 0).reshape(-1, CLASSES))
        steps.append(module(state, "bbox_head.retina_reg", r)[0].permute(1, 2, 0).reshape(-1, 4))
        stride = 8 * 2**n
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                for ratio in (0.5, 1.0, 2.0):  # height / width
                    for octave in range(3):
                        size = 4 * 2 ** (octave / 3) * stride
                        w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                        x0, y0 = column * stride, row * stride
                        anchors.append([x0 - w / 2, y0 - h / 2, x0 + w / 2, y0 + h / 2])
    return torch.cat(logits), torch.cat(steps), torch.tensor(anchors).double()


def plain_boxes(anchors: Tensor, steps: Tensor) -> Tensor:
    """Their coder with the published means 0 and deviations 1; a side changes 62.5 times at most."""
    x0, y0, x1, y1 = anchors.unbind(1)
    dx, dy, dw, dh = steps.unbind(1)
    limit = abs(math.log(16 / 1000))
    width, height = (x1 - x0) * dw.clamp(-limit, limit).exp(), (y1 - y0) * dh.clamp(-limit, limit).exp()
    x, y = (x0 + x1) / 2 + (x1 - x0) * dx, (y0 + y1) / 2 + (y1 - y0) * dy
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)


def loaded(kind: str, backbone: str, layout: str, norm: str | None, **numbers: Any) -> tuple[Any, State]:
    state, model = whole(kind, backbone, layout, norm), model_for(kind, backbone, norm, **numbers)
    srattn.load_checkpoint(model, state)
    return model, state


def maps_of(model: Any, height: int, width: int) -> list[Tensor]:
    return model.backbone.forward_intermediates(torch.randn(1, 3, height, width).double(), intermediates_only=True)


@pytest.mark.parametrize("norm", ["bn", "gn"])
@torch.no_grad()
def test_semantic_fpn_agrees_where_grids_halve_and_not_elsewhere(norm: str) -> None:
    model, state = loaded("semantic_fpn", "pvt_v2_b0", "official", norm)
    maps = maps_of(model, 64, 96)
    torch.testing.assert_close(model.head(maps), plain_semantic_fpn(state, maps), rtol=1e-10, atol=1e-10)
    maps = maps_of(model, 68, 100)  # 17 x 25, 9 x 13, 5 x 7, 3 x 4
    ours, theirs = model.head(maps), plain_semantic_fpn(state, maps)
    assert ours.shape == theirs.shape and not torch.allclose(ours, theirs, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("size", [(64, 96), (68, 101)])
@pytest.mark.parametrize("norm", ["bn", "gn"])
@torch.no_grad()
def test_upernet_agrees_at_any_size(size: tuple[int, int], norm: str) -> None:
    model, state = loaded("upernet", "twins_svt_small", "mmseg", norm)
    maps = maps_of(model, *size)
    torch.testing.assert_close(model.head(maps), plain_upernet(state, maps), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(64, 96), (68, 101)])
@pytest.mark.parametrize("norm", [None, "bn", "gn"])
@torch.no_grad()
def test_retinanet_agrees_at_any_size(size: tuple[int, int], norm: str | None) -> None:
    state, model = whole("retinanet", "pvt_v2_b0", "mmdet", norm), model_for("retinanet", "pvt_v2_b0", norm)
    srattn.load_checkpoint(model, state)
    maps = maps_of(model, *size)[1:]
    logits, steps, anchors = plain_retina(state, maps, 5)
    rows = split_rows(model.head(model.neck(maps), size), CLASSES)
    # Both were computed in float64; rows are float32, one rounding away.
    rounding = 2.0**-23
    torch.testing.assert_close(rows.logits[0], logits.float(), rtol=rounding, atol=1e-12)
    torch.testing.assert_close(rows.regression[0], steps.float(), rtol=rounding, atol=1e-12)
    # Ours are made of float32 sides and middles up to 160 pixels apart: three roundings of some 2e-5.
    torch.testing.assert_close(rows.reference[0], anchors.float(), rtol=0, atol=1e-4)
    steps[:, 2:] = steps[:, 2:].clamp(min=math.log(16 / 1000))
    boxes = boxes_of_steps(anchors, steps)
    torch.testing.assert_close(boxes, plain_boxes(anchors, steps), rtol=1e-12, atol=1e-9)


@torch.no_grad()
def test_the_relu_between_extra_maps_goes_with_the_weights(tmp_path) -> None:
    model, state = loaded("retinanet", "pvt_v2_b0", "mmdet", None)
    assert not model.neck.config["extra_relu"]
    maps = maps_of(model, 64, 96)[1:]
    for ours, theirs in zip(model.neck(maps), plain_fpn(state, maps, 5), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    again = model_for("retinanet", "pvt_v2_b0", None)
    srattn.load_checkpoint(again, srattn.save_checkpoint(model, tmp_path / "own.pth"))
    assert not again.neck.extra_relu and not torch.equal(model.neck(maps)[3].relu(), model.neck(maps)[3])
    again.neck.extra_relu = True
    srattn.load_checkpoint(again, {key: value.clone() for key, value in model.state_dict().items()})
    assert again.neck.extra_relu  # a state dict of ours says nothing of it
    with pytest.warns(UserWarning, match="no ReLU between the extra maps"):
        srattn.save_checkpoint(again, tmp_path / "theirs.pth", layout="mmdet")


@pytest.mark.parametrize(("backbone", "layout", "norm"), [row[1:] for row in PUBLISHED if row[0] == "upernet"])
def test_an_auxiliary_head_is_read_and_written_by_a_model_that_has_one(backbone, layout, norm, tmp_path) -> None:
    state = whole("upernet", backbone, layout, norm)
    model = model_for("upernet", backbone, norm, auxiliary=0.4, auxiliary_width=HIDDEN)
    report = srattn.load_checkpoint(model, {"state_dict": state})
    assert not report.missing and not report.unexpected and len(report.loaded) == len(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = read_source(srattn.save_checkpoint(model, tmp_path / "theirs.pth", layout=layout)).state
    assert set(written) == set(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in written.items())
    # Files of ours with it fit models without it, and the other way round.
    own = srattn.save_checkpoint(model, tmp_path / "own.safetensors")
    plain = model_for("upernet", backbone, norm)
    dropped = srattn.load_checkpoint(plain, own).adapted
    assert dropped and all(key.startswith("head.auxiliary.") for key in dropped)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in plain.state_dict().items())
    missing = srattn.load_checkpoint(model, srattn.save_checkpoint(plain, tmp_path / "plain.safetensors")).missing
    assert missing and all(key.startswith("head.auxiliary.") for key in missing)
    convert_file(own, tmp_path / "again.pth", layout)
    assert set(read_source(tmp_path / "again.pth").state) == set(state)


@pytest.mark.parametrize(("kind", "backbone"), [("upernet", "twins_svt_small"), ("retinanet", "pvt_v2_b0")])
def test_a_file_of_theirs_becomes_one_of_ours_that_says_what_it_is(kind: str, backbone: str, tmp_path) -> None:
    norm = None if kind == "retinanet" else "bn"
    state = whole(kind, backbone, "official", norm)
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    done = convert_file(tmp_path / "theirs.pth", tmp_path / "own.safetensors", "srattn")
    told = "\n".join(done.notes)
    assert "assumed: " + ("scales" if kind == "upernet" else "anchors") in told
    assert kind == "retinanet" or "auxiliary_head dropped: an auxiliary head serves" in told
    assert "not converted" not in told
    said = read_source(tmp_path / "own.safetensors").metadata
    model: Any = (
        build_detection(said["model"], said["neck"], said["head"])
        if kind == "retinanet"
        else build_dense(said["model"], said["head"])
    )
    model = model.double()
    report = srattn.load_checkpoint(model, tmp_path / "own.safetensors")
    assert not (report.missing or report.unexpected)
    back = convert_state_dict(model.state_dict(), "official")
    assert set(back) == {key for key in state if not key.startswith("auxiliary_head.")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in back.items())


def test_a_backbone_takes_its_part_and_other_heads_of_theirs_are_left() -> None:
    state = whole("retinanet", "pvt_v2_b0", "mmdet", None)
    model = srattn.create_model("pvt_v2_b0", num_classes=0, **SMALL)
    report = srattn.load_checkpoint(model, state)
    assert set(report.unexpected) == {key for key in state if not key.startswith("backbone.")}
    strange = {key.replace("bbox_head.retina_", "bbox_head.atss_"): value for key, value in state.items()}
    with pytest.raises(srattn.SrattnError, match="have no retinanet head"):
        srattn.load_checkpoint(model_for("retinanet", "pvt_v2_b0", None), strange)
    srattn.load_checkpoint(model_for("retinanet", "pvt_v2_b0", None), strange, head="keep")


def test_heads_of_other_kinds_and_numbers_are_named() -> None:
    state = whole("upernet", "twins_svt_small", "mmseg", "bn")
    with pytest.raises(srattn.SrattnError, match="have a upernet head, the model has a semantic_fpn head"):
        srattn.load_checkpoint(model_for("semantic_fpn", "twins_svt_small", "bn"), state)
    for norm, numbers, message in (
        ("bn", {"width": 16}, r"their 'decode_head.*; these weights fit a upernet head with num_classes=5, width=12"),
        ("gn", {}, "no place for 'head.context.projections.0.norm.running_mean'.*norm=batch"),
        ("bn", {"scales": (1, 2, 3)}, "'head.context.fuse.conv.weight' .their 'decode_head.bottleneck.conv.weight'"),
    ):
        with pytest.raises(srattn.SrattnError, match=message):
            srattn.load_checkpoint(model_for("upernet", "twins_svt_small", norm, **numbers), state)
    state = whole("retinanet", "pvt_v2_b0", "official", None)
    model = retinanet("pvt_v2_b0", 3, width=WIDTH, convs=2, **SMALL)
    with pytest.raises(srattn.SrattnError, match=r"retina_cls.weight'. is \(45, .* num_classes=5, .*first=1"):
        srattn.load_checkpoint(model, state)


def test_places_that_count_in_twos() -> None:
    assert match("a.{n*2}.{p}", "a.6.bias") == (("n", "3"), ("p", "bias"))
    assert match("a.{n*2}.{p}", "a.5.bias") is None
    assert fill("a.{n*2}.{k+1}", (("k", "4"), ("n", "3"))) == "a.6.5"
