"""What the kernels are measured beside: timm's module and model where timm is installed, else the published module."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.ops.triton.language import INTERPRETED


class PublishedAttention(nn.Module):
    """Spatial-reduction attention as PVT v2 publishes it (arXiv:2106.13797), with torch's fused attention.

    Tokens (B, H W, C) in memory order of channels last; the reduction is a convolution on the map they form.
    """

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr = nn.Conv2d(dim, dim, ratio, ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, tokens, dim = x.shape
        q = self.q(x).reshape(batch, tokens, self.heads, -1).permute(0, 2, 1, 3)
        z = self.sr(x.permute(0, 2, 1).reshape(batch, dim, *size)).reshape(batch, dim, -1).permute(0, 2, 1)
        k, v = self.kv(self.norm(z)).reshape(batch, -1, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj(x)


class _OnMaps(nn.Module):
    """An attention on (B, N, C) and the size of the map as one on maps (B, H, W, C)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1, 2), (x.shape[1], x.shape[2])).view(x.shape)


def timm_or_none() -> Any:
    """The package, or None where it is absent or cannot be imported."""
    try:
        return importlib.import_module("timm") if importlib.util.find_spec("timm") else None
    except Exception:  # whatever foreign code raises at import
        return None


def peer_attention(dim: int, heads: int, ratio: int) -> tuple[str, nn.Module]:
    """Its name and the module on maps."""
    if timm_or_none() is not None:
        module = importlib.import_module("timm.models.pvt_v2")
        attention = module.Attention(dim, num_heads=heads, sr_ratio=ratio, linear_attn=False, qkv_bias=True)
        return "timm", _OnMaps(attention)
    return "published", _OnMaps(PublishedAttention(dim, heads, ratio))


def peer_model(name: str) -> tuple[str, nn.Module, bool]:
    """Its name, the model, and whether it is ours on its `sdpa` path and without kernels, for lack of timm."""
    timm = timm_or_none()
    if timm is not None:
        return "timm", timm.create_model(name, pretrained=False), False
    from srattn.models.registry import build_model

    return "sdpa path", build_model(name), True


def compiled(module: nn.Module, **options: Any) -> Any:
    """torch.compile for one size, from a fresh start."""
    torch._dynamo.reset()
    if INTERPRETED:  # there it is the capture that is tried, and no compiler waited for
        options = {"backend": "eager"}
    return torch.compile(module, fullgraph=True, dynamic=False, **options)
