"""The compiled kernels as Python sees them: their structures, and weights laid out for them.

Maps are float32 or bfloat16, and what the matrix products read: there is one library for float32 operands and one for
bfloat16. The structures hold addresses alone, so whoever makes one keeps the tensors (`Held` does). The kernels
themselves, with their comments, are in `kernels/`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_long, c_ulong, c_void_p
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.ops import switch
from srattn.ops.native.build import Operand, Unavailable, library_path, share_threads
from srattn.ops.tracing import constant_while_compiling


class Norm(ctypes.Structure):
    """A layer norm; no weight, no norm."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


class Patch(ctypes.Structure):
    """A convolution to tokens, with a norm of what is read and one of what is made."""

    _fields_ = [
        *((name, c_long) for name in ["in", "out", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w"]),
        *((name, c_void_p) for name in ("weight", "bias")),
        *((name, Norm) for name in ("before", "after")),
    ]


class FeedForward(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ["dim", "hidden", "conv", "relu"]),
        ("norm", Norm),
        *((name, c_void_p) for name in ["fc1", "fc1_bias", "taps", "taps_bias", "fc2", "fc2_bias"]),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        *((name, c_long) for name in ["dim", "heads", "width", "cells_h", "cells_w", "reduces"]),
        ("patch", Patch),
        ("norm", Norm),
        ("scale", c_float),
        *((name, c_void_p) for name in ["key", "value", "query", "out", "query_heads", "out_heads"]),
        *((name, c_void_p) for name in ["key_bias", "value_bias", "query_bias", "out_bias"]),
    ]


class Step(ctypes.Structure):
    """A block: addresses of its halves, either of which may be absent, the grid of its keys, the attention's form; of
    an attention that is convolved, its address and that of its place."""

    _fields_ = [
        *((name, c_void_p) for name in ["attention", "feed_forward"]),
        *((name, c_long) for name in ["keys_h", "keys_w", "absorbed"]),
        *((name, c_void_p) for name in ["convolved", "place"]),
    ]


class Branch(ctypes.Structure):
    """The way of the queries, of the keys or of the values, which pass a convolution."""

    _fields_ = [
        *((name, c_long) for name in ["stride_h", "stride_w"]),
        *((name, c_void_p) for name in ["taps", "taps_bias"]),
        ("norm", Norm),
        *((name, c_void_p) for name in ["weight", "bias"]),
    ]


class Convolved(ctypes.Structure):
    """Attention whose queries, keys and values pass convolutions, `first` or after their projections."""

    _fields_ = [
        *((name, c_long) for name in ["dim", "out", "heads", "first", "token"]),
        ("norm", Norm),
        ("scale", c_float),
        *((name, Branch) for name in ["query", "key", "value"]),
        *((name, c_void_p) for name in ["weight", "shortcut", "bias", "shortcut_bias"]),
    ]


class Place(ctypes.Structure):
    """The grids of tokens, queries and keys, and the positions between the last two, if any."""

    _fields_ = [
        *((name, c_long * 2) for name in ["in", "queries", "keys"]),
        *((name, c_void_p) for name in ["rows", "columns", "between"]),
        ("distances", c_long),
    ]


_unavailable: dict[Operand, str] = {}
_multiplies_in_units: dict[Operand, bool] = {}


@functools.cache
def _load(operand: Operand) -> ctypes.CDLL | None:
    try:
        path = library_path(operand)
        share_threads()
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # a damaged file
            library = ctypes.CDLL(str(library_path(operand, anew=True)))
    except (Unavailable, OSError) as error:
        _unavailable[operand] = str(error)
        return None
    _multiplies_in_units[operand] = bool(library.srattn_start(True))
    longs, ints = [c_long] * 3, [c_int] * 2
    for name in ("whole", "packed", "weighed", "keys_at_once", "layout_cost", "sizes", "cache"):
        getattr(library, f"srattn_{name}").restype = c_long
    for name in ("whole", "packed", "weighed"):
        getattr(library, f"srattn_{name}").argtypes = [c_long]
    library.srattn_keys_at_once.argtypes = [c_long, c_long]
    library.srattn_sizes.argtypes = [c_int]
    library.srattn_pack.argtypes = [c_void_p, c_long, c_long, c_long, c_long, c_void_p]
    library.srattn_cut.argtypes = [POINTER(FeedForward), c_long, c_long, c_long, POINTER(c_long), POINTER(c_long)]
    library.srattn_patches.argtypes = [POINTER(Patch), c_void_p, POINTER(c_long), *longs, c_void_p, *longs[:2], *ints]
    library.srattn_blocks.argtypes = [POINTER(Step), c_long, c_void_p, c_void_p] + [c_long] * 4 + [c_int, c_long, c_int]
    library.srattn_convolved.argtypes = [c_void_p, POINTER(Place), c_void_p, c_void_p, c_long, c_int, c_long, c_int]
    library.srattn_sample.argtypes, library.srattn_sample.restype = [c_void_p, c_void_p, c_long], c_ulong
    for which, structure in enumerate((Patch, FeedForward, Attention, Step, Convolved, Place)):
        if library.srattn_sizes(which) != ctypes.sizeof(structure):  # another compiler's idea of alignment
            _unavailable[operand] = f"the compiled structure of {structure.__name__} differs from Python's"
            return None
    return library


@constant_while_compiling
def available(operand: Operand = "float32") -> bool:
    """Whether the kernels can run on this machine; compiles them if that has not been tried in this process."""
    return _load(operand) is not None


def why_not(operand: Operand = "float32") -> str | None:
    """Why the kernels do not run here and now, in words; None where they do.

    A graph of torch.compile has them as operators, which look at the switch themselves whenever they run.
    """
    if not torch.compiler.is_compiling() and switch.is_off():
        return switch.OFF
    return _why_never(operand)


@constant_while_compiling
def _why_never(operand: Operand) -> str | None:
    _load(operand)
    return _unavailable.get(operand)


def use_matrix_units(wanted: bool) -> bool:
    """Whether products of bfloat16 are done in the processor's units for matrices from now on: if wanted, and there are
    such. After a change the kernels cannot read weights that were laid out before."""
    _multiplies_in_units["bfloat16"] = bool(library("bfloat16").srattn_start(wanted))
    return has_matrix_units()


def has_matrix_units() -> bool:
    """Whether products of bfloat16 are done in the processor's units for matrices (AMX)."""
    return available("bfloat16") and _multiplies_in_units["bfloat16"]


def library(operand: Operand = "float32") -> ctypes.CDLL:
    """The library; only where `available`."""
    found = _load(operand)
    assert found is not None
    return found


@functools.lru_cache(maxsize=1)
def cache_bytes() -> int:
    """Bytes of the cache that one core has to itself (its second level); 1 MB where the system does not say."""
    size = library().srattn_cache()
    return size if size > 0 else 1 << 20


def check(failed: int) -> None:
    """Raises what a kernel could not."""
    if failed:
        raise SrattnError("out of memory in a CPU kernel: give a smaller batch or image")


def address(tensor: Tensor | None) -> int | None:
    """Where the numbers lie; none of no tensor."""
    return None if tensor is None else tensor.data_ptr()


class Held:
    """A structure, and the tensors whose addresses are in it."""

    def __init__(self, structure: ctypes.Structure) -> None:
        self.structure: Any = structure
        self.tensors: list[Tensor] = []

    @property
    def address(self) -> int:
        """Of the structure itself."""
        return ctypes.addressof(self.structure)

    def put(self, name: str, tensor: Tensor | None) -> None:
        """Sets the address `name` (None leaves it empty)."""
        if tensor is not None:
            self.tensors.append(tensor)
            setattr(self.structure, name, tensor.data_ptr())


def put_norm(held: Held, name: str, norm: Any) -> None:
    """Sets a norm of (weight, bias, eps); None leaves it empty."""
    if norm is not None:
        weight, bias = plain(norm.weight), plain(norm.bias)
        held.tensors += [weight, bias]
        setattr(held.structure, name, Norm(weight.data_ptr(), bias.data_ptr(), norm.eps))


def plain(tensor: Tensor) -> Tensor:
    """A contiguous float32 copy that belongs to nobody else; a view of a parameter would follow its changes in part."""
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def padded(bias: Tensor | None) -> Tensor | None:
    """A bias with zeros up to whole panels."""
    if bias is None:
        return None
    out = torch.zeros(library().srattn_packed(bias.numel()), dtype=torch.float32, device="cpu")
    out[: bias.numel()] = bias.detach()
    return out


def panels(weight: Tensor, operand: Operand = "float32") -> Tensor:
    """A matrix (columns of the result, depth), as torch stores linear maps, in panels for the kernels."""
    weight, found = plain(weight), library(operand)
    columns, depth = weight.shape
    count = found.srattn_packed(columns) * (depth + depth % found.srattn_pair())
    out = torch.empty(count, dtype=getattr(torch, operand), device="cpu")
    found.srattn_pack(weight.data_ptr(), columns, depth, depth, 1, out.data_ptr())
    return out


class Sample:
    """A few numbers of each of some tensors, as they are now."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.library, self.count = library(), len(tensors)
        self.places = (c_void_p * self.count)(*(t.data_ptr() for t in tensors))
        self.sizes = (c_long * self.count)(*map(_bytes, tensors))
        self.seen = self._sum()

    def _sum(self) -> int:
        return self.library.srattn_sample(self.places, self.sizes, self.count)

    def is_unchanged(self) -> bool:
        """Whether they are the same; only while the tensors live where they were."""
        return self._sum() == self.seen


def _bytes(tensor: Tensor) -> int:
    """What lies in one piece from the tensor's first number on; 0 where that is not known, or is no memory of ours."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return 0
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor.numel() * tensor.itemsize if dense else 0
