"""Depth against loops over pixels in float64 and by hand."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from srattn.data.loader import Batch
from srattn.engine.evaluate import evaluate
from srattn.errors import SrattnError
from srattn.tasks import make_task
from srattn.tasks.depth import Depth
from srattn.tasks.depth_distance import ByDistance, edges_of

DOUBLE = torch.float64
UNKNOWN = (0.0, math.nan, 10.5, math.inf, -1.0)


def drawn(size: tuple[int, int] = (4, 5), batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Depths and targets up to 10 metres in float64, some of the targets unknown in each of five ways."""
    draw = torch.Generator().manual_seed(seed)
    depth, target = (0.2 + 9.8 * torch.rand(2, batch, *size, generator=draw, dtype=DOUBLE)).unbind()
    ways = torch.tensor(UNKNOWN, dtype=DOUBLE)[torch.randint(0, 5, target.shape, generator=draw)]
    return depth, torch.where(torch.rand(target.shape, generator=draw) < 0.3, ways, target)


def pairs(depth: Tensor, target: Tensor, most: float = 10.0) -> list[tuple[float, float]]:
    both = zip(depth.flatten().tolist(), target.flatten().tolist(), strict=True)
    return [(p, t) for p, t in both if math.isfinite(t) and 0 < t <= most]


def plain_loss(depth: Tensor, target: Tensor, balance: float = 0.5) -> float:
    logs = [math.log(p) - math.log(t) for p, t in pairs(depth, target)]
    return math.sqrt(statistics.fmean(d * d for d in logs) - balance * statistics.fmean(logs) ** 2)


def plain_figures(depth: Tensor, target: Tensor) -> dict[str, float]:
    """Of one image."""
    found = pairs(depth, target)
    mean, logs = statistics.fmean, [math.log(p / t) for p, t in found]
    return {
        **{f"delta{n}": mean(max(p / t, t / p) < 1.25**n for p, t in found) for n in (1, 2, 3)},
        "abs_rel": mean(abs(p - t) / t for p, t in found),
        "rmse": math.sqrt(mean((p - t) ** 2 for p, t in found)),
        "rmse_log": math.sqrt(mean(d * d for d in logs)),
        "silog": 100 * statistics.pstdev(logs),
    }


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_loss_is_its_definition(balance: float) -> None:
    depth, target = drawn()
    task = Depth(balance=balance)
    assert float(task.loss(depth, target)) == pytest.approx(plain_loss(depth, target, balance), rel=1e-12)
    assert torch.equal(task.loss(depth.unsqueeze(1), target), task.loss(depth, target))
    turned = depth.mT.contiguous().mT, target.mT.contiguous().mT
    assert float(task.loss(*turned)) == pytest.approx(plain_loss(depth, target, balance), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: task.loss(x, target), depth.requires_grad_())


def test_what_is_predicted_far_too_near_is_still_learnt_by() -> None:
    depth = torch.tensor([[[2e-6, 1e-4, 0.01, 3.0]]], dtype=DOUBLE, requires_grad=True)
    target = torch.tensor([[[0.5, 0.02, 0.04, 3.0]]], dtype=DOUBLE)
    loss = Depth().loss(depth, target)
    assert float(loss.detach()) == pytest.approx(plain_loss(depth.detach(), target), rel=1e-12)
    (slope,) = torch.autograd.grad(loss, depth)
    assert bool((slope[0, 0, :2] < 0).all())  # farther is better


def test_a_common_factor_is_forgiven_in_part() -> None:
    target = drawn()[1]
    clean = torch.where(torch.isfinite(target) & (target > 0), target, 1.0)
    values = [float(Depth(balance=balance).loss(2 * clean, target)) for balance in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([math.log(2), math.log(2) * math.sqrt(0.5), 0.0], abs=1e-7)


def test_coarser_outputs_are_enlarged() -> None:
    coarse, target = drawn((2, 3))[0].requires_grad_(), drawn((5, 7))[1]
    larger = F.interpolate(coarse.unsqueeze(1), size=(5, 7), mode="bilinear", align_corners=False).squeeze(1)
    assert torch.equal(Depth().loss(coarse, target), Depth().loss(larger, target))
    assert torch.autograd.gradcheck(lambda x: Depth().loss(x, target), coarse)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 5), width=st.integers(1, 5))
def test_unknown_pixels_change_nothing(seed: int, height: int, width: int) -> None:
    depth, target = drawn((height, width), seed=seed)
    unknown = ~((target > 0) & (target <= 10))
    results = []
    for values in (depth, torch.where(unknown, 3.7 - 0.3 * depth, depth)):
        values.requires_grad_()
        loss = Depth().loss(values, target)
        (gradient,) = torch.autograd.grad(loss, values)
        metrics = Depth().metrics()
        metrics.update(values.detach(), target)
        assert torch.isfinite(loss) and not gradient[unknown].any()
        results.append((loss.item(), gradient.tolist(), metrics.compute()))
    assert results[0] == results[1]


@pytest.mark.parametrize("value", UNKNOWN)
def test_nothing_known(value: float) -> None:
    depth = drawn()[0].float().requires_grad_()
    target = torch.full(depth.shape, value)
    loss = Depth().loss(depth, target)
    loss.backward()
    assert loss.item() == 0 and depth.grad is not None and not depth.grad.any()
    metrics = Depth().metrics()
    metrics.update(depth, target)
    assert set(metrics.compute().values()) == {0.0}
    details = metrics.details()
    by_distance = details.pop("by_distance")
    assert details == {"measured_images": 0, "measured_pixels": 0, "per_image": [None] * len(target)}
    assert by_distance["pixels"] == [0] * 10 and by_distance["rmse"] == by_distance["abs_rel"] == [None] * 10
    sums = {name: float(value) for name, value in Depth().tally(depth.detach(), target).items()}
    assert Depth().summary(sums) == {"loss": 0.0, "delta1": 0.0}


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-6, 1e30])
def test_extreme_depths_stay_finite(value: float) -> None:
    target = drawn()[1].float()
    depth = torch.full(target.shape, value, requires_grad=True)
    loss = Depth().loss(depth, target)
    loss.backward()
    metrics = Depth().metrics()
    metrics.update(depth, target)
    assert torch.isfinite(loss) and depth.grad is not None and torch.isfinite(depth.grad).all()
    assert all(math.isfinite(figure) for figure in metrics.compute().values())


def test_a_right_answer_has_no_slope() -> None:
    target = torch.rand(2, 3, 4) + 0.5
    depth = target.clone().requires_grad_()
    loss = Depth().loss(depth, target)
    loss.backward()
    assert loss.item() == 0 and depth.grad is not None and not depth.grad.any()


def test_in_autocast_it_computes_in_float32() -> None:
    depth, target = drawn((3, 4))[0], drawn((7, 9))[1].float()
    half = depth.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = Depth().loss(half, target)
    assert loss.dtype == torch.float32 and torch.equal(loss, Depth().loss(half.float(), target))
    # Logarithms move by 2 ** -8 at most, and the root is a norm of them.
    assert abs(float(loss) - float(Depth().loss(depth, target))) <= 1.01 * 2**-8


def test_figures_are_means_over_images() -> None:
    depth, target = drawn(batch=5)
    target[3] = math.nan
    metrics = Depth().metrics()
    metrics.update(depth[:2], target[:2])
    metrics.update(depth[2:], target[2:])
    images = [plain_figures(depth[i], target[i]) for i in (0, 1, 2, 4)]
    losses = [plain_loss(depth[i], target[i]) for i in (0, 1, 2, 4)]
    expected = {name: statistics.fmean(image[name] for image in images) for name in images[0]}
    assert metrics.compute() == pytest.approx({"loss": statistics.fmean(losses), **expected}, rel=1e-12)
    details = metrics.details()
    assert details["measured_images"] == 4 and details["measured_pixels"] == len(pairs(depth, target))
    known = [value for value in details["per_image"] if value is not None]
    assert len(details["per_image"]) == len(target) and len(known) == 4
    assert sum(known) / 4 == pytest.approx(metrics.compute()["delta1"])


def test_by_hand() -> None:
    target = torch.tensor([[[2.0, 4.0, 0.0, 8.0]]])
    depth = torch.tensor([[[2.0, 5.5, 9.0, 20.0]]])  # the last counts as 10
    metrics = Depth().metrics()
    metrics.update(depth, target)
    figures = metrics.compute()
    assert figures["delta1"] == pytest.approx(1 / 3)  # 10 / 8 is 1.25, which is not below it
    assert figures["delta2"] == pytest.approx(1.0) and figures["delta3"] == pytest.approx(1.0)
    assert figures["abs_rel"] == pytest.approx((0 + 1.5 / 4 + 2 / 8) / 3)
    assert figures["rmse"] == pytest.approx(math.sqrt((1.5**2 + 2**2) / 3))
    logs = [0, math.log(5.5 / 4), math.log(10 / 8)]
    assert figures["rmse_log"] == pytest.approx(math.sqrt(statistics.fmean(d * d for d in logs)))
    assert figures["silog"] == pytest.approx(100 * statistics.pstdev(logs))


def test_max_depth_is_where_targets_end() -> None:
    target, depth = torch.tensor([[[2.0, 40.0, 90.0]]]), torch.tensor([[[2.0, 70.0, 20.0]]])
    figures = []
    for most in (10.0, 80.0, 100.0):
        metrics = Depth(most).metrics()
        metrics.update(depth, target)
        figures.append((metrics.compute()["delta1"], metrics.details()["measured_pixels"]))
    assert figures == [(1.0, 1), (0.5, 2), (pytest.approx(1 / 3), 3)]


def test_several_processes_have_the_figures_of_one() -> None:
    depth, target = drawn(batch=4)
    whole, parts = Depth().metrics(), [Depth().metrics() for _ in range(2)]
    whole.update(depth, target)
    for index, part in enumerate(parts):
        part.update(depth[index::2], target[index::2])
    sums: list[list[Tensor]] = [[], []]
    for part, kept in zip(parts, sums, strict=True):
        part.reduce(lambda tensor, kept=kept: kept.append(tensor) or tensor)
    totals = iter([a + b for a, b in zip(*sums, strict=True)])
    parts[0].reduce(lambda _: next(totals))
    assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-14)
    details, expected = parts[0].details(), whole.details()
    alone = [value for pair in zip(*(part.per_image for part in parts), strict=True) for value in pair]
    assert "per_image" not in details and expected.pop("per_image") == pytest.approx(alone)
    for name, values in expected.pop("by_distance").items():
        none = [value is None for value in values]
        assert none == [value is None for value in details["by_distance"][name]]
        both = zip(details["by_distance"][name], values, strict=True)
        assert all(one == pytest.approx(other, rel=1e-14) for one, other in both if other is not None)
    assert {key: value for key, value in details.items() if key != "by_distance"} == expected


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (10.0, [*range(11)]),
        (80.0, [*range(0, 90, 10)]),
        (6.5, [*range(7), 6.5]),
        (1.0, [n / 10 for n in range(11)]),
        (0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (250.0, [0, 50, 100, 150, 200, 250]),
    ],
)
def test_steps_of_distance_are_round(most: float, expected: list[float]) -> None:
    assert edges_of(most) == pytest.approx(expected)


def test_errors_by_distance() -> None:
    steps = ByDistance(10.0)
    truth = torch.tensor([1.0, 1.5, 2.0, 9.5, 10.0])  # an upper edge belongs to the step below it
    steps.update(torch.tensor([1.1, 2.0, 1.0, 9.5, 7.0]), truth)
    found = steps.details()
    assert found["edges"] == list(range(11)) and found["pixels"] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found["delta1"][:2] == [1.0, 0.0] and found["delta1"][9] == 0.5 and found["delta1"][4] is None
    assert found["abs_rel"][:2] == pytest.approx([0.1, (0.5 / 1.5 + 0.5) / 2], rel=1e-6)
    assert found["rmse"][:2] == pytest.approx([0.1, math.sqrt((0.25 + 1) / 2)], rel=1e-6)
    assert found["rmse"][9] == pytest.approx(math.sqrt(4.5), rel=1e-6)


def test_tallies_add_up_to_the_whole() -> None:
    depth, target = drawn(batch=4)
    target[2] = 0
    task = Depth()
    parts = [task.tally(depth[:1], target[:1]), task.tally(depth[1:], target[1:])]
    assert [list(part) for part in parts] == [["count", "loss", "measured", "delta1"]] * 2
    assert all(value.shape == () and not value.requires_grad for value in parts[0].values())
    summary = task.summary({name: float(parts[0][name] + parts[1][name]) for name in parts[0]})
    metrics = task.metrics()
    metrics.update(depth, target)
    assert summary["delta1"] == pytest.approx(metrics.compute()["delta1"], rel=1e-14)
    assert task.headline in summary and task.headline in metrics.compute()
    losses = [plain_loss(depth[:1], target[:1]), plain_loss(depth[1:], target[1:])]
    assert summary["loss"] == pytest.approx((losses[0] + 3 * losses[1]) / 4, rel=1e-12)


def test_evaluate_puts_the_pieces_together() -> None:
    depth, target = drawn(batch=5)
    batches = [Batch(depth[part], target[part], torch.arange(5)[part]) for part in (slice(2), slice(2, 5))]
    loader: Any = SimpleNamespace(val=lambda: iter(batches))
    found = evaluate(nn.Identity(), loader, Depth(), torch.device("cpu"))
    metrics = Depth().metrics()
    metrics.update(depth, target)
    assert found is not None and found.figures == pytest.approx(metrics.compute(), rel=1e-14)
    flat = depth.float().flatten(1)
    middle = flat.sort(1).values[:, (flat.shape[1] - 1) // 2]
    assert torch.equal(found.answers, torch.stack([flat.min(1).values, middle, flat.max(1).values], 1))


def test_by_name() -> None:
    task = make_task("depth", [], 0.1)  # the smoothing that a run has by default
    assert isinstance(task, Depth) and task.max_depth == 10


def test_what_does_not_fit() -> None:
    with pytest.raises(SrattnError, match=r"max_depth must be above 0\.001 metres, got 0"):
        Depth(0)
    with pytest.raises(SrattnError, match="balance must be from 0 to 1, got 2"):
        Depth(balance=2)
    with pytest.raises(SrattnError, match=r"outputs \(B, h, w\) and targets \(B, H, W\), got \(1, 2, 3, 3\)"):
        Depth().loss(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3))
