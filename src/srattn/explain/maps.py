"""What a model looks at, as arrays: attention, rollout, Grad-CAM, receptive fields, and what each key sees.

All functions take models of `srattn.create_model` on images, normalised as the model expects them; stages, blocks and
heads count from 0, and from the end where negative. A point is (x, y) in pixels of the image that the model gets.

Attention is computed again from what entered a block, by the published formula (the plain path), since the fast paths
never hold it; `srattn.force_path` changes nothing here. What the model answers is the same before, after and meanwhile:
hooks and training flags are put back, also after an error.

Every family has maps. Keys that lie on several grids are brought to one: those of the Shunted Transformer to its finest
ratio, those of P2T to the tokens of the stage. The keys of CvT and MViTv2, which overlap, are drawn side by side, each
on the tokens of its stride. Attention within windows (Twins-SVT) is zero outside of the window.
"""

from __future__ import annotations

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.explain.attention import map_of, point_weights, weights_to_pixels
from srattn.explain.capture import backbone_of, capture, check_point, one_image, resolve_block, resolve_stage
from srattn.explain.grad_cam import grad_cam as grad_cam
from srattn.explain.receptive_field import effective_receptive_field as effective_receptive_field
from srattn.explain.rollout import rollout as rollout
from srattn.explain.support import KeySupport as KeySupport
from srattn.explain.support import reduction_support as reduction_support


def attention_map(
    model: nn.Module,
    image: Tensor,
    point: tuple[int, int],
    stage: int,
    block: int = -1,
    head: int | None = None,
) -> Tensor:
    """What one point of an image attends to in one block, in pixels.

    The weight of each key is spread evenly over the pixels of the tokens that it was reduced from, so that a map sums
    to one, less the share of a class token and of keys that see padding alone.

    Args:
        image: (C, H, W).
        point: the pixel (x, y); its query is the token whose patch holds it.
        head: one head; all of them by default.

    Returns:
        (heads, H, W), or (1, H, W) of one head.

    Raises:
        SrattnError: no such stage, block or head; a point outside the image; a map too large to hold.
    """
    backbone = backbone_of(model)
    stage = resolve_stage(backbone, stage)
    block = resolve_block(backbone, stage, block)
    batch = one_image(backbone, image)
    size = (batch.shape[2], batch.shape[3])
    x, y = check_point(point, size)
    attention = map_of(capture(backbone, batch, [(stage, block)])[0])
    heads = attention.probabilities.shape[1]
    if head is not None and not -heads <= head < heads:
        raise SrattnError(f"head {head} does not exist; the block has {heads} heads, counted from 0")
    maps = weights_to_pixels(attention, point_weights(attention, (y, x))[0], size)
    return maps if head is None else maps[head % heads].unsqueeze(0)
