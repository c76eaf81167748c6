"""The feed-forward of a block where gradients are wanted: fc1, [ReLU], [depthwise 3x3], GELU, fc2 on maps.

What it costs to keep is what is hidden: four to eight times the width of the map, three times over. Four paths give
the same numbers and the same gradients:

- `plain`: torch's own operators and their graph, everything kept. The definition.
- `kernel`: the compiled kernel of `ops/native/kernels/training.h`; keeps x alone, forward and backward in the cache.
- `bands`: x alone is kept, and backward computes what is hidden again, a band of rows at a time (the 3x3 needs up to
  two rows beyond), in torch's operators.
- `whole`: x alone is kept, and backward computes everything again at once (gradient checkpointing): what remains for
  dropout, autocast and devices that are fastest on whole maps.

`choose` says which, and why. Under `memory="fast"` it is the quickest of `kernel` and `plain`; under "lean" `plain` is
ruled out. Where torch traces, transforms or differentiates forwards, it is always `plain`. torch.compile keeps `kernel`
as an operator, and reads `plain` in place of the others.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from srattn.errors import SrattnError, nearest
from srattn.ops import feed_forward_kernel as kernel
from srattn.ops.feed_forward_bands import banded_backward, banded_forward
from srattn.ops.native import eager
from srattn.ops.native.operator import register

Memory = Literal["lean", "fast"]
MEMORIES: tuple[Memory, ...] = ("lean", "fast")
BAND_BYTES = 1 << 21
"""Of one hidden band in torch's operators, which share it among all threads."""


class Weights(NamedTuple):
    """fc1 (hidden, in), taps (hidden, 1, 3, 3) or None, fc2 (out, hidden), with a bias each, which may be absent."""

    fc1: Tensor
    fc1_bias: Tensor | None
    taps: Tensor | None
    taps_bias: Tensor | None
    fc2: Tensor
    fc2_bias: Tensor | None


class Choice(NamedTuple):
    """A path, rows of the map in one band (several whole maps where it exceeds the height), and the reason."""

    path: Literal["plain", "kernel", "bands", "whole"]
    rows: int
    reason: str


def check_memory(memory: str) -> str:
    """Refuses what is no setting of `memory`."""
    if memory not in MEMORIES:
        raise SrattnError(f"memory is {' or '.join(map(repr, MEMORIES))}, got {memory!r}{nearest(memory, MEMORIES)}")
    return memory


def plain(x: Tensor, w: Weights, relu: bool = False, drop: float = 0.0) -> Tensor:
    """The definition. x (B, H, W, in) to (B, H, W, out); `drop` is the dropout behind GELU."""
    x = F.linear(x, w.fc1, w.fc1_bias)
    if relu:
        x = F.relu(x)
    if w.taps is not None:
        x = x.permute(0, 3, 1, 2)  # a channels-last view, no copy
        x = F.conv2d(x, w.taps, w.taps_bias, padding=1, groups=w.taps.shape[0]).permute(0, 2, 3, 1)
    x = F.gelu(x)
    return F.linear(F.dropout(x, drop) if drop else x, w.fc2, w.fc2_bias)


def feed_forward(x: Tensor, w: Weights, relu: bool = False, drop: float = 0.0, memory: str = "fast") -> Tensor:
    """As `plain`, by the path that `choose` names for this call."""
    if torch.compiler.is_compiling():
        if not _is_an_operator(x, w, relu, drop):
            return plain(x, w, relu, drop)
        return _operator(_as_map(x), *w, relu).view(*x.shape[:-1], w.fc2.shape[0])
    choice = choose(x, w, relu, drop, memory)
    if choice.path in ("kernel", "bands"):
        return _Recomputed.apply(_as_map(x), relu, choice.rows, choice.path == "kernel", *w).view(*x.shape[:-1], -1)
    if choice.path == "whole":
        return checkpoint(plain, x, w, relu, drop, use_reentrant=False, preserve_rng_state=drop > 0)
    return plain(x, w, relu, drop)


def _is_an_operator(x: Tensor, w: Weights, relu: bool, drop: float) -> bool:
    """Whether torch.compile, which reads this, is to leave the call to the kernel: as `choose` would, of any size."""
    if drop or not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (x, *w)):
        return False
    if torch.is_autocast_enabled("cpu") or (x.ndim != 4 and w.taps is not None):
        return False
    given = [t for t in (x, *w) if t is not None]
    if any(t.dtype != torch.float32 for t in given) or kernel.reason_against(x.dtype, w.taps is not None, relu):
        return False
    return eager.reason_against(*given) is None


def choose(x: Tensor, w: Weights, relu: bool = False, drop: float = 0.0, memory: str = "fast") -> Choice:
    """The path of this call, with its reason. Only the shape, type and place of x matter, and who is watching."""
    if (reason := _traced(x)) is not None:
        return Choice("plain", 0, reason)
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (x, *w)):
        return Choice("plain", 0, "no gradient is wanted, so nothing is kept")
    if not x.numel() or (x.ndim != 4 and w.taps is not None):
        return Choice("plain", 0, "there is no token" if not x.numel() else f"no batch of maps: {tuple(x.shape)}")
    if any(t is not None and t.device != x.device for t in w):
        return Choice("plain", 0, "the weights are on another device than the map")
    return planned(tuple(_as_map(x).shape), w, relu, drop, memory, x.device.type, x.dtype)


def planned(
    shape: tuple[int, ...],
    w: Weights,
    relu: bool = False,
    drop: float = 0.0,
    memory: str = "fast",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Choice:
    """As `choose`, for a map of this shape (B, H, W, in) in training, with nobody watching."""
    if drop:
        reason = "dropout inside the feed-forward"
    elif device != "cpu":
        reason = f"{device} is quickest on whole maps"
    elif torch.is_autocast_enabled(device):
        reason = "autocast chooses the precision"
    elif any(t is not None and not _fits(t, dtype, device) for t in w):
        reason = "the weights are of another precision, place or kind than the map"
    else:
        against = kernel.reason_against(dtype, w.taps is not None, relu)
        if against is None:
            rows = kernel.rows(shape, w.fc1.shape[0], w.fc2.shape[0], w.taps is not None)
            return Choice("kernel", rows, "hidden channels are computed twice in the cache, and never kept")
        if memory == "fast":
            return Choice("plain", 0, f"keeps what is hidden: {against}")
        rows = _rows(shape, w.fc1.shape[0] * dtype.itemsize)
        return Choice("bands", rows, f"what is hidden is computed again in bands of rows; {against}")
    if memory == "fast":
        return Choice("plain", 0, f"keeps what is hidden: {reason}")
    return Choice("whole", shape[1], f"what is hidden is computed again at once: {reason}")


def words(choice: Choice, height: int) -> str:
    """A choice for a map of `height` rows, as one line that a person can read."""
    if choice.path in ("plain", "whole"):
        return f"{choice.path}: {choice.reason}"
    maps = choice.rows // height
    size = f"{choice.rows} of {height} rows" if not maps else "a whole map" if maps == 1 else f"{maps} whole maps"
    return f"{choice.path}, {size} at a time: {choice.reason}"


def _traced(x: Tensor) -> str | None:
    """Who is watching this call and wants to see torch's own operators; None if nobody."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "torch traces the model"
    if type(x) not in (Tensor, torch.nn.Parameter) or torch._C._len_torch_dispatch_stack():
        return "a tensor subclass or a dispatch mode"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms the call"
    if forward_ad._current_level >= 0:
        return "differentiated forwards"
    return None


def _fits(weight: Tensor, dtype: torch.dtype, device: str) -> bool:
    plain = type(weight) in (Tensor, torch.nn.Parameter)
    return plain and weight.dtype == dtype and weight.device.type in (device, "meta")


def _as_map(x: Tensor) -> Tensor:
    """Tokens of any raster as one map that is one token wide, which a feed-forward without convolution may do."""
    return x if x.ndim == 4 else x.reshape(1, -1, 1, x.shape[-1])


def _rows(shape: tuple[int, ...], row_bytes: int) -> int:
    """Rows in a band of torch's operators: as many as fit, evenly divided; whole maps where one fits."""
    height, width = shape[1:3]
    fit = max(1, BAND_BYTES // max(1, width * row_bytes))
    if fit >= height:
        return fit // height * height
    bands = -(-height // fit)
    return -(-height // bands)


def _forward(
    x: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor | None,
    taps: Tensor | None,
    taps_bias: Tensor | None,
    fc2: Tensor,
    fc2_bias: Tensor | None,
    relu: bool,
) -> Tensor:
    """The kernel's, on a map."""
    w = Weights(fc1, fc1_bias, taps, taps_bias, fc2, fc2_bias)
    return kernel.forward(x, w, relu, _kernel_rows(x, w)) if x.numel() else x.new_empty(*x.shape[:3], fc2.shape[0])


def _forward_like(x: Tensor, *given: Any) -> Tensor:
    *weights, _ = given
    return x.new_empty(*x.shape[:3], Weights(*weights).fc2.shape[0])


def _backward(
    dy: Tensor,
    x: Tensor,
    fc1: Tensor,
    fc1_bias: Tensor | None,
    taps: Tensor | None,
    taps_bias: Tensor | None,
    fc2: Tensor,
    fc2_bias: Tensor | None,
    relu: bool,
    wants_x: bool,
) -> list[Tensor]:
    """The gradient of x, if it is wanted, then those of the weights that there are."""
    w = Weights(fc1, fc1_bias, taps, taps_bias, fc2, fc2_bias)
    if not x.numel():
        return [t.new_zeros(t.shape) for t in (x if wants_x else None, *w) if t is not None]
    found = kernel.backward(x, dy, w, relu, _kernel_rows(x, w), wants_x)
    return [t for t in found if t is not None]


def _backward_like(dy: Tensor, x: Tensor, *given: Any) -> list[Tensor]:
    *weights, _, wants_x = given
    return [t.new_empty(t.shape) for t in (x if wants_x else None, *weights) if t is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *kept, ctx.relu = inputs
    ctx.save_for_backward(*kept)


def _gradients(ctx: Any, backward: Callable[..., list[Tensor]], dy: Tensor) -> tuple[Tensor | None, ...]:
    given, wants = ctx.saved_tensors, ctx.needs_input_grad[:7]
    if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
        return *_differentiable(given, wants, dy, ctx.relu), None
    found = iter(backward(dy, *given, ctx.relu, wants[0]))
    there = [t is not None for t in given]
    there[0] = wants[0]
    every = [next(found) if is_there else None for is_there in there]
    return *(gradient if wanted else None for gradient, wanted in zip(every, wants, strict=True)), None


def _differentiable(
    given: Sequence[Tensor | None], wants: Sequence[bool], dy: Tensor, relu: bool
) -> list[Tensor | None]:
    """The gradients that are wanted of x and the weights, with a graph of their own."""
    x, *weights = given
    assert x is not None
    inputs = [t for t, wanted in zip(given, wants, strict=True) if wanted and t is not None]
    y = plain(x, Weights(*weights), relu)  # type: ignore[arg-type]
    found = iter(torch.autograd.grad(y, inputs, dy, create_graph=True))
    return [next(found) if wanted else None for wanted in wants]


def _forward_plain(x: Tensor, *given: Any) -> Tensor:
    *weights, relu = given
    return banded_forward(x, Weights(*weights), relu, max(1, x.shape[1]))


def _backward_plain(dy: Tensor, x: Tensor, *given: Any) -> list[Tensor]:
    *weights, relu, wants_x = given
    dx, *others = banded_backward(x, dy, Weights(*weights), relu, max(1, x.shape[1]))
    return [t for t in (dx if wants_x else None, *others) if t is not None]


_operator = register(
    "feed_forward", (_forward, _forward_like), (_backward, _backward_like), (_forward_plain, _backward_plain), _keep,
    _gradients,
)  # fmt: skip


def _kernel_rows(x: Tensor, w: Weights) -> int:
    return kernel.rows(tuple(x.shape), w.fc1.shape[0], w.fc2.shape[0], w.taps is not None)


class _Recomputed(torch.autograd.Function):
    """Keeps x and the weights; backward computes the rest again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: bool, rows: int, compiled: bool, *weights: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.relu, ctx.rows, ctx.compiled = relu, rows, compiled
        w = Weights(*weights)  # type: ignore[arg-type]
        return kernel.forward(x, w, relu, rows) if compiled else banded_forward(x, w, relu, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        w, (dy,) = Weights(*weights), gradients
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        if torch.is_grad_enabled():
            every = _differentiable((x, *weights), wanted, dy, ctx.relu)
        elif ctx.compiled:
            every = kernel.backward(x, dy, w, ctx.relu, ctx.rows, wanted[0])
        else:
            every = banded_backward(x, dy, w, ctx.relu, ctx.rows)
        dx, *others = (g if want else None for g, want in zip(every, wanted, strict=True))
        return dx, None, None, None, *others
