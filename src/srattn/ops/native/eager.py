"""What kernels with gradients of their own share: when they may be called, on tensors as they lie."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from srattn.ops.native import library as native


def reason_against(x: Tensor, *parameters: Tensor | None) -> str | None:
    """Why no kernel takes x with these parameters, in words; None where one does."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "a compiler reads the model"
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernel is for float32 and bfloat16 on a CPU, not {x.dtype} on {x.device.type}"
    given = [t for t in parameters if t is not None]
    if any(t.dtype != torch.float32 or t.device != x.device for t in given):
        return "its parameters are not float32"
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
    if forward_ad._current_level >= 0:
        return "differentiated forwards"
    if not x.numel() or level is not None:
        return "there is no token" if not x.numel() else "a transformation of torch.func reads the model"
    if torch._C._len_torch_dispatch_stack() or any(type(t) not in (Tensor, torch.nn.Parameter) for t in (x, *given)):
        return "a tensor subclass or a dispatch mode"
    return native.why_not()
