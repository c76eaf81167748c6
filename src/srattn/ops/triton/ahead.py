"""Compiles a launch ahead of time for a GPU that need not be there, and says what it takes of the chip."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from srattn.ops.triton import attention_launch, batch_norm, depthwise, layer_norm
from srattn.ops.triton.language import triton

HOPPER = ("cuda", 90, 32)
POINTERS = {
    "torch.bfloat16": "*bf16",
    "torch.float16": "*fp16",
    "torch.float32": "*fp32",
    "torch.int64": "*i64",
}


class Launch(NamedTuple):
    """What a call would have launched."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, int]


class Needs(NamedTuple):
    """Of one compiled kernel: registers of a thread, bytes of shared memory and of spills, instructions of note."""

    name: str
    registers: int
    shared: int
    spilled: int
    wgmma: int
    async_copies: int


def record(call: Any, *arguments: Any, **options: Any) -> list[Launch]:
    """The launches of a call of `attention_launch` or of an operator of tokens, none of which happens."""
    found: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], **options: int) -> None:
        found.append(Launch(kernel, grid, arguments, options))

    modules: tuple[Any, ...] = (attention_launch, depthwise, batch_norm, layer_norm)
    before = [module.launch for module in modules]
    for module in modules:
        module.launch = note
    try:
        call(*arguments, **options)
    finally:
        for module, launch in zip(modules, before, strict=True):
            module.launch = launch
    return found


def source(launch: Launch) -> Any:
    """The kernel specialised as a launch with these arguments specialises it: sizes of 1, and multiples of 16."""
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[str(value.dtype)]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_for(launch: Launch, target: tuple[str, int, int] = HOPPER) -> Needs:
    """Compiles one launch to machine code; needs Triton, no GPU."""
    from triton.backends.compiler import GPUTarget

    # Fusion is the default; Triton 3.9 warns where nothing is said.
    options = {"enable_fp_fusion": True, **launch.options}
    made = triton.compile(source(launch), target=GPUTarget(*target), options=options)
    registers, spilled = _resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    return Needs(
        launch.kernel.fn.__name__,
        registers,
        made.metadata.shared,
        spilled,
        len(re.findall(r"wgmma\.mma_async", ptx)),
        len(re.findall(r"cp\.async\.c", ptx)),
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack, by the cuobjdump that comes with Triton; -1 where it cannot."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return -1, -1
    registers, stack = re.search(r"REG:(\d+)", done.stdout), re.search(r"STACK:(\d+)", done.stdout)
    return int(registers[1]) if registers else -1, int(stack[1]) if stack else -1
