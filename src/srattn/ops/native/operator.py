"""Kernels with gradients of their own as operators, which torch.compile puts into its graphs as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from srattn.ops import switch


def register(
    name: str,
    forward: tuple[Callable[..., Any], Callable[..., Any]],
    backward: tuple[Callable[..., Any], Callable[..., Any]],
    plain: tuple[Callable[..., Any], Callable[..., Any]],
    keep: Callable[..., None],
    gradients: Callable[..., Any],
) -> Any:
    """`srattn::cpu_NAME`, and `srattn::cpu_NAME_backward` for its gradients.

    In eager mode an autograd function of the same parts is called with less ado.

    Args:
        forward, backward: what computes, and what makes empty tensors of the same form.
        plain: what computes both by torch's operators, where `without_kernels` asks for them; without autograd, which
            knows nothing within an operator.
        keep: (ctx, inputs, output), keeps what backward reads.
        gradients: (ctx, backward, *gradients of the outputs) to a gradient of every input, or None.

    Returns:
        The operator; it takes what `forward` takes.
    """
    run, back = (
        torch.library.custom_op(f"srattn::cpu_{name}{end}", _switched(*both), mutates_args=(), device_types="cpu")
        for end, *both in (("", forward[0], plain[0]), ("_backward", backward[0], plain[1]))
    )
    run.register_fake(forward[1])
    back.register_fake(backward[1])

    def gradients_of(ctx: Any, *given: Any) -> Any:
        return gradients(ctx, back, *given)

    run.register_autograd(gradients_of, setup_context=keep)
    return run


def _switched(compute: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compute)
    def either(*given: Any) -> Any:
        return (plain if switch.is_off() else compute)(*given)

    return either
