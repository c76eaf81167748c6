"""What is exported: one module from images, or pictures, to named outputs, and its program of torch.export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.export import answers
from srattn.export.fast import Form, absorbed_in, fast_form
from srattn.export.options import LEAST_DYNAMIC, WHOLE, Options
from srattn.export.pictures import Pictures
from srattn.export.stages import outputs_of, stages_of
from srattn.models.backbone import Backbone
from srattn.tasks.dense import DenseModel, DepthModel, SegmentationModel
from srattn.tasks.depth import depth_map
from srattn.tasks.detection.model import DetectionModel
from srattn.tasks.detection.stages.model import TwoStageModel
from srattn.tasks.pose.model import PoseModel

INPUT = "images"
LARGEST = 8192
"""Pixels a side: the end of what a dynamic size is declared for."""

FORMS: dict[str, Form] = {
    "torch": Form("tokens", "fused"),
    "torch-compiled": Form("tokens", "fused"),
    "onnx": Form("channels", "products", in_turn=13 << 19),
    "openvino": Form("map", "fused", absorb_heads=1, joined=True, in_turn=13 << 19, in_parts=2 << 20, centred=True),
}
"""The form of a block for each format, the fastest that was found; `benchmarks/export.py --forms` measures others.

OpenVINO has one step for attention of several heads, and none for what they are absorbed to.
The bytes are those of caches: two cores had 1 MiB each to themselves and 32 MiB together.

OpenVINO's compiler crashes with a segmentation fault on absorbed attention with one head that is written as products.
"""


class Graph(nn.Module):
    """images (B, C, H, W) float32, or pictures (B, H, W, C) uint8, to what `options` say; suppression is left out."""

    def __init__(self, model: nn.Module, options: Options, pictures: Pictures | None = None) -> None:
        super().__init__()
        self.model, self.options, self.pictures = model, options, pictures

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        model: Any = self.model
        if self.pictures is None:
            height, width = images.shape[2], images.shape[3]
        else:
            height, width = images.shape[1], images.shape[2]
            images = self.pictures(images)
        answer = self.options.answer
        staged = isinstance(model, TwoStageModel)
        if staged and answer != "maps":
            return self._stages(model, images, height, width)
        if answer == "maps":
            maps = self._computed(
                lambda x: backbone_of(model).forward_intermediates(x, intermediates_only=True), images
            )
            return tuple(maps)
        (found,) = self._computed(lambda x: [model(x)], images)
        if answer == "classes":
            return answers.classes_of(found, height, width)
        if answer == "depths":  # of pictures of any size on their own pixels
            return found if self.pictures is None else depth_map(found, (height, width))
        if answer == "joints":
            return answers.joints_of(found, model.columns, height, width), found
        if answer not in ("boxes", "detections"):
            return found
        boxes, scores = answers.boxes_of(found, model.num_classes)
        if self.pictures is not None:
            boxes = answers.in_picture(boxes, self.pictures.preprocess, height, width)
        return boxes, scores

    def _stages(self, model: TwoStageModel, images: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        steps, (found, *masks) = stages_of(model, images)
        if self.pictures is None:
            return (*steps, found, *masks)
        boxes = answers.in_picture(found[..., :4], self.pictures.preprocess, height, width)
        there = found[..., 5:] >= 0
        return (*steps, found, torch.cat([boxes * there, found[..., 4:]], 2), *masks)

    def _computed(self, run: Callable[[Tensor], list[Tensor]], images: Tensor) -> list[Tensor]:
        """What a model whose weights are bfloat16 makes of float32, as float32."""
        if next(self.model.parameters()).dtype != torch.bfloat16:
            return run(images)
        return [each.float() for each in run(images.bfloat16())]

    def outputs(self) -> list[str]:
        """Names of the outputs; of a model of two stages of those that stay."""
        if isinstance(self.model, TwoStageModel) and self.options.answer != "maps":
            return outputs_of(self.model)
        if self.options.answer == "maps":
            return [f"map_{index + 1}" for index in range(len(backbone_of(self.model).stages))]
        return answers.NAMES[self.options.answer]


def backbone_of(model: nn.Module) -> Backbone:
    """The model itself, or what is below its head."""
    found: Any = model.backbone if isinstance(model, DenseModel) else model
    return found


def least_dynamic(model: nn.Module, options: Options) -> int:
    """The least side in pixels while sizes are symbols: every map is then larger than 1 x 1."""
    if isinstance(model, DetectionModel) and options.answer != "maps":
        return max(model.head.strides) + 1  # type: ignore[arg-type]
    return max(LEAST_DYNAMIC, backbone_of(model).min_size + 1)


def check_model(model: nn.Module, options: Options) -> None:
    """Refuses a task that is none of the model's.

    Raises:
        SrattnError: which it has.
    """
    if options.task == "features" and isinstance(model, DenseModel | Backbone):
        return
    if isinstance(model, SegmentationModel):
        able = "segment"
    elif isinstance(model, DetectionModel):
        able = "detect"
    elif isinstance(model, DepthModel):
        able = "depth"
    elif isinstance(model, PoseModel):
        able = "pose"
    elif isinstance(model, Backbone):
        able = "classify"
    else:
        way_out = "; --task features exports the maps of its backbone" if isinstance(model, DenseModel) else ""
        raise SrattnError(
            "export knows classifiers and models of masks, boxes, depths and joints, got "
            f"{type(model).__name__}{way_out}"
        )
    if options.task != able:
        raise SrattnError(f"this model can be exported with --task {able} or features, got {options.task}")
    if isinstance(model, PoseModel) and model.columns is not None:
        size = tuple(model.head.config["size"])  # type: ignore[index]
        if options.size != size:
            raise SrattnError(f"a SimCC head is made for images of {size[0]}x{size[1]}: leave out --size, or give that")


def make_graph(model: nn.Module, options: Options, preprocess: Preprocess | None) -> Graph:
    """The graph with the model as it is, which is the reference."""
    pictures = Pictures(preprocess) if options.preprocess and preprocess is not None else None
    return Graph(model, options, pictures).eval()


def form_for(options: Options) -> Form:
    """The form of a block that a file is written in."""
    if options.precision == "int8-weights":  # without their activations only products are quantised, no convolutions
        return Form()
    form = FORMS[options.format]
    if options.precision in WHOLE:  # each part would be rounded by itself, and so would the squares of a norm
        return form._replace(in_turn=0, in_parts=0, centred=False)
    # Parts of 2 bytes fit as they are, and each sum of parts would be rounded.
    return form if _item(options) == 4 else form._replace(in_parts=0)


def _item(options: Options) -> int:
    """Bytes of a number while the file is run."""
    return 2 if options.precision == "bfloat16" else 4


def fast_model(model: nn.Module, options: Options) -> nn.Module:
    """A copy of the model whose backbone is in its fast form."""
    form, fixed = form_for(options), not options.dynamic
    fast = fast_form(backbone_of(model), options.size, fixed, form, options.batch, _item(options))
    if not isinstance(model, DenseModel):
        return fast
    whole = copy.deepcopy(model).eval().requires_grad_(False)
    whole.backbone = fast
    return whole


def make_program(graph: Graph, options: Options) -> tuple[ExportedProgram, list[bool]]:
    """The fast form of the graph's model, traced by torch.export for the declared sizes, and what was absorbed."""
    model = fast_model(graph.model, options)
    if options.precision == "bfloat16" and options.format in ("torch", "torch-compiled"):
        model = model.bfloat16()
    fast = Graph(model, options, graph.pictures)
    example = example_for(graph, options)
    dynamic: dict[int, Any] = {}
    if options.batch is None:
        dynamic[0] = Dim("batch", min=1, max=65535)
    if graph.pictures is not None:
        dynamic |= {1: Dim("height", min=2, max=LARGEST), 2: Dim("width", min=2, max=LARGEST)}
    least = least_dynamic(graph.model, options)
    for axis, name in ((2, "height"), (3, "width")):
        if name in options.dynamic:
            dynamic[axis] = Dim(name, min=least, max=LARGEST)
    with torch.no_grad():
        program = torch.export.export(fast.eval(), (example,), dynamic_shapes=(dynamic,), strict=False)
    return program, absorbed_in(fast)


def example_for(
    graph: Graph, options: Options, size: tuple[int, int] | None = None, batch: int | None = None
) -> Tensor:
    """Random images, or pictures, of a size. A batch of one would be taken for fixed, so a dynamic one is of two."""
    batch = batch or options.batch or 2
    height, width = size or options.size
    channels = backbone_of(graph.model).in_chans
    if graph.pictures is not None:
        return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8)
    return torch.randn(batch, channels, height, width)
