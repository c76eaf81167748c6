"""A model that learns: one step on one batch, in any number of parts and processes, and one measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from srattn.data.keyed import seed_of
from srattn.data.loader import Batch, Loader
from srattn.engine.compiled import compile_parts, eager_unless
from srattn.engine.config import ResolvedConfig
from srattn.engine.distributed import World, gradients_meet, share_buffers, spread, with_common_norms
from srattn.engine.ema import WeightAverage
from srattn.engine.evaluate import Evaluation, evaluate
from srattn.engine.optimiser import make_optimiser, optimiser_state, set_learning_rate
from srattn.engine.precision import Precision
from srattn.engine.step_graph import CudaRecorder, Outcome, StepGraph, check_graph, with_rates_on_device
from srattn.models.backbone import Backbone
from srattn.tasks.protocol import Task

_STEP_KEY = 3  # beside the loader's keys: dropout and stochastic depth


class Learner:
    """Model, optimiser and average of weights, on the device and over the processes of a run.

    Attributes:
        model: with the names of its parameters as they are saved.
        runner: what a step calls: the model, or what DDP puts around it.
    """

    def __init__(self, config: ResolvedConfig, model: Backbone, task: Task, world: World) -> None:
        self.config, self.task, self.world, self.device = config, task, world, world.device
        self.precision = Precision(config.precision, self.device)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.to(self.device)
        self.model = cast(Backbone, with_common_norms(model, world))
        if config.channels_last:
            _lay_out(self.model)
        if config.compile and world.kind != "fsdp":
            compile_parts(self.model)
        self.runner = spread(self.model, world)
        if config.compile and world.kind == "fsdp":
            compile_parts(self.model)
        # Detectors of two stages: the second learns from a sample that is drawn by the targets.
        self._gives_targets = bool(getattr(self.model, "needs_targets", False))
        self.optimiser = make_optimiser(
            self.model, config.lr, config.weight_decay, config.layer_decay, config.optimiser
        )
        self.average = WeightAverage(self.model, config.ema_decay) if config.ema_decay > 0 else None
        self.graph = self._make_graph()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the rest of a run depends on, as this process holds it; not copied."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average:
            found |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        state = optimiser_state(self.model, self.optimiser)
        return found | {f"optimiser.{name}": tensor for name, tensor in state.items()}

    def _make_graph(self) -> StepGraph | None:
        """What records whole steps, where that is wanted and the device is one that can."""
        if not self.config.cuda_graph or self.device.type != "cuda":
            return None
        check_graph(self.config.precision, self.world.size)
        with_rates_on_device(self.optimiser, self.device)
        images = self.config.batch_size
        return StepGraph(lambda inputs, labels: self._update(inputs, labels, images), CudaRecorder(self.device))

    def step(self, batch: Batch, images: int, number: int, rate: float) -> Outcome:
        """One update of the weights.

        Args:
            batch: this process's part.
            images: of all processes together.
            number: of the step in the whole run, from 0.
            rate: the learning rate.

        Returns:
            This process's share of the mean loss (to be added over the processes), the norm of all gradients before
            it is limited, and this process's tallies; nothing waits for the device.
        """
        set_learning_rate(self.optimiser, rate)
        # Seeded for each step: what dropout draws does not depend on the steps before, nor on a resume.
        torch.manual_seed(seed_of(self.config.seed, _STEP_KEY, number, *([self.world.rank] if self.world.rank else [])))
        self.model.train()
        # The last batch of an epoch may be smaller, and is not worth graphs of its own.
        whole = images == self.config.batch_size
        with eager_unless(not self.config.compile or whole):
            if self.graph is not None and whole and self.graph.takes(batch.inputs, batch.labels):
                outcome = self.graph(batch.inputs, batch.labels, self.device)
            else:
                outcome = self._update(batch.inputs, batch.labels, images)
        if self.average:
            self.average.update(number + 1)
        return outcome

    def _update(self, inputs: Tensor, labels: Tensor, images: int) -> Outcome:
        """New weights from a batch; nothing in it waits for the device."""
        self.optimiser.zero_grad(set_to_none=True)
        loss, tally = self._gradients(inputs, labels, images)
        scaler = self.precision.scaler
        scaler.unscale_(self.optimiser)
        limit = self.config.clip_grad if self.config.clip_grad > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        norm = getattr(norm, "full_tensor", lambda: norm)()  # of divided weights
        scaler.step(self.optimiser)
        scaler.update()
        return Outcome(loss, norm, tally)

    def _gradients(self, inputs: Tensor, labels: Tensor, images: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the mean loss over all images of the step, in as many parts as configured."""
        parts = self.config.accumulate
        split = [t.to(self.device, non_blocking=True).tensor_split(parts) for t in (inputs, labels)]
        loss = torch.zeros((), device=self.device)
        tally: dict[str, Tensor] = {}
        shares = self._shares(split[1], images)
        for number, (inputs, labels, weight) in enumerate(zip(*split, shares, strict=True)):
            count = len(labels)
            if not count:
                if self.world.size == 1:
                    continue
                # Every process runs as often as the others; what has no images has no weight either.
                inputs, labels = inputs.new_zeros(1, *inputs.shape[1:]), labels.new_zeros(1, *labels.shape[1:])
            with gradients_meet(self.runner, meet=number == parts - 1):
                with self.precision.autocast():
                    laid = inputs.contiguous(memory_format=self.memory_format)
                    outputs = self.runner(laid, labels) if self._gives_targets else self.runner(laid)
                    mean = self.task.loss(outputs, labels, inputs=inputs)
                # Processes average their gradients, hence the factor.
                self.precision.scaler.scale(mean * (weight * self.world.size)).backward()
            loss = loss + mean.detach() * weight
            for name, value in self.task.tally(outputs.detach(), labels).items():
                value = value if count else torch.zeros_like(value)
                tally[name] = tally[name] + value if name in tally else value
        return loss, tally

    def _shares(self, labels: Sequence[Tensor], images: int) -> Sequence[float | Tensor]:
        """Each part's share in the mean loss of all processes: by images, or by what else the task averages over."""
        weigh: Callable[[Tensor], Tensor] | None = getattr(self.task, "weigh", None)
        if weigh is None:
            return [len(part) / images for part in labels]
        own = torch.stack([weigh(part) for part in labels])
        total = self.world.sum(own.sum())
        return (own / total.where(total > 0, 1)).unbind()  # light classes alone are a whole step too

    def evaluate(self, loader: Loader, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
        """Measures the average of the weights, if there is one, else the weights; None if `stop` said so."""
        share_buffers(self.model, self.world)
        if self.world.kind != "fsdp":
            # Fused optimisers change weights behind autograd's back; whoever keeps something made of them must see it.
            torch.autograd.graph.increment_version(list(self.model.parameters()))
        if self.average is None:
            return self._evaluate(loader, stop)
        with self.average.applied():
            return self._evaluate(loader, stop)

    def _evaluate(self, loader: Loader, stop: Callable[[], bool]) -> Evaluation | None:
        with eager_unless(not self.config.compile):
            return evaluate(
                self.model,
                loader,
                self.task,
                self.device,
                stop,
                world=self.world,
                autocast=self.precision.autocast,
                memory_format=self.memory_format,
            )


def _lay_out(model: nn.Module) -> None:
    """Parameters of maps in channels-last memory; `Module.to` would refuse those of five dimensions."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
