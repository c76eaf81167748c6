"""The depth decoder: its range, grids that do not halve, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from srattn import SrattnError
from srattn.heads import GLPNHead
from srattn.heads.glpn import SelectiveFeatureFusion, on_grid

CHANNELS = [8, 16, 20, 32]


def maps(*grids: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(2, c, *grid) for c, grid in zip(CHANNELS, grids, strict=True)]


def test_depths_lie_between_zero_and_the_largest() -> None:
    head = GLPNHead(CHANNELS, hidden=16, max_depth=80).eval()
    depths = head(maps((16, 24), (8, 12), (4, 6), (2, 3)))
    assert depths.shape == (2, 64, 96)
    assert depths.min() > 0 and depths.max() < 80
    features = maps((8, 8), (4, 4), (2, 2), (1, 1))
    near = head(features)
    head.max_depth = 160.0
    assert torch.equal(head(features), 2 * near)


def test_there_is_no_projection_where_widths_agree() -> None:
    names = set(GLPNHead(CHANNELS, hidden=20).state_dict())
    assert "stages.0.project.weight" in names and "stages.1.project.weight" not in names
    assert "stages.0.fusion.conv1.weight" not in names and "stages.1.fusion.conv1.weight" in names


def test_grids_that_do_not_halve() -> None:
    head = GLPNHead(CHANNELS, hidden=16).eval()
    assert head(maps((13, 19), (7, 10), (4, 5), (2, 3))).shape == (2, 52, 76)
    # Cut by an edge policy, the coarser maps are too small.
    assert head(maps((13, 19), (6, 9), (3, 4), (1, 2))).shape == (2, 52, 76)


def test_a_cut_keeps_tokens_in_their_place_and_repeats_the_border() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert torch.equal(on_grid(x, 2, 3), x[:, :, :2, :3])
    assert torch.equal(on_grid(x, 4, 6), F.pad(x, (0, 2, 0, 1), mode="replicate"))
    assert on_grid(x, 3, 4) is x


def test_fusion_is_a_weighted_sum_at_every_pixel() -> None:
    fusion = SelectiveFeatureFusion(4).eval()
    local, broad = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6)
    with torch.no_grad():
        fusion.conv3.weight.zero_()
        assert fusion.conv3.bias is not None
        fusion.conv3.bias.copy_(torch.tensor([50.0, -50.0]))
    assert torch.allclose(fusion(local, broad), local)


def test_every_parameter_gets_a_gradient() -> None:
    head = GLPNHead(CHANNELS, hidden=8)
    head(maps((8, 8), (4, 4), (2, 2), (1, 1))).square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("options", [{"hidden": 15}, {"max_depth": 0.0}, {"channels": []}])
def test_numbers_that_make_no_head(options: dict[str, object]) -> None:
    with pytest.raises(SrattnError, match="even width and a positive depth"):
        GLPNHead(**{"channels": CHANNELS, **options})  # type: ignore[arg-type]
