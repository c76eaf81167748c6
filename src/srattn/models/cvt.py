"""CvT: convolutions in the embeddings and in the projections of queries, keys and values (arXiv:2103.15808).

What sets it apart: `ConvolutionalAttention`, three stages, no positions at all, every epsilon 1e-5, and a class token
in the last stage that the convolutions leave out.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from srattn.layers.block import Block, ClassTokenBlock
from srattn.layers.convolutional_embed import ConvolutionalEmbed
from srattn.layers.convolutional_projection import ConvolutionalAttention
from srattn.layers.feed_forward import Mlp
from srattn.models.backbone import Backbone, Stage
from srattn.models.numbers import check_stages, spread
from srattn.models.registry import register_model

Ratio = int | tuple[int, int]


class ConvolutionalVisionTransformer(Backbone):
    """CvT.

    With the class token, `forward_features` returns tokens (B, 1 + H W, C), the class token first; a feature map never
    holds it, but in the last stage attends to it, also under `features_only`. Without, it returns the map (B, C, H, W).

    Args:
        embed_dims, num_heads, mlp_ratios, depths: one number a stage.
        sr_ratios: stride of the projections of keys and values, an int or a pair a stage.
        qkv_bias: biases on W^Q, W^K, W^V (the convolutions have none).
        edge: what happens where the stride of an embedding does not divide its input, see `ConvolutionalEmbed`.
        stem_stride: stride of the first embedding; 1 or 2 keep enough tokens of small images.
        class_token: classify by a token rather than by the mean.
        img_size: the size that `srattn.plan` assumes; the model takes any size from `min_size` up.
        drop_rate: dropout before the head; attn_drop_rate, proj_drop_rate: in attention, and after its output and in
            the feed-forward; drop_path_rate: stochastic depth, growing linearly from 0 over the blocks.
    """

    published_eps: ClassVar[dict[str, float]] = {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 192, 384),
        num_heads: Sequence[int] = (1, 3, 6),
        mlp_ratios: Sequence[float] = (4, 4, 4),
        depths: Sequence[int] = (1, 2, 10),
        sr_ratios: Sequence[Ratio] = (2, 2, 2),
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
        self.img_size = img_size
        strides = [stem_stride] + [2] * (len(embed_dims) - 1)
        drop_paths = spread(drop_path_rate, depths)
        stages = []
        for i, dim in enumerate(embed_dims):
            with_token = class_token and i == len(embed_dims) - 1
            kind = ClassTokenBlock if with_token else Block
            blocks = [
                kind(
                    dim,
                    ConvolutionalAttention(
                        dim,
                        num_heads[i],
                        sr_ratios[i],
                        class_token=with_token,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                    ),
                    Mlp(dim, int(dim * mlp_ratios[i]), drop=proj_drop_rate),
                    drop_path=drop_path,
                    eps=1e-5,
                )
                for drop_path in drop_paths[i]
            ]
            stages.append(
                Stage(ConvolutionalEmbed(embed_dims[i - 1] if i else in_chans, dim, strides[i], edge=edge), blocks)
            )
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-5)
        self.class_token = None
        if class_token:
            self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, embed_dims[-1]), std=0.02))
        self._finish_init(
            embed_dims, strides, in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate, edge=edge
        )

    def run_stage(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        stage = self.iter_stages()[index]
        if self.class_token is None or index < len(self.stages) - 1:
            return stage(x), None
        patches = stage.embed(x)  # (B, H, W, C)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches.flatten(1, 2)], 1)
        tokens = stage.run(tokens, patches.shape[1:3])
        return tokens[:, 1:].reshape(patches.shape).permute(0, 3, 1, 2), tokens[:, 0]

    def final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        if class_token is None:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(torch.cat([class_token.unsqueeze(1), x.permute(0, 2, 3, 1).flatten(1, 2)], 1))

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0] if x.ndim == 3 else x.mean((2, 3))

    def no_weight_decay(self) -> set[str]:
        return {"class_token"} if self.class_token is not None else set()

    def prune_stages(self, count: int) -> None:
        if count < len(self.stages):
            self.class_token = None
        super().prune_stages(count)


register_model("cvt_13", ConvolutionalVisionTransformer, depths=(1, 2, 10))
register_model("cvt_21", ConvolutionalVisionTransformer, depths=(1, 4, 16))
