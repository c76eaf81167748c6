"""Losses of segmentation against plain loops over pixels in float64, and their gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srattn.errors import SrattnError
from srattn.tasks.losses import boundary, cross_entropy, dice, focal, list_losses, lovasz, parse_loss, structure
from srattn.tasks.losses.distance import FAR, squared_distance

DOUBLE = torch.float64
VOID = 255
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz": lovasz,
    "boundary": boundary,
    "structure": structure,
}
EPS = torch.finfo(torch.float32).eps


def classes_of(name: str) -> int:
    return 2 if name == "structure" else 3


def case(name: str, size: tuple[int, int] = (4, 5), batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits in float64, and a target of which some is void; of three classes the last is absent at seed 1."""
    draw = torch.Generator().manual_seed(seed)
    count = classes_of(name)
    logits = 2 * torch.randn(batch, count, *size, generator=draw, dtype=DOUBLE)
    target = torch.randint(0, 2 if seed == 1 else count, (batch, *size), generator=draw)
    target[torch.rand(target.shape, generator=draw) < 0.2] = VOID
    return logits, target


# -- the definitions, pixel by pixel -----------------------------------------------------------------------------------

Pixel = tuple[int, int, int]


def pixels(target: Tensor) -> list[Pixel]:
    """Those that are not void."""
    places = itertools.product(*(range(size) for size in target.shape))
    return [place for place in places if int(target[place]) != VOID]


def share(logits: Tensor, place: Pixel) -> list[float]:
    b, y, x = place
    powers = [math.exp(value) for value in logits[b, :, y, x].tolist()]
    return [power / sum(powers) for power in powers]


def plain_ce(logits: Tensor, target: Tensor) -> float:
    places = pixels(target)
    return -sum(math.log(share(logits, p)[int(target[p])]) for p in places) / len(places)


def plain_focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> float:
    places = pixels(target)
    own = [share(logits, p)[int(target[p])] for p in places]
    return -sum((1 - p) ** gamma * math.log(p) for p in own) / len(places)


def plain_dice(logits: Tensor, target: Tensor) -> float:
    places, losses = pixels(target), []
    for number in {int(target[p]) for p in places}:
        both = sum(share(logits, p)[number] for p in places if int(target[p]) == number)
        said = sum(share(logits, p)[number] for p in places)
        true = sum(int(target[p]) == number for p in places)
        losses.append(1 - 2 * both / (said + true))
    return sum(losses) / len(losses)


def plain_lovasz(logits: Tensor, target: Tensor) -> float:
    """The extension by its definition: errors in falling order times the rise of the loss of the set of the wrong."""
    places, losses = pixels(target), []
    for number in {int(target[p]) for p in places}:
        own = {p for p in places if int(target[p]) == number}
        errors = {p: abs((p in own) - share(logits, p)[number]) for p in places}

        def jaccard_loss(wrong: set[Pixel], own: set[Pixel] = own) -> float:
            return 1 - len(own - wrong) / len(own | wrong)

        total, wrong = 0.0, set()
        for place in sorted(places, key=lambda p: -errors[p]):
            before = jaccard_loss(wrong)
            wrong.add(place)
            total += errors[place] * (jaccard_loss(wrong) - before)
        losses.append(total)
    return sum(losses) / len(losses)


def plain_boundary(logits: Tensor, target: Tensor) -> float:
    places, total = pixels(target), 0.0
    numbers = {int(target[p]) for p in places}
    for number, place in itertools.product(numbers, places):
        inside = int(target[place]) == number
        beyond = [q for q in places if q[0] == place[0] and (int(target[q]) == number) != inside]
        if beyond:
            least = min(math.hypot(q[1] - place[1], q[2] - place[2]) for q in beyond) - 0.5
            total += (-least if inside else least) * share(logits, place)[number]
    return total / len(places) / len(numbers)


def plain_structure(
    logits: Tensor, target: Tensor, window: int = 31, strength: float = 5.0, counts: bool = True
) -> float:
    losses = []
    for b in range(len(target)):
        places = [p for p in pixels(target) if p[0] == b]
        entropy = both = said = total = 0.0
        for place in places:
            _, y, x = place
            near = range(-(window // 2), window // 2 + 1)
            spots = [(b, y + i, x + j) for i in near for j in near]
            mean = sum(q in places and int(target[q]) == 1 for q in spots) / window**2
            mask, p = float(target[place] == 1), share(logits, place)[1]
            weight = 1 + strength * abs(mean - mask)
            entropy -= (weight if counts else 1) * math.log(p if mask else 1 - p)
            total += weight if counts else 1
            both, said = both + weight * p * mask, said + weight * (p + mask)
        if places:
            losses.append(entropy / total + 1 - (both + 1) / (said - both + 1))
    return sum(losses) / len(losses)


PLAIN = {
    "ce": plain_ce,
    "dice": plain_dice,
    "focal": plain_focal,
    "lovasz": plain_lovasz,
    "boundary": plain_boundary,
    "structure": plain_structure,
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_is_its_definition(name: str, seed: int) -> None:
    logits, target = case(name, seed=seed)
    assert float(LOSSES[name](logits, target)) == pytest.approx(PLAIN[name](logits, target), rel=1e-12)
    turned = logits.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), target.mT.contiguous().mT
    assert not turned[0].is_contiguous() and not turned[1].is_contiguous()
    assert float(LOSSES[name](*turned)) == pytest.approx(PLAIN[name](logits, target), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str) -> None:
    logits, target = case(name)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), logits.requires_grad_())
    coarse = case(name, (2, 3))[0].requires_grad_()
    larger = case(name, (3, 7))[1]
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, larger), coarse)


@pytest.mark.parametrize("name", LOSSES)
def test_coarser_logits_are_enlarged(name: str) -> None:
    logits, target = case(name, (2, 3))[0], case(name, (5, 7))[1]
    enlarged = F.interpolate(logits, size=(5, 7), mode="bilinear", align_corners=False)
    assert torch.equal(LOSSES[name](logits, target), LOSSES[name](enlarged, target))
    assert torch.equal(parse_loss(name)(logits, target), LOSSES[name](enlarged, target))


# -- what must not matter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 5), width=st.integers(1, 5))
def test_void_pixels_change_nothing(name: str, seed: int, height: int, width: int) -> None:
    logits, target = case(name, (height, width), seed=seed)
    void = (target == VOID).unsqueeze(1)
    others = torch.where(void, logits.flip(1) * 3 - 1, logits)
    results = []
    for values in (logits, others):
        values.requires_grad_()
        loss = LOSSES[name](values, target)
        (gradient,) = torch.autograd.grad(loss, values)
        assert torch.isfinite(loss) and not gradient.masked_select(void).any()
        results.append((loss, gradient))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("name", LOSSES)
def test_another_number_for_void(name: str) -> None:
    logits, target = case(name)
    expected = LOSSES[name](logits, target)
    assert torch.equal(LOSSES[name](logits, torch.where(target == VOID, -1, target), ignore_index=-1), expected)
    moved = torch.where(target == VOID, -1, target)
    assert torch.equal(parse_loss(name, ignore_index=-1)(logits, moved), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_all_void_is_zero_with_a_zero_gradient(name: str) -> None:
    logits = case(name)[0].float().requires_grad_()
    loss = LOSSES[name](logits, torch.full((2, 4, 5), VOID))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0 and gradient.shape == logits.shape and not gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_that_is_all_void_changes_nothing(name: str) -> None:
    logits, target = case(name)
    more = torch.cat([logits, logits[:1]]), torch.cat([target, torch.full((1, 4, 5), VOID)])
    assert torch.allclose(LOSSES[name](*more), LOSSES[name](logits, target), rtol=1e-14)


@pytest.mark.parametrize("name", ["ce", "dice", "focal", "lovasz", "boundary"])
@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_the_order_of_classes_does_not_matter(name: str, order: tuple[int, ...]) -> None:
    logits, target = case(name)
    place = torch.tensor(order)
    renamed = torch.where(target == VOID, VOID, place.argsort()[torch.where(target == VOID, 0, target)])
    assert torch.allclose(LOSSES[name](logits[:, place], renamed), LOSSES[name](logits, target), rtol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_one_logit_is_that_of_a_foreground(name: str) -> None:
    logits, target = case("structure")
    logit = (logits[:, 1:] - logits[:, :1]).requires_grad_()
    loss = LOSSES[name](logit, target)
    assert torch.allclose(loss, LOSSES[name](logits, target), rtol=1e-13)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, target), logit)


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e4, 65504.0])
@pytest.mark.parametrize("right", [True, False])
def test_extreme_logits_stay_finite(name: str, size: float, right: bool) -> None:
    _, target = case(name, (6, 7))
    count = classes_of(name)
    truth = F.one_hot(torch.where(target == VOID, 0, target), count).permute(0, 3, 1, 2)
    logits = (size * (2.0 * truth - 1) * (1 if right else -1)).requires_grad_()
    loss = LOSSES[name](logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    if right and name != "boundary":
        assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_near_float64(name: str) -> None:
    logits, target = case(name, (32, 33))
    exact, near = LOSSES[name](logits, target), LOSSES[name](logits.float(), target)
    assert near.dtype == torch.float32
    # Rounded logits (up to 8) move a share by 8 eps at most, a distance (up to 5) multiplies that; sums are pairwise.
    assert abs(float(exact - near)) < 64 * EPS * max(1, abs(float(exact)))


@pytest.mark.parametrize("name", LOSSES)
def test_in_autocast_it_computes_in_float32(name: str) -> None:
    logits, target = case(name, (3, 4))[0], case(name, (7, 9))[1]
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](half, target)
    plain = LOSSES[name](half.detach().float(), target)
    assert loss.dtype == torch.float32 and torch.equal(loss.detach(), plain)
    loss.backward()
    assert half.grad is not None and torch.isfinite(half.grad).all()
    if name == "ce":  # whose slope by the largest change of a logit is at most 2; bfloat16 rounds to 8 bits
        assert abs(float(plain - LOSSES[name](logits, target))) <= 2 * 2**-8 * float(logits.abs().max())


def test_lovasz_keeps_its_digits_over_many_pixels() -> None:
    """Differences of losses near 1 would lose them: the steps are as small as 1 / N ** 2."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 300, 301, generator=draw, dtype=DOUBLE)
    target = (torch.rand(1, 300, 301, generator=draw) < 0.01).long()
    errors = []
    for values in (logits, logits.float()):
        values.requires_grad_()
        lovasz(values, target).backward()
        errors.append(values.grad)
    assert errors[0] is not None and errors[1] is not None
    assert float((errors[0] - errors[1]).norm() / errors[0].norm()) < 64 * EPS


# -- each by itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_torch_s(weighted: bool, smoothing: float) -> None:
    logits, target = case("ce")
    weight = torch.tensor([0.2, 1.0, 3.0]) if weighted else None
    double = None if weight is None else weight.double()
    expected = F.cross_entropy(logits, target, weight=double, ignore_index=VOID, label_smoothing=smoothing)
    assert torch.allclose(cross_entropy(logits, target, weight=weight, label_smoothing=smoothing), expected, rtol=1e-7)
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, target, weight=double, label_smoothing=smoothing), logits.requires_grad_()
    )


def test_classes_without_weight_leave_nothing() -> None:
    logits, target = case("ce")
    logits.requires_grad_()
    loss = cross_entropy(logits, target, weight=torch.zeros(3))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_by_gamma(gamma: float) -> None:
    logits, target = case("focal")
    assert float(focal(logits, target, gamma=gamma)) == pytest.approx(plain_focal(logits, target, gamma), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: focal(x, target, gamma=gamma), logits.requires_grad_())
    sure = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)  # 1 - p is 0
    focal(sure, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=gamma).backward()
    assert sure.grad is not None and torch.isfinite(sure.grad).all()


def test_focal_weights_are_the_alphas_of_the_classes() -> None:
    logits, target = case("focal", (1, 3), batch=1, seed=3)
    target[:] = torch.tensor([0, 1, 2])
    values = [float(focal(logits[..., i : i + 1], target[..., i : i + 1])) for i in range(3)]
    weighted = focal(logits, target, weight=torch.tensor([0.25, 0.5, 2.0]))
    expected = (0.25 * values[0] + 0.5 * values[1] + 2 * values[2]) / 3
    assert float(weighted) == pytest.approx(expected, rel=1e-12)


def test_of_sure_answers_regions_give_the_overlap() -> None:
    """Class 0 has 2 of 4 in common with the prediction, class 1 has 1 of 3; class 2 is only predicted."""
    target = torch.tensor([[[0, 0, 0, 1, 1, VOID]]])
    said = torch.tensor([[[0, 0, 1, 1, 2, 0]]])
    logits = 1e3 * F.one_hot(said, 3).permute(0, 3, 1, 2).double()
    assert float(lovasz(logits, target)) == pytest.approx(1 - (2 / 3 + 1 / 3) / 2)
    assert float(dice(logits, target)) == pytest.approx(1 - (4 / 5 + 2 / 4) / 2)


def test_boundary_of_two_classes_is_the_foreground_s_up_to_a_constant() -> None:
    logits, target = case("structure", (5, 6))
    target = torch.where(target == VOID, 0, target)
    outside, inside = (squared_distance(target == number).double().sqrt() for number in (1, 0))
    level = torch.where(target == 1, 0.5 - inside, outside - 0.5)
    logits.requires_grad_()
    ours = torch.autograd.grad(boundary(logits, target), logits)[0]
    paper = torch.autograd.grad((level * logits.softmax(1)[:, 1]).mean(), logits)[0]
    assert torch.allclose(ours, paper, atol=1e-15)


@pytest.mark.parametrize(
    ("target", "levels"),
    [
        ([0, 0, 1, 1, 1], [1.5, 0.5, -0.5, -1.5, -2.5]),
        ([0, VOID, 1, 1, 1], [1.5, 0.0, -1.5, -2.5, -3.5]),
        ([1, 1, 1, 1, 1], [0.0] * 5),
    ],
)
def test_boundary_runs_between_pixels(target: list[int], levels: list[float]) -> None:
    """The slope by a share is the level; a second image, of another class alone, has no contour."""
    truth = torch.tensor([[target], [[0] * 5]])
    logits = torch.zeros(2, 2, 1, 5, dtype=DOUBLE, requires_grad=True)
    slope = torch.autograd.grad(boundary(logits, truth), logits)[0][:, 1, 0]
    # Of equal shares a logit moves both by a quarter, and the mean is over both classes.
    assert slope[0].tolist() == pytest.approx([level / 4 / (truth != VOID).sum().item() for level in levels])
    assert not slope[1].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("number", [0, 1])
def test_one_class_everywhere_and_one_pixel(name: str, number: int) -> None:
    for size in [(1, 1), (3, 4)]:
        logits = case(name, size)[0].requires_grad_()
        target = torch.full((2, *size), number)
        loss = LOSSES[name](logits, target)
        value = float(loss.detach())
        assert value == pytest.approx(PLAIN[name](logits.detach(), target), rel=1e-12, abs=1e-15)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
        if name == "boundary":  # there is none
            assert value == 0


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "strength"), [(3, 5.0), (5, 1.0), (3, 0.0)])
def test_structure_by_its_window(window: int, strength: float) -> None:
    logits, target = case("structure", (5, 6))
    options = {"window": window, "strength": strength}
    expected = plain_structure(logits, target, **options)
    assert float(structure(logits, target, **options)) == pytest.approx(expected, rel=1e-12)


def test_structure_weights_count_in_the_cross_entropy() -> None:
    """As the published code has it (`reduce='none'`) the cross-entropy would be the same wherever a mistake is."""
    logits, target = case("structure", (5, 6))
    ours, cancelled = (plain_structure(logits, target, window=3, counts=counts) for counts in (True, False))
    assert abs(ours - cancelled) > 0.01
    assert float(structure(logits, target, window=3)) == pytest.approx(ours, rel=1e-12)

    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[:, :, :3] = 1
    slopes = []
    for column in (3, 8):  # a mistake at the contour, and one far from it
        logit = (4.0 * (2 * target - 1)).unsqueeze(1).double()
        logit[0, 0, 4, column] = 4.0
        logit.requires_grad_()
        entropy = structure(logit, target, window=3) + (_weighted_overlap(logit, target, 3) - 1)
        slopes.append(float(torch.autograd.grad(entropy, logit)[0][0, 0, 4, column]))
    weights = (1 + 5 * 3 / 9, 1.0)
    assert slopes[0] / slopes[1] == pytest.approx(weights[0] / weights[1], rel=1e-12)


def _weighted_overlap(logit: Tensor, target: Tensor, window: int) -> Tensor:
    mask = target.double()
    around = F.conv2d(mask.unsqueeze(1), torch.ones(1, 1, window, window, dtype=DOUBLE), padding=window // 2)
    weight = 1 + 5 * (around.squeeze(1) / window**2 - mask).abs()
    share = logit.squeeze(1).sigmoid()
    both = (weight * share * mask).sum()
    return (both + 1) / ((weight * (share + mask)).sum() - both + 1)


def test_structure_refuses_what_it_cannot_mean() -> None:
    logits, target = case("ce")
    with pytest.raises(SrattnError, match="1 or 2 logits a pixel, got 3; use ce or dice"):
        structure(logits, target)
    with pytest.raises(SrattnError, match="window must be an odd number of pixels, got 4"):
        structure(logits[:, :2], target, window=4)


# -- distances ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9), part=st.sampled_from([0.03, 0.3, 1])
)
def test_squared_distance_is_exact(seed: int, height: int, width: int, part: float) -> None:
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)) < part
    found = squared_distance(mask)
    assert found.dtype == torch.int32
    for b, y, x in itertools.product(range(2), range(height), range(width)):
        squares = [(y - i) ** 2 + (x - j) ** 2 for i, j in mask[b].nonzero().tolist()]
        assert int(found[b, y, x]) == min(squares, default=FAR)


def test_the_search_goes_on_while_the_next_offset_can_help() -> None:
    mask = torch.zeros(1, 13, 10, dtype=torch.bool)
    mask[0, 11, 0] = mask[0, 1, 9] = True
    assert int(squared_distance(mask)[0, 0, 0]) == 82  # nine columns away, where 121 was found in its own


def test_distances_over_a_wide_and_a_high_image() -> None:
    mask = torch.zeros(1, 3, 6001, dtype=torch.bool)
    mask[0, 2, 0] = True
    for turned in (mask, mask.mT):
        assert int(squared_distance(turned)[0, 0 if turned is mask else -1, -1 if turned is mask else 0]) == (
            6000**2 + 4
        )


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "terms", "name"),
    [
        ("ce", {"ce": 1.0}, "ce"),
        ("ce+dice", {"ce": 1.0, "dice": 1.0}, "ce+dice"),
        (" 0.5 * ce + lovasz ", {"ce": 0.5, "lovasz": 1.0}, "0.5*ce+lovasz"),
        (
            "1e-2*boundary+.5*dice+2.*focal",
            {"boundary": 0.01, "dice": 0.5, "focal": 2.0},
            "0.01*boundary+0.5*dice+2*focal",
        ),
        ("1e+1*ce", {"ce": 10.0}, "10*ce"),
    ],
)
def test_a_sum_by_name(text: str, terms: dict[str, float], name: str) -> None:
    logits, target = case("ce")
    loss = parse_loss(text)
    assert loss.name == name and parse_loss(loss.name).terms == loss.terms
    expected = sum(factor * LOSSES[term](logits, target) for term, factor in terms.items())
    assert torch.allclose(loss(logits, target), torch.as_tensor(expected), rtol=1e-14)


def test_structure_by_name() -> None:
    logits, target = case("structure")
    assert torch.equal(parse_loss("structure")(logits, target), structure(logits, target))
    assert list_losses() == list(LOSSES)


def test_options_reach_the_terms_that_know_them() -> None:
    logits, target = case("ce")
    weight = torch.tensor([0.2, 1.0, 3.0])
    loss = parse_loss("ce+focal+dice", weight=weight, label_smoothing=0.2)
    expected = cross_entropy(logits, target, weight=weight, label_smoothing=0.2)
    expected = expected + focal(logits, target, weight=weight) + dice(logits, target)
    assert torch.equal(loss(logits, target), expected)
    assert loss.smooths and not parse_loss("dice", label_smoothing=0.2).smooths and not parse_loss("ce").smooths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lovas", "no loss 'lovas'; did you mean 'lovasz'"),
        ("ce+dise", "no loss 'dise'; did you mean 'dice'"),
        ("", "no loss can be read from ''"),
        ("ce+", "no loss can be read from 'ce"),
        ("ce dice", "no loss can be read from 'ce dice'"),
        ("ce*0.5", "no loss can be read"),
        ("0*ce", "the factor of ce must be above 0, got 0"),
        ("-1*ce", "the factor of ce must be above 0, got -1"),
        ("1e999*ce", "the factor of ce must be above 0, got inf"),
    ],
)
def test_what_is_no_loss(text: str, message: str) -> None:
    with pytest.raises(SrattnError) as caught:
        parse_loss(text)
    assert message in str(caught.value)


def test_inputs_that_do_not_fit() -> None:
    logits, target = case("ce")
    with pytest.raises(SrattnError, match=r"logits \(B, K, h, w\) and a target \(B, H, W\), got"):
        dice(logits, target[:1])
    with pytest.raises(SrattnError, match=r"logits \(B, K, h, w\)"):
        dice(logits[0], target)
    with pytest.raises(SrattnError, match=r"logits \(B, K, h, w\)"):
        dice(logits, target.unsqueeze(1))
    with pytest.raises(SrattnError, match=r"use target.long\(\)"):
        dice(logits, target.int())
    with pytest.raises(SrattnError, match="gamma must be at least 0, got -1"):
        focal(logits, target, gamma=-1)
    with pytest.raises(SrattnError, match="label_smoothing must be at least 0 and below 1, got 1"):
        parse_loss("ce", label_smoothing=1)
