"""Who reads the model, and what a compiler need not read."""

from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])


def is_exporting() -> bool:
    """Whether torch.export does, as `torch.compiler.is_exporting` says it.

    Read from its flag: within torch.compile that function answers yes in torch 2.11, and graphs would be those for
    export, without kernels and for any size.
    """
    return torch.compiler._is_exporting_flag


def constant_while_compiling(function: Function) -> Function:
    """Has torch.compile call a function of the machine, and of constants, instead of reading it.

    As `torch.compiler.assume_constant_result` does, which would import the compiler with every srattn.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
