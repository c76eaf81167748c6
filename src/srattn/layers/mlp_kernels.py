"""A block's feed-forward half laid out for the compiled kernels, and the weights that all halves have alike."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from srattn.layers.drop import DropPath
from srattn.layers.feed_forward import ConvMlp, Mlp
from srattn.layers.local_perception import is_depthwise_3x3
from srattn.layers.native import knows_norm
from srattn.ops import native
from srattn.ops.native import BlocksKernel, FeedForwardKernel, Linear, NormWeights, Operand


@runtime_checkable
class BlockLike(Protocol):
    """What has attention and a feed-forward, each behind a norm."""

    @property
    def norm1(self) -> nn.Module: ...
    @property
    def attn(self) -> nn.Module: ...
    @property
    def norm2(self) -> nn.Module: ...
    @property
    def mlp(self) -> nn.Module: ...
    @property
    def drop_path(self) -> nn.Module: ...


class FeedForwardHalf:
    """x + mlp(norm2(x)) of a block whose attention is of another form."""

    def __init__(self, mlp: FeedForwardKernel) -> None:
        self.mlp = mlp
        self.kernel = BlocksKernel([(None, mlp)])

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, H, W, dim) to the same shape and type."""
        return self.kernel(x.contiguous(), [(0, 0)])


def knows_mlp(block: BlockLike, operand: Operand = "float32") -> bool:
    """Whether the kernels compute the feed-forward half: the norm before it, and the rest."""
    mlp = block.mlp
    if type(block.drop_path) is not DropPath or type(mlp) not in (ConvMlp, Mlp) or not knows_norm(block.norm2):
        return False
    assert isinstance(mlp, ConvMlp | Mlp)
    if type(mlp.drop) is not nn.Dropout or type(mlp.fc1) is not nn.Linear or type(mlp.fc2) is not nn.Linear:
        return False
    if mlp.fc1.out_features % native.lanes() or mlp.fc2.out_features != mlp.fc1.in_features:
        return False
    if not native.takes_pairs(operand, mlp.fc1.in_features):
        return False
    return mlp.dwconv is None or is_depthwise_3x3(mlp.dwconv)


def lay_out_mlp(norm: nn.Module, mlp: nn.Module, operand: Operand) -> FeedForwardKernel:
    """Of a feed-forward that the kernels know."""
    assert isinstance(mlp, ConvMlp | Mlp)
    taps = None if mlp.dwconv is None else Linear(mlp.dwconv.weight, mlp.dwconv.bias)
    return FeedForwardKernel(norm_of(norm), linear_of(mlp.fc1), linear_of(mlp.fc2), taps, mlp.extra_relu, operand)


def norm_of(norm: nn.Module) -> NormWeights:
    """The weights of a norm that the kernels know."""
    assert isinstance(norm, nn.LayerNorm)
    return NormWeights(norm.weight, norm.bias, norm.eps)


def linear_of(module: nn.Module) -> Linear:
    assert isinstance(module, nn.Linear)
    return Linear(module.weight, module.bias)
