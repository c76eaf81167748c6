"""Where a run stands."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Position:
    """`epoch` from 0 and `step` within it are the next to be done. Plain values alone.

    Attributes:
        sums: the task's tallies over the steps of this epoch so far, of all processes.
        seconds: time spent in this epoch so far, in all sessions; shown, and used for
            `max_minutes` and `budget_minutes` alone.
        waiting: of these, how long the first process waited for images.
        history: the records of the epochs that are complete.
        skipped: steps of the whole run that are left out, because their batch gave a loss that is no number.
        lost: a line for every image that has become unreadable since the run began.
        ended: why the run is over before its last epoch: "max_minutes", "budget_minutes", "patience", or nothing.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    waiting: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    skipped: list[int] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)
    ended: str = ""

    def best(self, figure: str) -> int | None:
        """Which record of the history has the most of `figure`, the first of equals; None before any."""
        if not self.history:
            return None
        return max(range(len(self.history)), key=lambda index: (self.history[index][figure], -index))

    def seconds_before(self) -> float:
        """Of all epochs before this one, with their validation."""
        return sum(record["seconds"] for record in self.history)

    def take(self, state: dict[str, Any]) -> None:
        """Becomes what `dataclasses.asdict` of another said.

        Raises:
            TypeError: other fields than these.
        """
        self.__dict__.update(dataclasses.asdict(Position(**state)))
