"""What a model computes in: autocast, and a scaled loss for fp16."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch

from srattn.errors import SrattnError
from srattn.ops import native

Name = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-10
# What Linux calls the instructions, of x86 processors and, last, of ARM's.
_UNITS = {"bf16": {"amx_bf16", "avx512_bf16", "bf16"}, "fp16": {"amx_fp16", "avx512_fp16", "asimdhp"}}


def has_bf16(device: torch.device) -> bool:
    """Whether the device is known to have units for products of bfloat16; torch emulates them without."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not _UNITS["bf16"].isdisjoint(native.processor_flags())


def fastest(device: torch.device) -> Literal["fp32", "bf16"]:
    """What precision "auto" is on a device."""
    return "bf16" if has_bf16(device) else "fp32"


class Precision:
    """fp32 as it is; bf16 and fp16 by torch.autocast, over weights that stay fp32.

    fp16 has few exponents: its loss is multiplied by a scale that is halved when a gradient overflows (that step
    changes no weight) and doubled after 2,000 steps without (arXiv:1710.03740).

    Attributes:
        warning: what a person should know about this choice; None where there is nothing.

    Raises:
        SrattnError: the device cannot compute so.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if name != "fp32" and not torch.amp.is_autocast_available(device.type):
            raise SrattnError(f"precision {name} is not available on {device}: take fp32")
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise SrattnError(f"this GPU has no bf16: take --precision fp16 or fp32 ({device})")

        flags = native.processor_flags() if device.type == "cpu" else frozenset()
        self.warning = None
        if flags and _UNITS.get(name, flags).isdisjoint(flags):
            self.warning = (
                f"{name} is slow here, this processor has no instructions for it: take --precision fp32 or auto"
            )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """For forward and loss."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.name])

    @property
    def skips_overflow(self) -> bool:
        """Whether a gradient without numbers is the scaler's affair, and no defect; not when its scale is used up."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > _LEAST_SCALE

    def state(self) -> dict[str, Any]:
        """Plain values; empty without a scaler."""
        return self.scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
