"""The real compiler takes the kernels: machine code for Hopper, without a GPU, with matrix instructions in it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from srattn.ops.triton import ahead, attention, attention_launch, depthwise
from srattn.ops.triton.choices import Blocks, Few, default_backward, default_forward
from srattn.ops.triton.language import INTERPRETED
from srattn.ops.triton.strips import Strips

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process"),
]
SHARED = {90: 227 * 1024, 86: 99 * 1024}
"""Bytes that a program may have, by compute capability."""


@pytest.fixture(autouse=True, scope="module")
def _own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled kernels go where pytest clears up, unless a folder is given."""
    given = os.environ.get("TRITON_CACHE_DIR")
    if given is None:
        os.environ["TRITON_CACHE_DIR"] = str(Path(tmp_path_factory.getbasetemp()) / "triton")
    yield
    if given is None:
        del os.environ["TRITON_CACHE_DIR"]


def launches(
    keys: int, dim: int, heads: int, forward: Blocks | None, backward: Blocks | None, norm: bool = True
) -> list[ahead.Launch]:
    """Of a block's attention, its norm (unless told otherwise) and its residual inside, both ways, in bf16."""
    eps = 1e-6 if norm else None
    empty = lambda *shape: torch.empty(*shape, dtype=torch.bfloat16, device="meta")  # noqa: E731
    x, k, c, o = empty(64, 3136, dim), empty(64, heads, keys, dim), empty(64, heads, keys), empty(dim)
    given = (x, k, k, c, None, o, None, True, eps)
    out, lse = attention._forward_like(*given, True)
    found = []
    if forward is not None:
        found += ahead.record(attention_launch.forward, *given, out, lse, True, forward)
    if backward is not None:
        made = attention._backward_like(out, *given[:5], lse, True, eps, False, True)
        found += ahead.record(attention_launch.backward, out, *given[:5], lse, True, eps, made, backward)
    return found


@pytest.mark.parametrize(
    ("keys", "dim", "heads", "forward", "backward"),
    [
        (49, 64, 1, Blocks("whole", 64, 0, 4, 2), Blocks("whole", 64, 0, 8, 2)),
        (49, 64, 2, Blocks("whole", 64, 0, 4, 2), None),
        (196, 64, 1, Blocks("blocked", 64, 64, 4, 2), Blocks("blocked", 64, 64, 8, 1)),
    ],
)
def test_attention_compiles_for_hopper(
    keys: int, dim: int, heads: int, forward: Blocks, backward: Blocks | None
) -> None:
    for launch in launches(keys, dim, heads, forward, backward):
        needs = ahead.compile_for(launch)
        assert needs.wgmma > 0, needs
        assert 0 < needs.shared <= SHARED[90], needs
        assert 0 <= needs.spilled <= 64, needs  # bytes of a thread


@pytest.mark.parametrize("capability", list(SHARED))
@pytest.mark.parametrize(("keys", "dim", "heads"), [(49, 128, 2), (70, 320, 5), (4, 16, 16)])
def test_rules_of_thumb_fit_on_the_chip(keys: int, dim: int, heads: int, capability: int) -> None:
    shared = SHARED[capability]
    s = Few(64, 3136, keys, dim, dim, heads, 2)
    for launch in launches(keys, dim, heads, default_forward(s, shared), default_backward(s, shared), norm=False):
        needs = ahead.compile_for(launch, ("cuda", capability, 32))
        assert needs.shared <= shared, needs


@pytest.mark.parametrize("form", [depthwise.Form(), depthwise.Form(residual=True, gelu=False)])
@pytest.mark.parametrize("backward", [False, True])
def test_convolution_compiles_for_hopper(backward: bool, form: depthwise.Form) -> None:
    empty = lambda *shape: torch.empty(*shape, dtype=torch.bfloat16, device="meta")  # noqa: E731
    x, w = empty(64, 56, 56, 512), empty(512, 1, 3, 3)
    strips = Strips(8, 64, 16, 4, 2)
    if backward:
        found = ahead.record(depthwise.slopes, x, x, w, None, form, strips)
    else:
        found = ahead.record(depthwise.convolve, x, w, None, x, form, strips=strips)
    needs = ahead.compile_for(found[0])
    assert needs.spilled == 0, needs
