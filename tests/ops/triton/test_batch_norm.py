"""The operator of batch norm: its kernels interpreted, and compiled for Hopper; its definition; how graphs see it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from srattn.ops import plan
from srattn.ops.batch_norm import plain
from srattn.ops.triton import ahead, batch_norm
from srattn.ops.triton.language import INTERPRETED
from tests.ops.triton.interpreted_batch_norm import CASES, OTHERS
from tests.ops.triton.interpreter import ask
from tests.truth import DOUBLE

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def wrong(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong with each case."""
    return ask("tests.ops.triton.interpreted_batch_norm", root, tmp_path_factory.mktemp("cache"))


@needs_triton
@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_interpreted_kernel_agrees_with_float64(case: str, wrong: dict[str, list[str]]) -> None:
    assert wrong[case] == []


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    c = shape[-1]
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in (shape, (c,), (c,)))  # type: ignore[return-value]


@pytest.mark.parametrize("gelu", [False, True])
def test_written_gradients_and_theirs_are_those_of_the_definition(gelu: bool) -> None:
    given = inputs(2, 3, 4, dtype=DOUBLE)

    def first(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return batch_norm.batch_norm(x, w, b, gelu=gelu)[0]

    def second(function: Any) -> tuple[Tensor, ...]:
        y = function(*given, 1e-5, gelu)[0]
        grads = torch.autograd.grad(y.pow(3).sum(), given, create_graph=True)
        return torch.autograd.grad([g.square().sum() for g in grads], given)

    assert torch.autograd.gradcheck(first, given)
    for ours, theirs in zip(second(batch_norm.batch_norm), second(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gelu", [False, True])
def test_opcheck(gelu: bool) -> None:
    torch.library.opcheck(batch_norm.OPERATORS["opaque"], (*inputs(2, 3, 4), 1e-5, gelu))
    still = [t.detach() for t in inputs(6, 4)]
    torch.library.opcheck(batch_norm.OPERATORS["opaque"], (still[0].bfloat16(), *still[1:], 1e-5, gelu))


def test_what_it_takes() -> None:
    x, w, b = (t.detach() for t in inputs(4, 3, 8))
    assert not batch_norm.takes(x, w, b)
    with mock.patch.object(plan, "KERNEL_DEVICES", {"cpu"}):
        assert batch_norm.takes(x, w, b) and batch_norm.takes(x.bfloat16(), w, b)
        assert not batch_norm.takes(x, None, b) and not batch_norm.takes(x, w, None)
        assert not batch_norm.takes(x.double(), w, b) and not batch_norm.takes(x[:, ::2], w, b)
        assert not batch_norm.takes(x[:0], w, b) and not batch_norm.takes(w, w, b)


@pytest.mark.parametrize("kind", ["opaque", "open"])
def test_compiled_whole(kind: str) -> None:
    given = inputs(2, 5, 6)

    def run(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        assert batch_norm.takes(x, w, b)
        return batch_norm.batch_norm(x, w, b, gelu=True)

    with (
        mock.patch.object(plan, "KERNEL_DEVICES", {"cpu"}),
        mock.patch.object(batch_norm, "WHILE_COMPILING", kind),
    ):
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(*given)
    truth = plain(*given, gelu=True)
    torch.testing.assert_close(found, truth)
    expected, grads = (torch.autograd.grad(y[0].square().sum() + y[0].sum(), given) for y in (truth, found))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_triton
def test_inductor_sees_the_kernels() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x, dy = (torch.empty(2, 64, 32, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        w, b, mean, inverse = (torch.empty(32, device="cuda") for _ in range(4))
    forward = make_fx(batch_norm._forward, tracing_mode="fake")(x, w, b, 1e-5, True)
    backward = make_fx(batch_norm._backward, tracing_mode="fake")(dy, x, w, mean, inverse, True)
    for graph in (forward.graph, backward.graph):
        assert len([node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]) == 3


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (33, 130), (128_000, 384), (10**7, 46), (200, 50_000)])
def test_every_row_is_walked_over_once(rows: int, channels: int) -> None:
    w = batch_norm.spread(rows, channels, 528)
    assert w.share % w.block_r == 0 and (w.number - 1) * w.share < rows <= w.number * w.share
    assert w.number == 1 or w.number * -(-channels // w.block_c) <= 528 + -(-channels // w.block_c)


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process")
@pytest.mark.parametrize(("channels", "gelu"), [(384, False), (384, True), (46, True)])
def test_compiles_for_hopper(channels: int, gelu: bool, tmp_path: Path) -> None:
    """Three programs of a kernel that walks fit on a multiprocessor, and its loads are ahead of its sums."""
    x = torch.empty(128_000, channels, dtype=torch.bfloat16, device="meta")
    w = torch.empty(channels, device="meta")
    made = batch_norm._forward_like(x, w, w, 1e-5, gelu)
    back = batch_norm._backward_like(x, x, w, made[1], made[3], gelu)
    launches = ahead.record(batch_norm.normalise, x, w, w, 1e-5, gelu, made)
    launches += ahead.record(batch_norm.gradients, x, x, w, made[1], made[3], gelu, back)
    assert len(launches) == 6
    with mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(tmp_path))}):
        for launch in launches:
            needs = ahead.compile_for(launch)
            assert needs.spilled == 0, needs
            assert "merged" in needs.name or (needs.registers <= 80 and needs.async_copies > 0), needs
