"""A recorded training step beside one that is made as always; without a GPU something else stands in for its graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from torch import Tensor

from srattn.data.loader import Batch
from srattn.engine import TrainConfig
from srattn.engine.defaults import resolve
from srattn.engine.distributed import World
from srattn.engine.learner import Learner
from srattn.engine.start import make_model
from srattn.engine.step_graph import WARM_STEPS, CudaRecorder, Outcome, StepGraph, check_graph, with_rates_on_device
from srattn.errors import SrattnError
from srattn.tasks.registry import make_task

T = TypeVar("T")
CPU = torch.device("cpu")


class Again:
    """Calls again what it was shown, and lays the results where those of the recording lie, as a graph does."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.replays = learner, 0

    def fetch(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def warm(self, call: Callable[[], T]) -> T:
        return call()

    def record(self, call: Callable[[], T]) -> T:
        kept = {name: tensor.clone() for name, tensor in self.learner.tensors().items()}
        with torch.random.fork_rng(devices=[]):
            self.call, self.places = call, call()
        with torch.no_grad():  # a recording changes nothing
            for name, tensor in self.learner.tensors().items():
                tensor.copy_(kept[name])
        return self.places

    def replay(self) -> None:
        self.replays += 1
        found, places = self.call(), self.places
        assert isinstance(found, tuple) and isinstance(places, tuple)
        for new, old in zip(found, places, strict=True):
            for a, b in zip(*([t.values() if isinstance(t, dict) else [t] for t in (new, old)]), strict=True):
                b.copy_(a)


def make_learner(on: torch.device = CPU, **options: Any) -> Learner:
    torch.manual_seed(0)
    model_options = {
        "embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "mlp_ratios": [2, 2], "sr_ratios": [2, 1],
        "stem_channels": 4, "stem_stride": 2, "fc_dim": 16,
    }  # fmt: skip
    values: dict[str, Any] = {"data": "digits", "model": "cmt_ti", "model_options": model_options, "size": 16}
    values |= {"channels": 3, "batch_size": 6, "drop_path_rate": 0.5, "ema_decay": 0.9, "threads": 1}
    config = resolve(TrainConfig(**values | options))
    task = make_task(config.task, ["0", "1", "2"], config.label_smoothing)
    return Learner(config, make_model(config, 3), task, World(on))


def batches(count: int) -> list[Batch]:
    """The fourth of them is smaller than the others."""
    torch.manual_seed(1)
    sizes = [4 if number == 3 else 6 for number in range(count)]
    return [Batch(torch.randn(n, 3, 16, 16), torch.randint(3, (n,)), torch.arange(n)) for n in sizes]


@pytest.mark.parametrize("optimiser", ["adamw", "muon_conv"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_recorded_steps_are_the_same_steps(optimiser: str, accumulate: int) -> None:
    plain, other = (make_learner(optimiser=optimiser, accumulate=accumulate) for _ in range(2))
    for learner in (plain, other):
        with_rates_on_device(learner.optimiser, CPU)
    recorder = Again(other)
    other.graph = StepGraph(lambda inputs, labels: other._update(inputs, labels, 6), recorder)
    pairs: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(batches(9)):
        expected, found = (one.step(batch, len(batch.labels), number, 1e-3 * (number + 1)) for one in (plain, other))
        assert list(found.tally) == list(expected.tally)
        pairs += zip((*expected[:2], *expected.tally.values()), (*found[:2], *found.tally.values()), strict=True)
    assert recorder.replays == 9 - 1 - WARM_STEPS and other.graph.recorded
    for expected, found in pairs:  # none was written over by a later step
        assert torch.equal(expected, found)
    for name, tensor in plain.tensors().items():
        assert torch.equal(other.tensors()[name], tensor), name


@pytest.mark.parametrize("optimiser", ["adamw", "muon_conv"])
def test_a_rate_in_a_tensor_is_that_rate(optimiser: str) -> None:
    plain, other = (make_learner(optimiser=optimiser) for _ in range(2))
    with_rates_on_device(other.optimiser, CPU)
    before = {name: tensor.clone() for name, tensor in plain.tensors().items()}
    for learner in (plain, other):
        learner.step(batches(1)[0], 6, 0, 0.01)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(other.tensors()[name], tensor, rtol=1e-5, atol=1e-7)
    assert sum(not torch.equal(before[name], tensor) for name, tensor in plain.tensors().items()) > len(before) / 2


def test_a_rate_of_every_group_lies_on_the_device() -> None:
    learner = make_learner(optimiser="muon_conv", layer_decay=0.8)
    with_rates_on_device(learner.optimiser, CPU)
    places = [group["lr"] for group in learner.optimiser.param_groups]
    learner.step(batches(1)[0], 6, 0, 0.25)
    for group, place in zip(learner.optimiser.param_groups, places, strict=True):
        assert group["lr"] is place and float(place) == pytest.approx(0.25 * group["scale"])
    assert len({float(place) for place in places}) > 2


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert make_learner(cuda_graph=True).graph is None


@pytest.mark.parametrize(("precision", "processes", "words"), [("fp16", 1, "precision bf16"), ("bf16", 2, "not 2")])
def test_what_cannot_be_recorded_is_refused(precision: str, processes: int, words: str) -> None:
    with pytest.raises(SrattnError, match=words):
        check_graph(precision, processes)


def test_a_step_that_cannot_be_recorded_says_what_to_do() -> None:
    learner, batch = make_learner(), batches(1)[0]
    recorder = Again(learner)
    recorder.record = mock.Mock(side_effect=RuntimeError("operation not permitted\nwhen a stream is capturing"))
    graph = StepGraph(lambda inputs, labels: learner._update(inputs, labels, 6), recorder)
    for _ in range(WARM_STEPS):
        graph(batch.inputs, batch.labels, CPU)
    with pytest.raises(SrattnError, match=r"\(operation not permitted\): --cuda_graph false"):
        graph(batch.inputs, batch.labels, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimiser", ["adamw", "muon_conv"])
def test_a_real_graph_makes_the_same_steps(optimiser: str) -> None:
    plain, other = (
        make_learner(torch.device("cuda"), optimiser=optimiser, precision="bf16", device="cuda", cuda_graph=recorded)
        for recorded in (False, True)
    )
    assert other.graph is not None and plain.graph is None
    for number, batch in enumerate(batches(12)):
        expected, found = (one.step(batch, len(batch.labels), number, 1e-3) for one in (plain, other))
        torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0.02)
    assert other.graph.recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_fetched_beside_the_step_before() -> None:
    """Each step reads its own batch, though the next one's copy is asked for while it is still waiting."""
    total, seen = torch.zeros(1 << 20, device="cuda"), []

    def update(inputs: Tensor, labels: Tensor) -> Outcome:
        for _ in range(200):  # longer than the host takes for all steps
            total.add_(1e-3)
        return Outcome(inputs.amin(), inputs.amax(), {"label": labels.amax()})

    graph = StepGraph(update, CudaRecorder(torch.device("cuda")))
    for number in range(WARM_STEPS + 20):
        batch = torch.full((1 << 20,), float(number)).pin_memory()
        seen.append(graph(batch, torch.full((4,), number).pin_memory(), torch.device("cuda")))
        del batch
    for number, outcome in enumerate(seen):
        assert {float(value) for value in (outcome.loss, outcome.norm, outcome.tally["label"])} == {number}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_is_recorded_while_batches_are_laid_out() -> None:
    """In page-locked memory, by another thread: asking for more of it is what a recording forbids by itself."""
    recorder, weight = CudaRecorder(torch.device("cuda")), torch.ones(1000, device="cuda", requires_grad=True)
    total, laid = torch.zeros(1000, device="cuda"), [torch.zeros(1).pin_memory()]
    begun, enough = threading.Event(), threading.Event()

    def call() -> Tensor:
        begun.set()
        for _ in range(500):
            total.add_(torch.autograd.grad(weight.square().sum(), weight)[0])
        return total

    def lay_out() -> None:
        begun.wait()
        while not enough.is_set() and len(laid) < 2000:
            laid.append(torch.zeros(1 << 18).pin_memory())

    recorder.warm(call)
    begun.clear()
    loader = threading.Thread(target=lay_out)
    loader.start()
    try:
        recorder.record(call)
        assert len(laid) > 1
    finally:
        enough.set()
        loader.join()
    recorder.replay()
    assert total.eq(2000).all()
