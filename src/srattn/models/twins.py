"""Twins (arXiv:2104.13840): PVT with conditional positions (PCPVT), and local in turn with global attention (SVT)."""

from collections.abc import Sequence

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import MapAttention, SpatialReductionAttention
from srattn.layers.block import Block
from srattn.layers.feed_forward import Mlp
from srattn.layers.local_perception import LocalPerception
from srattn.layers.patch_embed import PatchEmbed
from srattn.layers.window import LocallyGroupedAttention
from srattn.models.backbone import Attended, Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Pair = int | tuple[int, int]


class TwinsStage(Stage):
    """A stage whose positions, made of the tokens, are added after its first block."""

    def embed(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.patch_embed(x)

    def run(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        for index, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens)
            if index == 0:
                tokens = self.position(tokens)
        return self.norm(tokens)


class Twins(Backbone):
    """Twins. Without `window_sizes` it is PCPVT, in which every block attends to reduced tokens of the whole map; with
    them SVT, in which the blocks 0, 2, 4, ... of a stage attend within windows, those between to the whole map.

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: R or (R_h, R_w) a stage, of the attention to the whole map.
        window_sizes: of the windows in tokens, an int or (h, w) a stage; None for PCPVT.
        mask_padding: where windows do not divide a map, keep their padding from being attended. Off, as published
            weights were trained.
        norm_after_stage: a layer norm at the end of each stage, as segmentation models on SVT have.
        qkv_bias: biases on the projections of queries, keys and values.
        edge: what happens where a ratio, or a patch, does not divide its grid, see `SpatialReductionAttention`.
        stem_stride: size of the first patches; 1 or 2 keep enough tokens of small images.
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
        sr_ratios: Sequence[Pair] = (8, 4, 2, 1),
        window_sizes: Sequence[Pair] | None = None,
        mask_padding: bool = False,
        norm_after_stage: bool = False,
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
        per_stage = {"window_sizes": window_sizes} if window_sizes is not None else {}
        check_stages(
            embed_dims=embed_dims,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            depths=depths,
            sr_ratios=sr_ratios,
            **per_stage,
        )
        if mask_padding and window_sizes is None:
            raise SrattnError("mask_padding is of windows, and this model has none: give window_sizes as well")
        self.img_size = img_size
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        options = {"qkv_bias": qkv_bias, "attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}

        def attention(stage: int, block: int) -> MapAttention:
            dim, heads = embed_dims[stage], num_heads[stage]
            if window_sizes is not None and block % 2 == 0:
                return LocallyGroupedAttention(dim, heads, window_sizes[stage], mask_padding=mask_padding, **options)
            return SpatialReductionAttention(dim, heads, sr_ratios[stage], edge=edge, **options)

        stages = []
        for i, dim in enumerate(embed_dims):
            blocks = [
                Block(
                    dim,
                    attention(i, j),
                    Mlp(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                )
                for j, drop_path in enumerate(drop_paths[i])
            ]
            embed = PatchEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i], edge=edge)
            norm = nn.LayerNorm(dim, eps=1e-6) if norm_after_stage else None
            stages.append(TwinsStage(embed, blocks, norm=norm, position=LocalPerception(dim)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6)
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )

    def attended(self, index: int, grid: tuple[int, int]) -> list[Attended]:
        found = []
        for block in self.iter_stages()[index].blocks:
            attn = block.attn
            if isinstance(attn, LocallyGroupedAttention):
                found.append(Attended(attn.window, attn.size, attn.count(*grid)))
            elif isinstance(attn, MapAttention):
                found.append(Attended(attn, grid))
        return found

    def final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if ".position." in name}


def _register(name: str, **numbers: object) -> None:
    register_model(name, Twins, **numbers)


_register("twins_pcpvt_small", depths=(3, 4, 6, 3))
_register("twins_pcpvt_base", depths=(3, 4, 18, 3))
_register("twins_pcpvt_large", depths=(3, 8, 27, 3))

_SVT = {"mlp_ratios": (4, 4, 4, 4), "window_sizes": (7, 7, 7, 7)}
_register("twins_svt_small", embed_dims=(64, 128, 256, 512), num_heads=(2, 4, 8, 16), depths=(2, 2, 10, 4), **_SVT)
_register("twins_svt_base", embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2), **_SVT)
_register("twins_svt_large", embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2), **_SVT)
