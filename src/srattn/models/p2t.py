"""P2T: keys and values are pooled to a pyramid of grids, in every stage (arXiv:2106.12011)."""

from collections.abc import Sequence

from torch import nn

from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.inverted_residual import InvertedBottleneck
from srattn.layers.patch_embed import OverlapPatchEmbed
from srattn.layers.pyramid_pooling import Pyramid, PyramidReduction
from srattn.layers.shared import Shared
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model


class PyramidStage(Stage):
    """A stage whose blocks share the depthwise convolutions of their pooled maps, one a level."""

    def __init__(self, patch_embed: OverlapPatchEmbed, blocks: Sequence[nn.Module], pyramid: Pyramid) -> None:
        super().__init__(patch_embed, blocks)
        self.pyramid = pyramid


class PyramidPoolingTransformer(Backbone):
    """P2T.

    Its published code never applies the dropout of its attention and feed-forward; ours does where a rate is given.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        pool_ratios: for each stage the ratios of its pyramid, one a level.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: as in every family; pooling reaches every token at any size, so here it changes nothing.
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
        depths: Sequence[int] = (2, 2, 9, 3),
        pool_ratios: Sequence[Sequence[float]] = ((12, 16, 20, 24), (6, 8, 10, 12), (3, 4, 5, 6), (1, 2, 3, 4)),
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
            embed_dims=embed_dims, num_heads=num_heads, mlp_ratios=mlp_ratios, depths=depths, pool_ratios=pool_ratios
        )
        self.img_size = img_size
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            pyramid = Pyramid(dim, len(pool_ratios[i]))
            blocks = [
                Block(
                    dim,
                    SpatialReductionAttention(
                        dim,
                        num_heads[i],
                        reduction=PyramidReduction(dim, pool_ratios[i], pyramid=Shared(pyramid)),
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                    ),
                    InvertedBottleneck(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[i]
            ]
            embed = OverlapPatchEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i])
            stages.append(PyramidStage(embed, blocks, pyramid))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()  # published without one
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )


def _register(name: str, **numbers: object) -> None:
    register_model(name, PyramidPoolingTransformer, **numbers)


_register("p2t_tiny", embed_dims=(48, 96, 240, 384), depths=(2, 2, 6, 3))
_register("p2t_small", depths=(2, 2, 9, 3))
_register("p2t_base", depths=(3, 4, 18, 3))
_register("p2t_medium", embed_dims=(64, 128, 384, 512), num_heads=(1, 2, 6, 8), depths=(3, 4, 15, 3))
_register("p2t_large", embed_dims=(64, 128, 320, 640), depths=(3, 8, 27, 3))
