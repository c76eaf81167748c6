"""Grad-CAM on the stages of a pyramid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.capture import backbone_of, eval_mode, one_image, resolve_stage
from srattn.models.backbone import Backbone


def grad_cam(model: nn.Module, image: Tensor, target: int | None = None, stage: int = -1) -> Tensor:
    """Where a stage's map speaks for a class (Grad-CAM, arXiv:1610.02391, eq. 1 and 2).

    With the stage's map A (K, h, w) and the logit y of the class, ReLU(sum_k a_k A_k), a_k being the mean of dy / dA_k
    over the map. Where a class token answers, the last map of its stage no longer reaches it; there A is what enters
    that stage's last block.

    Args:
        image: (C, H, W), normalised as the model expects.
        target: number of the class; the predicted one by default.

    Returns:
        (H, W), not negative, in units of the logit: the stage's grid enlarged bilinearly, as the paper draws it. All
        zero where nothing speaks for the class.

    Raises:
        SrattnError: no such stage or class, or a model without a classifier.
    """
    return enlarged(coarse_cam(model, image, target, stage), (image.shape[-2], image.shape[-1]))


def enlarged(cam: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (h, w) brought to (height, width) bilinearly."""
    return F.interpolate(cam[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def coarse_cam(model: nn.Module, image: Tensor, target: int | None = None, stage: int = -1) -> Tensor:
    """As `grad_cam`, on the grid of the stage (h, w)."""
    backbone = backbone_of(model)
    stage = resolve_stage(backbone, stage)
    if not backbone.num_classes:
        raise SrattnError("Grad-CAM needs a class, and this model has no classifier")
    if target is not None and not 0 <= target < backbone.num_classes:
        raise SrattnError(f"class {target} does not exist; the model has {backbone.num_classes}, counted from 0")
    batch = one_image(backbone, image)
    with eval_mode(backbone), torch.enable_grad():
        source, grid, logits = _run(backbone, batch, stage)
    index = int(logits[0].argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logits[0, index], source)
    features, slopes = (_as_map(tensor, grid) for tensor in (source.detach(), gradient))
    return (slopes.mean((2, 3), keepdim=True) * features).sum(1)[0].relu()


def _run(backbone: Backbone, batch: Tensor, stage: int) -> tuple[Tensor, tuple[int, int], Tensor]:
    """What of a stage the gradient is taken at, the grid of its map, and the logits that follow from it."""
    backbone.check_images(batch)
    x, token, source, grid = batch, None, None, (0, 0)
    for index in range(len(backbone.stages)):
        with torch.set_grad_enabled(index > stage):
            entering, (x, token) = x, backbone.run_stage(index, x)
        if index == stage and token is None:
            source = x = x.detach().requires_grad_()
        elif index == stage:
            source, (x, token) = _last_block(backbone, index, entering.detach().requires_grad_())
        if index == stage:
            grid = (x.shape[2], x.shape[3])
    assert source is not None
    return source, grid, backbone.forward_head(backbone.final(x, token)).float()


def _last_block(backbone: Backbone, stage: int, entering: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """The tokens that enter a stage's last block, and what leaves the stage."""
    entered: list[Tensor] = []

    def keep(_block: nn.Module, args: tuple[Any, ...]) -> None:
        entered.append(args[0])

    hook = backbone.iter_stages()[stage].blocks[-1].register_forward_pre_hook(keep)
    try:
        left = backbone.run_stage(stage, entering)
    finally:
        hook.remove()
    return entered[0], left


def _as_map(tensor: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map (1, K, h, w) as it is; tokens (1, ..., 1 + h w, K) without the class token as such a map."""
    if tensor.ndim == 4 and tuple(tensor.shape[2:]) == grid:
        return tensor
    return tensor.flatten(1, -2)[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)
