"""Kernels with gradients of their own as operators, which torch.compile puts into its graphs as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register(
    name: str,
    forward: tuple[Callable[..., Any], Callable[..., Any]],
    backward: tuple[Callable[..., Any], Callable[..., Any]],
    keep: Callable[..., None],
    gradients: Callable[..., Any],
) -> Any:
    """`srattn::cpu_NAME`, and `srattn::cpu_NAME_backward` for its gradients.

    In eager mode an autograd function of the same parts is called with less ado.

    Args:
        forward, backward: what computes, and what makes empty tensors of the same form.
        keep: (ctx, inputs, output), keeps what backward reads.
        gradients: (ctx, backward, *gradients of the outputs) to a gradient of every input, or None.

    Returns:
        The operator; it takes what `forward` takes.
    """
    run, back = (
        torch.library.custom_op(f"srattn::cpu_{name}{end}", compute, mutates_args=(), device_types="cpu")
        for end, (compute, _) in (("", forward), ("_backward", backward))
    )
    run.register_fake(forward[1])
    back.register_fake(backward[1])

    def gradients_of(ctx: Any, *given: Any) -> Any:
        return gradients(ctx, back, *given)

    run.register_autograd(gradients_of, setup_context=keep)
    return run
