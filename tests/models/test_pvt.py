"""PVT's own: positions by each stage's grid, and the class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from srattn.models import build_model
from tests.models.small import SMALL


def small(**options: Any) -> Any:
    return build_model("pvt_tiny", **{**SMALL, **options}).eval()


@pytest.mark.parametrize("size", [(448, 448), (896, 896), (112, 448), (224, 224)])
def test_each_stage_resizes_its_positions_to_its_own_grid(size: tuple[int, int]) -> None:
    """The published code crashes at 448x448 and 896x896 and takes the wrong raster at 112x448."""
    model = small(img_size=224)
    x = torch.randn(1, 3, *size)
    for i, stage in enumerate(model.stages):
        weight = stage.position.weight
        patches = stage.patch_embed(x)
        grid = patches.shape[1:3]
        assert grid == tuple(-(-s // (4 << i)) for s in size)
        resized = F.interpolate(weight.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False).permute(
            0, 2, 3, 1
        )
        assert torch.allclose(stage.embed(x), patches + resized, atol=1e-6)
        x = patches.permute(0, 3, 1, 2)
    if size[0] < 500:
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_the_class_token_is_attended_and_classified_but_is_in_no_map() -> None:
    model, images = small(img_size=64), torch.randn(2, 3, 64, 64)
    tokens, maps = model.forward_intermediates(images)
    assert tokens.shape == (2, 1 + 4, 32) and maps[3].shape == (2, 32, 2, 2)
    assert torch.allclose(model.norm(maps[3].flatten(2).transpose(1, 2)), tokens[:, 1:], atol=1e-6)
    assert torch.equal(model(images), model.head(tokens[:, 0]))
    normed = model.forward_intermediates(images, norm=True, intermediates_only=True)[3]
    assert torch.allclose(normed.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-6)


def test_without_a_class_token_the_mean_is_classified() -> None:
    model, images = small(img_size=64, class_token=False, sr_ratios=(8, 4, 2, 2)), torch.randn(2, 3, 64, 64)
    final = model.forward_features(images)
    assert final.shape == (2, 32, 2, 2) and model.class_token is None
    assert torch.allclose(model(images), model.head(final.mean((2, 3))))


def test_rectangular_grids_of_positions() -> None:
    model = small(img_size=(64, 96))
    assert [tuple(s.position.weight.shape[1:3]) for s in model.stages] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5)
