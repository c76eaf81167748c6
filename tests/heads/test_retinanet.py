"""The head of RetinaNet: its anchors, and the order of its rows."""

from __future__ import annotations

import math

import pytest
import torch

from srattn import SrattnError
from srattn.heads.retinanet import RetinaNetHead
from srattn.heads.rows import split_rows

GRIDS = [(5, 7), (3, 4)]


def test_anchors_as_published() -> None:
    # Section 4: areas of 32 to 512 pixels square on P3 to P7, at each three ratios and 2^0, 2^(1/3), 2^(2/3).
    model = RetinaNetHead(4, 2, convs=0)
    for level, stride in enumerate(model.strides):
        anchors = model.anchors(torch.zeros(1, 4, 1, 1), stride)
        width, height = (anchors[:, 2:] - anchors[:, :2]).double().unbind(1)
        areas = torch.tensor([(32 * 2**level * 2 ** (n / 3)) ** 2 for n in range(3)], dtype=torch.float64)
        assert torch.allclose(width * height, areas.repeat(3), rtol=1e-5)
        ratios = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).repeat_interleave(3)
        assert torch.allclose(height / width, ratios, rtol=1e-5)
        assert torch.allclose(anchors[:, :2] + anchors[:, 2:], torch.zeros(9, 2), atol=1e-3)  # around the corner (0, 0)


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_rows_say_where_they_stand(norm: str, offset: float) -> None:
    options = {"convs": 1, "norm": norm, "base": 3.0, "scales": 2, "ratios": [1.0, 4.0], "offset": offset}
    model = RetinaNetHead(8, 3, (4, 8), **options).eval()  # type: ignore[arg-type]
    features = [torch.randn(2, 8, *grid) for grid in GRIDS]
    rows = split_rows(model(features, (20, 26)), 3)
    assert rows.centreness is None and rows.size[1, 7].tolist() == [20, 26]
    place = 0
    for x, stride in zip(features, (4, 8), strict=True):
        logits = model.classifier(model.class_tower(x))
        steps = model.regressor(model.box_tower(x))
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                anchor = 0
                for ratio in (1.0, 4.0):
                    for size in (3.0, 3.0 * math.sqrt(2)):
                        width, height = (size * stride / math.sqrt(ratio), size * stride * math.sqrt(ratio))
                        x0, y0 = (j + offset) * stride, (i + offset) * stride
                        box = torch.tensor([x0 - width / 2, y0 - height / 2, x0 + width / 2, y0 + height / 2])
                        assert torch.allclose(rows.reference[1, place], box, atol=1e-4)
                        expected = logits[:, 3 * anchor : 3 * anchor + 3, i, j]
                        assert torch.allclose(rows.logits[:, place], expected, atol=1e-5)
                        expected = steps[:, 4 * anchor : 4 * anchor + 4, i, j]
                        assert torch.allclose(rows.regression[:, place], expected, atol=1e-5)
                        place, anchor = place + 1, anchor + 1
    assert place == rows.logits.shape[1]


def test_a_fresh_head_expects_nothing_and_every_parameter_learns() -> None:
    model = RetinaNetHead(8, 3, (4, 8), convs=2)
    out = model([torch.randn(2, 8, *grid) for grid in GRIDS], (20, 26))
    assert (split_rows(out, 3).logits.sigmoid() - 0.01).abs().max() < 0.005
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match=r"ratios=\[0\.0\]"):
        RetinaNetHead(8, 3, ratios=[0.0])
    with pytest.raises(SrattnError, match="strides of at least 1"):
        RetinaNetHead(8, 3, ())
