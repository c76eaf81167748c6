"""The loop: plain torch, and nothing in it that a resumed run could not do again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srattn.data.loader import Batch, Loader
from srattn.engine import guard, run_folder
from srattn.engine.checkpoint import Checkpoints, name_of, read_facts, read_tensors
from srattn.engine.config import ResolvedConfig, to_dict
from srattn.engine.device import pick_device as pick_device
from srattn.engine.distributed import World, share_buffers
from srattn.engine.evaluate import Evaluation
from srattn.engine.interrupt import Interrupted, StopRequest
from srattn.engine.learner import Learner
from srattn.engine.position import Position
from srattn.engine.progress import Progress
from srattn.engine.schedule import learning_rate, warmup_steps
from srattn.engine.settings import apply_settings, settings_of
from srattn.engine.sinks import Sinks
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.tasks.protocol import Task

_LOOKED_AT_LATER = ("cuda",)  # devices that compute on their own; a step there is looked at during the next
_SINK_STEPS = 50  # figures of single steps go to the sinks this often


@dataclasses.dataclass
class _Step:
    """A step that is computed and not yet looked at: its `pulse` may still be on its way from the device.

    `number` is that within the epoch, from 0: steps that are left out may have come in between.
    On a GPU the copy to the host is asked for at once: later it would wait for the steps that have come in between.
    """

    pulse: Tensor
    number: int
    batch: Batch
    names: list[str]
    arrived: torch.cuda.Event | None = None

    def __post_init__(self) -> None:
        if self.pulse.device.type == "cuda":
            self.pulse = self.pulse.to("cpu", non_blocking=True)  # into page-locked memory
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.pulse.tolist()


class Trainer:
    """Takes a model through its epochs, with a checkpoint after each and when it is asked to stop.

    In a run of several processes each has one, and all do the same: what they decide by is summed over all of them in
    one small tensor a step, the pulse. On a GPU it is read while the next step is under way.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        model: Backbone,
        loader: Loader,
        task: Task,
        progress: Progress,
        on_step: Callable[[int], None] | None = None,
        world: World | None = None,
    ) -> None:
        self.config, self.loader, self.task, self.progress, self.on_step = config, loader, task, progress, on_step
        self.world = world or World(pick_device(config.device))
        self.device = self.world.device
        self.learner = Learner(config, model, task, self.world)
        self.position = Position()
        self.evaluation: Evaluation | None = None
        self.checkpoints: Checkpoints | None = None
        self.sinks: Sinks | None = None
        self.folder = Path()
        self._pending: _Step | None = None
        self._flags = dict.fromkeys(("stop", "save", "end"), False)
        self._elapsed = 0.0  # part of `budget_minutes`, the first process's, as all know it
        self._saved = time.monotonic()
        self._epoch_began = self._seconds_before = self._waiting_before = 0.0

    @property
    def model(self) -> Backbone:
        """As it is trained."""
        return self.learner.model

    @property
    def steps_done(self) -> int:
        return self.position.epoch * self.loader.steps_per_epoch + self.position.step

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.position.epoch >= self.config.epochs or bool(self.position.ended)

    # -- state ------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """The plain values that the rest of the run depends on."""
        return {
            "config": to_dict(self.config),
            "fingerprint": self.loader.data.fingerprint(),
            "rootless": self.loader.data.rootless(),
            "contents": self.loader.data.contents(),
            "classes": list(self.loader.data.classes),
            "position": dataclasses.asdict(self.position),
            "scaler": self.learner.precision.state(),
            "settings": settings_of(self.model),
            "teacher": getattr(self.task, "teacher_stamp", ""),
        }

    def restore(self, path: Path) -> None:
        """Takes up the run at a checkpoint.

        Raises:
            SrattnError: the data or the teacher is not what the run began with, or the weights fit another model.
        """
        facts, data = read_facts(path), self.loader.data
        # Older checkpoints say the fingerprint alone.
        moved = bool(data.rootless()) and facts.get("rootless") == data.rootless()
        if facts.get("fingerprint") != data.fingerprint() and not moved:
            raise SrattnError(
                f"{self.config.data} has changed since the run began (files were added, removed or became unreadable); "
                f"start a new run"
            )
        if facts.get("contents", data.contents()) != data.contents():
            raise SrattnError(
                f"{self.config.data} has other pictures under the same names than when the run began; put the former "
                f"ones back, name the place where they are now by --data, or start a new run"
            )
        if facts.get("classes", data.classes) != data.classes:
            raise SrattnError(
                f"{self.config.data} has other classes than when the run began, {', '.join(data.classes[:5])}, ...; "
                f"start a new run"
            )
        teacher = getattr(self.task, "teacher_stamp", "")
        if facts.get("teacher", teacher) != teacher:
            raise SrattnError(
                f"the teacher {self.config.distill} is another than when the run began (trained again, or replaced): "
                f"put the former one back, or start a new run"
            )
        with torch.no_grad():
            read_tensors(path, self.learner.tensors(), self.world)
        try:
            self.learner.precision.restore(facts["scaler"])
            self.position.take(facts["position"])
            apply_settings(self.model, facts.get("settings", {}))  # older checkpoints have none
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SrattnError(f"{path} is not a checkpoint of a training run of this version: {error}") from None
        self._pending, self._elapsed = None, self._part_of_budget(self.position.seconds)

    def begin(self, folder: Path, checkpoints: Checkpoints, sinks: Sinks | None = None) -> None:
        """Says where the run is kept."""
        self.folder, self.checkpoints, self.sinks = folder, checkpoints, sinks

    def save(self, wait: bool = False) -> None:
        """A checkpoint of what is done; written while training goes on, unless `wait`."""
        assert self.checkpoints is not None
        best = self.position.best(f"val_{self.task.headline}")
        step = None if best is None else int(self.position.history[best]["step"])
        share_buffers(self.model, self.world)  # any process may be the one that writes them
        self.checkpoints.save(self.steps_done, self.learner.tensors(), self.facts(), step)
        self._saved = time.monotonic()
        if wait:
            self.checkpoints.wait()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self, stop: StopRequest) -> None:
        """Trains to the last epoch, or to what ends the run before.

        Raises:
            Interrupted: `stop` was requested; the run is saved.
            SrattnError: the loss is no number any more; the last checkpoint is as it was.
        """
        assert self.checkpoints is not None
        self.progress.start(self._shown(self.steps_done), self.total_steps, self.config.epochs)
        while not self.finished:
            try:
                self._epoch(stop)
            except guard.BadStep as bad:
                self._roll_back(bad)
        self.checkpoints.wait()

    def _epoch(self, stop: StopRequest) -> None:
        position, loader = self.position, self.loader
        self._seconds_before, self._epoch_began = position.seconds, time.perf_counter()
        self._waiting_before = position.waiting - loader.seconds_waiting
        for batch in loader.train(position.epoch, position.step):
            if self.steps_done in position.skipped:
                position.step += 1
                continue
            self._step(batch, stop.requested)
            if self.on_step:
                self.on_step(self.steps_done)
            self._act(stop)
            if self._flags["end"]:
                break
        self._look()
        if self._stopping(stop):
            self._stop(stop)
        trained, began = position.seconds, time.perf_counter()
        evaluation = self.learner.evaluate(self.loader, lambda: stop.requested)
        if evaluation is None:
            self._stop(stop)
            return
        self._end_epoch(evaluation, trained, trained + time.perf_counter() - began)

    def _act(self, stop: StopRequest) -> None:
        """What may be due between two steps."""
        assert self.checkpoints is not None
        if self._stopping(stop):
            self._look()
            self._stop(stop)
        if self._flags["save"]:
            self._look()
            self.save()
            self._flags["save"] = False
        self.checkpoints.poll()

    def _step(self, batch: Batch, stop: bool = False) -> None:
        position, number = self.position, self.steps_done
        images = self.loader.images_of_step(position.step)
        loss, norm, tally = self.learner.step(batch, images, number, self._rate(number))
        position.step += 1
        self._send(batch, stop, loss, norm, tally)

    def _rate(self, number: int) -> float:
        """The learning rate of step `number`."""
        config, total = self.config, self.total_steps
        warmup = warmup_steps(config.warmup_epochs, self.loader.steps_per_epoch, total)
        return learning_rate(number, total, warmup, config.lr, min(config.min_lr, config.lr), self._elapsed)

    def _part_of_budget(self, seconds: float) -> float:
        """What is over of `budget_minutes`, 0 without one, after so many seconds of this epoch."""
        given = 60 * self.config.budget_minutes
        return (self.position.seconds_before() + seconds) / given if given else 0.0

    # -- the pulse --------------------------------------------------------------------------------------------------

    def _send(self, batch: Batch, stop: bool, loss: Tensor, norm: Tensor, tally: dict[str, Tensor]) -> None:
        """Sums over all processes what they decide by, and looks at the step before (or at this one, on a CPU)."""
        config, first = self.config, self.world.first
        since = (time.monotonic() - self._saved) / 60
        minutes = (self.position.seconds_before() + self._seconds()) / 60
        due = bool(config.checkpoint_minutes) and since >= config.checkpoint_minutes
        due |= bool(config.checkpoint_steps) and self.steps_done % config.checkpoint_steps == 0
        part = self._part_of_budget(self._seconds()) if first else 0.0
        over = part >= 1 or (bool(config.max_minutes) and minutes >= config.max_minutes)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        values = [stop, first and due, first and over, part, loss, norm / self.world.size, *tally.values()]
        values = [self._as_pulse(value, dtype) for value in values]
        step = _Step(self.world.sum(torch.cat(values)), self.position.step - 1, batch, list(tally))
        waiting, self._pending = self._pending, step
        if waiting is not None:
            self._read(waiting)
        if self.device.type not in _LOOKED_AT_LATER:
            self._look()

    def _as_pulse(self, value: Tensor | float, dtype: torch.dtype) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self.device, dtype).view(1)
        return torch.full((1,), float(value), dtype=dtype, device=self.device)  # written there: a copy would wait

    def _look(self) -> None:
        """Reads the pulse of the latest step."""
        if self._pending is not None:
            waiting, self._pending = self._pending, None
            self._read(waiting)

    def _read(self, step: _Step) -> None:
        position = self.position
        stop, save, end, part, loss, norm, *sums = step.values()
        self._flags = {"stop": stop > 0, "save": self._flags["save"] or save > 0, "end": end > 0}
        self._elapsed = max(self._elapsed, part)
        bad = guard.check_finite(loss, norm, self.learner.precision.skips_overflow)
        if bad is not None:
            raise guard.BadStep(*bad, position.epoch, step.number, step.batch)
        for name, value in zip(step.names, sums, strict=True):
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.seconds = self._seconds()
        position.waiting = self._waiting_before + self.loader.seconds_waiting
        figures = self.task.summary(position.sums)
        done = position.epoch * self.loader.steps_per_epoch + step.number + 1
        speed = position.sums["count"] / position.seconds
        self.progress.step(position.epoch + 1, self._shown(done), figures, speed, position.waiting / position.seconds)
        if self.sinks and done % _SINK_STEPS == 0:
            figures = {"loss": loss, "gradient_norm": norm, "learning_rate": self._rate(done - 1)}
            self.sinks.write(done, {f"step_{name}": value for name, value in figures.items()})

    def _shown(self, done: int) -> int:
        """How far the run is, in steps of all: by those that are done, or by the clock, whichever ends it first."""
        return max(done, min(self.total_steps, round(self._elapsed * self.total_steps)))

    def _seconds(self) -> float:
        """Of this epoch so far."""
        return self._seconds_before + time.perf_counter() - self._epoch_began

    def _stopping(self, stop: StopRequest) -> bool:
        return stop.requested if self.world.size == 1 else self._flags["stop"]

    # -- ends -------------------------------------------------------------------------------------------------------

    def _end_epoch(self, evaluation: Evaluation, trained: float, seconds: float) -> None:
        position, config = self.position, self.config
        train = self.task.summary(position.sums) if position.sums else {}  # none where every step was left out
        val = evaluation.figures
        record: dict[str, float] = {"epoch": position.epoch + 1, "step": self.steps_done}
        record |= {f"train_{name}": value for name, value in train.items()}
        record |= {f"val_{name}": value for name, value in val.items()}
        record["learning_rate"] = self._rate(self.steps_done - 1)
        record["images_per_second"] = round(position.sums.get("count", 0.0) / max(trained, 1e-9), 1)
        record["loader_share"] = round(position.waiting / max(trained, 1e-9), 4)
        record["seconds"] = round(seconds, 3)
        record = self.world.tell(record)  # times are the first process's, so that all have one history
        position.history.append(record)
        if self._flags["end"] and self.steps_done < self.total_steps:
            position.ended = "budget_minutes" if self._elapsed >= 1 else "max_minutes"
        position.epoch, position.step, position.sums = position.epoch + 1, 0, {}
        position.seconds = position.waiting = 0.0
        best = position.best(f"val_{self.task.headline}")
        if config.patience and best is not None and len(position.history) - 1 - best >= config.patience:
            position.ended = "patience"
        self._flags = dict.fromkeys(self._flags, False)
        self._name_lost()
        self.evaluation = evaluation
        if self.world.first:
            run_folder.write_history(self.folder, position.history)
        self.save()
        if self.sinks:
            self.sinks.write(int(record["step"]), {name: v for name, v in record.items() if name != "step"})
        self.progress.epoch(record)

    def _name_lost(self) -> None:
        """Says once of each image that a process could not read any more; to be called in all."""
        known = set(self.position.lost)
        found = dict.fromkeys(line for lines in self.world.exchange(self.loader.lost) for line in lines)
        for line in found:
            if line not in known:
                self.position.lost.append(line)
                self.progress.note(f"not readable any more, and left out: {line}")

    def _stop(self, stop: StopRequest) -> None:
        self.save(wait=True)
        raise Interrupted(self.folder, self.position.epoch + 1, self.position.step, stop.number)

    def _roll_back(self, bad: guard.BadStep) -> None:
        """Keeps the batch; then stops the run, or takes it back to its last checkpoint without that batch."""
        assert self.checkpoints is not None
        config, position = self.config, self.position
        self.checkpoints.wait()  # of the steps before
        number = bad.epoch * self.loader.steps_per_epoch + bad.step
        path = guard.save_bad_batch(self.folder, bad, number + 1, self.loader.data.train.names, self.world)
        skipped = [*position.skipped, number]
        self._pending = None
        if config.on_nan == "stop" or len(skipped) > config.max_rollbacks:
            tried = f" after {len(position.skipped)} rollbacks" if position.skipped else ""
            clip = f"lower --clip_grad (now {config.clip_grad:g})" if config.clip_grad else "set --clip_grad, now off"
            raise SrattnError(
                f"{bad}: training stopped{tried}, the last checkpoint is as it was, and the batch is in {path}; lower "
                f"--lr (now {config.lr:g}), or {clip}"
            )
        name = self.world.tell(self.checkpoints.names()[0] if self.world.first else None)
        lost = position.lost
        self.restore(self.checkpoints.folder / name)
        position.skipped, position.lost = skipped, lost
        self._flags = dict.fromkeys(self._flags, False)
        self.progress.note(f"{bad}: back to step {self.steps_done}, and that batch is left out; it is in {path}")

    def finish(self) -> Evaluation:
        """The model with the weights that are kept, measured; the loop cannot go on after this.

        Those of the last epoch, or of the best, and of both the average, if there is one.
        """
        assert self.checkpoints is not None
        position = self.position
        best = position.best(f"val_{self.task.headline}")
        if self.config.keep == "best" and best is not None and best != len(position.history) - 1:
            with torch.no_grad():
                path = self.checkpoints.folder / name_of(int(position.history[best]["step"]))
                read_tensors(path, self.learner.tensors(), self.world)
            self.evaluation = None
        if self.evaluation is None:  # or the run was resumed after its last epoch
            self.evaluation = self.learner.evaluate(self.loader)
            self._name_lost()
        assert self.evaluation is not None
        if self.learner.average:
            self.learner.average.swap()
        self.model.eval()
        return self.evaluation
