"""What is exported: one module from images, or pictures, to named outputs, and its program of torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from srattn.data.preprocess import Preprocess
from srattn.export.fast import Form, absorbed_in, fast_form
from srattn.export.options import LEAST_DYNAMIC, Options
from srattn.export.pictures import Pictures
from srattn.models.backbone import Backbone

INPUT = "images"
LARGEST = 8192
"""Pixels a side: the end of what a dynamic size is declared for."""

FORMS: dict[str, Form] = {
    "torch": Form("tokens", "fused"),
    "torch-compiled": Form("tokens", "fused"),
    "onnx": Form("channels", "products"),
    "openvino": Form("map", "fused"),
}
"""The form of a block for each format, the fastest that `benchmarks/export.py --forms` found.

OpenVINO's compiler crashes with a segmentation fault on absorbed attention with one head that is written as products.
"""


class Graph(nn.Module):
    """images (B, C, H, W) float32, or pictures (B, H, W, C) uint8, to logits, or to the maps of all stages."""

    def __init__(self, model: Backbone, task: str, pictures: Pictures | None = None) -> None:
        super().__init__()
        self.model, self.task, self.pictures = model, task, pictures

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.pictures is not None:
            images = self.pictures(images)
        if self.task == "features":
            return tuple(self.model.forward_intermediates(images, intermediates_only=True))
        return self.model(images)

    def outputs(self) -> list[str]:
        """Names of the outputs."""
        if self.task == "features":
            return [f"map_{index + 1}" for index in range(len(self.model.stages))]
        return ["logits"]


def make_graph(model: Backbone, options: Options, preprocess: Preprocess | None) -> Graph:
    """The graph with the model as it is, which is the reference."""
    pictures = Pictures(preprocess) if options.preprocess and preprocess is not None else None
    return Graph(model, options.task, pictures).eval()


def make_program(graph: Graph, options: Options) -> tuple[ExportedProgram, list[bool]]:
    """The fast form of the graph's model, traced by torch.export for the declared sizes, and what was absorbed."""
    fixed = not options.dynamic
    fast = Graph(fast_form(graph.model, options.size, fixed, FORMS[options.format]), graph.task, graph.pictures)
    example = example_for(graph, options)
    dynamic: dict[int, Any] = {}
    if options.batch is None:
        dynamic[0] = Dim("batch", min=1, max=65535)
    if graph.pictures is not None:
        dynamic |= {1: Dim("height", min=2, max=LARGEST), 2: Dim("width", min=2, max=LARGEST)}
    for axis, name in ((2, "height"), (3, "width")):
        if name in options.dynamic:
            dynamic[axis] = Dim(name, min=LEAST_DYNAMIC, max=LARGEST)
    with torch.no_grad():
        program = torch.export.export(fast.eval(), (example,), dynamic_shapes=(dynamic,), strict=False)
    return program, absorbed_in(fast)


def example_for(
    graph: Graph, options: Options, size: tuple[int, int] | None = None, batch: int | None = None
) -> Tensor:
    """Random images, or pictures, of a size. A batch of one would be taken for fixed, so a dynamic one is of two."""
    batch = batch or options.batch or 2
    height, width = size or options.size
    channels = graph.model.in_chans
    if graph.pictures is not None:
        return torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8)
    return torch.randn(batch, channels, height, width)
