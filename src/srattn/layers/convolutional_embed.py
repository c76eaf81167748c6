"""The convolutional token embedding of CvT."""

from typing import Any

from torch import nn

from srattn.layers.patch_embed import PatchEmbed


class ConvolutionalEmbed(PatchEmbed):
    """Patches that overlap by less than they could (CvT, arXiv:2103.15808, section 3.1): kernel 2 S - 1, padding S / 2.

    Kernel 7, stride 4, padding 2 as published, and 3, 2, 1; at stride 1, kernel 3. Where the stride does not divide the
    image, "floor" is what published code does: at stride 4 it may lose the last row and column of pixels.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int,
        *,
        edge: str = "pad",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_chans, dim, stride, edge=edge, eps=eps, device=device, dtype=dtype)
        kernel, padding = self.place
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding, device=device, dtype=dtype)

    @property
    def place(self) -> tuple[int, int]:
        """Side and padding of the convolution's kernel."""
        return max(3, 2 * self.stride - 1), max(1, self.stride // 2)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if self.edge != "floor":
            return super()._grid(height, width)
        kernel, padding = self.place
        more = 2 * padding - kernel
        return (height + more) // self.stride + 1, (width + more) // self.stride + 1
