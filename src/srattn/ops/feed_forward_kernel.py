"""The compiled feed-forward for training (`native/kernels/training.h`) on tensors: float32 on a CPU."""

import ctypes
import functools
from ctypes import POINTER, c_int, c_long, c_void_p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srattn.ops.native import library as native
from srattn.ops.tracing import constant_while_compiling

if TYPE_CHECKING:
    from srattn.ops.feed_forward import Weights

GROUP = 32
"""Hidden channels that the kernel has in hand at a time."""
_NAMES = ["fc1", "fc1_bias", "taps", "taps_bias", "fc2", "fc2_bias"]


class Mlp(ctypes.Structure):
    _fields_ = [*((name, c_void_p) for name in _NAMES), *((name, c_long) for name in ["in", "hidden", "out", "relu"])]


class Gradients(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("x", *_NAMES)]


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    if not native.available():
        return None
    library = native.library()
    library.srattn_mlp_sizes.argtypes, library.srattn_mlp_sizes.restype = [c_int], c_long
    if [library.srattn_mlp_sizes(i) for i in range(2)] != [ctypes.sizeof(s) for s in (Mlp, Gradients)]:
        return None  # another compiler's idea of alignment
    sizes = [c_long] * 4  # batch, height, width, rows
    library.srattn_mlp_forward.argtypes = [POINTER(Mlp), c_void_p, c_void_p, *sizes, c_int]
    library.srattn_mlp_backward.argtypes = [POINTER(Mlp), c_void_p, c_void_p, POINTER(Gradients), *sizes, c_int]
    return library


def reason_against(dtype: torch.dtype, convolution: bool, relu: bool) -> str | None:
    """Why the kernel does not compute this feed-forward, in words; None where it does."""
    if dtype != torch.float32:
        return f"the kernel is for float32, not {dtype}"
    if relu and not convolution:
        return "the kernel knows a ReLU before a convolution alone"
    if (against := native.why_not()) is not None:
        return against
    return None if _trains() else "the compiled library has no kernels for training"


@constant_while_compiling
def _trains() -> bool:
    return _library() is not None


def rows(shape: tuple[int, ...], hidden: int, out: int, convolution: bool) -> int:
    """Rows of the map in one unit of work: what fits the private cache, and as much work for every thread."""
    batch, height, width, dim = shape
    row = 4 * width * (3 * GROUP + dim + out)  # h, its gradient, GELU of it; map and gradient as panels
    halo = 4 * width * 8 * GROUP // 2 if convolution else 0
    fit = max(1, (native.cache_bytes() * 7 // 8 - halo) // row)
    threads = torch.get_num_threads()
    if fit >= height:  # several maps at once, the same number for every thread
        turns = -(-batch // (threads * max(1, min(fit // height, batch // threads))))
        return height * max(1, -(-batch // (threads * turns)))
    bands = -(-height // max(fit, 4 if convolution else 1))
    while bands * batch % threads and bands < height:
        bands += 1
    return -(-height // bands)


def forward(x: Tensor, w: "Weights", relu: bool, rows: int) -> Tensor:
    """x (B, H, W, in) to (B, H, W, out)."""
    library = _library()
    assert library is not None
    x, weights = x.contiguous(), _contiguous(w)
    out = x.new_empty(*x.shape[:3], w.fc2.shape[0])
    sizes = (*x.shape[:3], rows, torch.get_num_threads())
    native.check(library.srattn_mlp_forward(_structure(weights, relu), x.data_ptr(), out.data_ptr(), *sizes))
    return out


def backward(x: Tensor, dy: Tensor, w: "Weights", relu: bool, rows: int, wants_x: bool) -> list[Tensor | None]:
    """Gradients of x (None unless wanted) and of every weight, None for those that are absent."""
    library = _library()
    assert library is not None
    x, dy, weights = x.contiguous(), dy.contiguous(), _contiguous(w)
    found = [None if t is None else t.new_empty(t.shape) for t in (x if wants_x else None, *weights)]
    gradients = Gradients(*(native.address(t) for t in found))
    sizes = (*x.shape[:3], rows, torch.get_num_threads())
    mlp = _structure(weights, relu)
    native.check(library.srattn_mlp_backward(mlp, x.data_ptr(), dy.data_ptr(), gradients, *sizes))
    return found


def _contiguous(w: "Weights") -> list[Tensor | None]:
    return [None if t is None else t.detach().contiguous() for t in w]


def _structure(weights: list[Tensor | None], relu: bool) -> Mlp:
    """Addresses of the weights, which the caller keeps."""
    fc1, fc2 = weights[0], weights[4]
    assert fc1 is not None and fc2 is not None
    return Mlp(*(native.address(t) for t in weights), fc1.shape[1], fc1.shape[0], fc2.shape[0], int(relu))
