"""What kernels with gradients of their own share: when they may be called, on tensors as they lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from srattn.ops.native import library as native
from srattn.ops.tracing import is_exporting


def reason_against(x: Tensor, *parameters: Tensor | None) -> str | None:
    """Why no kernel takes x with these parameters, in words; None where one does.

    torch.compile reads this too, and keeps the kernels as operators; sizes, which may be symbols, it is not asked for.
    """
    if is_exporting() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "the model is exported or traced"
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernel is for float32 and bfloat16 on a CPU, not {x.dtype} on {x.device.type}"
    given = [t for t in parameters if t is not None]
    if any(t.dtype != torch.float32 or t.device != x.device for t in given):
        return "its parameters are not float32"
    if forward_ad._current_level >= 0:
        return "differentiated forwards"
    if torch._C._are_functorch_transforms_active():
        return "a transformation of torch.func reads the model"
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in (x, *given)):
        return "a tensor subclass"
    if not torch.compiler.is_compiling():
        if torch._C._len_torch_dispatch_stack():
            return "a dispatch mode"
        if not x.numel():
            return "there is no token"
    return native.why_not()
