"""The polynomial that stands for Phi in kernels of 16 bits; what kernels make of it is compared in their own tests."""

from __future__ import annotations

import torch

from srattn.ops.triton import gelu_kernels as kernels


def test_the_polynomial_is_phi() -> None:
    x = torch.linspace(-12, 12, 200_001)
    z = x.clamp(-kernels.END.value, kernels.END.value)
    found = torch.zeros(())
    for number in range(8, -1, -1):
        found = found * z * z + getattr(kernels, f"P{number}").value
    found = 0.5 + z * found
    truth = 0.5 * (1 + torch.erf(x.double() * 0.5**0.5))
    assert (found - truth).abs().max() < 1.4e-5
    ends = found[x.abs() > kernels.END.value]
    assert torch.minimum(ends.abs(), (1 - ends).abs()).max() < 6e-6, "far out it is 0 or 1"
    assert (x * found - x * truth).abs().max() < 1e-4
