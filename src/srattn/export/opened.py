"""An exported file in the place of the model that it was made of: for predict, with the same outputs and formats."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from srattn.data.preprocess import Preprocess, to_tensor
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.export.export import files_of
from srattn.export.facts import Facts
from srattn.export.formats import format_of, get_format

if TYPE_CHECKING:
    from PIL import Image


def read_facts(path: str | Path) -> Facts:
    """What an exported file says of itself.

    Raises:
        SrattnError: no such file, or none of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise SrattnError(f"{path} does not exist")
    name = format_of(path)
    if name is None:
        raise SrattnError(f"{path} is no exported model: those are .pt2, .onnx and .xml")
    return Facts.from_text(get_format(name).read_stamp(path), path)


def open_export(path: str | Path, size: int | None = None, threads: int | None = None) -> LoadedRun:
    """The file in its own runtime, with its classes and preprocessing.

    Args:
        size: side of the images in pixels, for a file whose height and width are dynamic.

    Raises:
        SrattnError: no such file, none of ours, or one that takes no other size.
    """
    path = Path(path)
    facts = read_facts(path)
    preprocess = facts.preprocess
    if size is not None and (size, size) != preprocess.size:
        if set(facts.options.dynamic) != {"height", "width"}:
            height, width = preprocess.size
            raise SrattnError(f"{path} takes images of {height}x{width} alone: leave out --size, or export it dynamic")
        preprocess = dataclasses.replace(preprocess, size=(size, size))
    if facts.options.preprocess:
        preprocess = InGraph(**preprocess.to_dict())
    model = ExportedModel(path, facts, threads)
    return LoadedRun(cast(Any, model), facts.labels, preprocess, {}, path)


def batch_size_for(run: LoadedRun, wanted: int) -> int:
    """How many images go in at a time: one picture where each has its own size, else what is wanted."""
    return 1 if isinstance(run.preprocess, InGraph) else wanted


class ExportedModel(nn.Module):
    """Images as the exported model took them, to its logits: split and filled up where the file's batch is fixed."""

    dimensions = 2

    def __init__(self, path: Path, facts: Facts, threads: int | None = None) -> None:
        super().__init__()
        self._run = get_format(facts.options.format).open_file(path, threads)
        self.facts = facts
        self.config = {key: value for key, value in facts.model.items() if key not in ("norm_eps", "edge")}
        self.norm_eps, self.edge = facts.model.get("norm_eps"), facts.model.get("edge")
        # What answers are remembered by: these bytes stand for the weights.
        digest = hashlib.sha256()
        for file in files_of(path):
            digest.update(file.read_bytes())
        self.sha256 = nn.Parameter(torch.tensor(list(digest.digest()), dtype=torch.float32), requires_grad=False)

    def refuse(self, *_: Any, **__: Any) -> Any:
        """What a model answers and a file does not."""
        raise SrattnError("an exported file has no features to embed: give the model that it was made of")

    forward_features = forward_head = refuse
    stages = property(refuse)

    def outputs(self, images: Tensor) -> list[Tensor]:
        """(B, ...) to the outputs in their order."""
        options = self.facts.options
        if options.preprocess:
            images = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        images = images.cpu()
        if options.batch is None:
            return self._run(images)
        parts = []
        for part in images.split(options.batch):
            missing = options.batch - part.shape[0]
            whole = torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part
            parts.append([output[: part.shape[0]] for output in self._run(whole)])
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def forward(self, images: Tensor) -> Tensor:
        """The first output: logits (B, classes) of a classifier."""
        return self.outputs(images)[0]


class InGraph(Preprocess):
    """Preprocessing that the file does itself: a picture stays as it was decoded."""

    def pixels(self, image: Image.Image) -> Tensor:
        return to_tensor(image)

    def normalise(self, images: Tensor) -> Tensor:
        return images
