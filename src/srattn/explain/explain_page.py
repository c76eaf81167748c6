"""The page of `srattn explain`: one HTML file that answers clicks from the attention that it carries."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
import torch.nn.functional as F
from markupsafe import Markup
from matplotlib import colormaps
from torch import Tensor

from srattn.explain import pages
from srattn.explain.packing import as_text, quantised, words_of
from srattn.explain.pictures import whole_picture
from srattn.explain.receptive_field import field_share
from srattn.explain.study import Cam, Study
from srattn.explain.support import KeySupport
from srattn.explain.words import without_controls

_FIELD_SIDE = 112


@dataclass
class Explanation:
    """What the page and the pictures show of a model and its images."""

    model: str
    """What the model is called."""
    facts: list[tuple[str, str]]
    """Rows of (name, text)."""
    studies: list[Study]
    fields: list[Tensor]
    """The effective receptive field (H, W) of each stage, for images of the size of the first."""
    supports: dict[tuple[int, int], list[list[KeySupport]]]
    """For each size of image and each block in order of depth, what its keys see; one for each set of heads."""
    strides: list[int]
    """Pixels from one token of a stage to the next."""
    depths: list[int]
    """Blocks in each stage."""
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read, and why."""


def render(explanation: Explanation) -> str:
    """The page as a string: no outside resource, one script, text from files and classes escaped."""
    return pages.template("explain.html").render(
        style=Markup(pages.style()),
        script=Markup(files("srattn.explain").joinpath("explain.js").read_text("utf-8")),
        data=Markup(_script_safe(json.dumps(_data(explanation), separators=(",", ":"), allow_nan=False))),
        model=explanation.model,
        facts=explanation.facts,
        images=len(explanation.studies),
        left_out=_left_out(explanation.studies),
        skipped=explanation.skipped,
        shares=[f"{100 * field_share(each):.2g}\u00a0%" for each in explanation.fields],
    )


def _script_safe(text: str) -> str:
    # Within a script element nothing ends it but "</script", and "<!--" changes how it is read.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _left_out(studies: Sequence[Study]) -> list[str]:
    """What is not embedded, once for all images where it is the same."""
    lines = [words_of(each.kept) for each in studies]
    if all(each == lines[0] for each in lines):
        return lines[0]
    return [f"{each.name}: {line}" for each, some in zip(studies, lines, strict=True) for line in some]


def _data(explanation: Explanation) -> dict[str, Any]:
    layouts: dict[str, int] = {}
    return {
        "colours": base64.b64encode(_magma()).decode("ascii"),
        "strides": explanation.strides,
        "images": [_image(each, layouts) for each in explanation.studies],
        "fields": [_field(each) for each in explanation.fields],
        "depths": explanation.depths,
        "supports": {
            f"{h}x{w}": [[_support(one) for one in group] for group in blocks]
            for (h, w), blocks in explanation.supports.items()
        },
        # Last: the others have filled it.
        "layouts": [json.loads(text) for text in layouts],
    }


def _image(each: Study, layouts: dict[str, int]) -> dict[str, Any]:
    height, width = each.pixels.shape[1:]
    blocks = []
    for block, boxes in zip(each.blocks, each.boxes, strict=True):
        flat = [round(value, 2) for box in boxes for value in box]
        blocks.append({**block, "layout": layouts.setdefault(json.dumps(flat), len(layouts))})
    return {
        "name": without_controls(each.name),
        "width": width,
        "height": height,
        "picture": whole_picture(each.pixels),
        "answers": [[without_controls(name), round(value, 4)] for name, value in each.answers[:5]],
        "points": [[point.x, point.y, point.name] for point in each.points],
        "cams": [_cam(cam) for cam in each.cams],
        "rollout": _packed(_sampled(each.rollout, int(each.blocks[0]["stride"]))),
        "blocks": blocks,
    }


def _cam(cam: Cam) -> dict[str, Any]:
    return {"name": without_controls(cam.name), "stages": [_packed(stage) for stage in cam.stages]}


def _sampled(values: Tensor, stride: int) -> Tensor:
    """The mean over the pixels of each token of the first stage, in which rollout is even."""
    return F.avg_pool2d(values[None, None], stride, ceil_mode=True, count_include_pad=False)[0, 0]


def _field(values: Tensor) -> dict[str, Any]:
    """Of the root, since fields fall off steeply; at most `_FIELD_SIDE` cells a side."""
    step = -(-max(values.shape) // _FIELD_SIDE)
    small = F.avg_pool2d(values[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0]
    return {**_packed(small.sqrt()), "size": list(values.shape), "share": round(field_share(values), 4)}


def _packed(values: Tensor) -> dict[str, Any]:
    return {
        "grid": list(values.shape),
        "top": float(f"{float(values.max()):.4g}"),
        "data": as_text(quantised(values.float().flatten())),
    }


def _support(support: KeySupport) -> dict[str, Any]:
    return {
        "grid": list(support.grid),
        "stride": list(support.stride),
        "keys": list(support.key_grid),
        "tokens": support.tokens.flatten().tolist(),
        "pixels": support.pixels.flatten().tolist(),
        "unseen": int(support.unseen().sum()),
    }


def _magma() -> bytes:
    colours: Any = colormaps["magma"](np.arange(256))[:, :3]
    return (colours * 255).round().astype(np.uint8).tobytes()
