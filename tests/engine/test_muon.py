"""Muon: its directions beside the definition, and its steps beside torch's."""

import pytest
import torch
from torch import Tensor

from srattn.engine import muon
from srattn.engine.muon import muon_step, orthogonal

SHAPES = [(6, 4), (4, 6), (5, 5), (6, 4), (1, 7), (7, 1)]


def _matrices(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def _definition(matrix: Tensor) -> Tensor:
    """The polynomial, five times, of the singular values of a matrix whose norm is one."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.1)])
def test_directions_are_the_polynomial_of_singular_values(dtype: torch.dtype, tolerance: float) -> None:
    matrices = _matrices(0, torch.float64)
    found = orthogonal(matrices, dtype)
    for matrix, direction in zip(matrices, found, strict=True):
        assert direction.dtype == torch.float64
        torch.testing.assert_close(direction, _definition(matrix), atol=tolerance, rtol=0)


def test_no_gradient_is_no_direction() -> None:
    zero, some = orthogonal([torch.zeros(3, 2), torch.eye(3, 2)])
    assert torch.equal(zero, torch.zeros(3, 2)) and some.norm() > 0.9
    assert orthogonal([]) == [] and orthogonal([torch.zeros(0, 2)])[0].shape == (0, 2)


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "has_bf16", lambda device: True)  # as torch computes everywhere
    ours, theirs = _matrices(1), [torch.nn.Parameter(matrix) for matrix in _matrices(1)]
    buffers = [torch.zeros_like(matrix) for matrix in ours]
    other = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        grads = _matrices(2 + step)
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.clone()
        muon_step(ours, grads, buffers, 0.1, 0.05)
        other.step()
        for matrix, parameter in zip(ours, theirs, strict=True):
            # A step is 0.1 * 0.2 * root of the longer side, times directions that bfloat16 knows to a hundredth.
            torch.testing.assert_close(matrix, parameter.detach(), atol=(step + 1) * 2e-3, rtol=0)
    for buffer, parameter in zip(buffers, theirs, strict=True):
        torch.testing.assert_close(buffer, other.state[parameter]["momentum_buffer"], rtol=1e-6, atol=1e-7)


def test_stacking_changes_nothing_but_rounding() -> None:
    matrices = _matrices(3)
    for alone, among in zip(
        (orthogonal([m], torch.float32)[0] for m in matrices), orthogonal(matrices, torch.float32), strict=True
    ):
        torch.testing.assert_close(alone, among, atol=2e-5, rtol=0)
