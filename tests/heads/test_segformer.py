"""The all-MLP decoder against the paper's formula: enlarge, concatenate, fuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from srattn import SrattnError
from srattn.heads import SegFormerHead

CHANNELS = [8, 16, 20, 32]
GRIDS = [(13, 18), (7, 9), (4, 5), (2, 3)]


def maps() -> list[Tensor]:
    return [torch.randn(2, c, *grid, dtype=torch.float64) for c, grid in zip(CHANNELS, GRIDS, strict=True)]


def head(**options: object) -> SegFormerHead:
    model = SegFormerHead(CHANNELS, 5, hidden=12, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def definition(model: SegFormerHead, features: list[Tensor]) -> Tensor:
    """Equation 4 as it is written."""
    enlarged = []
    for n, x in enumerate(features):
        x = model.projections[n](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if len(model.projection_norms):
            x = F.relu(model.projection_norms[n](x))
        enlarged.append(F.interpolate(x, size=features[0].shape[2:], mode="bilinear", align_corners=False))
    fused = F.conv2d(torch.cat(enlarged, 1), model.fuse.weight[:, :, None, None])
    return F.conv2d(F.relu(model.norm(fused)), model.classifier.weight[:, :, None, None], model.classifier.bias)


@pytest.mark.parametrize("projection_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_fusing_before_enlarging_is_the_formula(projection_norm: bool, training: bool) -> None:
    model, features = head(projection_norm=projection_norm, drop_rate=0.0).train(training), maps()
    logits = model(features)
    assert logits.shape == (2, 5, *GRIDS[0])
    assert torch.allclose(logits, definition(model, features), atol=1e-12)


@pytest.mark.parametrize("projection_norm", [False, True])
def test_every_parameter_gets_the_gradient_of_the_formula(projection_norm: bool) -> None:
    model, features = head(projection_norm=projection_norm), maps()
    weighting = torch.randn(2, 5, *GRIDS[0], dtype=torch.float64)
    gradients = []
    for compute in (model, lambda x: definition(model, x)):
        model.zero_grad()
        (compute(features) * weighting).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-9, atol=1e-10), name


def test_dropout_takes_whole_channels_in_training_alone() -> None:
    model, features = head(drop_rate=0.5), maps()
    assert torch.equal(model(features), model(features))
    model.train()
    assert not torch.equal(model(features), model(features))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda m: m[:3], r"takes 4 maps .* C = \[8, 16, 20, 32\], finest first; got \[8, 16, 20\]"),
        (lambda m: m[::-1], r"got \[32, 20, 16, 8\]"),
        (lambda m: [x[0] for x in m], r"got \[\(8, 13, 18\)"),
    ],
)
def test_other_maps_are_refused(given, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SrattnError, match=message):
        head()(given(maps()))


def test_numbers_that_make_no_head() -> None:
    with pytest.raises(SrattnError, match="num_classes=0"):
        SegFormerHead(CHANNELS, 0)
