"""MViTv2: queries, keys and values are pooled after their projections, so a stage shrinks inside its first attention
(arXiv:2112.01526).

What sets it apart: `PoolingAttention` with decomposed relative positions and the pooled queries' residual; no patch
embedding but the first; the width doubles in the first block of a stage (tiny to base) or in the feed-forward of the
last block before it (large).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.layers import native
from srattn.layers.convolved_kernels import knows_half, lay_out_halves
from srattn.layers.drop import DropPath
from srattn.layers.feed_forward import Mlp
from srattn.layers.opaque import Opaque
from srattn.layers.patch_embed import Embedding, OverlapPatchEmbed
from srattn.layers.pooling_attention import PoolingAttention
from srattn.layers.reduction import as_pair
from srattn.models.backbone import Attended, Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model


class PoolingBlock(Opaque):
    """Attention and feed-forward behind norms; where one changes the width, its shortcut is a projection of the norm.

    The shortcut around pooled queries is max-pooled, 3x3.
    """

    def __init__(self, attn: PoolingAttention, mlp: Mlp, *, drop_path: float) -> None:
        super().__init__()
        dim, inner, out_dim = attn.dim, attn.proj.out_features, mlp.fc2.out_features
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.attn_shortcut = nn.Linear(dim, inner) if inner != dim else None
        self.norm2 = nn.LayerNorm(inner, eps=1e-6)
        self.mlp = mlp
        self.mlp_shortcut = nn.Linear(inner, out_dim) if out_dim != inner else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H', W', C')."""
        if native.stays_whole(self, PoolingBlock, x, knows_half):
            size = self.attn.query_size(*x.shape[1:3])
            return self.as_operator(x, (x.shape[0], *size, self.mlp.fc2.out_features))
        attention, mlp = native.layout_of(self, x, lay_out_halves) or (None, None)
        x = self._attended(x) if attention is None else attention(x.contiguous())
        if mlp is not None and self.mlp_shortcut is None:
            return mlp(x)
        y = self.norm2(x)
        shortcut = x if self.mlp_shortcut is None else self.mlp_shortcut(y)
        return shortcut + self.drop_path(self.mlp(y))

    def _attended(self, x: Tensor) -> Tensor:
        """The shortcut, pooled as the queries are, and attention of the norm."""
        y = self.norm1(x)
        shortcut = x if self.attn_shortcut is None else self.attn_shortcut(y)
        stride = self.attn.query_reduction.ratio
        if stride != (1, 1):
            shortcut = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 3, stride, 1).permute(0, 2, 3, 1)
        return shortcut + self.drop_path(self.attn(y))


class NoEmbedding(Embedding):
    """In place of a patch embedding: the map as tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H, W, C)."""
        return x.permute(0, 2, 3, 1)

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width


class PoolingStage(Stage):
    """A stage whose first block may pool its queries."""

    def attentions(self) -> list[PoolingAttention]:
        """The attention of each block, as what it is (a ModuleList forgets)."""
        return [block.attn for block in self.blocks if isinstance(block, PoolingBlock)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        grid = self.patch_embed.size(height, width)
        for attn in self.attentions():
            grid = attn.query_size(*grid)
        return grid


class MultiscaleVisionTransformer(Backbone):
    """MViTv2, without a class token.

    The tables of positions are resized for other sizes, as by the authors' code. No edge is lost at any size, so the
    edge policy changes nothing.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: stride of the keys' and values' pooling, an int or (vertical, horizontal) a stage. In the first
            block of a stage it counts from the tokens before their queries are pooled.
        expand_attn: a stage widens in its first attention; else in the last feed-forward of the stage before, so that
            the maps of all stages but the last are as wide as the next stage.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: as in every family; here it changes nothing.
        stem_stride: stride of the patch embedding; 1 or 2 keep enough tokens of small images.
        img_size: int or (height, width) whose grids the tables of positions have.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    published_eps: ClassVar[dict[str, float]] = {"block": 1e-6, "reduction": 1e-6, "patch": 1e-6}

    def __init__(
        self,
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        depths: Sequence[int] = (2, 3, 16, 3),
        sr_ratios: Sequence[int | tuple[int, int]] = (4, 2, 1, 1),
        expand_attn: bool = True,
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
        drop_paths = spread(drop_path_rate, depths)
        count = len(embed_dims)
        # What leaves each stage.
        widths = list(embed_dims) if expand_attn else [*embed_dims[1:], embed_dims[-1]]
        embed: Embedding = OverlapPatchEmbed(in_chans, embed_dims[0], stem_stride, norm=False)
        grid, dim = embed.size(*as_pair(img_size, "img_size")), embed_dims[0]
        stages = []
        for i in range(count):
            blocks = []
            for j, drop_path in enumerate(drop_paths[i]):
                attn = PoolingAttention(
                    dim,
                    embed_dims[i],
                    num_heads[i],
                    grid,
                    q_stride=2 if i and j == 0 else 1,
                    kv_stride=sr_ratios[i],
                    qkv_bias=qkv_bias,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                )
                grid = attn.query_size(*grid)
                dim = widths[i] if j == depths[i] - 1 else embed_dims[i]
                hidden = int(embed_dims[i] * mlp_ratios[i])
                mlp = Mlp(embed_dims[i], hidden, out_dim=dim, drop=proj_drop_rate)
                blocks.append(PoolingBlock(attn, mlp, drop_path=drop_path))
            stages.append(PoolingStage(embed if i == 0 else NoEmbedding(), blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        strides = [stem_stride] + [2] * (count - 1)
        self._finish_init(widths, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge)

    def attended(self, index: int, grid: tuple[int, int]) -> list[Attended]:
        stage, found = self.stages[index], []
        assert isinstance(stage, PoolingStage)
        for attn in stage.attentions():
            found.append(Attended(attn, grid))
            grid = attn.query_size(*grid)
        return found

    def final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".position." in name}


def _register(name: str, **numbers: object) -> None:
    register_model(name, MultiscaleVisionTransformer, **numbers)


_register("mvitv2_tiny", depths=(1, 2, 5, 2))
_register("mvitv2_small", depths=(1, 2, 11, 2))
_register("mvitv2_base", depths=(2, 3, 16, 3))
_register(
    "mvitv2_large",
    embed_dims=(144, 288, 576, 1152),
    num_heads=(2, 4, 8, 16),
    depths=(2, 6, 36, 4),
    expand_attn=False,
)
