"""The figure that names the result of a run, by its task: what it is called, and where its values by class are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from srattn.engine.progress import is_share
from srattn.explain.words import percent_text


@dataclasses.dataclass(frozen=True)
class Headline:
    """A figure of which more is better.

    Attributes:
        name: in result.json, and with "train_" and "val_" before it in the history.
        words: for people.
        by_class: where result.json has its values by class.
        of_class: what these are, for people.
    """

    name: str
    words: str
    by_class: str
    of_class: str

    @property
    def share(self) -> bool:
        """Whether it is a part of 1, shown as per cent."""
        return is_share(self.name)

    def text(self, value: float, digits: int = 2) -> str:
        """`0.9944` -> `99.44 %`; 100 is written only where nothing is missing."""
        return percent_text(value, digits) if self.share else f"{value:.4g}"


ACCURACY = Headline("accuracy", "accuracy", "per_class_accuracy", "accuracy")
_KNOWN = {
    "accuracy": ACCURACY,
    "miou": Headline("miou", "mean IoU", "per_class_iou", "IoU"),
    "map50": Headline("map50", "mean AP at IoU 0.5", "per_class_map50", "AP at IoU 0.5"),
    "delta1": Headline("delta1", "pixels within 25 %", "per_class_delta1", "pixels within 25 %"),
    "oks_ap": Headline("oks_ap", "AP of poses", "per_joint_oks", "OKS"),
}
_OF_TASK = {
    "segmentation": "miou", "segment": "miou", "detection": "map50", "detect": "map50", "depth": "delta1",
    "pose": "oks_ap",
}  # fmt: skip


def headline_of(result: Mapping[str, Any], config: Mapping[str, Any]) -> Headline:
    """What names the result of a run; of an unfinished one by its task. Older runs do not say: they are classifiers."""
    name = result.get("headline") or _OF_TASK.get(str(config.get("task")), ACCURACY.name)
    if not isinstance(name, str):
        return ACCURACY
    words = name.replace("_", " ")
    return _KNOWN.get(name) or Headline(name, words, f"per_class_{name}", words)
