"""Where a run's figures go, beside metrics.csv and metrics.jsonl: TensorBoard, and what other packages add.

Another package offers a sink under the entry-point group `srattn.sinks`: a callable from the run folder and the options
(plain values) to a `Sink`; `--sinks '[its name]'` chooses it. A sink that fails is told of once and left out from then
on: no run dies of its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from srattn.errors import SrattnError, nearest

GROUP = "srattn.sinks"
Note = Callable[[str], None]


class Sink(Protocol):
    """Told of figures by their step, which rises; a resumed run begins behind the last step that it had saved."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """`figures` such as "train_loss" or "val_accuracy" after `step` steps of the whole run."""
        ...

    def close(self) -> None: ...


Factory = Callable[[Path, Mapping[str, Any]], Sink]


def find_sinks(names: Sequence[str]) -> dict[str, Factory]:
    """The factories of `names`.

    Raises:
        SrattnError: no installed package offers one of them, or it cannot be loaded.
    """
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    found: dict[str, Factory] = {}
    for name in names:
        if name not in offered:
            known = ", ".join(offered) or "none"
            raise SrattnError(f"no sink {name!r} is installed{nearest(name, offered)}; there are: {known}")
        try:
            found[name] = offered[name].load()
        except Exception as error:
            raise SrattnError(f"sink {name!r} cannot be loaded: {error}") from None
    return found


class TensorBoard:
    """Event files in the run folder's tensorboard/.

    Args:
        step: what an earlier life of the run wrote from this step on is hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            part, _, rest = name.partition("_")
            tag = f"{part}/{rest}" if part in ("train", "val", "step") else f"run/{name}"
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """All sinks of a run as one."""

    def __init__(self, sinks: Mapping[str, Sink], note: Note) -> None:
        self._sinks, self._note = dict(sinks), note

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name in list(self._sinks):
            self._guarded(name, lambda sink: sink.write(step, figures))

    def close(self) -> None:
        for name in list(self._sinks):
            self._guarded(name, lambda sink: sink.close())
        self._sinks = {}

    def _guarded(self, name: str, act: Callable[[Sink], None]) -> None:
        try:
            act(self._sinks[name])
        except Exception as error:
            del self._sinks[name]
            self._note(f"the figures no longer go to {name}: {type(error).__name__}: {error}")


def open_sinks(
    factories: Mapping[str, Factory], folder: Path, options: Mapping[str, Any], step: int, note: Note
) -> Sinks:
    """TensorBoard, where it is installed, and `factories`, made for the run in `folder` that stands at `step`."""
    sinks: dict[str, Sink] = {}
    try:
        sinks["tensorboard"] = TensorBoard(folder, step)
    except ImportError:
        note('tensorboard is not installed, so no event files are written: pip install "srattn[train]"')
    for name, factory in factories.items():
        try:
            sinks[name] = factory(folder, options)
        except Exception as error:
            note(f"the figures do not go to {name}: {type(error).__name__}: {error}")
    return Sinks(sinks, note)
