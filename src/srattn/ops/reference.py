"""The definition of Spatial-Reduction Attention: the published formula word for word, slow and plain.

Everything else in this package is tested against this file. Pyramid Vision Transformer (Wang et al. 2021,
arXiv:2102.12122), section 3.3:

    SRA(Q, K, V) = Concat(head_0, ..., head_n) W^O                                        (eq. 1)
    head_j       = Attention(Q W_j^Q, SR(K) W_j^K, SR(V) W_j^V)                            (eq. 2)
    SR(x)        = Norm(Reshape(x, R) W^S)                                                 (eq. 3)
    Attention(q, k, v) = Softmax(q k^T / sqrt(d_head)) v                                   (eq. 4)

Maps are (batch, height, width, channels); any floating dtype. Parameters come as a mapping with the names of
`srattn.SpatialReductionAttention`, so that `dict(attn.named_parameters())` is what these functions take. Matrices
are stored as torch stores them, (out, in).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def _pad_or_crop(x: Tensor, ratio: tuple[int, int], edge: str) -> Tensor:
    """(B, H, W, C) to a multiple of the ratio: `pad` appends zeros, `floor` drops the strip, `error` refuses."""
    height, width = x.shape[1:3]
    over_h, over_w = height % ratio[0], width % ratio[1]
    if not (over_h or over_w):
        return x
    if edge == "floor":
        return x[:, : height - over_h, : width - over_w]
    if edge == "pad":
        return F.pad(x, (0, 0, 0, -width % ratio[1], 0, -height % ratio[0]))
    raise ValueError(f"grid {height}x{width} is no multiple of the ratio {ratio} under {edge=}")


def reshape(x: Tensor, ratio: tuple[int, int], edge: str = "pad") -> Tensor:
    """Reshape(x, R): (B, H, W, C) to (B, H/R, W/R, R^2 C), each R x R block of tokens laid end to end, row by row."""
    x = _pad_or_crop(x, ratio, edge)
    batch, height, width, channels = x.shape
    (rh, rw), (mh, mw) = ratio, (height // ratio[0], width // ratio[1])
    return x.reshape(batch, mh, rh, mw, rw, channels).transpose(2, 3).reshape(batch, mh, mw, rh * rw * channels)


def _only_valid(x: Tensor, mask: Tensor | None) -> Tensor:
    """Invalid tokens contribute nothing, not even a NaN."""
    return x if mask is None else torch.where(mask.unsqueeze(-1), x, torch.zeros_like(x))


def _norm(x: Tensor, params: Mapping[str, Tensor], prefix: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params[f"{prefix}.norm.weight"], params[f"{prefix}.norm.bias"], eps)


def strided_reduction(
    x: Tensor,
    params: Mapping[str, Tensor],
    prefix: str,
    ratio: tuple[int, int],
    eps: float,
    edge: str,
    mask: Tensor | None,
) -> Tensor:
    """SR(x) of eq. 3; at ratio 1 neither projection nor norm, as published. Returns (B, H/R, W/R, C)."""
    x = _only_valid(x, mask)
    if ratio == (1, 1):
        return x
    z = reshape(x, ratio, edge) @ params[f"{prefix}.proj.weight"].T + params[f"{prefix}.proj.bias"]
    return _norm(z, params, prefix, eps)


def _window(index: int, size: int, cells: int) -> slice:
    """Source rows of one cell of adaptive pooling: floor(i H / P) to ceil((i + 1) H / P)."""
    return slice(index * size // cells, -(-(index + 1) * size // cells))


def pooled_reduction(
    x: Tensor, params: Mapping[str, Tensor], prefix: str, cells: tuple[int, int], eps: float, mask: Tensor | None
) -> Tensor:
    """The linear SRA of PVT v2 (arXiv:2106.13797, section 3.2): mean over a fixed grid, W^S of 1x1, norm, GELU."""
    valid = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if mask is None else mask
    x, rows = _only_valid(x, mask), []
    for i in range(cells[0]):
        for j in range(cells[1]):
            block = (slice(None), _window(i, x.shape[1], cells[0]), _window(j, x.shape[2], cells[1]))
            count = valid[block].sum((1, 2)).clamp(min=1).unsqueeze(-1).to(x.dtype)
            rows.append(x[block].sum((1, 2)) / count)
    pooled = torch.stack(rows, 1).reshape(x.shape[0], *cells, x.shape[-1])
    z = pooled @ params[f"{prefix}.proj.weight"].T + params[f"{prefix}.proj.bias"]
    return F.gelu(_norm(z, params, prefix, eps))


def reduce_validity(valid: Tensor, ratio: tuple[int, int], edge: str, cells: tuple[int, int] | None) -> Tensor:
    """(B, H, W) counts of validity, summed to (B, H/R, W/R): a reduced token counts if any of its sources is valid."""
    if cells is None:
        return reshape(valid.unsqueeze(-1), ratio, edge).sum(-1)
    return torch.stack(
        [
            torch.stack(
                [
                    valid[:, _window(i, valid.shape[1], cells[0]), _window(j, valid.shape[2], cells[1])].sum((1, 2))
                    for j in range(cells[1])
                ],
                -1,
            )
            for i in range(cells[0])
        ],
        1,
    )


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """Eq. 4 of one head. q (B, N, d), k and v (B, M, d), key_bias (B, M) or None. Returns (B, N, d).

    A key with a bias of minus infinity is masked; a query without any key receives zeros.
    """
    logits = q @ k.transpose(1, 2) * scale
    if key_bias is not None:
        logits = logits + key_bias.unsqueeze(1)
        nothing = torch.isneginf(logits).all(-1, keepdim=True)
        return torch.where(nothing, 0.0, torch.softmax(torch.where(nothing, 0.0, logits), -1)) @ v
    return torch.softmax(logits, -1) @ v


def spatial_reduction_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: Mapping[str, Tensor],
    *,
    num_heads: int,
    ratio: tuple[int, int] = (1, 1),
    cells: tuple[int, int] | None = None,
    edge: str = "pad",
    eps: float = 1e-5,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    key_bias: Tensor | None = None,
) -> Tensor:
    """SRA(Q, K, V) of eq. 1, with masks and additive key bias.

    query (B, Hq, Wq, C); key and value (B, H, W, C_k) and (B, H, W, C_v), each reduced on its own; `cells` asks for
    the pooled reduction of PVT v2 to that grid in place of the strided one; key_mask (B, H, W), true where a key
    token is valid; key_bias (B, H, W), a score added to the logits, averaged over the valid sources of each reduced
    token. Returns (B, Hq, Wq, C).
    """

    def reduced(x: Tensor, prefix: str) -> Tensor:
        if cells is not None:
            return pooled_reduction(x, params, prefix, cells, eps, key_mask).flatten(1, 2)
        return strided_reduction(x, params, prefix, ratio, eps, edge, key_mask).flatten(1, 2)

    z_key = reduced(key, "reduction")
    z_value = reduced(value, "value_reduction" if "value_reduction.proj.weight" in params else "reduction")

    logit_bias = None
    if key_mask is not None or key_bias is not None:
        valid = torch.ones(key.shape[:3], device=key.device, dtype=query.dtype)
        if key_mask is not None:
            valid = key_mask.to(query.dtype)
        count = reduce_validity(valid, ratio, edge, cells).flatten(1)
        logit_bias = torch.zeros_like(count)
        if key_bias is not None:
            scores = torch.where(valid.bool(), key_bias, 0.0)
            logit_bias = reduce_validity(scores, ratio, edge, cells).flatten(1) / count.clamp(min=1)
        logit_bias = logit_bias.masked_fill(count == 0, float("-inf"))

    def linear(x: Tensor, name: str) -> Tensor:
        out = x @ params[f"{name}.weight"].T
        return out + params[f"{name}.bias"] if f"{name}.bias" in params else out

    q, k, v = linear(query.flatten(1, 2), "q"), linear(z_key, "k"), linear(z_value, "v")
    factor = (q.shape[-1] // num_heads) ** -0.5 if scale is None else scale
    heads = [
        attention(q_j, k_j, v_j, factor, logit_bias)
        for q_j, k_j, v_j in zip(q.chunk(num_heads, -1), k.chunk(num_heads, -1), v.chunk(num_heads, -1), strict=True)
    ]
    return linear(torch.cat(heads, -1), "proj").reshape((*query.shape[:-1], -1))
