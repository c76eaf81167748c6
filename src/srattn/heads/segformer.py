"""The all-MLP decoder of SegFormer (arXiv:2105.15203, section 3.2)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError


class SegFormerHead(nn.Module):
    """Projects every map to `hidden` channels, brings them to the finest grid, fuses and classifies (equation 4).

    The paper enlarges the maps, concatenates them and multiplies by W_fuse. Enlarging is linear over pixels and its
    weights sum to one, so W_fuse is applied here before it, to each map at its own size and by its own columns, and the
    results are added: the same sum with fewer multiplications, and no concatenated map is ever written.

    Parameters: `projections.{n}` for map n, finest first; `fuse.weight` (hidden, maps * hidden), columns in the order
    of the maps; `norm`; `classifier`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        num_classes: channels of the logits.
        hidden: 256 for B0 and B1, 768 for B2 to B5 as its authors publish them; 256 throughout in mmsegmentation.
        projection_norm: batch norm and ReLU after each projection, in place of its bias, as mmsegmentation has it.
        drop_rate: dropout of whole channels before the classifier.
    """

    kind: ClassVar[str] = "segformer"

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        hidden: int = 256,
        projection_norm: bool = False,
        drop_rate: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not channels or num_classes < 1 or hidden < 1:
            raise SrattnError(
                "a SegFormer head needs channels, classes and a width, got "
                f"channels={list(channels)}, {num_classes=}, {hidden=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_classes": num_classes,
            "hidden": hidden,
            "projection_norm": projection_norm,
            "drop_rate": drop_rate,
        }
        self.channels, self.num_classes = list(channels), num_classes
        self.projections = nn.ModuleList(nn.Linear(c, hidden, bias=not projection_norm, **factory) for c in channels)
        self.projection_norms = nn.ModuleList(nn.BatchNorm2d(hidden, **factory) for _ in channels if projection_norm)
        self.fuse = nn.Linear(len(channels) * hidden, hidden, bias=False, **factory)
        self.norm = nn.BatchNorm2d(hidden, **factory)
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = nn.Linear(hidden, num_classes, **factory)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns logits (B, num_classes, H_0, W_0)."""
        check_maps(maps, self.channels)
        grid = maps[0].shape[2:]
        columns = self.fuse.weight.chunk(len(maps), dim=1)
        total = self._fused(0, maps[0], columns[0])
        for n in range(1, len(maps)):
            part = self._fused(n, maps[n], columns[n])
            total = total + F.interpolate(part, size=grid, mode="bilinear", align_corners=False)
        x = self.drop(F.relu(self.norm(total)))
        return self.classifier(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _fused(self, n: int, x: Tensor, columns: Tensor) -> Tensor:
        """(B, C_n, H_n, W_n) through its projection and its columns of W_fuse: (B, hidden, H_n, W_n)."""
        x = self.projections[n](x.permute(0, 2, 3, 1))
        if len(self.projection_norms):
            x = F.relu(self.projection_norms[n](x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return F.linear(x, columns).permute(0, 3, 1, 2)


def check_maps(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Refuses feature maps of another number or of other channels than a head was built for."""
    found = [x.shape[1] if x.ndim == 4 else tuple(x.shape) for x in maps]
    if found != list(channels):
        raise SrattnError(
            f"this head takes {len(channels)} maps (B, C, H, W) with C = {list(channels)}, finest first; got {found}"
        )
