"""What enters the attention of chosen blocks in one forward pass, kept so that their maps can be computed from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.models.features import PyramidFeatures


@dataclass(frozen=True)
class Captured:
    """One block's attention with its arguments."""

    stage: int
    block: int
    attn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grid: tuple[int, int]
    """(H, W) that the stage's embedding made."""
    stride: int
    """Pixels from one token of the stage to the next."""


def backbone_of(model: nn.Module) -> Backbone:
    """The backbone of images in `model`, itself or behind its pyramid of features.

    Raises:
        SrattnError: a model of another kind, or one of volumes.
    """
    backbone = model.model if isinstance(model, PyramidFeatures) else model
    if not isinstance(backbone, Backbone):
        raise SrattnError(f"attention maps need a model of srattn.create_model, got {type(model).__name__}")
    if backbone.dimensions != 2:
        raise SrattnError(f"attention maps are drawn on images, {backbone.config['name']} takes volumes")
    return backbone


def capture(model: nn.Module, images: Tensor, blocks: str | Iterable[tuple[int, int]]) -> list[Captured]:
    """One forward pass in eval mode; hooks and training flags are then as before, also after an error.

    Args:
        images: (B, C, H, W), normalised as the model expects.
        blocks: `"last"` or `"first"` of every stage, `"all"`, or pairs of (stage, block) counted from zero.

    Returns:
        The chosen blocks in order of depth.
    """
    backbone = backbone_of(model)
    stages: Any = backbone.stages
    wanted = _choose(stages, blocks)
    inputs: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
    grids: dict[int, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(backbone))
        stack.enter_context(torch.no_grad())
        for stage, block in wanted:
            attn = stages[stage].blocks[block].attn
            hook = attn.register_forward_pre_hook(_record(inputs, (stage, block)), with_kwargs=True)
            stack.callback(hook.remove)
        for stage in {stage for stage, _ in wanted}:
            hook = stages[stage].patch_embed.register_forward_hook(_record_grid(grids, stage))
            stack.callback(hook.remove)
        backbone(images)
    strides = backbone.feature_info.reduction()
    return [Captured(s, b, stages[s].blocks[b].attn, *inputs[s, b], grids[s], strides[s]) for s, b in wanted]


def _choose(stages: Any, blocks: str | Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    depths = [len(stage.blocks) for stage in stages]
    if blocks == "last":
        return [(s, depth - 1) for s, depth in enumerate(depths)]
    if blocks == "first":
        return [(s, 0) for s in range(len(depths))]
    if blocks == "all":
        return [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
    if isinstance(blocks, str):
        raise SrattnError(f"blocks={blocks!r} is unknown; use 'last', 'first', 'all' or pairs of (stage, block)")
    pairs = sorted({(int(s), int(b)) for s, b in blocks})
    for s, b in pairs:
        if not (0 <= s < len(depths) and 0 <= b < depths[s]):
            raise SrattnError(
                f"the model has no block {b} in stage {s}; blocks in its stages, counted from 0: {depths}"
            )
    return pairs


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; flag by flag as before after it."""
    # Flag by flag: a fine-tuned model may have frozen parts in eval mode inside a model in training mode.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _record(store: dict[tuple[int, int], Any], place: tuple[int, int]) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        store[place] = (args, dict(kwargs))

    return hook


def _record_grid(store: dict[int, tuple[int, int]], stage: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        store[stage] = (output.shape[1], output.shape[2])  # (B, H, W, C)

    return hook


def resolve_stage(backbone: Backbone, stage: int) -> int:
    """A stage from 0, negative ones from the end, as a number from 0.

    Raises:
        SrattnError: there is no such stage.
    """
    count = len(backbone.stages)
    if not -count <= stage < count:
        raise SrattnError(f"the model has no stage {stage}; it has {count}, counted from 0")
    return stage % count


def resolve_block(backbone: Backbone, stage: int, block: int) -> int:
    """As `resolve_stage`, for a block of a stage counted from 0."""
    count = len(backbone.iter_stages()[stage].blocks)
    if not -count <= block < count:
        raise SrattnError(f"the model has no block {block} in stage {stage}; that stage has {count}, counted from 0")
    return block % count


def one_image(backbone: Backbone, image: Tensor) -> Tensor:
    """(C, H, W) or (1, C, H, W) as a batch of one, where and of what type the model's parameters are."""
    batch = image.unsqueeze(0) if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[0] != 1:
        raise SrattnError(f"maps are of one image, (channels, height, width), got {tuple(image.shape)}")
    like = next(backbone.parameters())
    return batch.to(like.device, like.dtype)


def check_point(point: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The pixel (x, y) as whole numbers.

    Raises:
        SrattnError: it lies outside the image of `size` (height, width).
    """
    x, y = int(point[0]), int(point[1])
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise SrattnError(
            f"the point x, y = {x}, {y} lies outside the image, which is {width} pixels wide and {height} high: "
            f"x is from 0 to {width - 1}, y from 0 to {height - 1}"
        )
    return x, y
