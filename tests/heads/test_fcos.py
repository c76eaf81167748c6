"""The head of FCOS: what its rows say of places, distances and logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srattn import SrattnError
from srattn.heads.fcos import FCOSHead
from srattn.heads.rows import join_rows, split_rows

GRIDS = [(5, 7), (3, 4), (2, 2)]
SIZE = (39, 53)


def maps(width: int = 8) -> list[Tensor]:
    return [torch.randn(2, width, *grid) for grid in GRIDS]


def head(**options: object) -> FCOSHead:
    return FCOSHead(8, 3, (8, 16, 32), convs=1, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_rows_say_where_they_stand(norm: str) -> None:
    model, features = head(norm=norm), maps()
    with torch.no_grad():
        model.scales.copy_(torch.tensor([0.5, 1.0, 2.0]))
        rows = split_rows(model(features, SIZE), 3)
    assert rows.size[0, 0].tolist() == list(SIZE) and rows.logits.shape == (2, 35 + 12 + 4, 3)
    place = 0
    for n, (x, stride) in enumerate(zip(features, (8, 16, 32), strict=True)):
        boxes, classes = model.box_tower(x), model.class_tower(x)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                at = [value * stride for value in (j, i, j + 1, i + 1)]
                assert rows.reference[:, place].tolist() == [at, at]
                distances = (model.regressor(boxes)[:, :, i, j] * (0.5, 1.0, 2.0)[n]).exp()
                assert torch.allclose(rows.regression[:, place], distances, rtol=1e-5)
                assert torch.allclose(rows.logits[:, place], model.classifier(classes)[:, :, i, j], atol=1e-5)
                assert rows.centreness is not None
                assert torch.allclose(rows.centreness[:, place], model.centre(boxes)[:, 0, i, j], atol=1e-5)
                place += 1


def test_a_fresh_head_expects_nothing() -> None:
    rows = split_rows(FCOSHead(8, 3, (8, 16, 32))(maps(), SIZE), 3)
    assert (rows.logits.sigmoid() - 0.01).abs().max() < 0.005
    assert (rows.regression - 1).abs().max() < 0.5


def test_every_parameter_learns() -> None:
    model = head()
    model(maps(), SIZE).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_distances_stay_finite() -> None:
    model = head()
    with torch.no_grad():
        assert model.regressor.bias is not None
        model.regressor.bias.fill_(1e6)
    assert torch.isfinite(model(maps(), SIZE)).all()


def test_half_precision_keeps_places_exact() -> None:
    # 4104 = 8 * 513 is no number of bfloat16.
    model = FCOSHead(8, 3, (8,), convs=0).bfloat16()
    out = model([torch.randn(1, 8, 1, 515, dtype=torch.bfloat16)], (8, 4120))
    rows = split_rows(out, 3)
    assert out.dtype == torch.float32 and rows.reference[0, 513].tolist() == [4104, 0, 4112, 8]
    assert rows.size[0, 0].tolist() == [8, 4120]


def test_columns_go_round_and_others_are_refused() -> None:
    parts = torch.randn(2, 5, 4), torch.randn(5, 4), (30, 40), torch.randn(2, 5, 3)
    rows = split_rows(join_rows(*parts), 3)
    assert rows.centreness is None
    assert torch.equal(rows.regression, parts[0]) and torch.equal(rows.logits, parts[3])
    assert torch.equal(rows.reference[1], parts[1]) and rows.size[1, 4].tolist() == [30, 40]
    for classes in (1, 4):
        with pytest.raises(SrattnError, match=rf"a detector of {classes} classes .* got \(2, 5, 13\)"):
            split_rows(join_rows(*parts), classes)


def test_what_is_refused() -> None:
    with pytest.raises(SrattnError, match=r"takes 3 maps .* got \[8, 8\]"):
        head()(maps()[:2], SIZE)
    with pytest.raises(SrattnError, match=r"double from map to map, got \[8, 24\]"):
        FCOSHead(8, 3, (8, 24))
    with pytest.raises(SrattnError, match="num_classes=0"):
        FCOSHead(8, 0)
