"""torch.compile of the parts of a model that repeat, one graph for all parts of one shape."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from srattn.models.backbone import Stage
from srattn.ops import plan

_LAYOUTS_STAY = {"layout_optimization": False}


def compile_parts(model: nn.Module) -> int:
    """Compiles each stage's embedding and blocks in place, or the whole model where it has no stages.

    The blocks of a stage are alike and share one graph, so that a deep model waits no longer for the compiler than a
    flat one. Sizes are fixed: symbols in their place make slower kernels. On a GPU, layouts stay those of the tokens,
    channels last: beside a convolution the compiler would take (B, H, W, C) for a map of H channels, and lay it out, to
    and fro, as such.

    Returns:
        The number of parts.
    """
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    parts: list[nn.Module] = [part for stage in stages for part in (stage.patch_embed, *stage.blocks)] or [model]
    config = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage]
    config.recompile_limit = max(config.recompile_limit, 2 * len(parts))  # all parts count as one function
    blocks = {id(block) for stage in stages for block in stage.blocks if _on_gpu(block)}
    for part in parts:
        part.compile(dynamic=False, options=_LAYOUTS_STAY if id(part) in blocks else None)
    return len(parts)


def _on_gpu(module: nn.Module) -> bool:
    return any(parameter.device.type in plan.KERNEL_DEVICES for parameter in module.parameters())


def eager_unless(wanted: bool) -> contextlib.AbstractContextManager[object]:
    """Within the block nothing is compiled, nor anew for other sizes, unless it is `wanted`."""
    return contextlib.nullcontext() if wanted else torch.compiler.set_stance("force_eager")
