"""The answers as OpenAPI describes them, with examples; they are built by hand and not validated again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Error(BaseModel):
    """What went wrong, in one line."""

    error: str = Field(examples=["cat.jpg: unreadable (image file is truncated)"])


class Health(BaseModel):
    status: str = Field(examples=["ok"])


class NamedShare(BaseModel):
    name: str = Field(examples=["cat"])
    probability: float = Field(ge=0, le=1.000001, examples=[0.93])


class Named(BaseModel):
    name: str = Field(description="the file's name, or `image N`", examples=["cat.jpg"])
    width: int = Field(description="of the picture, upright", examples=[640])
    height: int = Field(examples=[480])


class Classified(Named):
    classes: list[NamedShare] = Field(description="the likeliest first")


class Predictions(BaseModel):
    """The answer for each picture, in their order."""

    task: str = Field(examples=["classification"])
    model: str = Field(examples=["pvt_v2_b0"])
    answers: list[Classified]


class NamedPart(BaseModel):
    name: str = Field(examples=["road"])
    share: float = Field(ge=0, le=1.000001, examples=[0.41])


class Masked(Named):
    shares: list[NamedPart] = Field(description="of the picture, the largest first")
    mask: str = Field(
        description="class numbers of the picture's pixels: an indexed PNG in the classes' colours, as base64",
        examples=["iVBORw0KGgo..."],
    )


class Masks(BaseModel):
    """The answer for each picture, in their order."""

    task: str = Field(examples=["segmentation"])
    model: str = Field(examples=["pvt_v2_b0"])
    answers: list[Masked]


class Runs(BaseModel):
    size: list[int] = Field(description="height and width of the picture", examples=[[480, 640]])
    counts: str = Field(description="lengths of runs in the text of COCO's tools", examples=["PPYo0..."])


class Box(BaseModel):
    name: str = Field(examples=["cat"])
    score: float = Field(ge=0, le=1.000001, examples=[0.93])
    box: list[float] = Field(description="x1, y1, x2, y2 in pixels of the picture", examples=[[12.5, 30, 200.25, 180]])
    segmentation: Runs | None = Field(None, description="the pixels of the object, of a model that finds them")


class Boxed(Named):
    boxes: list[Box] = Field(description="the surest first")


class Boxes(BaseModel):
    """The answer for each picture, in their order."""

    task: str = Field(examples=["detection"])
    model: str = Field(examples=["pvt_v2_b0"])
    answers: list[Boxed]


class Metres(BaseModel):
    least: float = Field(examples=[0.8])
    median: float = Field(examples=[2.4])
    most: float = Field(examples=[6.1])


class Deep(Named):
    metres: Metres
    depth_scale: float = Field(description="metres that a unit of `depth` is", examples=[0.001])
    depth: str = Field(
        description="the distance of each of the picture's pixels: a grey PNG of 16 bits, as base64",
        examples=["iVBORw0KGgo..."],
    )
    drawing: str | None = Field(None, description="to look at, bright for near: a grey PNG of 8 bits, as base64")


class Depths(BaseModel):
    """The answer for each picture, in their order."""

    task: str = Field(examples=["depth"])
    model: str = Field(examples=["pvt_v2_b0"])
    answers: list[Deep]


class Joint(BaseModel):
    name: str = Field(examples=["left_eye"])
    x: float = Field(description="in pixels of the picture, from its left edge", examples=[120.5])
    y: float = Field(description="from its upper edge", examples=[64.25])
    score: float = Field(ge=0, le=1.000001, examples=[0.93])


class Person(BaseModel):
    box: list[float] = Field(
        description="x1, y1, x2, y2, what of it lies on the picture", examples=[[10, 20, 110, 220]]
    )
    joints: list[Joint]


class Posed(Named):
    people: list[Person] = Field(description="in the order of their boxes")


class Poses(BaseModel):
    """The answer for each picture, in their order."""

    task: str = Field(examples=["pose"])
    model: str = Field(examples=["pvt_v2_b0"])
    answers: list[Posed]


class Embedded(Named):
    vector: list[float] = Field(examples=[[0.12, -0.7, 1.4]])


class Embeddings(BaseModel):
    """The pooled vector of each picture, as a classifier reads it."""

    model: str = Field(examples=["pvt_v2_b0"])
    length: int = Field(examples=[256])
    answers: list[Embedded]


class Attention(Named):
    """What a point of a picture attends to. Stages, blocks and heads are counted from 1."""

    model: str = Field(examples=["pvt_v2_b0"])
    stage: int = Field(examples=[4])
    block: int = Field(examples=[2])
    head: int | None = Field(description="null is the mean of all heads", examples=[None])
    token: list[int] = Field(description="row and column of the point in the grid", examples=[[3, 4]])
    grid: list[int] = Field(description="rows and columns", examples=[[7, 7]])
    box: list[float] = Field(
        description="left, top, right and bottom of the grid, as shares of the picture's sides",
        examples=[[0.05, 0.05, 0.95, 0.95]],
    )
    weights: list[list[float]] = Field(
        description="shares by row and column; one in all, less what falls on padding or a class token",
        examples=[[[0.4, 0.1], [0.2, 0.3]]],
    )


class StageFacts(BaseModel):
    stage: int = Field(examples=[1])
    blocks: int = Field(examples=[2])
    heads: int = Field(examples=[1])
    grid: list[int] = Field(examples=[[56, 56]])


class ModelFacts(BaseModel):
    """What can be asked of this service."""

    task: str = Field(examples=["classification"])
    model: str = Field(examples=["pvt_v2_b0"])
    version: str = Field(description="of srattn", examples=["1.2.3"])
    classes: list[str] = Field(description="joints, of a model of those", examples=[["cat", "dog"]])
    colours: list[str] | None = Field(None, description="of the classes of masks and boxes", examples=[["#e69f00"]])
    bones: list[list[int]] | None = Field(None, description="pairs of joints by number", examples=[[[0, 1]]])
    size: list[int] = Field(description="height and width that the model sees", examples=[[224, 224]])
    embeds: bool = Field(description="whether /embed answers")
    stages: list[StageFacts] = Field(description="what /explain can be asked for; empty if it does not answer")
    max_images: int = Field(examples=[64])
    max_bytes: int = Field(examples=[16777216])
    max_pixels: int = Field(examples=[40000000])


PREDICTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "classification": ("Classes of pictures", Predictions),
    "segmentation": ("Masks of pictures", Masks),
    "detection": ("Boxes of objects on pictures", Boxes),
    "depth": ("Depths of pictures", Depths),
    "pose": ("Joints of people on pictures", Poses),
}
"""Of each task what /predict gives."""

_BINARY = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64", "examples": ["iVBORw0KGgo..."]}
_WORDS = {
    400: "the body is not what its content-type says, or has no picture",
    401: "a bearer token is asked for",
    404: "this model has no such answer",
    408: "the body did not arrive in time",
    413: "too many bytes, pixels or pictures",
    415: "another content-type",
    422: "an unreadable picture, or an option out of range",
    500: "a defect of the service",
    503: "the queue is full; Retry-After says when to try again",
    504: "the answer took too long",
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route."""
    return {code: {"model": Error, "description": _WORDS[code]} for code in codes}


def picture_body(several: bool) -> dict[str, Any]:
    """The request body of a route that takes one or `several` pictures, for `openapi_extra`."""
    files = {"type": "array", "items": _BINARY, "minItems": 1} if several else _BINARY
    # Exactly one of the two names.
    forms: list[dict[str, Any]] = [_object("image", _BASE64)]
    if several:
        forms.append(_object("images", {"type": "array", "items": _BASE64, "minItems": 1}))
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _object("image", files)},
                "image/*": {"schema": _BINARY},
                "application/octet-stream": {"schema": _BINARY},
                "application/json": {
                    "schema": {"oneOf": forms} if several else forms[0],
                    "examples": {"one": {"value": {"image": "iVBORw0KGgo..."}}},
                },
            },
        }
    }


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
