"""The transformer block: attention and feed-forward, each behind a norm and beside a residual."""

from typing import Any, cast

from torch import Tensor, nn

from srattn.layers import native
from srattn.layers.attention import SpatialReductionAttention
from srattn.layers.block_kernels import BlockParts, StageKernels, knows_attention, lay_out_block
from srattn.layers.convolutional_projection import ConvolutionalAttention
from srattn.layers.convolved_kernels import knows_convolved, knows_half, lay_out_halves
from srattn.layers.drop import DropPath
from srattn.layers.hooks import is_listened_to
from srattn.layers.layer_norm import normed
from srattn.layers.mlp_kernels import knows_mlp
from srattn.layers.opaque import Opaque
from srattn.ops import attend, plan
from srattn.ops.native import Operand


class Block(Opaque):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with stochastic depth on both branches.

    `attn` and `mlp` map (B, H, W, dim) to the same shape. With a `mask` (B, H, W), true where a token is valid, valid
    tokens alone are attended and convolved; the others come out as anything.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps, device=device, dtype=dtype)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x + self.drop_path(self.attn(normed(self.norm1, x), key_mask=mask))
            return x + self.drop_path(self.mlp(normed(self.norm2, x), mask))
        kernels = native.layout_of(self, x, lay_out_block)
        if kernels is not None:
            return kernels(x)
        if native.stays_whole(self, Block, x, _knows_half):
            return self.as_operator(x, x.shape)
        x = self._attended(x)
        return x + self.drop_path(self.mlp(normed(self.norm2, x)))

    def _attended(self, x: Tensor) -> Tensor:
        """x + attn(norm1(x)); on a GPU the attention's kernel normalises the queries and adds x itself."""
        if x.device.type in plan.KERNEL_DEVICES and self._is_plain():
            attn = cast(SpatialReductionAttention, self.attn)
            queries = normed(self.norm1, x)
            keys, values, bias = attn._keys_values(queries, None, None, None, None)
            norm = attend.Norm(self.norm1.weight, self.norm1.bias, self.norm1.eps)
            add = attend.Add(x.flatten(1, 2), norm)
            return attn._attend(queries.flatten(1, 2), keys, values, bias, add).view(x.shape)
        return x + self.drop_path(self.attn(normed(self.norm1, x)))

    def _is_plain(self) -> bool:
        """Whether nothing stands between the norm, the attention and the sum: no dropout, no hooks, no other parts."""
        attn = self.attn
        if type(attn) is not SpatialReductionAttention or type(self.norm1) is not nn.LayerNorm:
            return False
        dropped = self.training and (self.drop_path.p > 0.0 or attn.proj_drop.p > 0.0)
        return not dropped and not is_listened_to(attn)


class ClassTokenBlock(Block):
    """A block on tokens (B, 1 + H W, C), the class token first; the attention gets it apart from the map."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:  # type: ignore[override]
        if native.stays_whole(self, ClassTokenBlock, x, knows_half):
            return self.as_operator(x, x.shape, grid)
        attention, mlp = native.layout_of(self, x, lay_out_halves) or (None, None)
        if attention is None:
            tokens = self.norm1(x)
            patches = tokens[:, 1:].unflatten(1, grid)  # (B, H, W, C)
            x = x + self.drop_path(self.attn(patches, class_token=tokens[:, :1]))
        else:
            x = attention(x.contiguous(), grid)
        return x + self.drop_path(self.mlp(self.norm2(x))) if mlp is None else mlp(x.unsqueeze(1)).squeeze(1)


class Blocks(Opaque, nn.ModuleList):
    """Blocks one after the other: maps (B, H, W, dim) to the same shape, or tokens with a class token and their map's
    grid; one call of the kernels that know them all."""

    def forward(self, x: Tensor, *grid: tuple[int, int]) -> Tensor:
        kernels = native.layout_of(self, x, lay_out_blocks)
        if kernels is not None:
            return kernels(x, *grid)
        if native.stays_whole(self, Blocks, x, _knows_all):
            return self.as_operator(x, x.shape, *grid)
        for block in self:
            x = block(x, *grid)
        return x


def _knows_half(block: Block, operand: Operand) -> bool:
    return knows_attention(block, operand) or knows_mlp(block, operand) or knows_convolved(block, operand)


def _knows_all(blocks: Blocks, operand: Operand) -> bool:
    kinds = {type(block) for block in blocks}
    return kinds in ({Block}, {ClassTokenBlock}) and all(_knows_whole(block, operand) for block in blocks)


def _knows_whole(block: nn.Module, operand: Operand) -> bool:
    """Both halves, the attention being to the whole map."""
    assert isinstance(block, Block)
    if type(block.attn) is ConvolutionalAttention:
        return knows_convolved(block, operand) and knows_mlp(block, operand)
    if type(block.attn) is not SpatialReductionAttention:
        return False
    return knows_attention(block, operand) and knows_mlp(block, operand)


def lay_out_blocks(blocks: Blocks, operand: Operand) -> StageKernels | None:
    """None where a block is none of ours or has a half that the kernels do not know."""
    if not _knows_all(blocks, operand):
        return None
    parts: list[BlockParts] = []
    for block in blocks:
        make = lay_out_halves if type(block) is ClassTokenBlock else lay_out_block
        found = native.part_of_layout(block, operand, make)
        if found is None:
            return None
        parts.append(found.inner)
    return StageKernels(parts, [cast(Block, block).attn for block in blocks])
