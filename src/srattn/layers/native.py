"""When modules in eval mode go through the compiled kernels: who may, and weights laid out that follow every change.

A block or an embedding in eval mode on a CPU takes the kernels by itself where no gradient is wanted. They work on a
copy of the weights in a layout of their own. It is made at the first call, and made anew as soon as a parameter is
another one or has changed, which every call looks for, or a part is. (Of a change through `.data`, which torch does not
count, some of the numbers tell; where it is one of a single number, `forget` is for it.)

Matrix products read float32; in bfloat16, of the model or of autocast, they read bfloat16 where the processor has
AVX-512 instructions for it, in its matrix units (AMX) where it has those. Matrix units that the kernels cannot use are
left to torch: those for float16, and those for bfloat16 where the compiler does not know them.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from srattn.ops import native
from srattn.ops.native import Operand
from srattn.ops.plan import forced
from srattn.ops.tracing import constant_while_compiling, is_exporting

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Layout = TypeVar("Layout")


WATCHED = (
    "eps", "scale", "num_heads", "extra_relu", "size", "ratio",
    "stride", "padding", "dilation", "padding_mode", "groups",
)  # fmt: skip
"""Numbers of modules that a layout depends on, beside their parameters."""


class _Prepared:
    """A module's layout for the kernels, and everything that it depends on.

    It holds what is inside the module and never the module: else neither would be freed. Every call asks whether any of
    it is another one now, of hundreds of things, so that is asked by `map`, without a loop in Python.
    """

    def __init__(self, module: nn.Module) -> None:
        inner = list(module.modules())
        self.inside = inner[1:]
        self.kinds = [type(m) for m in inner]
        self.attributes = [*map(vars, self.inside)]
        self.children = _columns([(m._modules, name, child) for m in inner for name, child in m._modules.items()])
        self.named = [names for m in inner for names in (m._modules, m._parameters, m._buffers)]
        self.names = [*map(tuple, self.named)]
        self.numbers = _columns([(vars(m), name, vars(m)[name]) for m in inner for name in WATCHED if name in vars(m)])
        parameters = [(m._parameters, name) for m in inner for name in m._parameters]
        parameters += [  # and the statistics of batch norms, which are as much of a layout
            (m._buffers, name) for m in inner for name, b in m._buffers.items() if b is None or b.is_floating_point()
        ]
        self.parameters = [owner for owner, _ in parameters], [name for _, name in parameters]
        # A tensor in a parameter's place is followed by nobody; an `Opaque` module's number is none.
        self.bare = any(isinstance(v, Tensor) for m in inner for name, v in vars(m).items() if name != "number")
        self.tensors: list[weakref.ref[Tensor]] = []
        self.state: tuple[list[int], list[int]] = [], []
        self.sample: native.Sample | None = None
        self.dtypes: set[torch.dtype] = set()
        self.is_known = False
        self.layouts: dict[Operand, Any] = {}

    def is_changed(self, module: nn.Module) -> bool:
        """Whether a part has been replaced or added, is of another class, or has another number."""
        owners, names, children = self.children
        if not all(map(operator.is_, map(dict.get, owners, names), children)):
            return True
        owners, names, values = self.numbers
        return (
            [*map(dict.get, owners, names)] != values
            or [*map(tuple, self.named)] != self.names
            or [*map(type, (module, *self.inside))] != self.kinds
        )

    def is_disturbed(self, module: nn.Module) -> bool:
        """Whether the module or one inside is in training mode, is listened to by a hook, or has a forward put in."""
        return any(
            [
                m.get("training", True) or m["_forward_hooks"] or m["_forward_pre_hooks"] or "forward" in m
                for m in (vars(module), *self.attributes)
            ]
        )

    def refresh(self) -> None:
        """Drops the layouts if a parameter is another tensor, or this one has changed.

        Torch counts a tensor's changes, but not those through `.data` (as optimisers and averages of weights of one's
        own make them): some of the numbers themselves are compared too.
        """
        found = [p for p in map(operator.getitem, *self.parameters) if p is not None]
        state = [*map(Tensor.data_ptr, found)], [*map(_version, found)]
        same = state == self.state and all(map(operator.is_, [ref() for ref in self.tensors], found))
        if same and self.sample is not None and self.sample.is_unchanged():
            return
        self.layouts = {}  # a new one: another thread may be reading that of before
        self.state, self.tensors = state, [weakref.ref(p) for p in found]
        self.sample, self.dtypes = native.Sample(found), {p.dtype for p in found}
        here = all(p.device.type == "cpu" and type(p) in (Tensor, nn.Parameter) for p in found)
        self.is_known = here and not self.bare

    def layout(self, module: nn.Module, operand: Operand, make: Callable[[Any, Operand], Any]) -> Any:
        """What `make` laid out for these operands, once."""
        layouts = self.layouts
        if operand not in layouts:
            layouts[operand] = make(module, operand)
        return layouts[operand]


def _columns(rows: list[tuple[dict[str, Any], str, Any]]) -> tuple[list[dict[str, Any]], list[str], list[Any]]:
    """Owners, names and what was there, each in a list of its own."""
    return [owner for owner, _, _ in rows], [name for _, name, _ in rows], [found for _, _, found in rows]


_version: Callable[[Tensor], int] = operator.attrgetter("_version")
_prepared: weakref.WeakKeyDictionary[nn.Module, _Prepared] = weakref.WeakKeyDictionary()


def forget(model: nn.Module) -> None:
    """Drops the prepared weights of every module in `model`: for single weights that were changed through `.data`."""
    for module in model.modules():
        _prepared.pop(module, None)


def layout_of(module: nn.Module, x: Tensor, make: Callable[[Any, Operand], Layout | None]) -> Layout | None:
    """The weights of `module` as `make` lays them out for the kernels; None where x or the module speaks against it."""
    if reason_against(x) is not None:  # first of all: it says no while torch traces, and asks no more then
        return None
    operand = operand_for(x)
    entry = _entry(module)
    if operand is None or entry is None or not entry.is_known or entry.is_disturbed(module):
        return None
    if entry.dtypes != {x.dtype} and not (entry.dtypes == {torch.float32} and torch.is_autocast_enabled("cpu")):
        return None
    return entry.layout(module, operand, make)


def as_computed(x: Tensor) -> Tensor:
    """x in the type that a convolution computes in, which autocast sets: its map has it, with kernels or without."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def stays_whole(module: nn.Module, of: type, x: Tensor, knows: Callable[[Any, Operand], bool]) -> bool:
    """Whether torch.compile, which reads this now, is to leave `module` to the kernels; `knows` says if they suit it.

    Only a module of the class `of` itself: the forward of another class may be more than the one that asks. The
    compiler asks all of this again before it calls its graph, of what it can see. A module that is disturbed later, or
    called without kernels, is right all the same: its forward decides anew.
    """
    if not torch.compiler.is_compiling() or is_exporting() or type(module) is not of:
        return False
    if torch.is_grad_enabled() or x.device.type != "cpu" or forced() is not None or x.dtype not in DTYPES:
        return False
    operand = operand_of(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype)
    if operand is None or not native.available() or not knows(module, operand):
        return False
    return not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def part_of_layout(module: nn.Module, operand: Operand, make: Callable[[Any, Operand], Layout | None]) -> Layout | None:
    """The weights of `module` as `make` lays them out, for the layout of a module around it: both share one copy."""
    entry = _entry(module)
    return None if entry is None else entry.layout(module, operand, make)


def _entry(module: nn.Module) -> _Prepared | None:
    """What is kept for this module, up to date; None where torch does not count the changes of its parameters."""
    entry = _prepared.get(module)
    if entry is None or entry.is_changed(module):
        entry = _prepared[module] = _Prepared(module)
    try:
        entry.refresh()
    except RuntimeError:  # an inference tensor counts no versions
        return None
    return entry


def knows_norm(norm: nn.Module) -> bool:
    """Whether the kernels compute this norm: a layer norm over the last axis alone, with weight and bias."""
    return (
        type(norm) is nn.LayerNorm
        and len(norm.normalized_shape) == 1
        and norm.weight is not None
        and norm.bias is not None
    )


def operand_for(x: Tensor) -> Operand | None:
    """What the products read for this tensor here and now; None where they are torch's."""
    if x.dtype in DTYPES and torch.is_autocast_enabled("cpu"):
        return operand_of(torch.get_autocast_dtype("cpu"))
    return operand_of(x.dtype)


@constant_while_compiling
def operand_of(dtype: torch.dtype) -> Operand | None:
    """What the products read for maps of this type, or under autocast to it; None where they are torch's."""
    flags = native.processor_flags()
    if dtype == torch.bfloat16:
        narrow = "avx512_bf16" in flags and native.available("bfloat16")
        if "amx_bf16" in flags and not (narrow and native.has_matrix_units()):
            return None
        return "bfloat16" if narrow else "float32"
    if dtype == torch.float16:
        return None if "amx_fp16" in flags else "float32"
    return "float32" if dtype == torch.float32 else None


def reason_against(x: Tensor) -> str | None:
    """Why the kernels do not take this tensor here and now, in words; None where they do."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return "torch traces the model"
    if torch.is_grad_enabled():
        return "gradients are recorded: call within torch.inference_mode() or torch.no_grad()"
    if x.device.type != "cpu":
        return f"the kernels are for CPUs, the tensor is on {x.device.type}"
    if operand_for(x) is None:
        return f"{x.dtype} is computed by torch" + (", in units of this processor" if x.dtype in DTYPES else "")
    if forced() is not None:
        return "a path is forced by force_path"
    if type(x) is not Tensor or torch._C._len_torch_dispatch_stack():
        return "a tensor subclass or a dispatch mode"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms the call, or it is differentiated forwards"
    if torch.nn.modules.module._has_any_global_hook():
        return "a global hook listens to every module"
    if x.is_neg() or x.is_conj():
        return "the tensor is a view with another sign"
    if not x.numel():
        return "the tensor is empty"
    return native.why_not()
