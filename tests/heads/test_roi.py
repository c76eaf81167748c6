"""The parts of Mask R-CNN with weights: anchors, the map of a box, what the heads give."""

from __future__ import annotations

import math

import pytest
import torch

from srattn import SrattnError
from srattn.heads.mask_rcnn import FasterRCNNHead, MaskRCNNHead
from srattn.heads.roi import BoxHead, map_of_boxes, pyramid_align
from srattn.heads.rpn import RPNHead
from srattn.ops.roi_align import roi_align


def test_anchors_as_published() -> None:
    # arXiv:1612.03144, section 4.1: areas of 32 to 512 pixels square on P2 to P6, at three ratios, in cells' middles.
    strides = (4, 8, 16, 32, 64)
    maps = [torch.zeros(1, 4, 64 // stride, 128 // stride) for stride in strides]
    found = RPNHead(4, strides)(maps)
    assert found.counts == [3 * x.shape[2] * x.shape[3] for x in maps]
    assert found.logits.shape == (1, sum(found.counts)) and found.steps.shape == (1, sum(found.counts), 4)
    start = 0
    for level, count in enumerate(found.counts):
        anchors = found.anchors[start : start + count].double()
        sides = anchors[:, 2:] - anchors[:, :2]
        assert torch.allclose(sides.prod(1), torch.full((count,), (32.0 * 2**level) ** 2, dtype=torch.float64))
        ratios = torch.tensor([0.5, 1, 2], dtype=torch.float64).repeat(count // 3)
        assert torch.allclose(sides[:, 1] / sides[:, 0], ratios)
        middles = (anchors[:, :2] + anchors[:, 2:]) / 2
        columns = 128 // strides[level]
        for place in (0, columns - 1, count // 3 - 1):
            expected = [(place % columns + 0.5) * strides[level], (place // columns + 0.5) * strides[level]]
            assert middles[3 * place + 1].tolist() == pytest.approx(expected)
        start += count


def test_answers_of_anchors_stand_beside_them() -> None:
    model = RPNHead(4, (8, 16))
    maps = [torch.randn(2, 4, 3, 5), torch.randn(2, 4, 2, 3)]
    found = model(maps)
    x = torch.relu(model.conv(maps[0]))
    logits, steps = model.classifier(x), model.regressor(x)
    for i, j, a in ((0, 0, 0), (1, 3, 2), (2, 4, 1)):
        place = 3 * (5 * i + j) + a
        assert torch.allclose(found.logits[:, place], logits[:, a, i, j])
        assert torch.allclose(found.steps[:, place], steps[:, 4 * a : 4 * a + 4, i, j])


def test_a_box_is_read_from_the_map_of_its_size() -> None:
    # Equation 1: floor(4 + log2(sqrt(wh) / 224)), P2 to P5.
    for side, height in ((224, 224), (223, 223), (448, 448), (111, 112), (2000, 2000), (5, 5), (112, 448), (300, 90)):
        expected = min(5, max(2, math.floor(4 + math.log2(math.sqrt(side * height) / 224)))) - 2
        assert int(map_of_boxes(torch.tensor([10.0, 20, 10 + side, 20 + height]), (4, 8, 16, 32))) == expected
    assert map_of_boxes(torch.tensor([[0.0, 0, 224, 224], [0, 0, 112, 112]]), (8, 16, 32)).tolist() == [1, 0]


def test_boxes_of_several_maps_are_aligned_each_on_its_own() -> None:
    maps = [torch.randn(2, 3, 64 // n, 64 // n, requires_grad=True) for n in (1, 2, 4, 8)]
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(2, 9, 2, generator=generator) * 100
    boxes = torch.cat([low, low + 20 + torch.rand(2, 9, 2, generator=generator) * 400], 2)
    boxes[1, 5:] = 0
    found = pyramid_align(maps, boxes, (4, 8, 16, 32), 4)
    levels = map_of_boxes(boxes, (4, 8, 16, 32))
    assert len(levels[0].unique()) > 2
    for b in range(2):
        for r in range(9):
            n = int(levels[b, r])
            expected = roi_align(maps[n][b : b + 1], boxes[b : b + 1, r : r + 1], 4, 1 / (4 * 2**n))[0, 0]
            assert torch.allclose(found[b, r], expected if boxes[b, r].any() else torch.zeros(3, 4, 4), atol=1e-6)
    found.sum().backward()
    assert all(x.grad is not None for x in maps[: int(levels.max()) + 1])


@pytest.mark.parametrize("norm", ["none", "group"])
def test_shapes(norm: str) -> None:
    head = MaskRCNNHead(8, 3, (4, 8, 16), 2, hidden=12, mask_hidden=8, mask_convs=2, norm=norm)
    maps = [torch.randn(2, 8, 16 // 2**n, 24 // 2**n) for n in range(3)]
    boxes = torch.tensor([[[0.0, 0, 30, 40], [5, 5, 20, 20]]]).expand(2, -1, -1)
    logits, steps = head.classify(maps, boxes)
    assert logits.shape == (2, 2, 4) and steps.shape == (2, 2, 3, 4)
    assert head.masks(maps, boxes).shape == (2, 2, 3, 28, 28)
    assert head.config["kind"] == "mask_rcnn" and head.config["norm"] == norm
    assert {name.split(".")[0] for name in head.state_dict()} == {"rpn", "box", "mask"}


def test_steps_of_boxes_are_in_tenths_and_fifths_and_begin_near_none() -> None:
    # As published: targets divided by 0.1 and 0.2; a classifier drawn with a deviation of 0.01, a regressor with 0.001.
    head = BoxHead(8, 1, 7, 256)  # one class is enough
    for layer, deviation in ((head.classifier, 0.01), (head.regressor, 0.001)):
        assert float(layer.weight.detach().std()) == pytest.approx(deviation, rel=0.2) and not layer.bias.any()
    torch.nn.init.zeros_(head.regressor.weight)
    torch.nn.init.ones_(head.regressor.bias)
    _, steps = head(torch.randn(2, 3, 8, 7, 7))
    torch.testing.assert_close(steps, torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(2, 3, 1, 4))


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match="hidden=0"):
        FasterRCNNHead(8, 2, hidden=0)
    with pytest.raises(SrattnError, match="mask_convs=0"):
        MaskRCNNHead(8, 2, mask_convs=0)
    with pytest.raises(SrattnError, match="at most the 5 maps"):
        FasterRCNNHead(8, 2, read=6)
    with pytest.raises(SrattnError, match="positive ratios"):
        RPNHead(8, (4, 8), ratios=())
    with pytest.raises(SrattnError, match="double from map to map"):
        FasterRCNNHead(8, 2, (4, 12), 2)
