"""Runs the kernels in Triton's interpreter, which has to be chosen before anything loads Triton: a process of its own.

Prints one JSON object, the name of each case and the words for what is wrong with it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from unittest import mock

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
}  # fmt: skip


def one(name: str) -> list[str]:
    import torch

    from srattn.bench import gpu_check
    from srattn.ops.triton import attention_launch
    from srattn.ops.triton.choices import Blocks

    sizes, options, dtype, forward, backward = CASES[name]
    torch.manual_seed(0)
    kinds = {"whole": Blocks("whole", 16, 0, 4, 1, 2), "blocked": Blocks("blocked", 16, 16, 4, 1)}
    chosen = {"forward_blocks": lambda *_: kinds[forward], "backward_blocks": lambda *_: kinds[backward]}
    with mock.patch.multiple(attention_launch, **chosen):
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
    return wrong


def convolution() -> list[str]:
    import torch

    from srattn.bench import gpu_check
    from srattn.ops.triton import depthwise
    from srattn.ops.triton.choices import Strips

    wrong = []
    with mock.patch.object(depthwise, "strips_for", lambda *_: Strips(4, 16, 3, 4, 1)):
        for shape, relu, dtype in [((2, 4, 5, 17), False, torch.float32), ((1, 5, 3, 16), True, torch.bfloat16)]:
            wrong += gpu_check.check_depthwise(shape, relu, dtype, torch.device("cpu"))
        x = torch.randn(1, 16, 4, 4).permute(0, 2, 3, 1)[:, ::2]  # strided in every direction
        w = torch.randn(16, 1, 3, 3)
        if not torch.allclose(depthwise.depthwise_gelu(x, w), depthwise.definition(x, w, None, False), atol=1e-5):
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
    return wrong


OTHERS = {"mask": mask, "convolution": convolution, "module": module}


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    import torch

    torch.set_num_threads(1)
    found = {}
    for name in [*CASES, *OTHERS]:
        try:
            found[name] = one(name) if name in CASES else OTHERS[name]()
        except Exception:
            found[name] = [traceback.format_exc(limit=-3)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
