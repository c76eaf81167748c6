"""Triton where it is installed. Without it the kernels' modules import all the same, and nothing can be launched."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch

from srattn.errors import SrattnError


class _Absent:
    """Stands for Triton's language, so that annotations and decorators of kernels can be read."""

    def __getattr__(self, name: str) -> Any:
        return self if not name.startswith("__") else super().__getattribute__(name)

    def __call__(self, *args: Any) -> Any:
        return self


triton: Any
tl: Any
try:
    import triton
    import triton.language as tl
except ImportError:
    triton, tl = None, _Absent()

INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET", "0") == "1"
"""True where kernels run in Triton's interpreter, on tensors of the CPU; decided at import, as Triton does."""


def _mend_interpreter() -> None:
    """Two mends of the interpreter of Triton 3.6, each left out where it finds nothing to mend.

    It takes int() of arrays of one element, which numpy refuses from 2.4 on, so that loops would have no bounds; and
    its dot multiplies the bit patterns of bf16, where exact products summed in fp32 are meant.
    """
    from triton.runtime import interpreter

    patch_tensor = getattr(interpreter, "_patch_lang_tensor", None)
    builder = getattr(interpreter, "InterpreterBuilder", None)
    if patch_tensor is not None:

        def patched(tensor: Any, scope: Any) -> None:
            patch_tensor(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        interpreter._patch_lang_tensor = patched
    if builder is not None:
        dot = builder.create_dot

        def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            single = self.get_float_ty()
            a, b = (self.create_fp_ext(t, single) if t.dtype.scalar == self.get_bf16_ty() else t for t in (a, b))
            return dot(self, a, b, *rest)

        builder.create_dot = create_dot


if INTERPRETED:
    _mend_interpreter()


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function itself where Triton is absent."""
    return function if triton is None else triton.jit(function)


def runs_on(x: torch.Tensor) -> bool:
    """Whether a kernel can be launched on this tensor; elsewhere operators compute their definition."""
    return triton is not None and (x.is_cuda or INTERPRETED)


def launch(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], **options: int) -> None:
    """Launches a kernel, visibly to whoever traces the operator (a `triton_op` under `torch.compile`).

    Args:
        options: num_warps, num_stages.

    Raises:
        SrattnError: Triton is not installed.
    """
    if triton is None:
        raise SrattnError("this needs Triton, which is not installed: pip install triton")
    if INTERPRETED:
        kernel[grid](**arguments)
    elif torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        torch.library.wrap_triton(kernel)[grid](**arguments, **options)
    else:  # what is wrapped takes the host some tenths of a millisecond
        given = [a for a in arguments.values() if isinstance(a, torch.Tensor)]
        with torch.cuda.device_of(given[0]) if given else contextlib.nullcontext():  # it need not be the current one
            kernel[grid](**arguments, **options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and 16, the least that a matrix unit takes."""
    return 1 << max(n - 1, 15).bit_length()


def ceil_div(n: int, d: int) -> int:
    return -(-n // d)
