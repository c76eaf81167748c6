"""What is measured: a model at a size, with weights and images that a seed gives, and what is right for it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srattn.errors import SrattnError
from srattn.models.backbone import Backbone
from srattn.models.registry import build_model, model_options
from srattn.ops.plan import force_path

Dtype = Literal["float32", "bfloat16", "float16"]
Mode = Literal["inference", "train"]
FLOOR = 1e-5  # a relative difference that no candidate is refused for
LEEWAY = 4.0  # how much further from the truth than our plain path a candidate may be


@dataclass(frozen=True)
class Case:
    """One model at one size. Low precision means weights of that type in inference, autocast in training."""

    model: str
    size: tuple[int, int]
    batch: int = 1
    dtype: Dtype = "float32"
    mode: Mode = "inference"
    threads: int = 1
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the model's numbers; a peer that is chosen by name has none."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def title(self) -> str:
        return f"{self.model}, {self.size[0]}x{self.size[1]}, batch {self.batch}, {self.dtype}, {self.mode}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size)}

    @classmethod
    def of_json(cls, record: Mapping[str, Any]) -> Case:
        height, width = record["size"]
        return cls(**{**record, "size": (height, width)})

    def build(self, device: str | None = None) -> Backbone:
        """Our model in float32, without dropout; on a device with values its weights are nobody's defaults."""
        options = dict(self.options)
        for name, default in model_options(self.model).items():
            if name.endswith("drop_rate") or name == "drop_path_rate":
                options.setdefault(name, 0.0 if isinstance(default, float) else default)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = build_model(self.model, img_size=self.size, device=device, **options)
            if model.dimensions != 2:
                raise SrattnError(f"{self.model} takes volumes; srattn bench model measures models of images")
            if device != "meta":
                _unsettle(model)
        return model.eval()

    def images(self) -> Tensor:
        """(batch, 3, H, W) float32."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.batch, 3, *self.size, generator=generator)

    def labels(self, classes: int) -> Tensor:
        """(batch,) class indices."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return torch.randint(classes, (self.batch,), generator=generator)


class Answer(NamedTuple):
    """What a candidate makes of the case: logits (batch, classes), and in training the gradients by our names."""

    logits: Tensor
    gradients: Mapping[str, Tensor] | None = None


class Work(NamedTuple):
    """What the published algorithm needs for the whole batch: FLOP of a pass, and the bytes that it must move."""

    flops: int
    bytes: int


@torch.no_grad()
def _unsettle(model: nn.Module) -> None:
    """Moves all that initialisation leaves at zero or one, so that a wrong norm or bias shows in the output."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


def work(case: Case) -> Work:
    """Counted on shapes alone, the same for every candidate.

    FLOP: two for each multiply-add of convolutions and matrix products, attention as the published formula has it;
    a training step has three passes' worth. Bytes: the weights once, and of every block the map read twice (for the
    reduction, and for the rest) and written once; three times that in training.
    """
    model = case.build("meta").requires_grad_(False)
    images = torch.empty(case.batch, 3, *case.size, device="meta")
    values = sum(p.numel() for p in model.parameters()) + images.numel()

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal values
        first = output[0] if isinstance(output, tuple) else output
        values += 3 * first.numel()

    hooks = [block.register_forward_hook(count) for stage in model.iter_stages() for block in stage.blocks]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), force_path("plain"), counter:
        model(images)
    for hook in hooks:
        hook.remove()
    passes = 3 if case.mode == "train" else 1
    return Work(passes * counter.get_total_flops(), passes * values * case.torch_dtype.itemsize)


def answer(
    run: Callable[[Tensor], Tensor], module: nn.Module, case: Case, named: Callable[[dict[str, Tensor]], Any] = dict
) -> Answer:
    """Logits of `run`, which computes `module` in its own precision; in training its gradients too.

    `named` renames a dict of gradients by our names.
    """
    dtype = next(module.parameters()).dtype
    images = case.images().to(dtype)
    if case.mode == "inference":
        with torch.inference_mode():
            return Answer(run(images).double())
    module.zero_grad(set_to_none=True)
    with autocast(case, dtype):
        logits = run(images)
    loss(logits, case).backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return Answer(logits.detach().double(), named(found))


def loss(logits: Tensor, case: Case) -> Tensor:
    """Cross-entropy against the labels of the case, in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, case.labels(logits.shape[1]))


@contextlib.contextmanager
def autocast(case: Case, dtype: torch.dtype) -> Iterator[None]:
    """Training in low precision: float32 weights under autocast; anything else as it is."""
    if case.mode == "train" and case.dtype != "float32" and dtype == torch.float32:
        with torch.autocast("cpu", dtype=case.torch_dtype):
            yield
    else:
        yield


class Referee:
    """Says how far an answer is from the truth, and how far it may be.

    The truth is our model in float64 without any absorbed product, with the norm epsilons and the edge policy of the
    candidate's origin. An answer may be four times as far from it as our own plain path in the candidate's precision,
    and 1e-5 in any case. Distances are relative: of logits by the largest, of all gradients together by their norm.
    """

    def __init__(self, case: Case, ours: Backbone) -> None:
        self._case, self._ours = case, ours
        self._truths: dict[str, tuple[Answer, float]] = {}

    def judge(
        self, found: Answer, eps: Mapping[str, float] | None = None, edge: str | None = None
    ) -> tuple[float, float]:
        """(error, tolerance) of an answer by code with these epsilons and this edge policy; ours by default."""
        truth, allowed = self._truth(eps, edge)
        return distance(found, truth), allowed

    def _truth(self, eps: Mapping[str, float] | None, edge: str | None) -> tuple[Answer, float]:
        key = repr((sorted((eps or {}).items()), edge))
        if key not in self._truths:
            model = copy.deepcopy(self._ours)
            if eps is not None:
                model.set_norm_eps(**eps)
            if edge is not None:
                model.set_edge(edge)
            model.train(self._case.mode == "train")
            low = self._case.torch_dtype if self._case.mode == "inference" else torch.float32
            with force_path("sdpa"):
                other = copy.deepcopy(model).to(low)
                plain = answer(other, other, self._case)
                truth = answer(model.double(), model, self._case)
            self._truths[key] = truth, max(FLOOR, LEEWAY * distance(plain, truth))
        return self._truths[key]


def distance(found: Answer, truth: Answer) -> float:
    """The larger of the two relative differences; infinite where a value is not finite or a gradient is missing."""
    if found.logits.shape != truth.logits.shape or not torch.isfinite(found.logits).all():
        return float("inf")
    result = float((found.logits.double() - truth.logits).abs().max() / truth.logits.abs().max())
    if truth.gradients is None:
        return result
    if found.gradients is None or set(found.gradients) != set(truth.gradients):
        return float("inf")
    apart = sum(float((found.gradients[n].double() - g).square().sum()) for n, g in truth.gradients.items())
    size = sum(float(g.square().sum()) for g in truth.gradients.values())
    error = (apart / size) ** 0.5
    return max(result, error) if error == error else float("inf")
