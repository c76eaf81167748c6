"""Parts that several blocks use and their stage owns."""

from typing import Any

from torch import nn


class Shared(nn.Module):
    """Calls a part that another module owns: its parameters are registered there, once, and nowhere here.

    A copy of the whole model keeps blocks and owner together; replacing the owner's part does not reach the blocks.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._part = (part,)  # in a tuple, where nn.Module does not register it

    def forward(self, *args: Any) -> Any:
        return self._part[0](*args)

    def extra_repr(self) -> str:
        return f"a stage's {type(self._part[0]).__name__}"
