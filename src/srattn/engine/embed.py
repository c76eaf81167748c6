"""What a model knows of an image before it names it: pooled vectors, or the maps of its stages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone

if TYPE_CHECKING:
    import pyarrow as pa

Precision = Literal["float32", "float16"]
_LARGEST = {"float16": torch.finfo(torch.float16).max, "float32": torch.finfo(torch.float32).max}


def body_of(run: LoadedRun) -> LoadedRun:
    """A run whose model is the backbone of its whole model, on images of one size; a classifier is its own.

    Where images keep their shape ("shorter") the largest centred part of the shape of `size` is taken of each: rows of
    a batch have one size, and a border would be a part of vectors.
    """
    body = getattr(run.model, "backbone", None)
    if not isinstance(body, Backbone):
        return run
    preprocess = run.preprocess
    if preprocess.fit == "shorter":
        preprocess = dataclasses.replace(preprocess, fit="crop", crop_fraction=1.0)
    return dataclasses.replace(run, model=body, preprocess=preprocess)


class Vectors:
    """An `Output`: `features`, what the classifier reads, as a list of fixed size of float32 or float16."""

    def __init__(self, run: LoadedRun, dtype: Precision = "float32") -> None:
        self._model = run.model
        self.dtype: Precision = dtype

    def facts(self) -> dict[str, Any]:
        return {"output": "vectors", "dtype": self.dtype}

    def compute(self, inputs: Tensor) -> tuple[Tensor]:
        vectors = self._model.forward_head(self._model.forward_features(inputs), pre_logits=True)
        return (_as(vectors, self.dtype),)

    def columns(self, values: tuple[Tensor, ...], missing: Tensor) -> dict[str, pa.Array]:
        import pyarrow as pa

        (vectors,) = values
        flat = pa.array(vectors.reshape(-1).numpy())
        return {"features": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=_mask(missing))}


class Maps:
    """An `Output`: for each stage asked for `map_N`, the bytes of (C, H, W) in C order, and `map_N_shape`.

    Args:
        stages: from 1, the finest, to the number of stages.

    Raises:
        SrattnError: no such stage.
    """

    def __init__(self, run: LoadedRun, stages: Sequence[int], dtype: Precision = "float16") -> None:
        count = len(run.model.stages)
        if not stages or len(set(stages)) != len(stages) or not all(1 <= stage <= count for stage in stages):
            raise SrattnError(f"--maps takes different stages from 1 to {count}, got {','.join(map(str, stages))}")
        self._model, self.stages = run.model, sorted(stages)
        self.dtype: Precision = dtype

    def facts(self) -> dict[str, Any]:
        return {"output": "maps", "stages": self.stages, "dtype": self.dtype}

    def compute(self, inputs: Tensor) -> tuple[Tensor, ...]:
        indices = [stage - 1 for stage in self.stages]
        maps = self._model.forward_intermediates(inputs, indices=indices, intermediates_only=True)
        return tuple(_as(each, self.dtype) for each in maps)

    def columns(self, values: tuple[Tensor, ...], missing: Tensor) -> dict[str, pa.Array]:
        import pyarrow as pa

        found: dict[str, pa.Array] = {}
        gone = missing.tolist()
        for stage, maps in zip(self.stages, values, strict=True):
            shape = list(maps.shape[1:])
            data = [None if none else each.numpy().tobytes() for each, none in zip(maps, gone, strict=True)]
            found[f"map_{stage}"] = pa.array(data, pa.binary())
            found[f"map_{stage}_shape"] = pa.array([None if none else shape for none in gone], pa.list_(pa.int32(), 3))
        return found


def part_rows_for(like: Sequence[Tensor], most: int, budget: int = 64 << 20) -> int:
    """Rows of a part: `most`, or as many as keep the values of a part below `budget` bytes; at least 1."""
    size = sum(math.prod(value.shape[1:]) * value.element_size() for value in like)
    return max(1, min(most, budget // max(1, size)))


def _as(values: Tensor, dtype: Precision) -> Tensor:
    values = values.float().cpu()
    if not values.abs().amax() <= _LARGEST[dtype]:
        hint = "; give --dtype float32" if dtype == "float16" and torch.isfinite(values).all() else ""
        raise SrattnError(f"the model gives values that {dtype} cannot hold{hint}")
    return values.to(getattr(torch, dtype)).contiguous()


def _mask(missing: Tensor) -> Any:
    import pyarrow as pa

    return pa.array(missing.tolist(), pa.bool_())
