"""Published weights by model: where they lie, under which licence, how well they score, and how images are prepared.

A table alone: `srattn.convert.pretrained` fetches. Repositories, file names and licences were read from the hub's
public listings; where a listing was not seen, `note` says so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    The shorter side is resized to `size / crop_pct`, the centre cropped to `size`, values in [0, 1] normalised.
    """

    size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """One set of published weights.

    Attributes:
        model: the registered name.
        repo, file: repository and file on the Hugging Face hub.
        layout: the state-dict layout of the file.
        top1: ImageNet-1k accuracy in per cent, as published by `top1_source`.
        classes: of the classifier in the file.
        source: the authors' repository, where the weights come from.
    """

    model: str
    repo: str
    file: str
    layout: str
    licence: str
    source: str
    top1: float
    top1_source: str
    preprocessing: Preprocessing
    classes: int = 1000
    note: str = ""


_AUTHORS = "https://github.com/whai362/PVT"
_PVT_PREPROCESSING = Preprocessing(crop_pct=0.875)


def _pvt(size: str, top1: float, note: str = "") -> Weights:
    return Weights(
        model=f"pvt_{size}",
        repo=f"Zetatech/pvt-{size}-224",
        file="model.safetensors",
        layout="transformers",
        licence="Apache-2.0",
        source=_AUTHORS,
        top1=top1,
        top1_source="the authors' repository",
        preprocessing=_PVT_PREPROCESSING,
        note=note,
    )


def _pvt_v2(size: str, top1: float) -> Weights:
    return Weights(
        model=f"pvt_v2_{size}",
        repo=f"timm/pvt_v2_{size}.in1k",
        file="model.safetensors",
        layout="timm",
        licence="Apache-2.0",
        source=_AUTHORS,
        top1=top1,
        top1_source="timm's results table",
        preprocessing=Preprocessing(),
    )


WEIGHTS: tuple[Weights, ...] = (
    _pvt("tiny", 75.1),
    _pvt("small", 79.8, note="the repository's listing was seen to hold safetensors, but not the file's name"),
    _pvt("medium", 81.2),
    _pvt("large", 81.7),
    _pvt_v2("b0", 70.65),
    _pvt_v2("b1", 78.70),
    _pvt_v2("b2", 82.06),
    _pvt_v2("b2_li", 82.20),
    _pvt_v2("b3", 83.12),
    _pvt_v2("b4", 83.71),
    _pvt_v2("b5", 83.76),
)


def find_weights(model: str) -> Weights | None:
    """The published weights of a registered model, or None."""
    return next((row for row in WEIGHTS if row.model == model), None)
