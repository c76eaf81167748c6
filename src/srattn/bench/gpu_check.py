"""Every kernel against the definition in float64 on the device, forward and gradients, before anything is timed.

A result passes at no more than twice the error of plain torch in the same precision, and what that error may lack by
luck: one unit in the last place of the largest value, and the error of adding up in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops.triton import ahead, attention, depthwise

Given = dict[str, Any]


class Case(NamedTuple):
    """One attention to be checked."""

    batch: int
    queries: int
    keys: int
    dim: int
    heads: int
    key_bias: bool = True
    bias: bool = False
    add: str = ""
    """"x" adds x itself, "other" another tensor."""
    norm: bool = False
    layout: str = "dense"
    """Or "channels first", a transposed view; "strided", every second token of a map."""


class Map(NamedTuple):
    """One depthwise convolution to be checked."""

    shape: tuple[int, ...]
    form: depthwise.Form = depthwise.Form()


What = Case | Map


def name_of(what: What) -> str:
    """Kind, and sizes."""
    return f"attention {what}" if isinstance(what, Case) else f"depthwise {what}"


def check(what: What, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Failures, none where the kernels are right."""
    if isinstance(what, Case):
        return check_attention(what, dtype, device)
    return check_depthwise(what.shape, what.form, dtype, device)


def of_one_image(what: What) -> What:
    """The same with a batch of one."""
    return what._replace(batch=1) if isinstance(what, Case) else what._replace(shape=(1, *what.shape[1:]))


def launches(listed: Sequence[tuple[What, torch.dtype]], device: torch.device) -> list[ahead.Launch]:
    """All that checking these would launch, and does not: what the launches were to write is not looked at."""
    found: list[ahead.Launch] = []
    for what, dtype in listed:
        found += ahead.record(lambda: check(what, dtype, device))  # noqa: B023
    return found


def draw(case: Case, dtype: torch.dtype, device: torch.device) -> Given:
    """Inputs of a case, by the names of `attention.attend`."""
    b, n, m, c, h = case[:5]
    randn = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
    if case.layout == "channels first":
        x = randn(b, c, n).transpose(1, 2)
    elif case.layout == "strided":
        x = randn(b, 1, 2 * n, c)[:, :, ::2]
    else:
        x = randn(b, n, c)
    return {
        "x": x,
        "keys": randn(b, h, m, c) / c**0.5,
        "values": randn(b, m, h, c).transpose(1, 2),
        "key_bias": torch.randn(b, h, m, device=device) if case.key_bias else None,
        "bias": randn(1, h, n, m).expand(b, h, n, m) if case.bias else None,
        "out_bias": randn(c),
        "residual": randn(*x.shape) if case.add == "other" else None,
        "add_x": case.add == "x",
        "norm_eps": 1e-6 if case.norm else None,
    }


def plain(given: Given) -> Tensor:
    """The same in torch's own operators and in the inputs' precision."""
    x, keys, values = given["x"], given["keys"], given["values"]
    q = x if given["norm_eps"] is None else F.layer_norm(x, x.shape[-1:], eps=given["norm_eps"])
    s = q.flatten(1, -2).unsqueeze(1) @ keys.transpose(2, 3)
    for name, axis in (("key_bias", 2), ("bias", None)):
        if given[name] is not None:
            s = s + (given[name] if axis is None else given[name].unsqueeze(axis)).to(s.dtype)
    out = (s.softmax(-1) @ values).sum(1) + given["out_bias"]
    out = out.reshape(*x.shape[:-1], -1)
    if given["add_x"]:
        out = out + x
    return out if given["residual"] is None else out + given["residual"]


def _with_gradients(call: Any, given: Given, weights: Tensor) -> list[Tensor]:
    """The output and the gradient of each tensor, the gradient of the output being `weights`."""
    leaves = {k: v.detach().requires_grad_() for k, v in given.items() if isinstance(v, Tensor)}
    out = call({**given, **leaves})
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), weights.to(out.dtype))]


def failures(
    names: list[str], found: list[Tensor], rough: list[Tensor], truth: list[Tensor], terms: int = 1
) -> list[str]:
    """What is further from the truth than it may be, in words; `terms`: how many are added up, at most, in fp32."""
    words = []
    adding = terms**0.5 * torch.finfo(torch.float32).eps  # rounding errors that are independent add up so
    for name, a, p, t in zip(names, found, rough, truth, strict=True):
        off, may = (a.double() - t).abs().max().item(), (p.double() - t).abs().max().item()
        may = 2 * may + (torch.finfo(a.dtype).eps + adding) * t.abs().max().item()
        if not off <= may:  # a NaN fails
            words.append(f"{name} is {off:.1e} off where {may:.1e} is allowed")
    return words


def check_attention(case: Case, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Failures of one case, none where the kernels are right."""
    given = draw(case, dtype, device)
    names = ["output", *(name for name, value in given.items() if isinstance(value, Tensor))]
    weights = torch.randn(*given["x"].shape, device=device).to(dtype)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    truth = _with_gradients(plain, double, weights)
    rough = _with_gradients(plain, given, weights)
    found = _with_gradients(lambda g: attention.attend(**g), given, weights)
    return failures(names, found, rough, truth, case.batch * case.queries)


def check_depthwise(
    shape: tuple[int, ...], form: depthwise.Form, dtype: torch.dtype, device: torch.device
) -> list[str]:
    """As `check_attention`, for the depthwise convolution."""
    channels = shape[-1]
    x = torch.randn(*shape, device=device).to(dtype)
    given = {
        "x": x,
        "weight": torch.randn(channels, 1, 3, 3, device=device).to(dtype),
        "bias": torch.randn(channels, device=device).to(dtype),
        "form": form,
    }
    weights = torch.randn(*shape, device=device).to(dtype)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()}
    torch_own = lambda g: depthwise.definition(**g)  # noqa: E731
    truth, rough = _with_gradients(torch_own, double, weights), _with_gradients(torch_own, given, weights)
    found = _with_gradients(lambda g: depthwise.depthwise(**g), given, weights)
    return failures(["output", "x", "weight", "bias"], found, rough, truth, x[..., 0].numel())
