"""Shunted Transformer: two ratios in one layer, so that heads see coarse and fine keys side by side (arXiv:2111.15193).

What sets it apart: `MultiRatioAttention` in all stages that reduce, `LocallyEnhancedAttention` in the last one,
`DetailFeedForward`, and a convolutional stem. Every stage ends in its own norm, there are no positions.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from srattn.errors import SrattnError
from srattn.layers.attention import MapAttention
from srattn.layers.block import Block
from srattn.layers.convolutional_stem import ConvolutionalStem
from srattn.layers.detail_feed_forward import DetailFeedForward
from srattn.layers.multi_ratio import LocallyEnhancedAttention, MultiRatioAttention
from srattn.layers.patch_embed import OverlapPatchEmbed
from srattn.layers.reduction import as_pair
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | tuple[int, int]


class ShuntedTransformer(Backbone):
    """Shunted Transformer.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage; heads are even where a stage reduces.
        sr_ratios: R or (R_h, R_w) a stage: half of the heads reduce by R, the other half by R / 2. A stage with 1
            reduces nothing.
        num_conv: 3x3 convolutions in the stem, between the 7x7 and the patches.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: what happens where a ratio does not divide a stage's grid, see `SpatialReductionAttention`.
        stem_stride: stride of the stem, 4, 2 or 1.
        img_size: the size that `srattn.plan` assumes; the model takes any size from `min_size` up.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (2, 4, 12, 1),
        sr_ratios: Sequence[Ratio] = (8, 4, 2, 1),
        num_conv: int = 0,
        qkv_bias: bool = True,
        edge: str = "pad",
        stem_stride: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages(
            embed_dims=embed_dims, num_heads=num_heads, mlp_ratios=mlp_ratios, depths=depths, sr_ratios=sr_ratios
        )
        self.img_size = img_size
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        options = {"qkv_bias": qkv_bias, "edge": edge, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [
                Block(
                    dim,
                    _attention(dim, num_heads[i], sr_ratios[i], options),
                    DetailFeedForward(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[i]
            ]
            embed = (
                OverlapPatchEmbed(embed_dims[i - 1], dim, strides[i])
                if i
                else ConvolutionalStem(in_chans, dim, strides[i], num_conv=num_conv, edge=edge)
            )
            stages.append(Stage(embed, blocks, norm=nn.LayerNorm(dim, eps=1e-6)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()  # every stage ends in its own
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )


def _attention(dim: int, num_heads: int, ratio: Ratio, options: dict[str, Any]) -> MapAttention:
    coarse = as_pair(ratio, "sr_ratios")
    if coarse == (1, 1):
        return LocallyEnhancedAttention(dim, num_heads, **options)
    if any(r > 1 and r % 2 for r in coarse):
        raise SrattnError(f"half of the heads reduce by half the ratio: sr_ratios are 1 or even, got {ratio}")
    fine = (max(coarse[0] // 2, 1), max(coarse[1] // 2, 1))
    return MultiRatioAttention(dim, num_heads, (coarse, fine), **options)


register_model("shunted_tiny", ShuntedTransformer, depths=(1, 2, 4, 1), num_conv=0)
register_model("shunted_small", ShuntedTransformer, depths=(2, 4, 12, 1), num_conv=1)
register_model("shunted_base", ShuntedTransformer, depths=(3, 4, 24, 2), num_conv=2)
