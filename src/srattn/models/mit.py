"""Mix Transformer, the encoder of SegFormer (arXiv:2105.15203): PVT v2's blocks, four times as wide in every stage.

Overlapping patches, Spatial-Reduction Attention and a depthwise convolution in the feed-forward (the paper's overlapped
patch merging, efficient self-attention and Mix-FFN) are those of PVT v2, and so are the depths and widths; the one
difference is that the feed-forward is 4 times as wide as its stage throughout. So `mit_b5` is `pvt_v2_b5` by another
name, and the weights of both are told apart by their numbers alone. There is no linear variant.

SegFormer itself, with its decoder, is `srattn.tasks.dense.segformer`; the decoder alone `srattn.heads.SegFormerHead`.
"""

from collections.abc import Sequence

from srattn.models.pvt_v2 import PyramidVisionTransformerV2, Ratio
from srattn.models.registry import register_model


class MixTransformer(PyramidVisionTransformerV2):
    """MiT. The options are those of PVT v2 without `linear`, see `PyramidVisionTransformerV2`."""

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (2, 2, 2, 2),
        sr_ratios: Sequence[Ratio] = (8, 4, 2, 1),
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
        super().__init__(
            embed_dims,
            num_heads,
            mlp_ratios,
            depths,
            sr_ratios,
            qkv_bias,
            edge=edge,
            stem_stride=stem_stride,
            in_chans=in_chans,
            num_classes=num_classes,
            img_size=img_size,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
        )


register_model("mit_b0", MixTransformer, embed_dims=(32, 64, 160, 256), depths=(2, 2, 2, 2))
register_model("mit_b1", MixTransformer, depths=(2, 2, 2, 2))
register_model("mit_b2", MixTransformer, depths=(3, 4, 6, 3))
register_model("mit_b3", MixTransformer, depths=(3, 4, 18, 3))
register_model("mit_b4", MixTransformer, depths=(3, 8, 27, 3))
register_model("mit_b5", MixTransformer, depths=(3, 6, 40, 3))
