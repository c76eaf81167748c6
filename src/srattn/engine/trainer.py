"""The loop: plain torch, and nothing in it that a resumed run could not do again."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srattn.data.keyed import seed_of
from srattn.data.loader import Loader
from srattn.engine import run_folder
from srattn.engine.checkpoint import save_checkpoint
from srattn.engine.config import ResolvedConfig, to_dict
from srattn.engine.ema import WeightAverage
from srattn.engine.evaluate import Evaluation, evaluate
from srattn.engine.interrupt import Interrupted, StopRequest
from srattn.engine.optimiser import learning_rate, make_optimiser
from srattn.engine.progress import Progress
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.tasks.protocol import Task

_STEP_KEY = 3  # beside the loader's keys: dropout and stochastic depth


@dataclasses.dataclass
class Position:
    """Where a run stands: `epoch` from 0 and `step` within it are the next to be done.

    Attributes:
        sums: the task's tallies over the steps of this epoch so far.
        seconds: time spent in this epoch so far, in all sessions; shown, and never used.
        history: the records of the epochs that are complete.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Trainer:
    """Takes a model through its epochs, with a checkpoint after each and one when it is asked to stop."""

    def __init__(
        self,
        config: ResolvedConfig,
        model: Backbone,
        loader: Loader,
        task: Task,
        progress: Progress,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.loader, self.task, self.progress, self.on_step = config, loader, task, progress, on_step
        self.device = pick_device(config.device)
        self.model = model.to(self.device)
        self.optimiser = make_optimiser(self.model, config.lr, config.weight_decay)
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay > 0 else None
        self.position = Position()
        self.evaluation: Evaluation | None = None

    @property
    def measured(self) -> Backbone:
        """The model that is evaluated and kept: the average, if there is one."""
        return self.average.model if self.average else self.model

    @property
    def steps_done(self) -> int:
        return self.position.epoch * self.loader.steps_per_epoch + self.position.step

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "config": to_dict(self.config),
            "fingerprint": self.loader.data.fingerprint(),
            "position": dataclasses.asdict(self.position),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict() if self.average else None,
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up the run at a `state`.

        Raises:
            SrattnError: the data is not what the run began with, or the weights fit another model.
        """
        if state["fingerprint"] != self.loader.data.fingerprint():
            raise SrattnError(
                f"{self.config.data} has changed since the run began (files were added, removed or became unreadable); "
                f"start a new run"
            )
        try:
            self.model.load_state_dict(state["model"])
            if self.average:
                self.average.model.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise SrattnError(f"the checkpoint does not fit the model of this run: {error}") from None
        self.position = Position(**state["position"])

    def run(self, folder: Path, stop: StopRequest) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: `stop` was requested; the run is saved.
            SrattnError: the loss is no number any more; the last checkpoint is as it was.
        """
        config, position = self.config, self.position
        self.progress.start(self.steps_done, config.epochs * self.loader.steps_per_epoch, config.epochs)
        while position.epoch < config.epochs:
            before = position.seconds
            began = time.perf_counter()
            for batch in self.loader.train(position.epoch, position.step):
                if stop.requested:
                    self._stop(folder)
                self._step(batch.inputs, batch.labels)
                position.seconds = before + time.perf_counter() - began
                figures = self.task.summary(position.sums)
                speed = position.sums["count"] / position.seconds
                self.progress.step(position.epoch + 1, self.steps_done, figures, speed)
                if self.on_step:
                    self.on_step(self.steps_done)
            if stop.requested:
                self._stop(folder)
            trained, began = position.seconds, time.perf_counter()
            evaluation = evaluate(self.measured, self.loader, self.task, self.device, lambda: stop.requested)
            if evaluation is None:
                self._stop(folder)
                return
            self._end_epoch(folder, evaluation, trained, trained + time.perf_counter() - began)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        config, position, step = self.config, self.position, self.steps_done
        rate = self._learning_rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Seeded for each step: what dropout draws does not depend on the steps before, nor on a resume.
        torch.manual_seed(seed_of(config.seed, _STEP_KEY, step))
        inputs, labels = inputs.to(self.device), labels.to(self.device)
        self.model.train()
        outputs = self.model(inputs)
        loss = self.task.loss(outputs, labels)
        self._check_finite("loss", float(loss.detach()))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = config.clip_grad if config.clip_grad > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self._check_finite("norm of the gradients", float(norm))
        self.optimiser.step()
        position.step += 1
        if self.average:
            self.average.update(self.model, self.steps_done)
        for name, value in self.task.tally(outputs.detach(), labels).items():
            position.sums[name] = position.sums.get(name, 0.0) + value

    def _learning_rate(self, step: int) -> float:
        config, per_epoch = self.config, self.loader.steps_per_epoch
        warmup = min(round(config.warmup_epochs * per_epoch), config.epochs * per_epoch // 2)
        return learning_rate(step, config.epochs * per_epoch, warmup, config.lr, min(config.min_lr, config.lr))

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise SrattnError(
                f"the {what} is {value} in epoch {self.position.epoch + 1}, step {self.position.step + 1}: training "
                f"stopped, and the last checkpoint is as it was; lower --lr (now {self.config.lr:g}) "
                f"or --clip_grad (now {self.config.clip_grad:g})"
            )

    def _end_epoch(self, folder: Path, evaluation: Evaluation, trained: float, seconds: float) -> None:
        position = self.position
        train, val = self.task.summary(position.sums), evaluation.figures
        record: dict[str, float] = {"epoch": position.epoch + 1, "step": self.steps_done}
        record |= {f"train_{name}": value for name, value in train.items()}
        record |= {f"val_{name}": value for name, value in val.items()}
        record["learning_rate"] = self.optimiser.param_groups[0]["lr"]
        record["images_per_second"] = round(position.sums["count"] / max(trained, 1e-9), 1)
        record["seconds"] = round(seconds, 3)
        position.history.append(record)
        position.epoch, position.step, position.sums, position.seconds = position.epoch + 1, 0, {}, 0.0
        self.evaluation = evaluation
        run_folder.write_history(folder, position.history)
        save_checkpoint(folder / run_folder.CHECKPOINT, self.state())
        self.progress.epoch(record)

    def _stop(self, folder: Path) -> None:
        save_checkpoint(folder / run_folder.CHECKPOINT, self.state())
        raise Interrupted(folder, self.position.epoch + 1, self.position.step)


def pick_device(name: str) -> torch.device:
    """The device of a configuration.

    Raises:
        SrattnError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise SrattnError(f"device {name!r} cannot be used here: {reason}") from None
    return device
