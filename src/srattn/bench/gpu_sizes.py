"""What ``srattn bench gpu`` checks, tunes for and measures; and the same at tiny sizes, for Triton's interpreter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from srattn.bench.gpu_check import Case, Map, What
from srattn.ops.triton.depthwise import Form


class Shape(NamedTuple):
    """A map of side x side tokens under ratio R."""

    batch: int
    side: int
    ratio: int
    dim: int
    heads: int

    @property
    def keys(self) -> int:
        return (self.side // self.ratio) ** 2

    def __str__(self) -> str:
        return f"{self.side}x{self.side} batch {self.batch} C {self.dim} heads {self.heads} keys {self.keys}"


class Sizes(NamedTuple):
    """Everything that a run looks at."""

    dtype: torch.dtype
    """Of what is tuned and measured."""
    checked: tuple[tuple[What, torch.dtype], ...]
    tuned: tuple[Case, ...]
    """What blocks of the attention are tuned for; they serve every number of queries nearby."""
    hidden: tuple[Map, ...]
    """What strips of the convolution are tuned for."""
    shapes: tuple[Shape, ...]
    """Few keys: the kernel and the module."""
    further: tuple[Shape, ...]
    """More keys, and the stages of the model: the kernel, and the flash path beside it."""
    model: str
    options: dict[str, Any]
    batch: int
    size: int
    graphs: tuple[int, int]
    """Batches that CUDA graphs meet in turn."""
    memory: tuple[int, int]
    """Batch and size whose peak memory in training is measured."""


CASES = (
    Case(4, 3136, 49, 64, 1),
    Case(4, 3136, 49, 64, 1, add="x", norm=True),
    Case(2, 3136, 49, 128, 2, add="x", norm=True),
    Case(2, 3136, 196, 64, 1, add="other"),
    Case(2, 3136, 196, 128, 2, add="x", norm=True),
    Case(2, 784, 49, 128, 2, layout="channels first"),
    Case(2, 196, 49, 320, 5, add="other"),
    Case(1, 1003, 333, 96, 3, bias=True, layout="strided"),
    Case(1, 2048, 1024, 64, 1, key_bias=False),
)
MAPS = (
    Map((2, 56, 56, 512)),
    Map((2, 13, 9, 100), Form(relu=True)),
    Map((2, 16, 16, 384), Form(residual=True, gelu=False)),
    Map((2, 13, 9, 100), Form(residual=True)),
)

FULL = Sizes(
    torch.bfloat16,
    checked=(
        *((case, torch.bfloat16) for case in (*CASES, *MAPS)),
        *((case, dtype) for dtype in (torch.float16, torch.float32) for case in (*CASES[1:8:2], *MAPS)),
    ),
    tuned=(
        *(Case(64, 3136, keys, dim, heads) for keys in (49, 196) for dim, heads in ((64, 1), (128, 2))),
        Case(64, 3136, 49, 64, 1, add="x", norm=True),
        Case(64, 784, 49, 128, 2, add="x", norm=True),
        Case(64, 196, 49, 320, 5, add="other"),
        *(Case(4, 65536, keys, dim, heads) for keys in (256, 1024) for dim, heads in ((64, 1), (128, 2))),
    ),
    hidden=tuple(
        Map((64, side, side, c)) for side, c in ((56, 512), (28, 1024), (14, 1280), (7, 2048))
    ),
    shapes=tuple(
        Shape(batch, side, ratio, dim, heads)
        for batch in (64, 16)
        for side, ratios in ((56, (8, 4)), (112, (16, 8)))
        for ratio in ratios
        for dim, heads in ((64, 1), (128, 2))
    ),
    further=(
        *(Shape(4, 256, ratio, dim, heads) for dim, heads in ((64, 1), (128, 2)) for ratio in (16, 8)),
        Shape(2, 512, 16, 64, 1),
        Shape(64, 28, 4, 128, 2), Shape(64, 14, 2, 320, 5),
    ),
    model="pvt_v2_b2",
    options={},
    batch=64,
    size=224,
    graphs=(8, 4),
    memory=(16, 512),
)  # fmt: skip

TINY = Sizes(
    torch.float32,
    checked=(
        (Case(1, 20, 5, 16, 1, add="x", norm=True), torch.float32),
        (Case(1, 17, 9, 12, 2, bias=True, layout="strided"), torch.float32),
        (Map((1, 3, 4, 16), Form(relu=True)), torch.float32),
    ),
    tuned=(Case(1, 16, 4, 16, 1),),
    hidden=(Map((1, 2, 3, 16)),),
    shapes=(Shape(1, 8, 4, 16, 1),),
    further=(Shape(1, 4, 4, 16, 2),),
    model="pvt_v2_b0",
    options={"embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2,) * 4},
    batch=1,
    size=32,
    graphs=(2, 1),
    memory=(1, 32),
)
