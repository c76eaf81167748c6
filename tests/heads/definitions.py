"""Plain forms of what the heads share, from a head's own state, in the order that the papers write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = [8, 12, 16, 20]
ODD = [(13, 18), (7, 9), (4, 5), (2, 3)]


def random_maps(grids: list[tuple[int, int]] = ODD) -> list[Tensor]:
    return [torch.randn(2, c, *grid, dtype=torch.float64) for c, grid in zip(CHANNELS, grids, strict=True)]


def shuffled(head: nn.Module) -> nn.Module:
    """Norms and biases of no special value, so that none of them can be left out unseen."""
    head = head.double()
    with torch.no_grad():
        for name, tensor in [*head.named_parameters(), *head.named_buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + (0.5 if "bias" not in name else -0.5))
    return head


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def plain(head: nn.Module, name: str, x: Tensor) -> Tensor:
    """A convolution with its bias, by its name in the head's state."""
    own = dict(head.named_parameters())
    return F.conv2d(x, own[f"{name}.weight"], own.get(f"{name}.bias"), padding=own[f"{name}.weight"].shape[-1] // 2)


def block(head: nn.Module, name: str, x: Tensor) -> Tensor:
    """Convolution, norm and ReLU, the norm from its formula."""
    x = plain(head, f"{name}.conv", x)
    own, norm = dict([*head.named_parameters(), *head.named_buffers()]), head.get_submodule(f"{name}.norm")
    if isinstance(norm, nn.GroupNorm):
        groups = x.unflatten(1, (norm.num_groups, -1))
        mean, var = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
        x = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
    else:
        mean, var = own[f"{name}.norm.running_mean"], own[f"{name}.norm.running_var"]
        if head.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return F.relu(x * own[f"{name}.norm.weight"][:, None, None] + own[f"{name}.norm.bias"][:, None, None])


def assert_same_with_gradients(head: nn.Module, definition, features: list[Tensor]) -> None:  # type: ignore[no-untyped-def]
    """Logits, and the gradients of every parameter and map, in float64: to some 1e4 roundings of the largest."""
    results = []
    for compute in (head, lambda x: definition(head, x)):
        torch.manual_seed(1)  # the same channels are dropped
        head.zero_grad()
        own = [x.clone().requires_grad_() for x in features]
        logits = compute(own)
        weighting = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        (logits * weighting).sum().backward()
        gradients = {name: p.grad for name, p in head.named_parameters()} | {str(n): x.grad for n, x in enumerate(own)}
        results.append((logits, {name: g.clone() for name, g in gradients.items() if g is not None}))
    (found, gradients), (expected, wanted) = results
    assert found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    assert (
        gradients.keys()
        == wanted.keys()
        == {n for n, _ in head.named_parameters()} | {str(n) for n in range(len(features))}
    )
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-9, atol=1e-12 * largest), name
