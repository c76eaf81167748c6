"""The attention of a point of a picture, as shares of a grid and as a picture."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from srattn.data.preprocess import to_image
from srattn.errors import SrattnError
from srattn.serve.fault import Fault
from srattn.serve.picture import Seen

_HOT = (255.0, 150.0, 0.0)
_LEAST_SIDE = 448


class Maps(Protocol):
    """What of `srattn.explain.attention` is used; the module itself fits."""

    def attention_maps(self, model: nn.Module, images: Tensor, blocks: str | Iterable[tuple[int, int]]) -> list[Any]:
        """Maps of blocks, each with stage, block, probabilities (B, heads, N, M), grid, key_grid and stride."""
        ...

    def query_token(self, attention: Any, query_yx: tuple[int, int]) -> tuple[int, int]: ...

    def query_overlay(
        self, attention: Any, query_yx: tuple[int, int], image_size: tuple[int, int], head: int | None
    ) -> Tensor:
        """(B, height, width): the shares of the pixels."""
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """What can be asked of a stage; blocks and heads are counted from 1."""

    stage: int
    blocks: int
    heads: int
    grid: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Order:
    """A map that is asked for, counted from 0; the point is the pixel (y, x) that the model sees."""

    stage: int
    block: int
    head: int | None
    point: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A map: shares (rows, columns) of the tokens of the stage, and the token of the point."""

    weights: Tensor
    token: tuple[int, int]


def stages_of(maps: Maps, model: nn.Module, images: Tensor) -> list[Stage]:
    """The stages of a model that have maps; none for a model that gives none."""
    try:
        found = maps.attention_maps(model, images, "last")
    except SrattnError:
        return []
    return [Stage(each.stage + 1, each.block + 1, int(each.probabilities.shape[1]), tuple(each.grid)) for each in found]


def explain(maps: Maps, model: nn.Module, images: Tensor, order: Order) -> Answer:
    """The map of one point of one image (1, C, H, W)."""
    (found,) = maps.attention_maps(model, images, [(order.stage, order.block)])
    height, width = images.shape[-2:]
    overlay = maps.query_overlay(found, order.point, (height, width), order.head)[0].float().cpu()
    rows, columns = (
        (torch.arange(side) // found.stride).clamp(max=cells - 1)
        for side, cells in zip((height, width), found.grid, strict=True)
    )
    by_row = torch.zeros(found.grid[0], width).index_add_(0, rows, overlay)
    weights = torch.zeros(found.grid).index_add_(1, columns, by_row)
    return Answer(weights, maps.query_token(found, order.point))


def order_of(
    stages: list[Stage], seen: Seen, x: float, y: float, stage: int | None, block: int | None, head: int | None
) -> Order:
    """What a client asks for, checked: `x` and `y` are shares of the picture's sides, the rest counts from 1.

    Raises:
        Fault: 422, there is no such stage, block, head or point.
    """
    stage = _within("stage", stage, len(stages), f"the model has {len(stages)} stages")
    facts = stages[stage - 1]
    block = _within("block", block, facts.blocks, f"stage {stage} has {facts.blocks} block(s)")
    if head is not None:
        head = _within("head", head, facts.heads, f"stage {stage} has {facts.heads} head(s)")
    left, top, right, bottom = seen.box
    height, width = seen.pixels.shape[-2:]
    across, down = (x - left) / (right - left), (y - top) / (bottom - top)
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise Fault(
            422,
            f"the model does not see ({x:g}, {y:g}): it sees x from {left:.3f} to {right:.3f} and y from {top:.3f} to "
            f"{bottom:.3f}",
        )
    point = (min(int(down * height), height - 1), min(int(across * width), width - 1))
    return Order(facts.stage - 1, block - 1, None if head is None else head - 1, point)


def _within(name: str, value: int | None, most: int, words: str) -> int:
    if value is None:
        return most
    if not 1 <= value <= most:
        raise Fault(422, f"{name} {value} does not exist; {words}, counted from 1")
    return value


def to_png(seen: Seen, answer: Answer, point: tuple[int, int]) -> bytes:
    """What the model sees, darkened, glowing where the point attends to, with a ring around the point."""
    from PIL import ImageDraw
    from PIL.Image import Resampling

    picture = to_image(seen.pixels).convert("RGB")
    height, width = seen.pixels.shape[-2:]
    cells = answer.weights / answer.weights.max().clamp(min=torch.finfo(torch.float32).tiny)
    rows, columns = (
        (torch.arange(side) * cells.shape[axis] // side).clamp(max=cells.shape[axis] - 1)
        for axis, side in ((0, height), (1, width))
    )
    glow = cells[rows][:, columns]  # (H, W)
    ground = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width, 3).float()
    mixed = 0.45 * ground + glow[..., None] * 0.75 * (torch.tensor(_HOT) - 0.45 * ground)
    image = to_image(mixed.round().to(torch.uint8).permute(2, 0, 1))
    factor = max(1, -(-_LEAST_SIDE // min(height, width)))
    image = image.resize((width * factor, height * factor), Resampling.NEAREST)
    brush = ImageDraw.Draw(image)
    y, x = ((side + 0.5) * factor for side in point)
    for radius, colour in ((9, "black"), (8, "white")):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
