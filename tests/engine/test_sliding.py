"""Answers in windows: the same as of the whole image, from memory that does not grow with its height."""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from srattn import SrattnError
from srattn.data.decode import decode
from srattn.data.preprocess import to_tensor
from srattn.data.strips import PictureParts, as_parts
from srattn.engine.sliding import Sliding, slide, slide_rows
from srattn.engine.sliding.grid import Axis, continued, grids
from srattn.engine.sliding.strip import Strip
from srattn.tasks.dense import glpn, segformer

# A few roundings of float32 numbers of size 1: weights, their sum, and a softmax.
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def plain(images: Tensor) -> Tensor:
    """No normalisation."""
    return images


def random_image(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


class Near(nn.Module):
    """Logits on a grid of stride 4 from pixels at most `reach` away."""

    reach = 4 + 4 * 2 + 4  # a patch, two neighbouring tokens, and a token for the enlargement

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.mix = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return 4 * self.mix(self.patch(images))


def whole(model: nn.Module, image: Tensor) -> Tensor:
    """Probabilities (K, H, W) of the image in one piece, continued by reflection to a multiple of 32."""
    _, height, width = image.shape
    ys, xs = (continued(0, -(-side // 32) * 32, side, "reflect") for side in (height, width))
    images = image[:, ys][:, :, xs][None].float() / 255
    with torch.no_grad():
        logits = F.interpolate(model(images), images.shape[2:], mode="bilinear", align_corners=False)
    return logits.softmax(1)[0, :, :height, :width]


def sampled(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    best, number = probabilities.max(0)
    return number, best


def far_from_borders(axis: Axis, size: int, reach: int) -> Tensor:
    """Which pixels of a side see no border of a window that covers them, but those of the image."""
    good = torch.ones(axis.starts[-1] + axis.source, dtype=torch.bool)
    for n, start in enumerate(axis.starts):
        if n > 0:
            good[start : start + reach] = False
        if n < len(axis.starts) - 1:
            good[start + axis.source - reach : start + axis.source] = False
    return good[:size]


@pytest.mark.parametrize("size", [(100, 170), (171, 64), (230, 129), (64, 64), (40, 300), (1, 1), (3, 90)])
@pytest.mark.parametrize("weighting", ["cosine", "linear", "uniform"])
def test_the_same_as_in_one_piece_away_from_borders(size: tuple[int, int], weighting: str) -> None:
    model, image = Near().eval(), random_image(*size)
    options: dict[str, Any] = {"window": (64, 96), "weighting": weighting, "overlap": 0.3}
    number, confidence = slide(model, image, normalise=plain, confidence=True, **options)
    assert number.dtype == torch.uint8 and number.shape == size and confidence is not None
    grid = grids(size, None, Sliding(**options))[0]
    good = far_from_borders(grid.rows, size[0], model.reach)[:, None]
    good = good & far_from_borders(grid.columns, size[1], model.reach)
    assert good.float().mean() > 0.1
    padded = whole_of_window(model, image, options["window"])
    truth, best = sampled(padded)
    assert torch.allclose(confidence[good], best[good], **CLOSE)
    runner_up = padded.topk(2, 0).values
    clear = good & (runner_up[0] - runner_up[1] > 1e-4)
    assert torch.equal(number[clear], truth[clear].to(torch.uint8)) and clear.sum() > 0.9 * good.sum()


def whole_of_window(model: nn.Module, image: Tensor, window: tuple[int, int]) -> Tensor:
    """As `whole`, the image first continued to the size of a window where it is smaller."""
    _, height, width = image.shape
    ys = continued(0, max(height, window[0]), height, "reflect")
    xs = continued(0, max(width, window[1]), width, "reflect")
    return whole(model, image[:, ys][:, :, xs])[:, :height, :width]


def test_a_model_without_neighbours_is_the_same_everywhere() -> None:
    pointwise = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 4, 1)).eval()

    def nearest(images: Tensor) -> Tensor:
        return F.interpolate(pointwise(images), scale_factor=4.0, mode="nearest")

    image = random_image(203, 150)
    for batch, multiple in [(1, 32), (3, 4)]:
        _, confidence = slide(
            nearest, image, normalise=plain, confidence=True, window=(64, 64), batch_size=batch, multiple=multiple
        )
        ys, xs = continued(0, 224, 203, "reflect"), continued(0, 160, 150, "reflect")
        with torch.no_grad():
            truth = nearest(image[:, ys][:, :, xs][None].float() / 255).softmax(1)[0, :, :203, :150]
        assert confidence is not None and torch.allclose(confidence, truth.max(0).values, **CLOSE)


def by_hand(model: nn.Module, image: Tensor, options: Sliding) -> Tensor:
    """Mean (K, H, W) over windows, flips and scales by the definition, in float64, with a whole accumulator."""
    _, height, width = image.shape
    total: Any = 0.0
    for grid in grids((height, width), None, options):
        for (i, y), (j, x) in itertools.product(enumerate(grid.rows.starts), enumerate(grid.columns.starts)):
            ys = continued(y, y + grid.rows.source, height, options.padding)
            xs = continued(x, x + grid.columns.source, width, options.padding)
            part = image[:, ys][:, :, xs][None].float() / 255
            part = F.interpolate(part, (grid.rows.window, grid.columns.window), mode="bilinear", antialias=True)
            found = []
            for flip in (False, True) if options.flips else (False,):
                logits = model(part.flip(3) if flip else part)
                small = logits.shape[2] <= grid.rows.source
                logits = F.interpolate(
                    logits, (len(ys), len(xs)), mode="bilinear", align_corners=False, antialias=not small
                )
                answer = logits.softmax(1) if options.average == "probabilities" else logits
                found.append(answer.flip(3) if flip else answer)
            mean = torch.stack(found).double().mean(0)[0]
            weight = grid.rows.weights[i].double()[:, None] * grid.columns.weights[j].double()
            bottom, right = min(height, y + len(ys)), min(width, x + len(xs))
            inside = (mean * weight)[:, : bottom - y, : right - x]
            total = total + F.pad(inside / len(options.scales), (x, width - right, y, height - bottom))
    return total


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize(
    ("scales", "flips"), [((1.0,), True), ((0.5, 1.0, 1.75), False), ((2.0,), True), ((0.3, 0.6), False)]
)
@pytest.mark.parametrize("size", [(150, 101), (20, 70)])
@torch.no_grad()
def test_flips_and_scales_by_the_definition(
    average: str, scales: tuple[float, ...], flips: bool, size: tuple[int, int]
) -> None:
    model, image = Near(3).eval(), random_image(*size)
    options: dict[str, Any] = {"window": (32, 64), "scales": scales, "flips": flips, "average": average}
    number, confidence = slide(model, image, normalise=plain, confidence=True, batch_size=2, **options)
    mean = by_hand(model, image, Sliding(**options))
    truth = mean if average == "probabilities" else mean.softmax(0)
    assert confidence is not None and torch.allclose(confidence.double(), truth.max(0).values, **CLOSE)
    close = truth.topk(2, 0).values
    clear = close[0] - close[1] > 1e-4
    assert torch.equal(number[clear], truth.max(0).indices[clear].to(torch.uint8))
    assert clear.float().mean() > 0.9


def test_values_are_averaged_as_they_are() -> None:
    def brightness(images: Tensor) -> Tensor:
        return images.mean(1)  # (B, H, W)

    image = random_image(90, 77)
    found = slide(brightness, image, normalise=plain, kind="values", window=(32, 48), flips=True)
    assert found.confidence is None and found.values.dtype == torch.float32
    assert torch.allclose(found.values, image.float().mean(0) / 255, **CLOSE)


@pytest.mark.parametrize("size", [1, 5, 63, 64, 65, 96, 200, 1000])
@pytest.mark.parametrize("window", [1, 7, 32, 64])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6, 0.9])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.3])
def test_the_weights_of_every_pixel_sum_to_one(size: int, window: int, overlap: float, scale: float) -> None:
    for weighting, multiple in (("cosine", 32), ("linear", 1), ("uniform", 6)):
        options = Sliding((window, window), overlap, weighting, scales=(scale,), multiple=multiple)
        axis = grids((size, size), None, options)[0].rows
        total = torch.zeros(axis.starts[-1] + axis.source, dtype=torch.float64)
        for start, weight in zip(axis.starts, axis.weights, strict=True):
            assert len(weight) == axis.source and (weight > 0).all()
            total[start : start + axis.source] += weight
        # Each of the windows over a pixel rounds its weight once, and all of them together are one.
        assert (total - 1).abs().max() < 2**-23
        gaps = [b - a for a, b in itertools.pairwise(axis.starts)]
        assert axis.starts[0] == 0 and all(0 < gap <= max(1, axis.source * (1 - overlap)) for gap in gaps)
        assert axis.starts[-1] < size <= axis.starts[-1] + axis.source
        if scale == 1 and overlap == 0.25 and window == 64 and weighting == "cosine":
            assert all(start % 32 == 0 for start in axis.starts)


@pytest.mark.parametrize("weighting", ["cosine", "linear", "uniform"])
def test_weights_are_the_shares_of_their_profiles(weighting: str) -> None:
    def profile(place: float) -> float:
        rising = {"cosine": math.sin(math.pi * place) ** 2, "linear": min(place, 1 - place)}
        return rising.get(weighting, 1.0)

    axis = grids((50, 50), None, Sliding((20, 20), 0.4, weighting, multiple=1))[0].rows
    assert axis.starts == (0, 10, 20, 30)
    for start, weights in zip(axis.starts, axis.weights.tolist(), strict=True):
        for at, weight in enumerate(weights):
            every = [profile((start + at - other + 0.5) / 20) for other in axis.starts if 0 <= start + at - other < 20]
            assert weight == pytest.approx(profile((at + 0.5) / 20) / sum(every), rel=1e-6)


def test_weights_fade_towards_the_border_of_a_window() -> None:
    for weighting in ("cosine", "linear"):
        axis = grids((100, 100), None, Sliding((64, 64), 0.4, weighting, multiple=1))[0].rows
        second = axis.weights[1]
        overlap = axis.starts[0] + 64 - axis.starts[1]
        assert second[0] < 0.05 and (second[:overlap].diff() > 0).all() and (second[overlap:] == 1).all()


def test_what_lies_beyond_the_border() -> None:
    assert continued(2, 9, 5, "reflect").tolist() == [2, 3, 4, 3, 2, 1, 0]
    assert continued(0, 8, 3, "reflect").tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert continued(2, 9, 5, "edge").tolist() == [2, 3, 4, 4, 4, 4, 4]
    assert continued(0, 3, 1, "reflect").tolist() == [0, 0, 0]
    row = np.pad(np.arange(7), (0, 20), mode="reflect")
    assert continued(0, 27, 7, "reflect").tolist() == row.tolist()


def test_a_window_that_sees_only_reflections_of_the_last_rows() -> None:
    # The last window starts on the last row: what it reads lies above its start, upside down.
    image = random_image(5, 4, 1)
    found = slide(lambda x: x[:, 0], image, normalise=plain, kind="values", window=(4, 4), overlap=0.0, multiple=4)
    assert torch.allclose(found.values, image[0] / 255, **CLOSE)
    seen: list[Tensor] = []

    def keep(images: Tensor) -> Tensor:
        seen.append((images[0, 0] * 255).round().to(torch.uint8))
        return images[:, 0]

    slide(keep, image, normalise=plain, kind="values", window=(4, 4), overlap=0.0, multiple=4)
    assert torch.equal(seen[1], image[0, [4, 3, 2, 1]])


class Endless:
    """An image that is never in memory, and tells what was asked of it."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (3, height, width)
        self.largest = 0

    def crop(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        assert 0 <= top < bottom <= self.shape[1] and 0 <= left < right <= self.shape[2]
        self.largest = max(self.largest, (bottom - top) * (right - left))
        level = torch.arange(top, bottom) // 100 % 2 * 255
        return level.to(torch.uint8).view(1, -1, 1).expand(3, bottom - top, right - left)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_memory_does_not_grow_with_the_height(monkeypatch: pytest.MonkeyPatch, scales: tuple[float, ...]) -> None:
    made: list[tuple[int, int, int]] = []
    build = Strip.__init__

    def record(self: Strip, channels: int, height: int, width: int, device: torch.device) -> None:
        made.append((channels, height, width))
        build(self, channels, height, width, device)

    monkeypatch.setattr(Strip, "__init__", record)
    image = Endless(3000, 70)
    tallest = round(64 / min(scales))
    next_row = 0

    def light(images: Tensor) -> Tensor:
        bright = F.avg_pool2d(images.mean(1, keepdim=True), 4)
        return torch.cat([1 - bright, bright], 1)

    for y, rows, _ in slide_rows(light, image, normalise=plain, window=(64, 64), scales=scales):
        assert y == next_row and rows.shape[1] == 70 and 1 <= len(rows) <= 64
        middle = (torch.arange(y, y + len(rows)) % 100 - 50).abs() < 30
        expected = torch.arange(y, y + len(rows)) // 100 % 2
        assert (rows == expected[:, None])[middle].all()
        next_row = y + len(rows)
    assert next_row == 3000
    assert made == [(2, tallest, 70)] and image.largest <= tallest * 70


def test_an_image_too_large_for_a_file_is_answered_in_parts_or_refused_by_its_header(tmp_path: Path) -> None:
    width, height = 30_000, 20_000
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    with pytest.raises(SrattnError, match=r"large\.png: more than the 64,000,000 pixels that are accepted"):
        decode(path)
    rows = slide_rows(lambda x: x[:, 0], Endless(height, width), normalise=plain, kind="values", window=(64, 2048))
    first = next(rows)
    assert first.y == 0 and first.values.shape == (32, width)  # windows start at multiples of 32


def test_the_window_is_chosen_from_the_model() -> None:
    class Seen(nn.Module):
        img_size = 64
        sizes: tuple[tuple[int, ...], ...] = ()

        def forward(self, images: Tensor) -> Tensor:
            self.sizes += (tuple(images.shape),)
            return images[:, 0]

    for size, expected in [
        ((50, 70), {(1, 3, 64, 96)}),  # little more than a window: at once
        ((90, 64), {(1, 3, 96, 64)}),
        ((1, 1), {(1, 3, 32, 32)}),
        ((90, 97), {(1, 3, 64, 64)}),
    ]:
        model = Seen()
        found = slide(model, random_image(*size), normalise=plain, kind="values")
        assert found.values.shape == size and set(model.sizes) == expected
    model = Seen()
    slide(model, random_image(60, 60), normalise=plain, kind="values", scales=(0.5, 1, 2))
    assert set(model.sizes) == {(1, 3, 32, 32), (1, 3, 64, 64)}


def test_whole_models_of_every_size() -> None:
    small: dict[str, Any] = {"embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1), "depths": (1, 1, 1, 1)}
    classes = segformer("mit_b0", 4, hidden=8, img_size=64, **small).train()
    depth = glpn("mit_b0", hidden=4, img_size=64, **small)
    for size in [(1, 1), (33, 50), (130, 97)]:
        found = slide(classes, random_image(*size), normalise=plain)
        assert found.values.shape == size and int(found.values.max()) < 4
        far = slide(depth, random_image(*size), normalise=plain, kind="values")
        assert far.values.shape == size and bool(((far.values >= 0) & (far.values <= 10)).all())
    assert all(module.training for module in classes.modules())


def test_rows_can_be_changed_by_whoever_gets_them() -> None:
    for rows in slide_rows(Near().eval(), random_image(70, 64), normalise=plain, window=(32, 32)):
        rows.values[rows.values == 1] = 0
        assert not rows.values.is_inference()


def test_parts_of_a_picture_are_those_of_its_tensor() -> None:
    for mode in ("L", "RGB"):
        picture = Image.effect_noise((91, 75), 90).convert(mode)
        channels = len(picture.getbands())

        def mean(images: Tensor) -> Tensor:
            return images.mean(1)

        options: dict[str, Any] = {"normalise": plain, "kind": "values", "window": (32, 32)}
        parts = PictureParts(picture)
        assert parts.shape == (channels, 75, 91)
        assert torch.equal(slide(mean, parts, **options).values, slide(mean, to_tensor(picture), **options).values)


def test_pixels_that_lie_apart_in_memory() -> None:
    image = random_image(90, 60).permute(0, 2, 1)
    model = Near().eval()
    assert torch.equal(
        slide(model, image, normalise=plain, window=(32, 32)).values,
        slide(model, image.contiguous(), normalise=plain, window=(32, 32)).values,
    )


def test_half_precision_models_get_half_precision() -> None:
    model = Near().bfloat16().eval()
    assert slide(model, random_image(40, 40), normalise=plain, window=(32, 32)).values.shape == (40, 40)


def test_progress_counts_windows_and_ctrl_c_leaves_the_model_as_it_was() -> None:
    model, told = Near(), []
    model.train()
    model.patch.eval()
    arguments: dict[str, Any] = {"normalise": plain, "window": (32, 32), "overlap": 0.0, "batch_size": 2}
    slide(model, random_image(64, 96), progress=lambda done, total: told.append((done, total)), **arguments)
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slide(model, random_image(64, 96), progress=stop, **arguments)
    assert model.training and not model.patch.training

    def broken(images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model.forward = broken
    with pytest.raises(KeyboardInterrupt):
        slide(model, random_image(64, 96), **arguments)
    assert model.training and not model.patch.training


def logits_of(shape: tuple[int, ...], value: float = 0.0) -> Any:
    return lambda images: torch.full((len(images), *shape), value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 1.0}, "overlap must be a share from 0 to 0.9, got 1.0"),
        ({"overlap": float("nan")}, "overlap"),
        ({"window": (0, 32)}, r"window must be two numbers of pixels from 1 to 8192, got \(0, 32\)"),
        ({"window": 32}, "window must be two numbers"),
        ({"weighting": "gauss"}, "weighting must be one of"),
        ({"padding": "zero"}, "padding must be one of"),
        ({"average": "votes"}, "average must be one of"),
        ({"scales": ()}, "scales must be one or more numbers from 1/16 to 16"),
        ({"scales": 1.0}, "scales must be a list"),
        ({"scales": (0.01,)}, "scales"),
        ({"batch_size": 0}, "at least 1"),
        ({"batchsize": 2}, "no option 'batchsize'; did you mean 'batch_size'"),
        ({"kind": "depth"}, "kind must be one of"),
        ({"kind": "values", "confidence": True}, "values have no confidence"),
        ({"window": None}, r"no `img_size` to take the window from: give window=\(height, width\)"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    def never(images: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(SrattnError, match=message):
        slide_rows(never, random_image(9, 9), normalise=plain, **{"window": (32, 32), **options})


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (logits_of((1, 8, 8)), "classes", r"needs an output \(1, K, h, w\), K from 2 to 256; .* shape \(1, 1, 8, 8\)"),
        (logits_of((300, 8, 8)), "classes", r"shape \(1, 300, 8, 8\)"),
        (logits_of((5,)), "classes", r"shape \(1, 5\)"),
        (logits_of((2, 8, 8)), "values", r"needs an output \(1, h, w\)"),
        (logits_of((4, 8, 8), float("nan")), "classes", r"not finite in the window at \(y, x\) = \(0, 0\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(model: Any, kind: str, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        slide(model, random_image(9, 9), normalise=plain, kind=kind, window=(32, 32))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 4), r"uint8 tensor \(C, H, W\), got torch.float32 \(3, 4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"got torch.uint8 \(4, 4\)"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"without zeros, got \(3, 0, 4\)"),
        ("picture.png", "got str"),
    ],
)
def test_images_that_do_not_fit_are_refused(image: Any, message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        as_parts(image)
    with pytest.raises(SrattnError, match=r"use srattn\.data\.decode"):
        PictureParts(Image.new("CMYK", (2, 2)))


def test_parts_of_the_wrong_size_are_refused() -> None:
    class Short(Endless):
        def crop(self, top: int, bottom: int, left: int, right: int) -> Tensor:
            return super().crop(top, bottom, left, right)[:, 1:]

    with pytest.raises(SrattnError, match=r"must be uint8 \(3, 32, 32\), got torch.uint8 \(3, 31, 32\)"):
        slide(Near().eval(), Short(40, 40), normalise=plain, window=(32, 32))
