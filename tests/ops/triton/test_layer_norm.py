"""The layer norm: its kernels in Triton's interpreter and compiled for Hopper, and the operator on a CPU, where it
computes its definition."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import srattn
from srattn.errors import SrattnError
from srattn.ops import plan
from srattn.ops.triton import ahead, layer_norm
from srattn.ops.triton.language import INTERPRETED
from tests.ops.triton.interpreted_layer_norm import CASES
from tests.ops.triton.interpreter import ask
from tests.truth import DOUBLE

EPS = 1e-6
SINGLE, HALF = torch.float32, torch.bfloat16
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture(scope="module")
def wrong(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is wrong with each case."""
    return ask("tests.ops.triton.interpreted_layer_norm", root, tmp_path_factory.mktemp("cache"))


@needs_triton
@pytest.mark.parametrize("case", [*CASES, "launches"])
def test_interpreted_kernel_agrees_with_float64(case: str, wrong: dict[str, list[str]]) -> None:
    assert wrong[case] == []


def inputs(
    dtype: torch.dtype = DOUBLE, add: torch.dtype | None = DOUBLE, shape: tuple[int, ...] = (2, 3, 5)
) -> list[Tensor]:
    """x, weight, bias, and what is added if anything is."""
    channels = shape[-1:]
    shapes = [(shape, dtype), (channels, dtype), (channels, dtype), *([] if add is None else [(shape, add)])]
    return [torch.randn(shape, dtype=of).requires_grad_() for shape, of in shapes]


def ours(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return layer_norm.layer_norm(x, weight, bias, EPS, add)


def torchs(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
    s = x if add is None else x + add
    return F.layer_norm(s, s.shape[-1:], weight, bias, EPS), s


@pytest.mark.parametrize("add", [None, DOUBLE])
def test_gradients_and_their_gradients_are_torchs(add: torch.dtype | None) -> None:
    given = inputs(add=add)
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)
    weights = [torch.randn_like(t) for t in given]
    results = []
    for call in (ours, torchs):
        y, s = call(*given)
        grads = torch.autograd.grad((y.sin() * s).sum(), given, create_graph=True)
        losses = [(g.sin() * w).sum() for g, w in zip(grads, weights, strict=True)]
        second = torch.autograd.grad(losses, given)
        results.append((y, s, *grads, *second))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("used", ["y", "s", "both"])
@pytest.mark.parametrize("graph", [False, True])
def test_what_is_not_used_has_no_gradient(used: str, graph: bool) -> None:
    given = inputs(SINGLE, HALF)
    found = []
    for call in (ours, torchs):
        y, s = call(*given)
        loss = {"y": y.square(), "s": s.square(), "both": (y + s).square()}[used].sum()
        found.append(torch.autograd.grad(loss, given, create_graph=graph, allow_unused=True))
    for a, b, of in zip(*found, given, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == of.dtype
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (3, 1)])
def test_one_token_none_and_one_channel(shape: tuple[int, ...]) -> None:
    given, found = inputs(shape=shape), []
    for call in (ours, torchs):
        y, s = call(*given)
        found.append([y, s, *torch.autograd.grad((y.sin() + s).sum(), given)])
    torch.testing.assert_close(*found)


def test_types_and_aliases() -> None:
    x, weight, bias = (t.detach() for t in inputs(SINGLE, None))
    y, s = layer_norm.layer_norm(x, weight, bias, EPS, dtype=HALF)
    assert s is x and torch.equal(y, torchs(x, weight, bias)[0].to(HALF))
    add = torch.randn(2, 3, 5, dtype=HALF)
    y, s = layer_norm.layer_norm(x, weight, bias, EPS, add, HALF)
    assert torch.equal(s, x + add) and torch.equal(y, torchs(s, weight, bias)[0].to(HALF))
    y, s = layer_norm.layer_norm(x.to(HALF), weight, bias, EPS, x)
    assert y.dtype == s.dtype == HALF
    with pytest.raises(SrattnError, match=r"\(2, 3, 5\); got \(3, 5\)"):
        layer_norm.layer_norm(x, weight, bias, EPS, add[0])


@pytest.mark.parametrize(("x", "add", "y"), [(SINGLE, HALF, HALF), (HALF, None, None)])
def test_opcheck(x: torch.dtype, add: torch.dtype | None, y: torch.dtype | None) -> None:
    first, weight, bias, *rest = inputs(x, add)
    torch.library.opcheck(layer_norm.OPERATORS["opaque"], (first, weight, bias, rest[0] if rest else None, EPS, y))


def test_what_the_kernels_take() -> None:
    x, weight, bias = inputs(SINGLE, None)
    assert not layer_norm.takes(x, weight, bias)
    with mock.patch.object(plan, "KERNEL_DEVICES", {"cpu"}):
        assert layer_norm.takes(x, weight, bias)
        assert not layer_norm.takes(x, weight, None) and not layer_norm.takes(x, None, bias)
        assert not layer_norm.takes(x, weight[:1], bias) and not layer_norm.takes(x.double(), weight, bias)
        assert not layer_norm.takes(x.transpose(0, 1), weight, bias) and not layer_norm.takes(x[:0], weight, bias)
        assert not layer_norm.takes(x.int(), weight, bias)
        wide = torch.empty(2, 1025)
        assert not layer_norm.takes(wide, wide[0], wide[0])
        with srattn.force_path("sdpa"):
            assert not layer_norm.takes(x, weight, bias)
        with srattn.without_kernels():
            assert not layer_norm.takes(x, weight, bias)
        assert layer_norm.takes(x, weight, bias)


@pytest.mark.parametrize("operator", ["open", "opaque"])
def test_it_is_captured_whole(operator: str) -> None:
    given = inputs(SINGLE, HALF)

    def step(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor) -> Tensor:
        assert layer_norm.takes(x, weight, bias)
        y, s = layer_norm.layer_norm(x, weight, bias, EPS, add, HALF)
        return layer_norm.layer_norm(s, weight, bias, EPS)[0] + s + y

    name = {"open": "layer_norm_open", "opaque": "layer_norm"}[operator]
    with (
        mock.patch.object(plan, "KERNEL_DEVICES", {"cpu"}),
        mock.patch.object(layer_norm, "WHILE_COMPILING", operator),
    ):
        truth, graphs = step(*given), []

        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            graphs.append(graph)
            return graph

        torch.compile(step, backend=keep, fullgraph=True)(*given)
        found = torch.compile(step, backend="aot_eager", fullgraph=True)(*given)
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum(target.startswith(f"srattn.{name}") for target in targets) == 2
    torch.testing.assert_close(found, truth)
    expected, grads = (torch.autograd.grad(out.square().sum(), given) for out in (truth, found))
    torch.testing.assert_close(grads, expected)


@needs_triton
def test_inductor_sees_the_kernels() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        x, weight = (torch.empty(shape, device="cuda") for shape in ((2, 64, 32), (32,)))
        add = torch.empty_like(x, dtype=HALF)

    def both(x: Tensor, weight: Tensor, add: Tensor) -> Tensor:
        y, s, mean, rstd = layer_norm._forward(x, weight, weight, add, EPS, HALF)
        return layer_norm.slopes(y, s, s, weight, mean, rstd, torch.empty_like(s), torch.empty_like(y))

    graph = make_fx(both, tracing_mode="fake")(x, weight, add)
    assert sum("triton_kernel_wrapper" in str(node.target) for node in graph.graph.nodes) == 2


@pytest.fixture
def _own_folder(tmp_path: Path) -> Iterator[None]:
    """Compiled kernels go where pytest clears up, unless a folder is given."""
    with mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(tmp_path))}):
        yield


@needs_triton
@pytest.mark.slow
@pytest.mark.usefixtures("_own_folder")
@pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process")
@pytest.mark.parametrize(
    ("shape", "x", "add", "y"),
    [((128_000, 128), SINGLE, HALF, HALF), ((128_000, 128), SINGLE, None, HALF), ((32_000, 512), HALF, HALF, HALF)],
)
def test_it_compiles_for_hopper_without_spills(
    shape: tuple[int, int], x: torch.dtype, add: torch.dtype | None, y: torch.dtype
) -> None:
    empty = lambda *shape, dtype: torch.empty(*shape, dtype=dtype, device="meta")  # noqa: E731
    s, weight = empty(*shape, dtype=x), empty(shape[1], dtype=SINGLE)
    added = None if add is None else empty(*shape, dtype=add)
    made = layer_norm._forward_like(s, weight, weight, added, EPS, y)
    launches = ahead.record(layer_norm.normalise, s, weight, weight, added, EPS, made)
    da = added if add not in (None, x) else None
    ds = None if add is None else s
    launches += ahead.record(layer_norm.slopes, made[0], ds, s, weight, *made[2:], s, da)
    assert [launch.kernel.fn.__name__ for launch in launches] == ["forward", "gradients"]
    for launch in launches:
        needs = ahead.compile_for(launch)
        assert needs.spilled == 0 and needs.registers <= 128, needs
