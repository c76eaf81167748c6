"""What an export is asked to be, checked before any work."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError

FormatName = Literal["torch", "torch-compiled", "onnx", "openvino"]
Task = Literal["classify", "features", "segment", "detect", "depth", "pose"]
OUTPUTS: dict[str, tuple[str, ...]] = {
    "classify": ("logits",),
    "features": ("maps",),
    "segment": ("logits", "classes"),
    "detect": ("boxes", "detections", "rows"),
    "depth": ("depths",),
    "pose": ("joints",),
}
"""What a file of each task can answer, the default first; see `srattn.export.answers`."""
COLOURED = ("segment", "detect")
"""Tasks whose classes have colours."""
SUFFIXES: dict[str, str] = {"torch": ".pt2", "torch-compiled": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("float32", "bfloat16"),
    "torch-compiled": ("float32", "bfloat16"),
    "onnx": ("float32", "float16", "int8", "int8-weights"),
    "openvino": ("float32", "float16", "bfloat16", "int8", "int8-weights"),
}
"""What each format can be written in; float16 is how weights are stored, the others are what is computed in."""
WHOLE = ("int8", "int8-weights")
WITH_NMS = ("onnx", "openvino")
"""Formats that can suppress boxes themselves."""
LEAST_OPSET, OPSET = 18, 20
LEAST_DYNAMIC = 33
"""Torch's convolutions take a map larger than 1 x 1 for granted while sizes are symbols."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is exported.

    Attributes:
        format: "torch" is a program of torch.export, "torch-compiled" the same compiled ahead of time for this machine
            (AOTInductor), "onnx" and "openvino" are theirs.
        size: height and width in pixels; the choice of absorbed attention is made for it.
        batch: images at a time, or None for any number.
        dynamic: which of "height" and "width" may differ from `size`.
        task: "classify" gives logits, "features" the maps of all stages; "segment", "detect", "depth" and
            "pose" are for models of masks, boxes, depths and joints.
        outputs: one of `OUTPUTS` of the task, the default if empty.
        precision: one of `PRECISIONS` of the format. "int8" has whole numbers of 8 bits for weights and activations
            and needs images to calibrate on, "int8-weights" for weights alone.
        keep_float: of "int8", parts of the model that stay float: patterns as `srattn.export.quantise.parts.matching`
            reads them, or "auto" for those that lose most.
        sensitivity: of "int8", measure what every part loses by itself.
        preprocess: take uint8 pictures (batch, height, width, channels) of any size, and crop, resize and normalise
            in the graph.
        opset: of ONNX.
    """

    format: FormatName = "onnx"
    size: tuple[int, int] = (224, 224)
    batch: int | None = None
    dynamic: tuple[str, ...] = ()
    task: Task = "classify"
    preprocess: bool = False
    opset: int = OPSET
    outputs: str = ""
    precision: str = "float32"
    keep_float: tuple[str, ...] = ()
    sensitivity: bool = False

    @property
    def answer(self) -> str:
        """What the file answers: `outputs`, or the task's default."""
        return self.outputs or OUTPUTS[self.task][0]

    def check(self, min_size: int, least_dynamic: int = LEAST_DYNAMIC) -> None:
        """Refuses what cannot be.

        Args:
            min_size: the least side of the model's images.
            least_dynamic: the least side while sizes are symbols.

        Raises:
            SrattnError: see the messages.
        """
        kinds = OUTPUTS[self.task]
        if self.answer not in kinds:
            raise SrattnError(f"--outputs of --task {self.task} is {' or '.join(kinds)}, got {self.outputs!r}")
        if self.answer == "detections" and self.format not in WITH_NMS:
            raise SrattnError(
                f"--nms in is for {' and '.join(WITH_NMS)}: a program of torch.export cannot suppress boxes whose "
                "number depends on the picture; --nms out gives all boxes and scores"
            )
        able = PRECISIONS[self.format]
        if self.precision not in able:
            raise SrattnError(f"--precision of {self.format} is {', '.join(able)}, got {self.precision!r}")
        if self.precision != "int8" and (self.keep_float or self.sensitivity):
            raise SrattnError(f"--keep_float and --sensitivity are for --precision int8, got {self.precision}")
        if self.batch is not None and self.batch < 1:
            raise SrattnError(f"--batch is dynamic or at least 1, got {self.batch}")
        least = max(min_size, least_dynamic) if self.dynamic else min_size
        if min(self.size) < least:
            why = " with dynamic sizes" if self.dynamic else ""
            raise SrattnError(f"--size is at least {least} for this model{why}, got {self.size[0]}x{self.size[1]}")
        for name in self.dynamic:
            if name not in ("height", "width"):
                raise SrattnError(f"--dynamic is of height, width, got {name!r}")
        if self.preprocess and self.dynamic:
            raise SrattnError(
                "--preprocess resizes every picture to --size, so the model sees one size: leave out --dynamic"
            )
        if self.task == "pose" and (self.preprocess or self.dynamic):
            raise SrattnError(
                "joints are found in windows of one size, each around one person, which are cut before: leave out "
                "--preprocess and --dynamic"
            )
        if self.dynamic and self.format == "torch-compiled":
            raise SrattnError(
                "torch-compiled has one size, since torch's compiler fails on dynamic ones: leave out --dynamic"
            )
        if self.opset < LEAST_OPSET:
            raise SrattnError(f"--opset is at least {LEAST_OPSET}, got {self.opset}")

    def fitted(self, preprocess: Preprocess) -> Preprocess:
        """A model's preprocessing for the images of the file.

        A graph of one size cannot take what "shorter" makes, images of sizes of their own: they are stretched.
        """
        fixed = set(self.dynamic) != {"height", "width"}
        fit = "squash" if fixed and preprocess.fit == "shorter" else preprocess.fit
        return dataclasses.replace(preprocess, size=self.size, fit=fit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)
