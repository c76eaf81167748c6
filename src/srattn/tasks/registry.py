"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from srattn.errors import SrattnError, nearest
from srattn.tasks.classification import Classification
from srattn.tasks.depth import Depth
from srattn.tasks.detection.task import make_detection
from srattn.tasks.pose.task import Pose
from srattn.tasks.protocol import Task
from srattn.tasks.segmentation import Segmentation

GROUP = "srattn.tasks"
TaskFactory = Callable[..., Task]
"""From the classes of the data and the label smoothing of a run to its task."""


def _depth(classes: list[str], label_smoothing: float, **options: Any) -> Depth:
    """A depth has no classes, and so nothing that the smoothing of a run, which has a default, could be spread over."""
    return Depth(**options)


def _pose(classes: list[str], label_smoothing: float, **options: Any) -> Pose:
    """Joints exclude each other as little as boxes do."""
    return Pose(classes, **options)


_tasks: dict[str, TaskFactory] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "depth": _depth,
    "detection": make_detection,
    "pose": _pose,
}
_aliases = {"segment": "segmentation", "detect": "detection"}
_loaded = False


def register_task(name: str, factory: TaskFactory) -> None:
    """Adds a task, which `srattn train --task NAME` then takes.

    Another package adds its own through the entry-point group `srattn.tasks`: modules that call this.
    """
    if name in _tasks or name in _aliases:
        raise SrattnError(f"task {name!r} is registered already; choose another name")
    _tasks[name] = factory


def list_tasks() -> list[str]:
    """Every registered name."""
    return list(_all())


def task_called(name: str | None) -> str:
    """The full name of a task: "segment" is "segmentation"; where none is said, it is classification.

    Raises:
        SrattnError: an unknown name (with the nearest).
    """
    name = "classification" if name is None else name
    tasks, name = _all(), _aliases.get(name, name)
    if name not in tasks:
        raise SrattnError(f"no task {name!r}{nearest(name, tasks)}; there are: {', '.join(tasks)}")
    return name


def make_task(name: str, classes: list[str], label_smoothing: float = 0.0, **options: Any) -> Task:
    """The task `name` for data of these classes; `options` are the task's own, such as the loss of segmentation.

    Raises:
        SrattnError: an unknown name (with the nearest), or options that do not fit it.
    """
    return _all()[task_called(name)](classes, label_smoothing, **options)


def _all() -> dict[str, TaskFactory]:
    global _loaded
    if not _loaded:
        _loaded = True
        for entry in entry_points(group=GROUP):
            entry.load()
    return _tasks
