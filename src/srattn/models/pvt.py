"""PVT: patches that do not overlap, learned positions, a class token in the last stage (arXiv:2102.12122)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import Mlp
from srattn.layers.patch_embed import PatchEmbed
from srattn.layers.position import LearnedPosition
from srattn.layers.reduction import as_pair
from srattn.models.backbone import Backbone, Stage, beside_token
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | tuple[int, int]


class PyramidVisionTransformer(Backbone):
    """PVT. Positions are resized for each stage by that stage's own grid, so any size from `min_size` up is right.

    With the class token, `forward_features` returns tokens (B, 1 + H W, C), the class token first, as published; a
    feature map never holds it. Without, it returns the map (B, C, H, W), as detection and segmentation use it.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: R or (R_h, R_w) a stage; with a class token the last one is 1.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: what happens where a ratio, or a patch, does not divide its grid, see `SpatialReductionAttention`.
        stem_stride: size of the first patches; 1 or 2 keep enough tokens of small images.
        class_token: classify by a token rather than by the mean; off by default under `features_only`.
        img_size: int or (height, width) of the grid of learned positions.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    features_defaults: ClassVar[dict[str, Any]] = {"class_token": False}

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        depths: Sequence[int] = (3, 4, 6, 3),
        sr_ratios: Sequence[Ratio] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        edge: str = "pad",
        stem_stride: int = 4,
        class_token: bool = True,
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
        if class_token and as_pair(sr_ratios[-1], "sr_ratios") != (1, 1):
            raise SrattnError(
                f"a class token lies outside the grid: the last stage cannot reduce, got sr_ratios={list(sr_ratios)}: "
                "end in 1, or set class_token=False"
            )
        self.img_size = img_size
        grid = as_pair(img_size, "img_size")
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            embed = PatchEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i], edge=edge)
            grid = embed.size(*grid)
            blocks = [
                Block(
                    dim,
                    SpatialReductionAttention(
                        dim,
                        num_heads[i],
                        sr_ratios[i],
                        edge=edge,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                    ),
                    Mlp(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for drop_path in drop_paths[i]
            ]
            stages.append(Stage(embed, blocks, position=LearnedPosition(*grid, dim)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6)
        self.class_token = self.class_position = None
        if class_token:
            self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dims[-1]), std=0.02))
            self.class_position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dims[-1]), std=0.02))
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )

    def run_stage(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.class_token is None or index < len(self.stages) - 1:
            return self.stages[index](x), None
        return self._run_last(x, None)

    def run_masked(self, index: int, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.class_token is None or index < len(self.stages) - 1:
            return super().run_masked(index, x, mask)
        return self._run_last(x, mask)

    def why_no_masks(self) -> str | None:
        return None

    def _run_last(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stage with the class token."""
        assert self.class_token is not None and self.class_position is not None
        stage = self.iter_stages()[-1]
        patches = stage.embed(x, mask)  # (B, H, W, C)
        token = (self.class_token + self.class_position).expand(x.shape[0], -1, -1)
        valid = None if mask is None else beside_token(mask).unsqueeze(1)
        # To an attention without reduction the grid is nothing: one row, the class token first.
        tokens = stage.run(torch.cat([token, patches.flatten(1, 2)], 1).unsqueeze(1), mask=valid).squeeze(1)
        return tokens[:, 1:].reshape(patches.shape).permute(0, 3, 1, 2), tokens[:, 0]

    def tokens_of(self, index: int, grid: tuple[int, int]) -> tuple[int, int]:
        if self.class_token is None or index < len(self.stages) - 1:
            return grid
        return 1, 1 + grid[0] * grid[1]

    def final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        if class_token is None:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(torch.cat([class_token.unsqueeze(1), x.permute(0, 2, 3, 1).flatten(1, 2)], 1))

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0] if x.ndim == 3 else x.mean((2, 3))

    def no_weight_decay(self) -> set[str]:
        names = {name for name, _ in self.named_parameters() if name.endswith("position.weight")}
        return names | ({"class_token", "class_position"} if self.class_token is not None else set())

    def prune_stages(self, count: int) -> None:
        if count < len(self.stages):
            self.class_token = self.class_position = None
        super().prune_stages(count)


register_model("pvt_tiny", PyramidVisionTransformer, depths=(2, 2, 2, 2))
register_model("pvt_small", PyramidVisionTransformer, depths=(3, 4, 6, 3))
register_model("pvt_medium", PyramidVisionTransformer, depths=(3, 4, 18, 3))
register_model("pvt_large", PyramidVisionTransformer, depths=(3, 8, 27, 3))
