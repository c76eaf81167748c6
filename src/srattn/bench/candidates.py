"""A candidate: ours or a peer's, run as it stands, compiled, or by a runtime on its export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srattn.bench import peers, runtimes
from srattn.bench.case import Answer, Case, answer, autocast, loss
from srattn.bench.memory import peak_above
from srattn.bench.peers import Absent, one_line
from srattn.models.backbone import Backbone

OURS = "srattn"
COMPILED = ("compile", "frozen")
"""torch.compile as it comes, and with its option "freezing", which folds and packs the weights for inference."""


@dataclass(frozen=True)
class Entry:
    """What is entered: `source` is srattn or a peer, `how` is eager, compile, frozen or a runtime.

    `setting` is "default", or what `set_memory` of our models takes.
    """

    source: str
    how: str = "eager"
    setting: str = "default"

    @property
    def name(self) -> str:
        if self.how in runtimes.RUNTIMES:
            return f"{self.how} ({self.source})" if self.source else self.how
        words = [self.source, *([self.setting] if self.setting != "default" else [])]
        return " ".join(words + ([self.how] if self.how != "eager" else []))

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class Candidate:
    """`run()` is what is timed: one forward pass, or one training step. `answer()` is what it computes."""

    def __init__(self, run: Callable[[], object], answer: Callable[[], Answer]) -> None:
        self.run, self.answer = run, answer


class Builder:
    """Builds the candidates of a case, each module and each export once."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self._folder = case, folder
        self.ours = case.build()
        self._modules: dict[tuple[str, str], nn.Module] = {}
        self._exports: dict[str, Path] = {}

    def candidate(self, entry: Entry) -> Candidate:
        """The entry, ready to run.

        Raises:
            Absent: it cannot run here; the message says why.
        """
        if entry.how in runtimes.RUNTIMES:
            return runtime_candidate(entry.how, self.exported(entry), self.case)
        module = self._module(entry)
        return torch_candidate(module, entry, self.case, self.names_of(entry))

    def exported(self, entry: Entry) -> Path:
        """The peer's export, made at first use."""
        if self.case.mode == "train":
            raise Absent("runs inference alone")
        if entry.source not in self._exports:
            module = peers.build_peer(entry.source, self.ours, self.case)  # before any conversion of type
            self._exports[entry.source] = runtimes.export(module, self.case, self._folder / f"{entry.source}.onnx")
        return self._exports[entry.source]

    def names_of(self, entry: Entry) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
        if entry.source == OURS:
            return dict
        return lambda gradients: peers.our_names(entry.source, self.ours, gradients)

    def _module(self, entry: Entry) -> nn.Module:
        key = entry.source, entry.setting
        if key not in self._modules:
            self._modules[key] = build_module(entry, self.ours, self.case)
        # Steps of training change the weights, so that each candidate then has its own.
        return copy.deepcopy(self._modules[key]) if self.case.mode == "train" else self._modules[key]


def build_module(entry: Entry, ours: Backbone, case: Case) -> nn.Module:
    """The module of an entry with the weights of `ours`, in the precision and the mode of the case."""
    if entry.source != OURS:
        module = peers.build_peer(entry.source, ours, case)
    else:
        module = copy.deepcopy(ours)
        if entry.setting != "default":
            set_memory: Any = getattr(module, "set_memory", None)
            if set_memory is None:
                raise Absent(f"{case.model} has no setting of memory")
            set_memory(entry.setting)
        module.train(case.mode == "train")
    return module.to(case.torch_dtype) if case.mode == "inference" else module


def torch_candidate(
    module: nn.Module, entry: Entry, case: Case, named: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict
) -> Candidate:
    """A module, compiled where the entry says so."""
    forward: Callable[[Tensor], Tensor] = module
    if entry.how in COMPILED:
        if entry.how == "frozen" and case.mode == "train":
            raise Absent("frozen weights cannot be trained")
        options = {"freezing": True} if entry.how == "frozen" else None
        forward = torch.compile(module, dynamic=False, options=options)  # type: ignore[assignment]

    def checked() -> Answer:
        try:
            return answer(forward, module, case, named)
        except Exception as error:
            if entry.how in COMPILED:  # most of the compiler's failures show in the first run
                raise Absent(one_line(error)) from error
            raise

    return Candidate((_trainer if case.mode == "train" else _inference)(forward, module, case), checked)


def runtime_candidate(name: str, path: Path, case: Case) -> Candidate:
    """A runtime on an export."""
    runner = runtimes.start(name, path, case)
    images = case.images().numpy()

    def checked() -> Answer:
        return Answer(torch.from_numpy(runner(images).copy()).double())

    return Candidate(lambda: runner(images), checked)


def _inference(forward: Callable[[Tensor], Tensor], module: nn.Module, case: Case) -> Callable[[], object]:
    images = case.images().to(next(module.parameters()).dtype)

    def run() -> object:
        with torch.inference_mode():
            return forward(images)

    return run


def _trainer(forward: Callable[[Tensor], Tensor], module: nn.Module, case: Case) -> Callable[[], object]:
    """Forward, cross-entropy, backward and a step of AdamW."""
    images, dtype = case.images(), next(module.parameters()).dtype
    # A learning rate that leaves the weights about where they are: every round is to do the same.
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast(case, dtype):
            logits = forward(images)
        loss(logits, case).backward()
        optimiser.step()

    return run


def peak_in_child(case: dict[str, Any], entry: dict[str, str], onnx: str | None) -> int | None:
    """In a fresh process: the peak of one run above the loaded model, in bytes.

    What a candidate makes in its first run (prepared weights, a runtime's buffers) counts. Only compiled candidates
    run once before, since the compiler's own memory is not the model's, and training steps, since gradients and the
    optimiser's moments are the same for all: what remains is activations and buffers.
    """
    the_case, the_entry = Case.of_json(case), Entry(**entry)
    torch.set_num_threads(the_case.threads)
    if onnx is not None:
        candidate = runtime_candidate(the_entry.how, Path(onnx), the_case)
    else:
        module = build_module(the_entry, the_case.build(), the_case)
        candidate = torch_candidate(module, the_entry, the_case)
        _wake()
    if the_entry.how in COMPILED or the_case.mode == "train":
        candidate.run()
        if the_case.mode == "train":
            candidate.run()
    return peak_above(candidate.run)


def _wake() -> None:
    """Loads torch's libraries and starts its threads, which are no part of any model."""
    with torch.inference_mode():
        x = torch.randn(1, 8, 64, 64)
        x = nn.Conv2d(8, 8, 3, padding=1)(x).flatten(2).transpose(1, 2)
        x = nn.functional.gelu(nn.Linear(8, 8)(nn.LayerNorm(8)(x)))
        nn.functional.scaled_dot_product_attention(x, x, x)
