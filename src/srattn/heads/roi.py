"""What a box of a pyramid shows: its class, its true edges, its mask (arXiv:1506.01497, arXiv:1703.06870)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.heads.parts import ConvNormReLU
from srattn.ops.boxes import box_area
from srattn.ops.roi_align import roi_align

_SIZE, _STRIDE = 224, 16  # a box of the size of ImageNet's images is read where their classifiers' maps have stride 16


def map_of_boxes(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The map that a box is read from (arXiv:1612.03144, equation 1): boxes (..., 4) to numbers int64 (...) of maps.

    A box of 224 pixels square is for the map of stride 16, one of half the side for that of half the stride.
    """
    side = box_area(boxes.float()).sqrt()
    octave = torch.floor(torch.log2(side / _SIZE + 1e-6)) + math.log2(_STRIDE / strides[0])
    return octave.clamp(0, len(strides) - 1).long()


def pyramid_align(maps: Sequence[Tensor], boxes: Tensor, strides: Sequence[int], size: int) -> Tensor:
    """`roi_align` of each box on the map that is its.

    Args:
        maps: [(B, C, H_n, W_n)], finest first, of those `strides`.
        boxes: (B, R, 4) in pixels of the image; boxes of zeros fill up, and get a map of zeros.
        size: of a box's map.

    Returns:
        (B, R, C, size, size).
    """
    batch, count = boxes.shape[:2]
    own = torch.where(box_area(boxes) > 0, map_of_boxes(boxes, strides), -1)
    out = maps[0].new_zeros(batch, count, maps[0].shape[1], size, size)
    for n, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        mine = own == n
        most = int(mine.sum(1).amax()) if batch else 0
        if not most:
            continue
        # Those of this map first, as many of each image as the one has that has most.
        order = mine.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        found = roi_align(x, boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4)), size, 1 / stride)
        image, place = mine.gather(1, order).nonzero().unbind(1)
        out[image, order[image, place]] = found[image, place].to(out.dtype)
    return out


class BoxHead(nn.Module):
    """Two fully connected layers with ReLU; class logits, the last of them the background's, and steps of each class.

    Steps are in units of `scales`, as trained and published detectors have them: a tenth of the box for its middle, a
    fifth of a power of e for its sides.

    Parameters: `hidden`, `classifier`, `regressor`.
    """

    scales = (0.1, 0.1, 0.2, 0.2)

    def __init__(
        self, width: int, num_classes: int, size: int, hidden: int, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.num_classes, self.size = num_classes, size
        self.hidden = nn.ModuleList(
            nn.Linear(channels, hidden, **factory) for channels in (width * size * size, hidden)
        )
        self.classifier = nn.Linear(hidden, num_classes + 1, **factory)
        self.regressor = nn.Linear(hidden, 4 * num_classes, **factory)
        for layer, deviation in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, width, size, size) to logits (B, R, num_classes + 1) and steps (B, R, num_classes, 4), float32."""
        x = x.flatten(2)
        for layer in self.hidden:
            x = F.relu(layer(x))
        steps = self.regressor(x).float().unflatten(2, (self.num_classes, 4))
        return self.classifier(x).float(), steps * steps.new_tensor(self.scales)


class MaskHead(nn.Module):
    """`convs` convolutions, one that doubles the grid, and a mask of logits for each class (figure 4, right).

    Parameters: `convs`, `enlarge`, `classifier`.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        convs: int,
        hidden: int,
        norm: str,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = []
        for n in range(convs):
            channels = hidden if n else width
            if norm == "none":
                layers += [_drawn(nn.Conv2d(channels, hidden, 3, padding=1, **factory)), nn.ReLU()]
            else:
                layers.append(ConvNormReLU(channels, hidden, norm=norm, **factory))
        self.convs = nn.Sequential(*layers)
        self.enlarge = _drawn(nn.ConvTranspose2d(hidden if convs else width, hidden, 2, stride=2, **factory))
        self.classifier = nn.Conv2d(hidden, num_classes, 1, **factory)
        nn.init.normal_(self.classifier.weight, std=0.001)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, width, S, S) to logits (B, R, num_classes, 2 S, 2 S), float32."""
        found = self.classifier(F.relu(self.enlarge(self.convs(x.flatten(0, 1)))))
        return found.float().unflatten(0, x.shape[:2])


def check_stages(num_classes: int, **sizes: int) -> None:
    """Refuses numbers that make no head."""
    if num_classes < 1 or min(sizes.values()) < 1:
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise SrattnError(f"a head of two stages needs classes and sizes of at least 1, got {num_classes=}, {told}")


def _drawn(conv: Any) -> Any:
    """As published: normal, of the variance that ReLU asks for."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    return conv
