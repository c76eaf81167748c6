"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from srattn.errors import SrattnError, nearest
from srattn.tasks.classification import Classification
from srattn.tasks.protocol import Task

GROUP = "srattn.tasks"
TaskFactory = Callable[[list[str], float], Task]
"""From the classes of the data and the label smoothing of a run to its task."""

_tasks: dict[str, TaskFactory] = {"classification": Classification}
_loaded = False


def register_task(name: str, factory: TaskFactory) -> None:
    """Adds a task, which `srattn train --task NAME` then takes.

    Another package adds its own through the entry-point group `srattn.tasks`: modules that call this.
    """
    if name in _tasks:
        raise SrattnError(f"task {name!r} is registered already; choose another name")
    _tasks[name] = factory


def list_tasks() -> list[str]:
    """Every registered name."""
    return list(_all())


def make_task(name: str, classes: list[str], label_smoothing: float = 0.0) -> Task:
    """The task `name` for data of these classes.

    Raises:
        SrattnError: an unknown name (with the nearest), or options that do not fit it.
    """
    tasks = _all()
    if name not in tasks:
        raise SrattnError(f"no task {name!r}{nearest(name, tasks)}; there are: {', '.join(tasks)}")
    return tasks[name](classes, label_smoothing)


def _all() -> dict[str, TaskFactory]:
    global _loaded
    if not _loaded:
        _loaded = True
        for entry in entry_points(group=GROUP):
            entry.load()
    return _tasks
