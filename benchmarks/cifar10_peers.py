"""What stands beside ours on CIFAR-10: a ResNet and a plain ViT for small images, as models of the registry.

They belong to the benchmark and not to the package. `register()` makes `bench_resnet` and `bench_vit` known, so that
`srattn train` treats them as it treats ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.models.backbone import Backbone
from srattn.models.registry import list_models, register_model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (arXiv:1512.03385)."""

    def __init__(self, in_chans: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_chans == channels
        self.short = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(in_chans, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(out + self.short(x))


class ResNet(Backbone):
    """The CIFAR form: a 3x3 stem, then one stage a width, the first at the image's size."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (2, 2, 2),
        stem_stride: int = 1,
        in_chans: int = 3,
        num_classes: int = 10,
        img_size: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages, before = [], widths[0]
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for index in range(depth):
                blocks.append(BasicBlock(before, width, 2 if number and not index else 1))
                before = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()
        strides = [stem_stride] + [2] * (len(widths) - 1)
        self._finish_init(widths, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge="pad")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def run_stage(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.stages[index](self.stem(x) if index == 0 else x), None


class VitBlock(nn.Module):
    """Attention of all tokens with all, then a feed-forward, each behind a norm and beside a residual."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) to the same shape."""
        batch, count, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, dim / heads) each
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, dim)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Vit(Backbone):
    """Patches, learned positions, blocks of one width, the mean of the tokens (arXiv:2010.11929)."""

    def __init__(
        self,
        dim: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        patch: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        img_size: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_embed = nn.Conv2d(in_chans, dim, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (img_size // patch) ** 2, dim))
        self.stages = nn.ModuleList([nn.Sequential(*(VitBlock(dim, heads, mlp_ratio) for _ in range(depth)))])
        self.norm = nn.LayerNorm(dim)
        self._finish_init([dim], [patch], in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge="pad")
        nn.init.trunc_normal_(self.position, std=0.02)

    def run_stage(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.patch_embed(x)
        rows, columns = x.shape[2:]
        tokens = self.norm(self.stages[index](x.flatten(2).transpose(1, 2) + self.position))
        return tokens.transpose(1, 2).unflatten(2, (rows, columns)), None

    def no_weight_decay(self) -> set[str]:
        return {"position"}


# Of the size of ours within a few per cent; the script says by how much.
PEERS: dict[str, dict[str, Any]] = {
    "bench_resnet": {"family": ResNet, "widths": (44, 88, 176), "depths": (2, 2, 2)},
    "bench_vit": {"family": Vit, "dim": 160, "depth": 4, "heads": 5},
}


def register() -> None:
    """Makes the peers known to `create_model` and `srattn train`; once."""
    known = set(list_models())
    for name, numbers in PEERS.items():
        if name not in known:
            register_model(name, **numbers)
