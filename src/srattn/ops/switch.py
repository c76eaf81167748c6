"""Kernels of ours switched off for a block of code, so that what they compute can be compared with torch's."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OFF = "switched off by without_kernels"

_off: ContextVar[bool] = ContextVar("srattn.without_kernels", default=False)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Leaves everything to torch's operators while the context is open, in inference and in training: neither the
    compiled kernels for CPUs nor those for GPUs (Triton's) are taken, and `srattn.plan` says so.

    It counts in this thread alone (and this asyncio task), may be nested, and decorates functions. Weights that were
    prepared for the kernels stay so. What was computed outside keeps its own way back to the gradients.

    A model under `torch.compile` follows it on a CPU, in training too, whenever it was compiled; open the context
    around its call, not within the compiled function. On a GPU a model keeps what it was compiled with: compile it
    again within.
    `SRATTN_NATIVE=0` in the environment switches the kernels for CPUs off for a whole process.
    """
    before = _off.set(True)
    try:
        yield
    finally:
        _off.reset(before)


def is_off() -> bool:
    """Whether `without_kernels` is open here."""
    return _off.get()
