"""A training step recorded once as a CUDA graph: one launch in place of thousands that keep a host busy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from srattn.engine.optimiser import MuonWithAdamW
from srattn.errors import SrattnError

WARM_STEPS = 3
"""Steps before the recording, made as always: whatever is compiled, tuned or allocated at first use is there then."""

T = TypeVar("T")


class Outcome(NamedTuple):
    """Of a step: the mean loss, the norm of all gradients, and the task's tallies."""

    loss: Tensor
    norm: Tensor
    tally: dict[str, Tensor]


class Recorder(Protocol):
    """What can do again what it was shown, on the same tensors."""

    def fetch(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors on the device, for what is called next; steps before may still be under way."""
        ...

    def warm(self, call: Callable[[], T]) -> T:
        """The result of a call that is not recorded."""
        ...

    def record(self, call: Callable[[], T]) -> T:
        """What the call returns; its tensors hold nothing before the first `replay`."""
        ...

    def replay(self) -> None: ...


class CudaRecorder:
    """`torch.cuda.CUDAGraph`, on a stream of its own before and while it records, as torch asks for."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        self.device, self.copies = device, torch.cuda.Stream(device)

    def fetch(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        main = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.copies):  # beside the step before, which `main` is still busy with
            found = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        main.wait_stream(self.copies)
        for tensor in found:
            tensor.record_stream(main)
        return found

    def warm(self, call: Callable[[], T]) -> T:
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            found = call()
        main.wait_stream(self.stream)
        return found

    def record(self, call: Callable[[], T]) -> T:
        # "thread_local": the loader's threads ask for page-locked memory meanwhile, which else ends a recording.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            return call()

    def replay(self) -> None:
        self.graph.replay()


class StepGraph:
    """Makes the steps of one size: the first few as always, then one recorded, and that one again and again.

    Args:
        update: inputs and labels on the device to the outcome; it leaves new weights behind, and its learning rates
            are tensors (`with_rates_on_device`).
    """

    def __init__(self, update: Callable[[Tensor, Tensor], Outcome], recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._given: tuple[Tensor, Tensor] | None = None
        self._outcome: Outcome | None = None
        self._warmed = 0

    @property
    def recorded(self) -> bool:
        return self._outcome is not None

    def takes(self, inputs: Tensor, labels: Tensor) -> bool:
        """Whether a step on these is one of those that are recorded."""
        given = self._given
        return given is None or all(
            new.shape == old.shape and new.dtype == old.dtype for new, old in zip((inputs, labels), given, strict=True)
        )

    def __call__(self, inputs: Tensor, labels: Tensor, device: torch.device) -> Outcome:
        """One step; the outcome is a copy that the next step leaves alone.

        Raises:
            SrattnError: something in the step waits for the device, or is not to be recorded for another reason.
        """
        if self._given is None:
            self._given = (torch.empty_like(inputs, device=device), torch.empty_like(labels, device=device))
        own = self._given
        for place, new in zip(own, self._recorder.fetch((inputs, labels)), strict=True):
            place.copy_(new)
        if self._warmed < WARM_STEPS:
            self._warmed += 1
            return self._recorder.warm(lambda: self._update(*own))
        if self._outcome is None:
            try:
                self._outcome = self._recorder.record(lambda: self._update(*own))
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise SrattnError(f"no CUDA graph can be made of this step ({reason}): --cuda_graph false") from error
        self._recorder.replay()
        loss, norm, tally = self._outcome
        return Outcome(loss.clone(), norm.clone(), {name: value.clone() for name, value in tally.items()})


def with_rates_on_device(optimiser: Optimizer, device: torch.device) -> None:
    """Keeps the learning rates where a recorded step reads them, a tensor for each group."""
    adamw = optimiser.adamw if isinstance(optimiser, MuonWithAdamW) else optimiser
    adamw._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # as the first steps are
    for group in adamw.param_groups:
        group["capturable"] = device.type == "cuda"
    for group in optimiser.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


def check_graph(precision: str, processes: int) -> None:
    """Refuses what a recorded step cannot do.

    Raises:
        SrattnError: fp16, whose scale is looked at on the host in every step, or several processes.
    """
    if precision == "fp16":
        raise SrattnError("cuda_graph and precision fp16 exclude each other: take --precision bf16 or auto")
    if processes > 1:
        raise SrattnError(f"cuda_graph is for one process, not {processes}: give --cuda_graph false")
