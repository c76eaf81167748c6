"""What a model answers, by task: from a batch to plain values, and from those to the answer for one picture."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from srattn.engine.predict import Classes
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError


class Answers(Protocol):
    """One task. `compute` runs in the model's thread, `answer` in the event loop."""

    task: str

    def facts(self) -> dict[str, Any]:
        """What a client may want to know before it asks; plain values."""
        ...

    def compute(self, inputs: Tensor) -> list[Any]:
        """From images (B, C, H, W) as the model takes them to a value for each."""
        ...

    def answer(self, value: Any, top: int) -> dict[str, Any]:
        """The part of the answer that is the task's own; plain values."""
        ...


class Classification:
    """`classes`: name and probability, the likeliest first."""

    task = "classification"

    def __init__(self, run: LoadedRun) -> None:
        self._classes = run.classes
        self._output = Classes(run, top=len(run.classes))

    def facts(self) -> dict[str, Any]:
        return {"classes": self._classes}

    def compute(self, inputs: Tensor) -> list[tuple[list[float], list[int]]]:
        probabilities, order = self._output.compute(inputs)
        return list(zip(probabilities.tolist(), order.tolist(), strict=True))

    def answer(self, value: tuple[list[float], list[int]], top: int) -> dict[str, Any]:
        pairs = zip(value[0][:top], value[1][:top], strict=True)
        return {"classes": [{"name": self._classes[index], "probability": share} for share, index in pairs]}


_TASKS = {"classification": Classification}


def answers_of(run: LoadedRun) -> Answers:
    """How that model answers.

    Raises:
        SrattnError: a model without a task that can be served.
    """
    if run.task not in _TASKS:
        raise SrattnError(f"srattn serve answers {', '.join(_TASKS)}; {run.path} is a model of the task {run.task!r}")
    if not run.classes:
        raise SrattnError(f"{run.path} has no classifier, which is what can be served")
    return _TASKS[run.task](run)
