"""CMT: convolutions around attention over depthwise-reduced keys, with a relative position bias (arXiv:2107.06263)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.batch_norm import TokenBatchNorm
from srattn.layers.block import Block
from srattn.layers.depthwise_reduction import DepthwiseReduction
from srattn.layers.inverted_residual import InvertedResidual
from srattn.layers.local_perception import LocalPerception
from srattn.layers.patch_embed import PatchEmbed
from srattn.layers.reduction import Reduction, as_pair
from srattn.layers.relative_position import RelativePositionBias
from srattn.layers.shared import Shared
from srattn.layers.stem import StemPatchEmbed
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | tuple[int, int]


class CmtBlock(Block):
    """Local perception, then attention and the inverted residual feed-forward, each behind a norm and a residual."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__(dim, attn, mlp, drop_path=drop_path)
        self.local = LocalPerception(dim)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(self.local(x))


class CmtStage(Stage):
    """A stage whose blocks share one bias of position."""

    def __init__(self, patch_embed: PatchEmbed, blocks: Sequence[nn.Module], bias: RelativePositionBias) -> None:
        super().__init__(patch_embed, blocks)
        self.position_bias = bias


class Representation(nn.Module):
    """What the classifier reads: tokens widened to `dim` channels, batch norm, SiLU, mean over the map."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, dim)
        self.norm = TokenBatchNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, dim)."""
        return F.silu(self.norm(self.proj(x.permute(0, 2, 3, 1)))).mean((1, 2))


class Cmt(Backbone):
    """CMT.

    Its published code asserts one image size; here the position biases are resized by each stage's own grids of
    queries and keys, so any size from `min_size` up is right. It trains with dropout of 0.1 before the classifier (0.3
    for cmt_b), which `drop_rate` sets.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        stem_channels: channels of the three convolutions before the first patches.
        stem_depth, conv_depth: pairs of 3x3 convolutions with a residual, not published, behind the stem and behind the
            first patches: see `StemPatchEmbed`.
        fc_dim: channels of what the classifier reads.
        qk_ratio: queries and keys are narrower than values by this factor. The scale of the logits stays that of the
            values' heads, as published.
        sr_ratios: R or (R_h, R_w) a stage.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: what happens where a ratio, or a patch, does not divide its grid, see `SpatialReductionAttention`.
        stem_stride: stride of stem and first patches together; 1 or 2 keep enough tokens of small images.
        img_size: int or (height, width) whose grids the position biases have.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over pairs of convolutions and
            blocks.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (3, 3, 16, 3),
        stem_channels: int = 32,
        stem_depth: int = 0,
        conv_depth: int = 0,
        fc_dim: int = 1280,
        qk_ratio: int = 1,
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
        super().__init__()
        check_stages(
            embed_dims=embed_dims, num_heads=num_heads, mlp_ratios=mlp_ratios, depths=depths, sr_ratios=sr_ratios
        )
        self.img_size = img_size
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        of_pairs, *drop_paths = spread(drop_path_rate, [max(0, stem_depth) + max(0, conv_depth), *depths])
        grid = as_pair(img_size, "img_size")
        stages = []
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            if dim % (qk_ratio * heads):
                raise SrattnError(f"qk_ratio and num_heads must divide dim, got {dim=}, {qk_ratio=}, num_heads={heads}")
            embed = (
                PatchEmbed(embed_dims[i - 1], dim, 2, edge=edge)
                if i
                else StemPatchEmbed(
                    in_chans,
                    stem_channels,
                    dim,
                    stem_stride,
                    stem_depth=stem_depth,
                    conv_depth=conv_depth,
                    drop_paths=of_pairs,
                    edge=edge,
                )
            )
            grid = embed.size(*grid)
            bias = RelativePositionBias(heads, grid, _reduction(dim, sr_ratios[i], edge).size(*grid))
            blocks = [
                CmtBlock(
                    dim,
                    SpatialReductionAttention(
                        dim,
                        heads,
                        reduction=_reduction(dim, sr_ratios[i], edge),
                        qk_dim=dim // qk_ratio,
                        position_bias=Shared(bias),
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                        scale=(dim // heads) ** -0.5,
                    ),
                    InvertedResidual(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[i]
            ]
            stages.append(CmtStage(embed, blocks, bias))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity()  # published without one
        self.fc = Representation(embed_dims[-1], fc_dim)
        self._finish_init(
            embed_dims,
            strides,
            in_chans=in_chans,
            num_classes=num_classes,
            drop_rate=drop_rate,
            edge=edge,
            head_hidden_size=fc_dim,
        )

    def pool(self, x: Tensor) -> Tensor:
        return self.fc(x)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("position_bias.weight")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        return groups if coarse else {**groups, "blocks": [*groups["blocks"], (r"^fc", (99999,))]}

    def prune_stages(self, count: int) -> None:
        self.fc = nn.Identity()
        super().prune_stages(count)


def _reduction(dim: int, ratio: Ratio, edge: str) -> Reduction:
    return Reduction() if as_pair(ratio, "ratio") == (1, 1) else DepthwiseReduction(dim, ratio, edge=edge)


def _register(name: str, **numbers: object) -> None:
    register_model(name, Cmt, **numbers)


# Each at the image size that it was published for.
_register(
    "cmt_ti",
    embed_dims=(46, 92, 184, 368),
    mlp_ratios=(3.6, 3.6, 3.6, 3.6),
    depths=(2, 2, 10, 2),
    stem_channels=16,
    img_size=160,
)
_register(
    "cmt_xs",
    embed_dims=(52, 104, 208, 416),
    mlp_ratios=(3.77, 3.77, 3.77, 3.77),
    depths=(3, 3, 12, 3),
    stem_channels=16,
    img_size=192,
)
_register("cmt_s", depths=(3, 3, 16, 3), img_size=224)
_register("cmt_b", embed_dims=(76, 152, 304, 608), depths=(4, 4, 20, 4), stem_channels=38, img_size=256)
