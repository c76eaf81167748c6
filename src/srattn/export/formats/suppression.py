"""Non-maximum suppression as a graph of ONNX, around its operator NonMaxSuppression; OpenVINO converts the same graph.

The rule of `srattn.tasks.detection.decode`, at any number of boxes: the best `candidates` of all boxes and classes,
without those that have no area or too low a score; of two of a class that overlap the better alone; the best `most`.
"""

from __future__ import annotations

from typing import Any

from srattn.tasks.detection.decode import Choice

BOXES, SCORES, DETECTIONS = "boxes", "scores", "detections"
_NOT = -1.0  # the score of what is no candidate; scores are from 0 to 1


class _Nodes:
    """Nodes and constants with names of their own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        from onnx import helper

        names = [f"nms_{len(self.nodes)}_{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"nms_{len(self.nodes)}", **attributes))
        return names if outputs > 1 else names[0]

    def constant(self, value: Any, dtype: Any) -> str:
        import numpy as np
        from onnx import numpy_helper

        name = f"nms_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(list(values), "int64")


def nodes_of(choice: Choice) -> tuple[list[Any], list[Any]]:
    """Nodes and initialisers from `boxes` (B, N, 4) and `scores` (B, N, K) to `detections` (B, most, 6)."""
    add = _Nodes()
    none = add.constant([_NOT], "float32")
    batch = add("Shape", SCORES, start=0, end=1)
    classes = add("Shape", SCORES, start=2, end=3)
    # (B, k): the best of all places and classes
    flat = add("Reshape", SCORES, add.ints(0, -1))
    count = add("Min", add("Shape", flat, start=1, end=2), add.ints(choice.candidates))
    best, place = add("TopK", flat, count, outputs=2)
    label = add("Mod", place, classes)
    boxes = add("GatherND", BOXES, add("Unsqueeze", add("Div", place, classes), add.ints(2)), batch_dims=1)  # (B, k, 4)
    low = add("Slice", boxes, add.ints(0), add.ints(2), add.ints(2))
    high = add("Slice", boxes, add.ints(2), add.ints(4), add.ints(2))
    sides = add("ReduceMin", add("Sub", high, low), add.ints(2), keepdims=0)
    whole = add("Greater", sides, add.constant(0, "float32"))
    good = add("GreaterOrEqual", best, add.constant(choice.score, "float32"))
    best = add("Where", add("And", whole, good), best, none)
    # (B, K, k): each candidate in the row of its class alone
    first = add.constant(0, "int64")
    numbers = add("Range", first, add("Squeeze", classes), add.constant(1, "int64"))
    mine = add("Equal", add("Unsqueeze", label, add.ints(1)), add("Unsqueeze", numbers, add.ints(1)))
    apart = add("Where", mine, add("Unsqueeze", best, add.ints(1)), none)
    most, overlap = add.ints(choice.most), add.constant([choice.overlap], "float32")
    picked = add("NonMaxSuppression", boxes, apart, most, overlap, add.constant([_NOT / 2], "float32"))  # (S, 3)
    # back to (B, k), the score of what was picked
    where = add("Gather", picked, add.ints(0, 2), axis=1)
    nothing = add("Expand", none, add("Shape", best))
    kept = add("ScatterND", nothing, where, add("GatherND", best, where))
    # (B, most), best first; rows that fill up have the class -1
    filling = add("Expand", none, add("Concat", batch, add.ints(choice.most), axis=0))
    score, row = add("TopK", add("Concat", kept, filling, axis=1), add.ints(choice.most), outputs=2)
    filled = add("Less", score, add.constant(0, "float32"))
    row = add("Where", filled, first, row)
    boxes = add("GatherND", boxes, add("Unsqueeze", row, add.ints(2)), batch_dims=1)
    boxes = add("Where", add("Unsqueeze", filled, add.ints(2)), add.constant(0, "float32"), boxes)
    label = add("Cast", add("GatherElements", label, row, axis=1), to=1)
    label = add("Where", filled, none, label)
    score = add("Max", score, add.constant(0, "float32"))
    columns = [add("Unsqueeze", each, add.ints(2)) for each in (score, label)]
    add("Concat", boxes, *columns, axis=2)
    add.nodes[-1].output[0] = DETECTIONS
    return add.nodes, add.constants


def suppression_model(choice: Choice, opset: int) -> Any:
    """The graph by itself as a model of ONNX."""
    from onnx import TensorProto, helper

    nodes, constants = nodes_of(choice)
    inputs = [
        helper.make_tensor_value_info(BOXES, TensorProto.FLOAT, ["batch", "places", 4]),
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", "places", "classes"]),
    ]
    graph = helper.make_graph(nodes, "suppression", inputs, [output_of(choice)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def output_of(choice: Choice) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, ["batch", choice.most, 6])
