"""What the augmentation does to pictures, and that nothing but an image's own draws decides it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srattn.data import geometry, mix, randaugment
from srattn.data.augment import DRAWS, Augment
from srattn.data.preprocess import Preprocess, to_image
from srattn.data.spec import TOKENS, parse_augment
from srattn.errors import SrattnError

SMALL = Preprocess(size=(16, 16), crop_fraction=1.0)
EVERYTHING = "shift=3,flip,rand=3x9,jitter,erase=0.5"


def pictures(count: int, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def test_short_strings() -> None:
    augment = parse_augment("crop=0.5, flip, rand=1x5, erase=0.1, mixup, cutmix=0.5, mix=0.8", SMALL)
    assert (augment.kind, augment.crop_area, augment.flip) == ("crop", 0.5, 0.5)
    assert (augment.rand_ops, augment.rand_magnitude, augment.erase) == (1, 5.0, 0.1)
    assert (augment.mixup, augment.cutmix, augment.mix_part, augment.mixes) == (0.2, 0.5, 0.8, True)
    assert parse_augment({"crop": 0.5, "flip": True, "erase": False}, SMALL) == Augment(
        "crop", SMALL, crop_area=0.5, flip=0.5
    )
    assert parse_augment("", SMALL) == parse_augment("none", SMALL) == Augment("none", SMALL)
    assert parse_augment("affine", SMALL) == Augment("affine", SMALL)
    assert parse_augment("shift=4,flip", SMALL).kind == "whole"
    for name in TOKENS:
        if name not in ("rotate", "move", "zoom", "mix"):
            parse_augment(name, SMALL)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("crp=1", "unknown 'crp'; did you mean 'crop'"),
        ("flip=often", "flip takes a number, got 'often'"),
        ("shift=1.5", "shift takes a whole number"),
        ("flip=2", r"flip in \[0, 1\]"),
        ("none,flip", "none stands alone"),
        ("affine,crop", "one of affine and crop"),
        ("zoom=0.2", "belong to affine"),
        ("mix=0.5", "add one of them"),
        ("flip,flip=1", "stands twice"),
        ("rand=99x9", "0 to 8 operations"),
        ("shift=17", "from 0 to the side of 16"),
    ],
)
def test_wrong_strings(spec: str, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        parse_augment(spec, SMALL)


@pytest.mark.parametrize("spec", ["none", EVERYTHING, "affine,flip,erase", "crop,flip,rand=2x9"])
def test_company_does_not_matter(spec: str) -> None:
    augment = parse_augment(spec, SMALL)
    images, draws = pictures(40), torch.rand(40, DRAWS, dtype=torch.float64)
    together = augment.images(images, draws)
    assert together.shape == (40, 3, 16, 16)
    assert together.min() >= 0 and together.max() <= 1
    for number in (0, 17, 39):
        alone = augment.images(images[number : number + 1], draws[number : number + 1])
        # Sums over a batch may be taken in another order: a few units in the last place of numbers up to 1.
        assert torch.allclose(alone[0], together[number], atol=1e-5)
    if spec != "none":
        assert not torch.equal(together, augment.images(images, torch.rand(40, DRAWS, dtype=torch.float64)))


def test_shift_moves_by_whole_pixels_and_black_comes_in() -> None:
    image = torch.full((81, 1, 9, 9), 7)
    draws = torch.cartesian_prod(torch.arange(9) / 9 + 0.01, torch.arange(9) / 9 + 0.01)
    moved = geometry.move(image, draws, 4)
    kept = (moved == 7).sum((1, 2, 3)).view(9, 9)
    side = torch.tensor([5, 6, 7, 8, 9, 8, 7, 6, 5])
    assert torch.equal(kept, side[:, None] * side[None, :])
    assert moved[0, 0, 4:, 4:].eq(7).all() and moved[80, 0, :5, :5].eq(7).all()


def test_crops_of_one_shape_agree_with_crops_one_by_one() -> None:
    # Levels that change evenly are resampled alike by every method away from the border.
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = (2 * rows + 4 * columns).round().to(torch.uint8).expand(3, 32, 32)
    preprocess = Preprocess(size=(32, 32))
    draws = torch.rand(20, 4, dtype=torch.float64)
    together = geometry.crop_together(ramp.expand(20, 3, 32, 32) / 255, (32, 32), draws, 0.3)
    for crop, row in zip(together, draws.tolist(), strict=True):
        alone = geometry.crop_one(ramp, preprocess, row, 0.3).float()
        # Pillow rounds to whole levels; 1.5 is that and its fixed-point weights.
        assert (crop * 255 - alone)[:, 2:-2, 2:-2].abs().max() < 1.5


def test_crops_of_small_pictures_do_not_depend_on_what_is_held() -> None:
    augment, draws = parse_augment("crop,flip", SMALL), torch.rand(6, DRAWS, dtype=torch.float64)
    images = pictures(6)
    assert geometry.only_enlarges(images.shape, SMALL.size)
    assert torch.equal(augment.images(images, draws), augment.images(torch.stack(list(images)), draws))
    large = pictures(6, 40)
    assert torch.equal(augment.images(large, draws), augment.images(list(large), draws))


def test_randaugment_by_its_definition() -> None:
    from PIL import ImageOps

    images = pictures(4)
    images[1] = images[1] // 2 + 20
    unit = images.float() / 255
    sign = torch.ones(4)
    for name, reference in (
        ("equalize", ImageOps.equalize),
        ("autocontrast", ImageOps.autocontrast),
        ("posterize", lambda image: ImageOps.posterize(image, 4)),
    ):
        ours = randaugment._colour_op(name, unit, sign, 1.0) * 255
        theirs = torch.stack([torch.tensor(list(reference(to_image(i)).tobytes())).view(16, 16, 3) for i in images])
        # autocontrast of Pillow cuts to whole levels
        assert (ours - theirs.permute(0, 3, 1, 2)).abs().max() <= 1.001, name
    assert torch.equal(randaugment._colour_op("solarize", unit, sign, 0.0), unit)
    flat = torch.full((1, 3, 8, 8), 0.3)
    for name in randaugment.OPS[1:]:
        draws = torch.tensor([[(randaugment.OPS.index(name) + 0.5) / len(randaugment.OPS), 0.2]])
        assert randaugment.randaugment(flat, draws, 1, 0.9).isfinite().all()
        assert torch.allclose(randaugment.randaugment(flat, draws * 0, 1, 0.9), flat)  # identity
    for name in ("rotate", "shear_x", "translate_y"):
        draws = torch.tensor([[(randaugment.OPS.index(name) + 0.5) / len(randaugment.OPS), 0.2]]).expand(4, 2)
        assert torch.allclose(randaugment.randaugment(unit, draws, 1, 0.0), unit, atol=1e-5)
    moved = randaugment.randaugment(unit, torch.tensor([[0.999, 0.9]]).expand(4, 2), 1, 1.0)  # translate_y, down
    assert torch.allclose(moved[:, :, 0], unit[:, :, 0], atol=1e-5)
    assert torch.allclose(moved[:, :, -1], 0.8 * unit[:, :, 8] + 0.2 * unit[:, :, 7], atol=1e-4)  # by 7.2 pixels


def test_erasing_takes_the_area_and_the_share_that_it_says() -> None:
    images = torch.rand(2000, 3, 16, 16) + 1
    erased = mix.erase(images, torch.rand(2000, 5), 0.25, (0.1, 0.2, 0.3))
    gone = (erased == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).all(1).float().mean((1, 2))
    hit = gone > 0
    assert 0.2 < hit.float().mean() < 0.3
    assert gone[hit].max() < 0.45 and 0.1 < gone[hit].mean() < 0.25  # 2 to 33 %, in whole pixels
    assert torch.equal(erased[~hit], images[~hit])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_beta_is_the_distribution(alpha: float) -> None:
    numbers = mix.beta((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000, alpha)
    assert (numbers.diff() >= 0).all() and numbers.min() >= 0 and numbers.max() <= 1
    assert numbers.mean() == pytest.approx(0.5, abs=1e-6)
    assert numbers.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)
    assert (numbers**4).mean() == pytest.approx(
        alpha
        * (alpha + 1)
        * (alpha + 2)
        * (alpha + 3)
        / (2 * alpha * (2 * alpha + 1) * (2 * alpha + 2) * (2 * alpha + 3)),
        rel=2e-3,
    )


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_shares_of_the_labels_are_those_of_the_pixels(mixup: float, cutmix: float) -> None:
    # Image i is i everywhere, so that its mean tells how much of it is left.
    images = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 12, 12)
    labels = torch.arange(9)
    changed = False
    for _ in range(20):
        mixed, shares = mix.mix(images, labels, torch.rand(9, 5, dtype=torch.float64), 9, mixup, cutmix, 0.9)
        assert torch.allclose(shares.sum(1), torch.ones(9))
        assert torch.allclose(mixed.mean((1, 2, 3)), shares @ labels.float(), atol=1e-5)
        assert torch.equal(mixed[8], images[8]) and shares[8, 8] == 1
        for number in range(8):
            assert shares[number, number] + shares[number, number ^ 1] == pytest.approx(1)
        changed |= bool((shares.amax(1) < 0.9).any())
    assert changed
