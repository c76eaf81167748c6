"""A dense model on a batch of windows: from pixels to what is averaged, on the windows' own pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srattn.data.strips import Parts
from srattn.engine.sliding.grid import Axis, Grid, continued
from srattn.engine.sliding.options import Sliding
from srattn.errors import SrattnError

Model = Callable[[Tensor], Tensor]
_CLASSES = 256  # numbers of classes are stored in 8 bits


class Windows:
    """Answers of `model` for windows of `image`."""

    def __init__(
        self,
        model: Model,
        image: Parts,
        normalise: Callable[[Tensor], Tensor],
        kind: str,
        device: torch.device | None,
        options: Sliding,
    ) -> None:
        tensors = model.parameters() if isinstance(model, nn.Module) else ()
        weight = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros(0))
        self.device = weight.device if device is None else device
        self._dtype = weight.dtype
        self._model, self._image, self._normalise = model, image, normalise
        self._kind, self._options = kind, options

    @torch.no_grad()
    def answers(self, grid: Grid, row: int, columns: Sequence[int]) -> Tensor:
        """(B, K, h, w) float32, h and w pixels of the image, for the windows of one row.

        Raises:
            SrattnError: the model's output has another shape than its kind has, or is not finite.
        """
        pixels = torch.stack([self._read(grid, row, column) for column in columns])
        images = pixels.to(self.device).float() / 255
        size = (grid.rows.window, grid.columns.window)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
        images = self._normalise(images).to(self._dtype)
        source = (grid.rows.source, grid.columns.source)
        where = (grid.rows.starts[row], grid.columns.starts[columns[0]])
        found = self._answer(images, source, where)
        if self._options.flips:
            found = (found + self._answer(images.flip(3), source, where).flip(3)) / 2
        return found

    def _answer(self, images: Tensor, source: tuple[int, int], where: tuple[int, int]) -> Tensor:
        with eval_mode(self._model):
            output = self._checked(self._model(images), images.shape[0], where).float()
        if output.shape[2:] != source:
            shrinks = output.shape[2] > source[0] or output.shape[3] > source[1]
            output = F.interpolate(output, source, mode="bilinear", align_corners=False, antialias=shrinks)
        soft = self._kind == "classes" and self._options.average == "probabilities"
        return output.softmax(1) if soft else output

    def _checked(self, output: Tensor, batch: int, where: tuple[int, int]) -> Tensor:
        shape = tuple(output.shape)
        if self._kind == "values" and output.ndim == 3:
            output = output.unsqueeze(1)
        least, most = (2, _CLASSES) if self._kind == "classes" else (1, 1)
        if output.ndim != 4 or output.shape[0] != batch or not least <= output.shape[1] <= most:
            wanted = f"({batch}, K, h, w), K from 2 to {_CLASSES}" if most > 1 else f"({batch}, h, w)"
            raise SrattnError(f"kind={self._kind!r} needs an output {wanted}; the model's has the shape {shape}")
        if not output.isfinite().all():
            raise SrattnError(f"the model's output is not finite in the window at (y, x) = {where} or beside it")
        return output

    def _read(self, grid: Grid, row: int, column: int) -> Tensor:
        """uint8 (C, h, w): pixels of the image, continued beyond its border."""
        channels, height, width = self._image.shape
        ys = self._places(grid.rows, row, height)
        xs = self._places(grid.columns, column, width)
        top, bottom, left, right = int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1
        part = self._image.crop(top, bottom, left, right)
        if part.dtype != torch.uint8 or part.shape != (channels, bottom - top, right - left):
            wanted = (channels, bottom - top, right - left)
            raise SrattnError(f"a part of the image must be uint8 {wanted}, got {part.dtype} {tuple(part.shape)}")
        if _rises(ys) and _rises(xs):
            return part
        return part.index_select(1, (ys - top).to(part.device)).index_select(2, (xs - left).to(part.device))

    def _places(self, axis: Axis, index: int, size: int) -> Tensor:
        start = axis.starts[index]
        return continued(start, start + axis.source, size, self._options.padding)


def _rises(places: Tensor) -> bool:
    """Whether they are neighbours, none of them beyond the border."""
    return int(places[-1] - places[0]) == len(places) - 1


@contextlib.contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """The model in eval mode; afterwards every module has the training flag that it had."""
    flags = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
