"""PVT v2: overlapping patches, a depthwise convolution in the feed-forward, no positions (arXiv:2106.13797)."""

from collections.abc import Sequence

from torch import nn

from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import ConvMlp
from srattn.layers.patch_embed import OverlapPatchEmbed
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | tuple[int, int]


class PyramidVisionTransformerV2(Backbone):
    """PVT v2, and with `linear` PVT v2-li.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: R or (R_h, R_w) a stage; the linear variant pools to `pool_size` cells in every stage instead.
        qkv_bias: biases on the projections of queries, keys and values.
        linear: pooled reduction, and a ReLU before the depthwise convolution, as published.
        edge: what happens where a ratio does not divide a stage's grid, see `SpatialReductionAttention`.
        stem_stride: stride of the first patch embedding; 1 or 2 keep enough tokens of small images.
        img_size: the size that `srattn.plan` assumes; the model takes any size from `min_size` up.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (3, 4, 6, 3),
        sr_ratios: Sequence[Ratio] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        linear: bool = False,
        pool_size: int = 7,
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
        self.img_size, self.linear = img_size, linear
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [
                Block(
                    dim,
                    SpatialReductionAttention(
                        dim,
                        num_heads[i],
                        1 if linear else sr_ratios[i],
                        linear=linear,
                        pool_size=pool_size,
                        edge=edge,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                    ),
                    ConvMlp(dim, int(dim * mlp_ratios[i]), extra_relu=linear, drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[i]
            ]
            embed = OverlapPatchEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i])
            stages.append(Stage(embed, blocks, norm=nn.LayerNorm(dim, eps=1e-6)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()  # every stage ends in its own
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )

    def why_no_masks(self) -> str | None:
        if self.linear:
            return "linear=True pools keys over the whole canvas, not over each image: leave the mask out"
        return None


def _register(name: str, **numbers: object) -> None:
    register_model(name, PyramidVisionTransformerV2, **numbers)


_register("pvt_v2_b0", embed_dims=(32, 64, 160, 256), depths=(2, 2, 2, 2))
_register("pvt_v2_b1", depths=(2, 2, 2, 2))
_register("pvt_v2_b2", depths=(3, 4, 6, 3))
_register("pvt_v2_b2_li", depths=(3, 4, 6, 3), linear=True)
_register("pvt_v2_b3", depths=(3, 4, 18, 3))
_register("pvt_v2_b4", depths=(3, 8, 27, 3))
_register("pvt_v2_b5", depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4))
