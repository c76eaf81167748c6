"""The semantic head of Panoptic FPN (arXiv:1901.02446, section 3.1), as PVT is published with it (arXiv:2102.12122)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from srattn.heads.fpn import FPN
from srattn.heads.parts import ConvNormReLU, PixelClassifier, check_numbers, enlarged
from srattn.heads.segformer import check_maps


class SemanticFPNHead(nn.Module):
    """A feature pyramid, each of whose maps is brought to the finest grid in steps, added up and classified.

    A step is a convolution with norm and ReLU, and an enlargement to the exact grid of the next finer map; the finest
    map has the convolution alone. The last steps all enlarge to the finest grid, and enlarging is linear, so the maps
    are added before it: one large map in place of one a level. See also `PixelClassifier.of_sum`.

    Parameters: `fpn`; `levels.{n}.{k}` for step k of map n, finest first; `classifier`.

    Args:
        channels: of the feature maps, finest first, as `feature_info.channels()` gives them.
        num_classes: channels of the logits.
        width: of the feature pyramid.
        hidden: of the steps.
        norm: "batch", as PVT is published in mmsegmentation, or "group", as the paper has it.
        drop_rate: dropout of whole channels before the classifier.
    """

    kind: ClassVar[str] = "semantic_fpn"

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        hidden: int = 128,
        norm: str = "batch",
        drop_rate: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_numbers(self.kind, channels, num_classes=num_classes, width=width, hidden=hidden, drop_rate=drop_rate)
        factory = {"device": device, "dtype": dtype}
        self.config = {
            "kind": self.kind,
            "num_classes": num_classes,
            "width": width,
            "hidden": hidden,
            "norm": norm,
            "drop_rate": drop_rate,
        }
        self.channels, self.num_classes = list(channels), num_classes
        self.fpn = FPN(channels, width, **factory)
        self.levels = nn.ModuleList(
            nn.ModuleList(ConvNormReLU(hidden if k else width, hidden, norm=norm, **factory) for k in range(max(n, 1)))
            for n in range(len(channels))
        )
        self.classifier = PixelClassifier(hidden, num_classes, drop_rate, **factory)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [(B, C_n, H_n, W_n)], finest first. Returns logits (B, num_classes, H_0, W_0)."""
        check_maps(maps, self.channels)
        pyramid = self.fpn(maps)
        fine = self._steps(0, pyramid)
        if len(maps) == 1:
            return self.classifier(fine)
        coarse = self._steps(1, pyramid)
        for n in range(2, len(maps)):
            coarse = coarse + self._steps(n, pyramid)
        return self.classifier.of_sum(fine, coarse)

    def _steps(self, n: int, pyramid: list[Tensor]) -> Tensor:
        """Map n before its last enlargement: (B, hidden, H_1, W_1), of the finest map (B, hidden, H_0, W_0)."""
        x = pyramid[n]
        for k, conv in enumerate(self.levels[n].children()):
            x = conv(enlarged(x, pyramid[n - k].shape[2:]) if k else x)
        return x
