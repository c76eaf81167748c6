"""What an exported file says of itself: enough to use it, and to know where it comes from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from srattn.data.palette import Palette
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.export.options import COLOURED, LEAST_DYNAMIC, OUTPUTS, SUFFIXES, Options
from srattn.version import __version__

_LARGEST = 16 << 20


@dataclasses.dataclass(frozen=True)
class Facts:
    """The stamp of a file.

    Attributes:
        options: what it was exported as.
        labels: class names, in the order of the logits; empty for features.
        preprocess: from a decoded picture to the images that it takes, or that it makes itself.
        outputs: names of the outputs.
        model: what `srattn.create_model` built.
        card: what is known of the model beside that, plain values.
        absorbed: for each attention that was rewritten, whether W^Q and W^O were absorbed.
        colours: of the classes of pixels and boxes, red, green, blue.
        choice: which boxes are left, where the file suppresses them itself: see `srattn.tasks.detection.Choice`.
        least: the least side of images in pixels, where sizes are dynamic.
        quantised: what whole numbers cost, see `srattn.export.quantise.steps.quantise`; empty for a file in float.
        weights: hash of those that it was made of, see `srattn.engine.open_model.fingerprint`.
        verified: worst error, tolerance and input shapes of the comparison with eager; of a file in whole
            numbers, of the one in float that it was made from.
        version: of srattn.
    """

    options: Options
    labels: list[str]
    preprocess: Preprocess
    outputs: list[str]
    model: dict[str, Any]
    card: dict[str, Any]
    absorbed: list[bool]
    colours: list[list[int]] = dataclasses.field(default_factory=list)
    choice: dict[str, Any] = dataclasses.field(default_factory=dict)
    least: int = LEAST_DYNAMIC
    quantised: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""
    verified: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: str = __version__

    @property
    def task(self) -> str:
        """What `srattn.engine.weights.LoadedRun` calls it."""
        names = {"segment": "segmentation", "detect": "detection", "depth": "depth", "pose": "pose"}
        return names.get(self.options.task, "classification")

    def palette(self) -> Palette | None:
        """Names and colours of the classes of pixels and boxes.

        Raises:
            SrattnError: they are none.
        """
        if self.options.task not in COLOURED:
            return None
        try:
            return Palette(tuple(self.labels), tuple((r, g, b) for r, g, b in self.colours))
        except (ValueError, TypeError) as error:
            raise SrattnError(f"the colours in the file are none: {error}") from None

    def to_text(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> Facts:
        """The reverse, for a text that may be anything.

        Raises:
            SrattnError: it is no stamp of ours.
        """
        try:
            if text is None or len(text) > _LARGEST:
                raise ValueError("no stamp")
            values = json.loads(text)
            values["options"] = _options(values["options"])
            values["preprocess"] = Preprocess.from_dict(values["preprocess"])
            facts = cls(**values)
            whole = all(isinstance(each, list) for each in (facts.labels, facts.outputs))
            if not whole or not all(isinstance(each, str) for each in [*facts.labels, *facts.outputs]):
                raise ValueError("labels and outputs are lists of names")
            facts.palette()
            return facts
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SrattnError(
                f"{path} was not written by srattn export, or is damaged: {' '.join(str(error).split())[:100]}"
            ) from None


def _options(values: dict[str, Any]) -> Options:
    height, width = (int(side) for side in values["size"])
    options = Options(**{**values, "size": (height, width), "dynamic": tuple(values["dynamic"])})
    options = dataclasses.replace(options, keep_float=tuple(options.keep_float))
    if options.format not in SUFFIXES or options.answer not in OUTPUTS.get(options.task, ()):
        raise ValueError(f"format {options.format!r}, task {options.task!r}, outputs {options.outputs!r}")
    if not (options.batch is None or (isinstance(options.batch, int) and options.batch > 0)):
        raise ValueError(f"batch {options.batch!r}")
    return options
