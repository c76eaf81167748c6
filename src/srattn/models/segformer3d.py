"""The encoder of SegFormer3D (arXiv:2404.10156): Mix Transformer on volumes (batch, channels, depth, height, width).

What sets it apart from `mit`: three axes, smaller ratios, a batch norm after the depthwise convolution of the
feed-forward, and every layer norm at 1e-5. The published code takes the cube root of the number of tokens for each
side: it knows cubes alone, and where the count of another volume happens to be a cube it reads a wrong raster. Here the
tokens stay a volume, so that any size and aspect is right.

Of the contract of `Backbone` holds, with volumes for images: options, `config`, `feature_info`, `forward_features`,
`forward_head`, `forward_intermediates` ("NCDHW" and "NDHWC"), `features_only`, gradient checkpointing,
`reset_classifier`, `group_matcher`, `set_norm_eps`, `set_edge`, compile, export with dynamic sizes, and the paths of
attention. Plans and explanations, which draw maps, do not know volumes.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.block import Block
from srattn.layers.volume import VolumeAttention, VolumeFeedForward, VolumePatchEmbed
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | Sequence[int]


class SegFormer3D(Backbone):
    """SegFormer3D's encoder. Maps and final features are (B, C, D, H, W).

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: R or (R_d, R_h, R_w) a stage.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: what happens where a ratio does not divide a stage's grid, see `VolumeAttention`.
        stem_stride: stride of the first patch embedding.
        num_classes: of a classifier of whole volumes over the mean of the last map; published without one.
        img_size: size of the volumes that it is meant for, an int or three; the model takes any size.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    dimensions: ClassVar[int] = 3
    formats: ClassVar[tuple[str, str]] = ("NCDHW", "NDHWC")
    published_eps: ClassVar[dict[str, float]] = {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}

    def __init__(
        self,
        embed_dims: Sequence[int] = (32, 64, 160, 256),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (2, 2, 2, 2),
        sr_ratios: Sequence[Ratio] = (4, 2, 1, 1),
        qkv_bias: bool = True,
        edge: str = "pad",
        stem_stride: int = 4,
        in_chans: int = 4,
        num_classes: int = 0,
        img_size: int | Sequence[int] = (128, 128, 128),
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages(
            embed_dims=embed_dims, num_heads=num_heads, mlp_ratios=mlp_ratios, depths=depths, sr_ratios=sr_ratios
        )
        self.img_size = img_size  # type: ignore[assignment]
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [
                Block(
                    dim,
                    VolumeAttention(
                        dim,
                        num_heads[i],
                        sr_ratios[i],
                        edge=edge,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                    ),
                    VolumeFeedForward(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                    eps=1e-5,
                )
                for drop_path in drop_paths[i]
            ]
            embed = VolumePatchEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i])
            stages.append(Stage(embed, blocks, norm=nn.LayerNorm(dim, eps=1e-5)))  # type: ignore[arg-type]
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()  # every stage ends in its own
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )
        self.min_size = 1  # volumes are often thin: every convolution is padded, a stride leaves one slice at least

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))

    def check_images(self, x: Tensor) -> None:
        """Refuses what is no batch of volumes of this model's channels."""
        if x.ndim != 5 or x.shape[1] != self.in_chans or 0 in x.shape[2:]:
            raise SrattnError(f"volumes are (batch, {self.in_chans}, depth, height, width), got {tuple(x.shape)}")


register_model("segformer3d", SegFormer3D)
