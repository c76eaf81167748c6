"""The definition of shunted self-attention: the published formula word for word, slow and plain.

Shunted Self-Attention via Multi-Scale Token Aggregation (Ren et al. 2021, arXiv:2111.15193), section 3.2: head i has a
ratio r_i of its own,

    K_i, V_i = MTA(X, r_i) W_i^K, MTA(X, r_i) W_i^V                                       (eq. 1)
    V_i      = V_i + LE(V_i)                                                              (eq. 2)
    h_i      = Softmax(Q_i K_i^T / sqrt(d_h)) V_i                                         (eq. 3)

where MTA is the strided reduction of PVT followed by GELU, and LE a depthwise 3x3 over the map of values. Maps are
(batch, height, width, channels); parameters come by the names of `srattn.layers.multi_ratio.MultiRatioAttention`.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from srattn.ops.reference import attention, reduce_validity, strided_reduction


def local_enhancement(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LE: at every place (B, H, W, C), the sum over its 3x3 neighbourhood, weighted by channel; weight (C, 1, 3, 3)."""
    height, width = v.shape[1:3]
    padded = F.pad(v, (0, 0, 1, 1, 1, 1))
    out = bias.expand(v.shape).clone()
    for i in range(3):
        for j in range(3):
            out = out + padded[:, i : i + height, j : j + width] * weight[:, 0, i, j]
    return out


def shunted_attention(
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    num_heads: int,
    ratios: Sequence[tuple[int, int]],
    edge: str = "pad",
    eps: float = 1e-5,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Shunted self-attention of x (B, H, W, C), the heads divided evenly among `ratios`; key_mask (B, H, W).

    Reduced tokens without any valid source are no keys, and no neighbours of the local enhancement.
    """
    per_group, head_dim = num_heads // len(ratios), x.shape[-1] // num_heads
    queries = (x.flatten(1, 2) @ params["q.weight"].T + params["q.bias"]).chunk(num_heads, -1)
    heads = []
    for g, ratio in enumerate(ratios):
        own = {name.removeprefix(f"groups.{g}."): value for name, value in params.items()}
        if ratio == (1, 1):  # at ratio 1 too there is a projection, a norm and GELU
            masked = x if key_mask is None else torch.where(key_mask.unsqueeze(-1), x, 0.0)
            z = masked @ own["reduction.proj.weight"].T + own["reduction.proj.bias"]
            z = F.layer_norm(z, z.shape[-1:], own["reduction.norm.weight"], own["reduction.norm.bias"], eps)
        else:
            z = strided_reduction(x, own, "reduction", ratio, eps, edge, key_mask)
        z = F.gelu(z)
        k, v = z @ own["k.weight"].T + own["k.bias"], z @ own["v.weight"].T + own["v.bias"]
        bias = None
        if key_mask is not None:
            count = reduce_validity(key_mask.to(x.dtype), ratio, edge, None)
            v = torch.where(count.unsqueeze(-1) > 0, v, 0.0)
            bias = torch.zeros_like(count).masked_fill(count == 0, float("-inf")).flatten(1)
        v = v + local_enhancement(v, own["local.weight"], own["local.bias"])
        for h, (k_i, v_i) in enumerate(
            zip(k.flatten(1, 2).chunk(per_group, -1), v.flatten(1, 2).chunk(per_group, -1), strict=True)
        ):
            heads.append(attention(queries[g * per_group + h], k_i, v_i, head_dim**-0.5, bias))
    return (torch.cat(heads, -1) @ params["proj.weight"].T + params["proj.bias"]).reshape(x.shape)
