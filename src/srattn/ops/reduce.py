"""The spatial reductions on (batch, height, width, channels) maps, and the edge policy.

The plain forms are in `reference`. Here the strided reduction is a convolution whose kernel equals its stride,
over a channels-last view of the tokens: the same sum as Reshape followed by W^S, without the copy of Reshape.
Pooling to a fixed grid is two small matrix products, P_h X P_w^T: deterministic in backward, exportable at any size.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from srattn.errors import SrattnError
from srattn.ops import plan
from srattn.ops.native.operator import register
from srattn.ops.tracing import is_exporting

Edge = Literal["pad", "floor", "error"]
EDGES: tuple[Edge, ...] = ("pad", "floor", "error")


def reduced_size(height: int, width: int, ratio: tuple[int, int], edge: str) -> tuple[int, int]:
    """Grid of the reduced tokens: ceil under `pad`, floor under `floor`; `error` wants a multiple.

    Raises:
        SrattnError: under `error`, when the ratio does not divide the grid; under `floor`, when nothing would be left.
    """
    rh, rw = ratio
    if edge == "pad":
        return (height + rh - 1) // rh, (width + rw - 1) // rw
    if edge == "error" and (height % rh or width % rw):
        raise SrattnError(
            f"ratio {rh}x{rw} does not divide the grid {height}x{width}: resize or pad the input, or use edge='pad'"
        )
    if height and width and not (height // rh and width // rw):
        raise SrattnError(
            f"grid {height}x{width} is smaller than the ratio {rh}x{rw}, edge='floor' leaves no keys: use edge='pad'"
        )
    return height // rh, width // rw


def fit(x: Tensor, ratio: tuple[int, int], edge: str) -> Tensor:
    """Pads with zeros or crops (B, H, W, ...) so that the ratio divides it, as `edge` says."""
    height, width = x.shape[1:3]
    mh, mw = reduced_size(height, width, ratio, edge)
    extra_h, extra_w = mh * ratio[0] - height, mw * ratio[1] - width
    if edge == "pad":
        # While exporting, sizes are symbols and the branch would pin them.
        if is_exporting() or extra_h or extra_w:
            return F.pad(x, (0, 0) * (x.ndim - 3) + (0, extra_w, 0, extra_h))
        return x
    return x[:, : height + extra_h, : width + extra_w]


def blocks(x: Tensor, ratio: tuple[int, int], edge: str, mask: Tensor | None = None) -> Tensor:
    """Reshape(x, R) of the definition: (B, H, W, C) to (B, H/R_h, W/R_w, R_h R_w C), each block end to end."""
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    x = fit(x, ratio, edge)
    x = x.unflatten(2, (x.shape[2] // ratio[1], ratio[1])).unflatten(1, (x.shape[1] // ratio[0], ratio[0]))
    return x.transpose(2, 3).flatten(3)


def strided(
    x: Tensor, weight: Tensor, bias: Tensor | None, ratio: tuple[int, int], edge: str, mask: Tensor | None = None
) -> Tensor:
    """Reshape(x, R) W^S of PVT (arXiv:2102.12122, eq. 3), before the norm.

    x (B, H, W, C), weight (C_out, R_h R_w C), mask (B, H, W) true where valid. Returns (B, H/R_h, W/R_w, C_out).
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    channels = x.shape[-1]
    if not is_exporting() and 0 in x.shape[1:3]:  # a convolution refuses an empty map
        mh, mw = reduced_size(x.shape[1], x.shape[2], ratio, edge)
        return x.new_zeros(x.shape[0], mh, mw, weight.shape[0])
    if x.device.type == "cpu" and not is_exporting() and _in_halves(x) and x.shape[2] < 2 * ratio[1]:
        # One column: oneDNN's convolution of 16 bits is wrong at some widths (torch 2.13, 16 channels at ratio 8).
        return F.linear(blocks(x, ratio, edge), weight, bias)
    kernel = weight.view(-1, *ratio, channels).permute(0, 3, 1, 2)  # (C_out, C, R_h, R_w), channels last in memory
    return F.conv2d(fit(x, ratio, edge).permute(0, 3, 1, 2), kernel, bias, stride=ratio).permute(0, 2, 3, 1)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, edge: str, mask: Tensor | None = None) -> Tensor:
    """A depthwise convolution whose stride is its kernel (CMT, arXiv:2107.06263), before the norm.

    x (B, H, W, C), weight (C, 1, R_h, R_w), mask (B, H, W) true where valid. Returns (B, H/R_h, W/R_w, C).
    """
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
    ratio = (weight.shape[2], weight.shape[3])
    if not is_exporting() and 0 in x.shape[1:3]:  # a convolution refuses an empty map
        mh, mw = reduced_size(x.shape[1], x.shape[2], ratio, edge)
        return x.new_zeros(x.shape[0], mh, mw, x.shape[3])
    x = fit(x, ratio, edge)
    if torch.is_grad_enabled() and not is_exporting():
        if x.device.type in plan.KERNEL_DEVICES:
            return _by_products(x, weight, bias)
        if x.device.type == "cpu" and _in_halves(x) and not _is_transformed():
            return _by_taps(x, weight, bias)
    x = x.permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, stride=ratio, groups=weight.shape[0]).permute(0, 2, 3, 1)


def _by_taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the convolution, for training in halves: torch's gradient of a strided depthwise one takes 20 times as long
    in bfloat16 on a CPU. In float32 it is the quicker."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    run = _operator if torch.compiler.is_compiling() else _Taps.apply
    y = run(x, weight)
    assert isinstance(y, Tensor)
    return y if bias is None else y + bias


def _by_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the convolution, for training on a GPU: one product and one sum, which a compiler makes one, both ways."""
    rh, rw = weight.shape[2:]
    taps = weight.to(_wide(x.dtype)).permute(2, 1, 3, 0)  # (R_h, 1, R_w, C)
    blocks = x.view(x.shape[0], x.shape[1] // rh, rh, x.shape[2] // rw, rw, x.shape[3])
    y = (blocks * taps).sum((2, 4))
    return (y if bias is None else y + bias).to(x.dtype)


def _is_transformed() -> bool:
    """Whether torch.func, or a derivative forwards, asks for operators that it knows."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _in_halves(x: Tensor) -> bool:
    """Whether a CPU would convolve x in 16 bits."""
    autocast = x.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype).itemsize == 2


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    """(B, h R_h, w R_w, C) and (C, 1, R_h, R_w) to (B, h, w, C): a sum over R_h R_w taps, in float32 or wider."""
    wide = _wide(x.dtype)
    taps, blocks = weight.to(wide).flatten(1), _blocks(x, weight)
    total: Tensor | None = None
    for n, tap in enumerate(taps.unbind(1)):
        part = blocks[n].to(wide) * tap
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.to(x.dtype).contiguous()


def _forward_like(x: Tensor, weight: Tensor) -> Tensor:
    rh, rw = weight.shape[2:]
    return x.new_empty(x.shape[0], x.shape[1] // rh, x.shape[2] // rw, x.shape[3])


def _backward(dy: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool) -> tuple[Tensor, Tensor]:
    """The gradients that are wanted, and nothing in place of the others."""
    dx, dw = _backward_like(dy, x, weight, wants_x, wants_weight)
    if wants_x:
        taps = weight.permute(2, 3, 1, 0)[:, None]  # (R_h, 1, R_w, 1, C) once its axes are in the order of x
        dx = (dy[:, :, None, :, None] * taps.permute(1, 0, 3, 2, 4)).reshape(x.shape).contiguous()
    if wants_weight:
        wide = _wide(x.dtype)
        g = dy.to(wide)
        sums = [(block.to(wide) * g).sum((0, 1, 2)) for block in _blocks(x, weight)]
        dw = torch.stack(sums, 1).view(weight.shape).to(weight.dtype)
    return dx, dw


def _backward_like(dy: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if wants_x else 0), weight.new_empty(weight.shape if wants_weight else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, backward: Callable[..., Any], dy: Tensor) -> tuple[Tensor | None, ...]:
    wants = ctx.needs_input_grad
    run = _backward if torch.is_grad_enabled() else backward  # whose steps have gradients of their own
    every = run(dy, *ctx.saved_tensors, *wants)
    return tuple(gradient if wanted else None for gradient, wanted in zip(every, wants, strict=True))


class _Taps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _forward(*inputs)
        _keep(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, _backward, *gradients)


# Torch's operators in any case.
_operator = register(
    "taps", (_forward, _forward_like), (_backward, _backward_like), (_forward, _backward), _keep, _gradients
)


def _blocks(x: Tensor, weight: Tensor) -> list[Tensor]:
    """What each tap sees: R_h R_w views (B, h, w, C)."""
    rh, rw = weight.shape[2:]
    return [x[:, i::rh, j::rw] for i in range(rh) for j in range(rw)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def block_sum(x: Tensor, ratio: tuple[int, int], edge: str) -> Tensor:
    """Sums each R x R block of (B, H, W) to (B, H/R, W/R)."""
    x = fit(x, ratio, edge)
    (rh, rw), (batch, height, width) = ratio, x.shape
    return x.view(batch, height // rh, rh, width // rw, rw).sum((2, 4))


def cleared(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, H, W, C) with zeros where the mask (B, H, W) is false, whatever stood there."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0)


def any_valid(mask: Tensor, ratio: tuple[int, int], edge: str) -> Tensor:
    """Whether any token of each R x R block of (B, H, W) is valid, (B, H/R, W/R)."""
    return block_sum(mask.to(torch.float32), ratio, edge) > 0


def window_matrix(size: int, cells: int, like: Tensor) -> Tensor:
    """(cells, size), 1 where adaptive pooling looks: cell i from floor(i size / cells) to ceil((i+1) size / cells)."""
    cell = torch.arange(cells, device=like.device).unsqueeze(1)
    source = torch.arange(size, device=like.device)
    inside = (source >= cell * size // cells) & (source < ((cell + 1) * size + cells - 1) // cells)
    return inside.to(like.dtype)


def _apply_windows(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """P_h X P_w^T for X (B, H, W, C), P_h (cells_h, H), P_w (cells_w, W); columns first keeps C times cells static."""
    batch, height, _, channels = x.shape
    x = (columns @ x).reshape(batch, height, columns.shape[0] * channels)
    return (rows @ x).view(batch, rows.shape[0], columns.shape[0], channels)


def window_sum(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """Sums (B, H, W, C) over the windows of adaptive pooling, to (B, cells_h, cells_w, C)."""
    return _apply_windows(x, window_matrix(x.shape[1], cells[0], x), window_matrix(x.shape[2], cells[1], x))


def pooled(x: Tensor, cells: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """Adaptive average pooling of (B, H, W, C) to (B, cells_h, cells_w, C), the mean taken over valid tokens alone."""
    if mask is None:
        return _window_mean(x, cells)
    mask = mask.unsqueeze(-1)
    # In float32 at least: a few valid tokens in a large window are a small part of its mean.
    values = _window_mean(x.masked_fill(~mask, 0.0).to(_wide(x.dtype)), cells)
    valid = _window_mean(mask.to(_wide(x.dtype)), cells)
    return (values / valid.masked_fill(valid == 0, 1.0)).to(x.dtype)


def _window_mean(x: Tensor, cells: tuple[int, int]) -> Tensor:
    p_h, p_w = window_matrix(x.shape[1], cells[0], x), window_matrix(x.shape[2], cells[1], x)
    # Means, not sums, go through the products: a half-precision sum over a large window would overflow.
    return _apply_windows(x, p_h / p_h.sum(1, keepdim=True), p_w / p_w.sum(1, keepdim=True))
