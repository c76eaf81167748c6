"""Batch normalisation of tokens."""

from torch import Tensor, nn


class TokenBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on (batch, height, width, channels); same parameters, same statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        # Every token as an image of one pixel: faster than a channels-last map, and it exports at any size.
        return super().forward(input.flatten(0, 2)[:, :, None, None]).view(input.shape)
