"""Poses against loops over joints in float64 and by hand."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from srattn.data.dense.joints import Joints
from srattn.errors import SrattnError
from srattn.tasks import make_task
from srattn.tasks.pose import Pose, decode, in_image
from srattn.tasks.pose.decode import heatmap_sigma, simcc_sigma
from srattn.tasks.pose.joints import COCO_SIGMAS, UNIFORM, sigmas_of, skeleton_of
from srattn.tasks.pose.metrics import pck
from srattn.tasks.pose.model import pose_model
from srattn.tasks.pose.rows import join_target, split_target
from srattn.tasks.pose.similarity import by_similarity, oks_curves, similarity

DOUBLE = torch.float64
NAMES = ["nose", "left_hand", "right_hand"]
SIZE = (20, 28)  # height and width of the input


def people(batch: int = 3, seed: int = 0) -> Tensor:
    """Targets (B, 3 + 4, 3) in float64: joints inside, one not labelled and one outside of the input."""
    draw = torch.Generator().manual_seed(seed)
    joints = torch.rand(batch, 3, 3, generator=draw, dtype=DOUBLE) * torch.tensor([28.0, 20.0, 0.0], dtype=DOUBLE)
    joints[..., 2] = 2
    joints[0, 1, 2] = 0
    joints[-1, 2, 0] = 31.0
    return join_target(joints, SIZE)


def heatmaps(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def logits(batch: int = 3, seed: int = 2, columns: int = 28, rows: int = 20) -> Tensor:
    return torch.randn(batch, 3, columns + rows, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def learnt(target: Tensor) -> list[tuple[int, int]]:
    return [
        (b, k)
        for b in range(len(target))
        for k in range(3)
        if target[b, k, 2] > 0 and 0 <= target[b, k, 0] <= 28 and 0 <= target[b, k, 1] <= 20
    ]


def plain_heatmap_loss(outputs: Tensor, target: Tensor) -> float:
    rows, columns = outputs.shape[2:]
    sigma, losses = heatmap_sigma(rows, columns), []
    for b, k in learnt(target):
        x, y = float(target[b, k, 0]) * columns / 28, float(target[b, k, 1]) * rows / 20
        squares = 0.0
        for row in range(rows):
            for column in range(columns):
                wanted = math.exp(-((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2) / (2 * sigma**2))
                squares += (float(outputs[b, k, row, column]) - wanted) ** 2
        losses.append(squares / (math.pi * sigma**2))
    return sum(losses) / len(losses)


def plain_simcc_loss(outputs: Tensor, target: Tensor, columns: int) -> float:
    losses = []
    for b, k in learnt(target):
        both = []
        for axis, values in ((0, outputs[b, k, :columns]), (1, outputs[b, k, columns:])):
            count, size = len(values), (28, 20)[axis]
            place, sigma = float(target[b, k, axis]) * count / size, math.sqrt(count / 16)
            shares = [math.exp(-((n + 0.5 - place) ** 2) / (2 * sigma**2)) for n in range(count)]
            shares = [share / sum(shares) for share in shares]
            most = sum(math.exp(float(value)) for value in values)
            both.append(sum(p * (math.log(p) - float(v) + math.log(most)) for p, v in zip(shares, values, strict=True)))
        losses.append(sum(both) / 2)
    return sum(losses) / len(losses)


def test_losses_are_their_definitions() -> None:
    target = people()
    assert len(learnt(target)) == 7
    task = Pose(NAMES)
    assert float(task.loss(heatmaps(), target)) == pytest.approx(plain_heatmap_loss(heatmaps(), target), rel=1e-12)
    for columns, rows, given in ((28, 20, 28), (24, 24, None), (56, 40, 56)):
        task, outputs = Pose(NAMES, given), logits(columns=columns, rows=rows)
        assert float(task.loss(outputs, target)) == pytest.approx(plain_simcc_loss(outputs, target, columns), rel=1e-11)
    strange = heatmaps().transpose(2, 3).contiguous().transpose(2, 3)
    assert not strange.is_contiguous()
    assert torch.equal(Pose(NAMES).loss(strange, target), Pose(NAMES).loss(heatmaps(), target))


def test_gradients() -> None:
    target = people()
    assert torch.autograd.gradcheck(lambda x: Pose(NAMES).loss(x, target), heatmaps().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: Pose(NAMES, 28).loss(x, target), logits().requires_grad_())
    unknown = target.clone()
    unknown[:, :3, 2] = 0
    for outputs, columns in ((heatmaps(), None), (logits(), 28)):
        outputs.requires_grad_()
        loss = Pose(NAMES, columns).loss(outputs, unknown)
        loss.backward()
        assert float(loss.detach()) == 0 and outputs.grad is not None and not outputs.grad.any()


@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_what_stands_in_for_no_images_has_no_loss(head: str) -> None:
    """A process without images runs on zeros, so that it keeps step with the others."""
    outputs = heatmaps(1) if head == "heatmap" else logits(1)
    loss = Pose(NAMES).loss(outputs, torch.zeros_like(people(1)))
    assert loss == 0


def test_a_head_that_knows_nothing_has_the_same_loss_on_every_grid() -> None:
    joints = torch.tensor([[[14.0, 10.0, 2.0]]])
    for grid in ((20, 28), (40, 56), (80, 112)):
        loss = Pose(["nose"]).loss(torch.zeros(1, 1, *grid), join_target(joints, SIZE))
        assert float(loss) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    target = people().float()
    for outputs, columns in ((heatmaps(), None), (logits(), 28)):
        rounded = outputs.to(dtype)
        loss = Pose(NAMES, columns).loss(rounded, target)
        assert loss.dtype == torch.float32
        assert torch.allclose(loss, Pose(NAMES, columns).loss(rounded.float(), target))
        assert decode(rounded, columns).dtype == torch.float32


def test_perfect_outputs_give_the_joints_back() -> None:
    x, y = 13.3, 6.9
    rows, columns = torch.arange(20) + 0.5, torch.arange(28) + 0.5
    sigma = heatmap_sigma(20, 28)
    squares = (rows - y).square().unsqueeze(1) + (columns - x).square()
    found = decode(torch.exp(-squares / (2 * sigma**2)).view(1, 1, 20, 28))
    # the highest cell and a quarter of one towards the joint
    assert found[0, 0, 0] * 28 == pytest.approx(13.25) and found[0, 0, 1] * 20 == pytest.approx(6.75)
    assert 0.9 < found[0, 0, 2] <= 1
    split = torch.cat(
        [-(columns - x).square() / (2 * simcc_sigma(28) ** 2), -(rows - y).square() / (2 * simcc_sigma(20) ** 2)]
    )
    found = decode(split.view(1, 1, 48), 28)
    assert (found[0, 0, :2] * torch.tensor([28, 20])).tolist() == pytest.approx([13.5, 6.5])
    assert 0.9 < found[0, 0, 2] <= 1
    flat = decode(torch.zeros(1, 1, 48), 28)
    assert 0 < flat[0, 0, 2] < 0.3  # sure of nothing
    assert decode(-torch.ones(1, 1, 4, 4))[0, 0, 2] == 0
    assert decode(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 3)


def test_places_in_the_image() -> None:
    joints = torch.tensor([[[0.25, 0.5, 0.7]], [[1.0, 0.0, 0.1]]])
    matrices = torch.tensor([[[2.0, 0, -10], [0, 2, 4]], [[0.6, -0.8, 3], [0.8, 0.6, 5]]], dtype=DOUBLE)
    found = in_image(joints, matrices, (40, 80))
    assert found.dtype == DOUBLE and found[0].tolist() == [pytest.approx([15, 8, 0.7])]
    x, y, _ = found[1, 0].tolist()
    assert (0.6 * x - 0.8 * y + 3, 0.8 * x + 0.6 * y + 5) == pytest.approx((80, 0))
    assert in_image(joints[:0], matrices[:0], (40, 80)).shape == (0, 1, 3)


def test_targets_are_what_the_data_makes() -> None:
    place = torch.tensor([[3.0, 4, 2], [5, 6, 0]])
    matrix = torch.tensor([[0.5, 0, 1], [0, 0.5, 2]], dtype=DOUBLE)
    joints = Joints.of(place, (60, 80), (9, 500, 44)).moved(matrix, (32, 48))
    target = split_target(joints.rows().unsqueeze(0), 2)
    assert target.joints[0].tolist() == [[2.5, 4, 2], [3.5, 5, 0]]
    assert torch.equal(target.matrix[0], matrix.float())
    assert (float(target.image), float(target.area), float(target.side)) == (9, 500, 44)
    assert target.size.tolist() == [[48, 32]] and float(target.scale) == pytest.approx(0.5)
    plain = split_target(join_target(place.unsqueeze(0), (32, 48)), 2)
    assert plain.matrix[0].tolist() == [[1, 0, 0], [0, 1, 0]] and plain.side.tolist() == [48]
    for wrong in (torch.zeros(2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 6, 3, dtype=torch.int64)):
        with pytest.raises(SrattnError, match=r"targets of 2 joints are numbers \(B, 6, 3\)"):
            split_target(wrong, 2)


def plain_oks(true: Tensor, found: Tensor, area: float, sigmas: list[float]) -> float:
    """Of two poses (K, 3), as COCO defines it."""
    values = [
        math.exp(-float((t[:2] - f[:2]).square().sum()) / (2 * area * (2 * s) ** 2))
        for t, f, s in zip(true, found, sigmas, strict=True)
        if t[2] > 0
    ]
    return sum(values) / len(values)


def test_precision_is_that_of_the_similarities_by_hand() -> None:
    """One person an image: with its score in the order of its similarity, precision is a matter of counting."""
    draw = torch.Generator().manual_seed(3)
    count, sigmas = 12, [0.05, 0.1, 0.07]
    true = torch.rand(count, 3, 3, generator=draw, dtype=DOUBLE) * 100
    true[..., 2] = 2
    true[3, 1, 2] = 0
    found = true.clone()
    found[..., :2] += torch.randn(count, 3, 2, generator=draw, dtype=DOUBLE) * torch.linspace(0, 9, count).view(
        -1, 1, 1
    )
    areas = torch.linspace(900, 4000, count, dtype=DOUBLE)
    facts = torch.stack([torch.arange(count).double(), areas, areas.sqrt()], 1)
    similar = [plain_oks(t, f, float(a), sigmas) for t, f, a in zip(true, found, areas, strict=True)]
    joints = similarity(facts, true, found, sigmas)
    assert (joints.sum(1) / (true[..., 2] > 0).sum(1)).tolist() == pytest.approx(similar, abs=1e-12)
    found[..., 2] = torch.tensor(similar).unsqueeze(1)  # the surest are the best
    # Then those above a similarity come first, each right, and recall ends at their share: of 101 recalls those that
    # are reached have a precision of 1.
    limits = torch.linspace(0.5, 0.95, 10, dtype=DOUBLE)
    reached = [sum(value >= float(limit) for value in similar) for limit in limits]
    assert len(set(reached)) > 4
    by_hand = [sum(n / 100 <= right / count + 1e-12 for n in range(101)) / 101 for right in reached]
    figures = by_similarity(oks_curves(facts, true, found, sigmas))
    assert figures["oks_ap"] == pytest.approx(sum(by_hand) / 10, abs=1e-9)
    assert figures["oks_ap50"] == pytest.approx(by_hand[0]) and figures["oks_ap75"] == pytest.approx(by_hand[5])
    hidden = true.clone()
    hidden[..., 2] = hidden[..., 2].clamp(max=1)  # labelled, but covered: counts as what is seen
    assert by_similarity(oks_curves(facts, hidden, found, sigmas)) == figures
    blind = true.clone()
    blind[..., 2] = 0
    assert by_similarity(oks_curves(facts, blind, found, sigmas)) == {"oks_ap": 0.0, "oks_ap50": 0.0, "oks_ap75": 0.0}
    assert by_similarity(oks_curves(facts[:0], true[:0], found[:0], sigmas))["oks_ap"] == 0


def test_pck_by_hand() -> None:
    true = torch.tensor([[[0.0, 0, 2], [0, 0, 1], [0, 0, 0]]])
    found = torch.tensor([[[6.0, 8, 1], [6, 8.1, 1], [0, 0, 1]]])
    assert pck(true, found, torch.tensor([50.0])).tolist() == [[True, False, False]]  # within 0.2 * 50


@pytest.mark.parametrize(("outputs", "columns"), [(heatmaps(), None), (logits(), 28)], ids=["heatmap", "simcc"])
def test_processes_have_the_figures_of_one(
    outputs: Tensor, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, target = Pose(NAMES, columns), people()
    whole, split = task.metrics(), [task.metrics() for _ in range(3)]  # the last process has no image
    whole.update(outputs, target)
    split[0].update(outputs[:1], target[:1])
    split[1].update(outputs[1:], target[1:])
    own, barrier, lock, sums = (
        threading.local(),
        threading.Barrier(3, timeout=20),
        threading.Lock(),
        dict[int, Tensor](),
    )

    def add(values: Tensor) -> Tensor:
        turn = own.turn = getattr(own, "turn", 0) + 1
        with lock:
            sums[turn] = sums[turn] + values if turn in sums else values.clone()
        barrier.wait()
        return sums[turn].clone()

    def reduce(rank: int) -> None:
        own.rank = rank
        split[rank].reduce(add)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: own.rank)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    own_values = [value for metrics in split for value in metrics.per_image]
    threads = [threading.Thread(target=reduce, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = whole.compute()
    details = whole.details()
    alone = details.pop("per_image")  # who is which is not known of several processes
    assert sorted(own_values) == pytest.approx(sorted(alone))
    for metrics in split:
        assert metrics.compute() == pytest.approx(figures) and metrics.details() == details
    assert figures["loss"] == pytest.approx(float(task.loss(outputs, target)))
    assert set(figures) == {"loss", "oks_ap", "oks_ap50", "oks_ap75", "pck"}
    assert len(alone) == 3 and all(0 <= value <= 1 for value in alone)
    assert details["people"] == 3 and details["support"] == {"nose": 3, "left_hand": 2, "right_hand": 3}
    sums = task.tally(outputs, target)
    assert task.summary({name: float(value) for name, value in sums.items()})["loss"] == pytest.approx(figures["loss"])
    assert float(sums["joints"]) == 7 and list(sums) == ["count", "loss", "joints", "found"]
    empty = task.metrics()
    assert empty.compute() == {"loss": 0, "oks_ap": 0, "oks_ap50": 0, "oks_ap75": 0, "pck": 0}
    nobody = {"per_joint_pck": {}, "per_joint_oks": {}, "curves": {}, "per_image": []}
    assert empty.details() == nobody | {"support": dict.fromkeys(NAMES, 0), "people": 0}


def test_figures_are_those_of_the_image_and_not_of_the_window() -> None:
    """The same people in windows of another size and place."""
    outputs, target = heatmaps(), people().float()
    figures = []
    for factor, shift in ((1.0, 0.0), (0.25, -31.0)):
        rows = target.clone()
        rows[:, 3:5, :2] *= 1 / factor
        rows[:, 3, 2], rows[:, 4, 2] = shift, 2 * shift
        rows[:, 5, 1] *= factor**2
        rows[:, 5, 2] *= factor
        metrics = Pose(NAMES).metrics()
        metrics.update(outputs, rows)
        figures.append(metrics.compute())
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_the_tally_is_not_taken_twice_and_not_of_others() -> None:
    task, target, other = Pose(NAMES), people(), people(seed=5)
    outputs = heatmaps()
    task.loss(outputs, target)
    fresh = Pose(NAMES).tally(outputs, target)
    assert {k: float(v) for k, v in task.tally(outputs, target).items()} == {k: float(v) for k, v in fresh.items()}
    task.loss(outputs, target)
    assert float(task.tally(outputs, other)["loss"]) == float(Pose(NAMES).tally(outputs, other)["loss"])


def test_sigmas_and_bones() -> None:
    names = list(COCO_SIGMAS)
    assert len(names) == 17 and sigmas_of(names[::-1]) == list(COCO_SIGMAS.values())[::-1]
    assert sigmas_of(NAMES) == [UNIFORM] * 3 and 0.06 < UNIFORM < 0.07
    assert len(skeleton_of(names)) == 19 and skeleton_of(["left_knee", "left_hip", "tail"]) == [(0, 1)]


def test_refusals() -> None:
    with pytest.raises(SrattnError, match="needs a joint"):
        Pose([])
    task: Any = make_task("pose", NAMES)
    for outputs in (torch.zeros(2, 4, 5, 5), torch.zeros(3, 3, 5, 5), torch.zeros(2, 3)):
        with pytest.raises(SrattnError, match=r"poses of 3 joints are heatmaps \(B, 3, h, w\)"):
            task.loss(outputs, people(2))
    for columns, width in ((None, 31), (31, 31), (0, 31)):
        with pytest.raises(SrattnError, match="columns and the rows"):
            decode(torch.zeros(1, 3, width), columns)
    with pytest.raises(SrattnError, match="did you mean 'simcc'"):
        pose_model("pvt_v2_b0", 3, "simc")


@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_models_answer_for_their_backbone(head: str) -> None:
    small: dict[str, Any] = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    model = pose_model(
        "mit_b0", 4, head, {"width": 8} if head == "heatmap" else {"split": 1.5}, img_size=(64, 96), **small
    ).eval()
    outputs = model(torch.rand(2, 3, 64, 96))
    assert outputs.shape == ((2, 4, 16, 24) if head == "heatmap" else (2, 4, 96 * 1.5 + 64 * 1.5))
    assert model.columns == (None if head == "heatmap" else 144) and model.num_classes == 4
    assert model.min_size == model.backbone.min_size and all(n.startswith("backbone.") for n in model.no_weight_decay())
    Pose(["a", "b", "c", "d"], model.columns).loss(outputs, join_target(torch.rand(2, 4, 3) * 60, (64, 96))).backward()
    assert all(p.grad is not None for p in model.parameters())
