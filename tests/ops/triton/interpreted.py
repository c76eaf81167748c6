"""Runs the kernels of attention and convolution in Triton's interpreter, and models through them; see `interpreter`."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any
from unittest import mock

from tests.ops.triton.interpreter import answer

CASES = {
    # (batch, queries, keys, channels, heads), options of gpu_check.Case, dtype, forward and backward blocks
    "whole": ((2, 37, 9, 24, 1), {}, "float32", "whole", "whole"),
    "whole, heads, norm, x added": ((1, 20, 17, 12, 3), {"add": "x", "norm": True}, "float32", "whole", "whole"),
    "whole, bf16, another added": ((1, 33, 5, 16, 2), {"add": "other", "norm": True}, "bfloat16", "whole", "whole"),
    "whole, strided": ((1, 18, 3, 16, 1), {"key_bias": False, "layout": "strided"}, "float16", "whole", "whole"),
    "blocked, tail": ((1, 20, 37, 24, 1), {"layout": "channels first"}, "float32", "blocked", "blocked"),
    "blocked, one block": ((2, 17, 16, 20, 2), {"add": "x", "norm": True}, "float32", "blocked", "blocked"),
    "blocked, bias": ((1, 18, 19, 16, 2), {"bias": True, "add": "other"}, "bfloat16", "blocked", "blocked"),
    "blocked, channels in chunks": ((1, 9, 18, 150, 1), {}, "float32", "blocked", "blocked"),
    "blocked, bf16, channels in chunks": ((1, 9, 5, 320, 2), {"add": "other"}, "bfloat16", "blocked", "blocked"),
    "blocked, 160 channels": ((1, 9, 18, 160, 1), {"add": "x", "norm": True}, "float16", "blocked", "blocked"),
    "blocked, one block, bias": ((1, 9, 6, 24, 3), {"bias": True, "norm": True}, "float16", "blocked", "blocked"),
    "blocked, 16 heads": ((1, 3, 2, 32, 16), {"add": "x"}, "bfloat16", "blocked", "blocked"),
    "blocked, 1024 keys": ((1, 5, 1024, 16, 1), {"key_bias": False}, "bfloat16", "long", "long"),
    "blocked, 333 keys, bias": ((1, 5, 333, 96, 1), {"bias": True, "layout": "strided"}, "bfloat16", "long", "long"),
    "whole, 5 heads": ((1, 9, 3, 40, 5), {"norm": True}, "float16", "whole", "whole"),
    "whole, one token, one key": ((2, 1, 1, 8, 1), {"add": "x", "norm": True}, "bfloat16", "whole", "whole"),
    "blocked, one token, one key": ((2, 1, 1, 8, 2), {"bias": True}, "float32", "blocked", "blocked"),
    "as by rule of thumb": ((1, 70, 49, 64, 1), {"add": "x", "norm": True}, "bfloat16", None, None),
}  # fmt: skip


def one(name: str) -> list[str]:
    import torch

    from srattn.bench import gpu_check
    from srattn.ops.triton import attention_launch
    from srattn.ops.triton.choices import Blocks

    sizes, options, dtype, forward, backward = CASES[name]
    torch.manual_seed(0)
    kinds = {
        "whole": Blocks("whole", 16, 0, 4, 1, 2),
        "blocked": Blocks("blocked", 16, 16, 4, 1),
        "long": Blocks("blocked", 16, 128, 4, 1),
    }
    chosen = {}
    if forward is not None:
        chosen = {"forward_blocks": lambda *_: kinds[forward], "backward_blocks": lambda *_: kinds[backward]}
    with mock.patch.multiple(attention_launch, **chosen) if chosen else contextlib.nullcontext():
        return gpu_check.check_attention(gpu_check.Case(*sizes, **options), getattr(torch, dtype), torch.device("cpu"))


def mask() -> list[str]:
    """Minus infinity takes a key away, and a query that loses all of them gets the output bias."""
    import torch

    from srattn.ops.triton import attention, attention_launch
    from srattn.ops.triton.choices import Blocks

    wrong = []
    x, k = torch.randn(2, 5, 16), torch.randn(2, 1, 20, 16)
    bias = torch.zeros(2, 1, 20)
    bias[0, :, 16:] = bias[1] = float("-inf")
    b = torch.randn(16)
    truth, _ = attention.definition(x, k[:, :, :16], k[:, :, :16], None, None, b)
    for blocks in (Blocks("whole", 16, 0, 4, 1), Blocks("blocked", 16, 16, 4, 1)):
        with mock.patch.object(attention_launch, "forward_blocks", lambda *_: blocks):  # noqa: B023
            out = attention.attend(x, k, k, bias, None, b)
        if not torch.allclose(out[0], truth[0], atol=1e-5):
            wrong.append(f"{blocks.kind}: masked keys count")
        if not torch.allclose(out[1], b.expand(5, 16)):
            wrong.append(f"{blocks.kind}: without keys there is more than the bias")
        x.requires_grad_()
        given = {"forward_blocks": lambda *_: blocks, "backward_blocks": lambda *_: blocks}  # noqa: B023
        with mock.patch.multiple(attention_launch, **given):
            (dx,) = torch.autograd.grad(attention.attend(x, k, k, bias, None, b).square().sum(), x)
        (expected,) = torch.autograd.grad(
            attention.definition(x, k[:, :, :16], k[:, :, :16], None, None, b)[0][0].square().sum(), x
        )
        if not torch.allclose(dx, expected, atol=1e-4):  # that of the image without keys is zero
            wrong.append(f"{blocks.kind}: masked keys have a say in the gradient")
        x = x.detach()
    return wrong


def widths() -> list[str]:
    """Channels of the output that are not those of x, on a grid strided in both directions, and the same bits twice."""
    import torch

    from srattn.ops.triton import attention, attention_launch
    from srattn.ops.triton.choices import Blocks

    wrong = []
    torch.manual_seed(0)
    x = torch.randn(1, 10, 6, 24)[:, ::2, ::2].requires_grad_()  # 5 x 3 tokens
    k, v = (torch.randn(1, 2, 7, width, requires_grad=True) for width in (24, 40))
    r = torch.randn(1, 3, 5, 40).transpose(1, 2)
    truth, _ = attention.definition(x, k, v, residual=r)
    expected = torch.autograd.grad(truth.square().sum(), (x, k, v))
    for blocks in (Blocks("whole", 16, 0, 4, 1, 1), Blocks("blocked", 16, 16, 4, 1, 1)):
        given = {"forward_blocks": lambda *_: blocks, "backward_blocks": lambda *_: blocks}  # noqa: B023
        runs = []
        with mock.patch.multiple(attention_launch, **given):
            for _ in range(2):
                out = attention.attend(x, k, v, residual=r)
                runs.append([out, *torch.autograd.grad(out.square().sum(), (x, k, v))])
        for a, again, b in zip(*runs, (truth, *expected), strict=True):
            if not torch.equal(a, again):
                wrong.append(f"{blocks.kind}: another run gives other bits")
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
                wrong.append(f"{blocks.kind}: {tuple(a.shape)} is {(a - b).abs().max():.1e} off")
    return wrong


def convolution() -> list[str]:
    import torch

    from srattn.bench import gpu_check
    from srattn.ops.triton import depthwise
    from srattn.ops.triton.strips import Strips

    wrong = []
    with mock.patch.object(depthwise, "strips_for", lambda *_: Strips(4, 16, 3, 4, 1)):
        every = [depthwise.Form(*flags) for flags in itertools.product((False, True), repeat=3)]
        for shape, dtype, form in (
            ((2, 4, 5, 17), torch.float32, depthwise.Form()),
            ((2, 4, 5, 17), torch.float32, depthwise.Form(residual=True, gelu=False)),
            ((1, 5, 3, 16), torch.bfloat16, depthwise.Form(relu=True)),
            ((1, 5, 3, 16), torch.bfloat16, depthwise.Form(residual=True)),
            *(((1, 1, 2, 16), torch.float16, form) for form in every),
        ):
            words = gpu_check.check_depthwise(shape, form, dtype, torch.device("cpu"))
            wrong += [f"{form}, {dtype}: {word}" for word in words]
        x = torch.randn(1, 16, 4, 4).permute(0, 2, 3, 1)[:, ::2]  # strided in every direction
        w = torch.randn(16, 1, 3, 3)
        if not torch.allclose(depthwise.depthwise(x, w), depthwise.definition(x, w, None), atol=1e-5):
            wrong.append("a strided map gives another result")
    return wrong


def module() -> list[str]:
    """The dispatch of the module, with its mask, its gradients, and with a residual and a norm around it."""
    import torch

    import srattn
    from srattn.ops import attend, plan

    attn = srattn.SpatialReductionAttention(16, 2, 4)
    x = torch.randn(2, 8, 8, 16, requires_grad=True)
    given = [x, *attn.parameters()]
    mask = torch.rand(2, 8, 8) < 0.8
    norm = torch.nn.LayerNorm(16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    w = attend.Projections(attn.q.weight, attn.q.bias, attn.proj.weight, attn.proj.bias)
    add = attend.Add(x.flatten(1, 2), attend.Norm(norm.weight, norm.bias, norm.eps))
    results = []
    for path in ("plain", "absorbed"):
        with srattn.force_path(path):
            y = attn(x, key_mask=mask)
            around = attend.attention(norm(x).flatten(1, 2), x[:, 0], x[:, 1], w, 2, 0.3, add=add)
        loss = y.square().sum() + around.square().sum()
        results.append([y, around, *torch.autograd.grad(loss, [*given, *norm.parameters()])])
        plan.KERNEL_DEVICES.add("cpu")
    wrong = [f"tensor {i} is {(a - b).abs().max():.1e} off" for i, (a, b) in enumerate(zip(*results, strict=True))
             if not torch.allclose(a, b, rtol=1e-4, atol=1e-4)]  # fmt: skip
    with srattn.force_path("absorbed"), mock.patch.object(attend, "absorbed_grouped", None):
        compiled = torch.compile(attn, fullgraph=True, backend="aot_eager")
        if not torch.allclose(compiled(x, key_mask=mask), results[0][0], atol=1e-4):
            wrong.append("compiled, it gives another result")
    with torch.autocast("cpu", torch.bfloat16):
        with srattn.force_path("absorbed"), mock.patch.object(attend, "absorbed_grouped", None):
            found = attend.attention(norm(x).flatten(1, 2), x[:, 0], x[:, 1], w, 2, 0.3, add=add)
        with srattn.force_path("sdpa"):
            rough = attend.attention(norm(x).flatten(1, 2), x[:, 0], x[:, 1], w, 2, 0.3, add=add)
    off, may = ((y - results[0][1]).norm() for y in (found, rough))
    if found.dtype != torch.float32 or not off <= 3 * may:  # the interpreter cuts bf16 off and does not round it
        wrong.append(f"under autocast it is {off:.1e} off where {may:.1e} is usual, in {found.dtype}")
    return wrong


def model() -> list[str]:
    """Blocks of models, with norm, sum and convolution in the kernels, in training."""
    four = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2,) * 4}
    two = {"embed_dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "mlp_ratios": (2, 2), "sr_ratios": (2, 1)}
    wrong = []
    for name, options, kernels in (
        ("pvt_v2_b0", four, ("whole_forward", "whole_backward", "forward", "gradients")),
        ("cmt_ti", {**two, "stem_channels": 4, "fc_dim": 8}, ("forward", "gradients")),
    ):
        wrong += [f"{name}: {words}" for words in _one_model(name, options, kernels)]
    return wrong


def _one_model(name: str, options: dict[str, Any], kernels: tuple[str, ...]) -> list[str]:
    import torch

    import srattn
    from srattn.ops import plan
    from srattn.ops.triton import language

    torch.manual_seed(0)
    model, x = srattn.create_model(name, num_classes=3, **options), torch.randn(2, 3, 32, 32)
    names, given = zip(*model.named_parameters(), strict=True)
    expected = torch.autograd.grad(model(x).square().sum(), given)
    launched: list[str] = []

    def launch(kernel: object, *rest: object, **options: int) -> None:
        launched.append(kernel.fn.__name__)  # type: ignore[attr-defined]
        language.launch(kernel, *rest, **options)  # type: ignore[arg-type]

    from srattn.ops.triton import attention_launch, depthwise

    limits = mock.patch.multiple(plan, KERNEL_DEVICES={"cpu"}, KERNEL_MIN_BYTES=0)
    with limits, mock.patch.object(attention_launch, "launch", launch), mock.patch.object(depthwise, "launch", launch):
        found = torch.autograd.grad(model(x).square().sum(), given)
    wrong = [f"{kernel} was not launched" for kernel in kernels if kernel not in launched]
    scale = 1e-5 * max(float(g.abs().max()) for g in expected)
    for name, a, b in zip(names, found, expected, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=scale):
            wrong.append(f"{name} is {(a - b).abs().max():.1e} off")
    return wrong


OTHERS = {"mask": mask, "widths": widths, "convolution": convolution, "model": model, "module": module}


if __name__ == "__main__":
    answer([*CASES, *OTHERS], lambda name: one(name) if name in CASES else OTHERS[name]())
