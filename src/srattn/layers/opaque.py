"""Modules that stay one operator under torch.compile, so that compiled models keep the kernels for CPUs.

torch.compile reads Python and makes code of its own from the operators that it finds: it would pass by kernels that are
chosen while the model runs. A module that the kernels know is therefore left to them whole, as one operator
(`srattn::module`) that calls the module's own forward when the graph runs; what lies between such modules is compiled.
No graph breaks, and sizes may be dynamic.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_numbers = itertools.count()
_enrolled: weakref.WeakValueDictionary[int, Opaque] = weakref.WeakValueDictionary()


class Opaque(nn.Module):
    """A module of one tensor (and a few whole numbers) to one tensor that torch.compile can be kept from looking into.

    Its `number` says which module it is: a tensor, since graphs are made for numbers but are shared by modules of one
    form, and the weights go into the operator, since a graph owns none.
    """

    number: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._enrol()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # of a copy, or from another process: it is another module
        self._enrol()

    def _enrol(self) -> None:
        self._places: list[tuple[dict[str, Any], str]] = []
        number = next(_numbers)
        self.number = torch.tensor(number, device="cpu")
        _enrolled[number] = self

    def as_operator(self, x: Tensor, size: Sequence[int], grid: Sequence[int] = ()) -> Tensor:
        """`self.forward(x)`, or `self.forward(x, grid)`, whose result has this size and x's type, as one operator; for
        inference alone."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        return _module(x, size, self.number, list(self.parameters()), dtype, grid)

    def has_weights(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the module's own parameters, in their order."""
        given = [weight.data_ptr() for weight in weights]
        if self._addresses() == given:
            return True
        self._places = _places_of(self)  # asked for the first time, or a part was replaced
        return self._addresses() == given

    def _addresses(self) -> list[int]:
        found = [owner.get(name) for owner, name in self._places]
        return [parameter.data_ptr() for parameter in found if parameter is not None]


def _places_of(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where each of `module.parameters()` hangs, so that it is found without a walk through the modules."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), (inner._parameters, name))
    return list(found.values())


@torch.library.custom_op("srattn::module", mutates_args=())
def _module(
    x: Tensor,
    size: Sequence[int],
    number: Tensor,
    weights: Sequence[Tensor],
    autocast: torch.dtype | None,
    grid: Sequence[int],
) -> Tensor:
    """The forward of an enrolled module with these weights, which are its own unless something stands in for them."""
    module = _enrolled[int(number)]
    inputs = (x, tuple(grid)) if grid else (x,)
    with contextlib.nullcontext() if autocast is None else torch.autocast("cpu", autocast):
        if module.has_weights(weights):
            result = module.forward(*inputs)
        else:  # torch.func.functional_call, around the compiled model or within it
            names = [name for name, _ in module.named_parameters()]
            result = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), inputs)
    return result.to(x.dtype, memory_format=torch.contiguous_format, copy=result is x)


@_module.register_fake
def _(
    x: Tensor,
    size: Sequence[int],
    number: Tensor,
    weights: Sequence[Tensor],
    autocast: torch.dtype | None,
    grid: Sequence[int],
) -> Tensor:
    return x.new_empty(size)
