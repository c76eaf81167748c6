"""A compiled model is not taken for one that is exported, whatever torch's own question answers."""

import pytest
import torch

from srattn.ops.tracing import is_exporting


def _told(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if is_exporting() else x - 1


def test_compiling_is_not_exporting() -> None:
    x = torch.zeros(2)
    assert _told(x).sum() == torch.compile(_told, backend="eager", fullgraph=True)(x).sum() == -2


@pytest.mark.parametrize("strict", [False, True])
def test_exporting_is(strict: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _told(x)

    program = torch.export.export(Model(), (torch.zeros(2),), strict=strict)
    assert program.module()(torch.zeros(2)).sum() == 2
