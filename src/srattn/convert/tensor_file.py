"""Writing .safetensors files without numpy, which the format's own Python writer needs and our bare installation lacks.

The format: the header's length in eight bytes, a JSON header (name -> dtype, shape, begin and end), the tensors' bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping

import torch

from srattn.errors import SrattnError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes `tensors` and the text of `metadata` to `path` as a .safetensors file."""
    if sys.byteorder != "little":
        raise SrattnError("writing .safetensors is supported on little-endian machines alone; choose .pth")
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # Wide types first keeps every tensor aligned to its own width, as the format's own writer does.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    begin = 0
    for name in ordered:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise SrattnError(f"{name!r}: .safetensors files hold no {tensor.dtype} here; choose .pth")
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
        begin += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            tensor = tensors[name].detach().cpu().contiguous()
            if tensor.nbytes:
                file.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
