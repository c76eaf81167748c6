"""Padded images through whole models: each comes out as it does by itself, with zeros beside it, forward and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import srattn
from srattn import SrattnError
from srattn.models import build_model
from tests.models.small import SMALL
from tests.truth import spread_out

SIZES = {"pad": [(64, 96), (45, 71), (33, 100)], "floor": [(64, 96), (32, 64), (96, 32)]}
KINDS = {
    "pvt_tiny": {"img_size": 96},
    "pvt_tiny without a class token": {"img_size": 96, "class_token": False},
    "pvt_v2_b0": {},
    "mit_b0": {},
}


def model_of(kind: str, edge: str = "pad", **options: Any) -> Any:
    model = build_model(kind.split()[0], **SMALL, edge=edge, **{**KINDS[kind], **options})
    return spread_out(model).eval()


def batch(edge: str = "pad", dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """Images (1, 3, h, w), the canvas that holds them with NaN beside them, and its mask."""
    sizes = SIZES[edge]
    height, width = max(h for h, _ in sizes) + 11, max(w for _, w in sizes) + 3
    images = [torch.randn(1, 3, *size, dtype=dtype) for size in sizes]
    canvas = torch.full((len(sizes), 3, height, width), torch.nan, dtype=dtype)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for i, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        canvas[i, :, :h, :w], mask[i, :h, :w] = image[0], True
    return images, canvas, mask


def near(found: Tensor, alone: Tensor) -> None:
    assert (found - alone).abs().max() <= 1e-11 * alone.abs().max()


@pytest.mark.parametrize("edge", ["pad", "floor"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_image_as_by_itself(kind: str, edge: str) -> None:
    model = model_of(kind, edge).double()
    images, canvas, mask = batch(edge)
    with torch.no_grad():
        logits, (last, maps) = model(canvas, mask), model.forward_intermediates(canvas, mask=mask, norm=True)
        valid = model.reduce_mask(mask)
        assert torch.equal(last, model.forward_features(canvas, mask))
        for i, image in enumerate(images):
            near(logits[i], model(image)[0])
            assert (model(canvas[i : i + 1].nan_to_num())[0] - logits[i]).abs().max() > 1e-3, "without its mask"
            own_last, own = model.forward_intermediates(image, norm=True)
            for whole, alone, inside in zip(maps, own, valid, strict=True):
                h, w = alone.shape[2:]
                near(whole[i, :, :h, :w], alone[0])
                assert inside[i, :h, :w].all() and inside[i].sum() == h * w
                assert not whole[i].movedim(0, -1)[~inside[i]].any()
            if last.ndim == 3:  # a class token, then the tokens of the map
                near(last[i, 0], own_last[0, 0])
                assert not last[i, 1:][~valid[-1][i].flatten()].any()


@pytest.mark.parametrize("kind", ["pvt_tiny", "pvt_v2_b0"])
def test_gradients_are_the_sums_of_theirs(kind: str) -> None:
    model = model_of(kind).double()
    images, canvas, mask = batch()
    leaf = canvas.requires_grad_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    apart = torch.autograd.grad(torch.cat([model(image) for image in images]).square().sum(), parameters)
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        pixels, *together = torch.autograd.grad(model(leaf, mask).square().sum(), [leaf, *parameters])
        assert not pixels.movedim(1, -1)[~mask].any() and pixels.isfinite().all()
        for ours, theirs in zip(together, apart, strict=True):
            assert (ours - theirs).abs().max() <= 1e-10 * (1 + theirs.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_all_pixels_changes_nothing(kind: str) -> None:
    model, x = model_of(kind).double(), torch.randn(2, 3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        near(model(x, torch.ones(2, 50, 70, dtype=torch.bool)), model(x))


def test_a_pyramid_has_the_masks_of_its_maps() -> None:
    model = build_model("pvt_tiny", **SMALL, img_size=96, features_only=True, out_indices=(1, 2)).double().eval()
    spread_out(model)
    images, canvas, mask = batch()
    with torch.no_grad():
        maps = model(canvas, mask)
        assert [m.shape[1:] for m in model.reduce_mask(mask)] == [m.shape[2:] for m in maps]
        for i, image in enumerate(images):
            for whole, alone in zip(maps, model(image), strict=True):
                near(whole[i, :, : alone.shape[2], : alone.shape[3]], alone[0])


@pytest.mark.parametrize("kind", ["pvt_tiny", "pvt_v2_b0"])
def test_in_single_precision_beside_kernels_and_compiled(kind: str) -> None:
    """At most twice as far from float64 as torch's operators on each image."""
    model = model_of(kind)
    images, canvas, mask = batch(dtype=torch.float32)
    torch.compiler.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found, compiled = model(canvas, mask), run(canvas, mask)
        with srattn.without_kernels():
            apart = torch.cat([model(image) for image in images])
        truth = model.double()(canvas.double(), mask)
    for each in (found, compiled):
        assert (each - truth).abs().max() <= 2 * (apart - truth).abs().max() + 1e-6 * truth.abs().max()


def test_an_exported_model_takes_batches_of_any_size() -> None:
    model = model_of("pvt_tiny").double()
    _, canvas, mask = batch()
    canvas = canvas.nan_to_num()
    any_batch = {0: torch.export.Dim("batch", min=1, max=16)}
    with torch.no_grad():
        program = torch.export.export(model, (canvas, mask), dynamic_shapes=(any_batch, any_batch)).module()
        near(program(canvas[:2], mask[:2]), model(canvas[:2], mask[:2]))


def test_an_image_without_a_pixel_is_no_matter_for_others() -> None:
    for kind in KINDS:
        model = model_of(kind).double()
        _, canvas, mask = batch()
        with torch.no_grad():
            before = model(canvas, mask)
            mask[1] = False
            after = model(canvas, mask)
        near(after[0], before[0])
        assert after.isfinite().all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 64, 64), r"mask is boolean \(batch, height, width\), got torch\.float32 \(1, 64, 64\)"),
        (torch.ones(64, 64, dtype=torch.bool), r"mask is boolean .*\(64, 64\)"),
        (torch.ones(1, 16, 16, dtype=torch.bool), r"mask is \(1, 64, 64\) for these images, got \(1, 16, 16\)"),
    ],
)
def test_what_is_no_mask(mask: Tensor, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        model_of("pvt_v2_b0")(torch.randn(1, 3, 64, 64), mask)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pvt_v2_b2_li", "linear=True pools keys over the whole canvas"),
        ("twins_svt_small", "are for PVT, PVT v2 and MiT, not for Twins"),
        ("cvt_13", "not for ConvolutionalVisionTransformer"),
    ],
)
def test_models_that_take_none_say_so(name: str, message: str) -> None:
    model: nn.Module = build_model(name, device="meta")
    with pytest.raises(SrattnError, match=message):
        model(torch.empty(1, 3, 64, 64, device="meta"), torch.ones(1, 64, 64, dtype=torch.bool))
