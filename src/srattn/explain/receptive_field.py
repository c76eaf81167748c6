"""Effective receptive fields, measured by gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.capture import backbone_of, eval_mode, resolve_stage
from srattn.layers.reduction import as_pair

_NOISE_IMAGES = 4


def effective_receptive_field(
    model: nn.Module,
    size: int | tuple[int, int],
    stage: int = -1,
    images: Tensor | None = None,
    probes: int = 4,
    seed: int = 0,
) -> Tensor:
    """How strongly each pixel moves the centre unit of a stage (Luo et al., arXiv:1701.04128).

    The gradient of the unit at row h // 2, column w // 2 of the stage's map with respect to the image, averaged over
    images. There the unit is one number; here it has C channels, and a signal of random signs goes into them, `probes`
    times for each image: the mean square over signs is the sum of the squared gradients of all channels.

    Args:
        size: (height, width), or the side, of the images.
        images: (B, C, H, W), normalised as the model expects; by default four of normal noise from `seed`.
        probes: backward passes for each image.

    Returns:
        (H, W), not negative: the root of the mean square over images and probes, summed over the image's channels. It
        is scaled so that all pixels sum to one.

    Raises:
        SrattnError: no such stage, images of another size, or no gradient at all.
    """
    backbone = backbone_of(model)
    stage = resolve_stage(backbone, stage)
    height, width = as_pair(size, "size")
    like = next(backbone.parameters())
    generator = torch.Generator().manual_seed(seed)
    if images is None:
        images = torch.randn(_NOISE_IMAGES, backbone.in_chans, height, width, generator=generator)
    if tuple(images.shape[2:]) != (height, width) or not len(images):
        raise SrattnError(f"images are (batch, channels, {height}, {width}), got {tuple(images.shape)}")
    if probes < 1:
        raise SrattnError(f"probes must be at least 1, got {probes}")
    total = torch.zeros(height, width, dtype=torch.float64)
    with eval_mode(backbone), torch.enable_grad():
        for image in images.to(like.device, like.dtype):
            x = leaf = image.unsqueeze(0).clone().requires_grad_()
            backbone.check_images(x)
            for index in range(stage + 1):
                x, _ = backbone.run_stage(index, x)
            unit = x[0, :, x.shape[2] // 2, x.shape[3] // 2]
            for _ in range(probes):
                signs = torch.randint(0, 2, unit.shape, generator=generator) * 2 - 1
                (gradient,) = torch.autograd.grad(unit, leaf, signs.to(unit), retain_graph=True)
                total += gradient[0].double().square().sum(0).cpu()
    field = total.sqrt()
    if not (field.isfinite().all() and field.sum() > 0):
        raise SrattnError(f"stage {stage} has no finite gradient with respect to the image")
    return (field / field.sum()).float()


def field_share(field: Tensor) -> float:
    """The share of pixels that belong to the field: those above 4.55 % of the strongest (arXiv:1701.04128 measures a
    field by the pixels above 1 - 95.45 % of its centre)."""
    return float((field > (1 - 0.9545) * field.max()).float().mean())
