"""The validation images that a page shows: the best and the worst, or an even selection where that is not known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor, nn

from srattn.data.dense import Target
from srattn.data.palette import Palette
from srattn.explain.scene_pictures import Panel, box_panels, mask_panels
from srattn.explain.scene_scores import Matches, best_score, evenly, extremes, match
from srattn.tasks.losses import VOID
from srattn.tasks.segmentation import class_map

SHOWN = 4
"""Images of each kind."""
_MATCHED = 500  # images whose boxes are matched
_DRAWN_FROM = 0.3  # score of a box, where no balance of precision and recall can be found

Scene = Callable[[int], "tuple[Tensor, Target] | None"]


@dataclasses.dataclass
class Cases:
    """Groups of images to show.

    Attributes:
        groups: heading and cards.
        scores: of each image that has one.
        ranked: whether the groups are the worst and the best.
        looked_at: images that were ranked.
        drawn_from: the score from which on boxes are drawn; None of masks.
        balanced: whether that score is where precision and recall are in best balance.
    """

    groups: list[tuple[str, list[dict[str, Any]]]]
    scores: list[float]
    ranked: bool
    looked_at: int
    drawn_from: float | None = None
    balanced: bool = False


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and the images that it is shown.

    Attributes:
        names: of the validation images.
        scene: one of them by its number, (C, H, W) in [0, 1], and its target; None where it is unreadable now.
        run: from such an image to the model's outputs for it, a batch of one.
        palette: names and colours of the classes.
    """

    names: Sequence[str]
    scene: Scene
    run: Callable[[Tensor], Tensor]
    palette: Palette

    def cards(self, indices: Sequence[int], card: Callable[..., dict[str, Any]], **facts: Any) -> list[dict[str, Any]]:
        """Those of the images that can be read, each as `card` makes it."""
        made = []
        for index in indices:
            scene = self.scene(index)
            if scene is not None:
                made.append({"name": self.names[index], "scale": None, **card(*scene, self.run(scene[0]), **facts)})
        return made


def runner(model: nn.Module, normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A model in eval mode as what `Subject.run` is."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        return model(normalise(image.unsqueeze(0)).to(device)).cpu()

    return run


def mask_cases(subject: Subject, per_image: Sequence[float | None] | None) -> Cases:
    """Masks; `per_image` is the mean IoU of each image, where a run of one process has measured it."""

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        assert target.mask is not None
        size = (target.mask.shape[0], target.mask.shape[1])
        prediction = class_map(outputs, size)[0]
        return {
            "facts": f"IoU {percent(image_iou(target.mask, prediction))}",
            "panels": marked(mask_panels(image, target.mask, prediction, subject.palette)),
        }

    return grouped(subject, per_image, card)


def box_cases(subject: Subject, decode: Callable[[Tensor], Tensor], answers: Tensor | None) -> Cases:
    """Boxes.

    Args:
        decode: from outputs to detections (1, D, 6).
        answers: detections (N, D, 6) of all images; where they are not known, a few images are looked at.
    """
    count = len(subject.names)
    chosen = evenly(count, _MATCHED if answers is not None else 2 * SHOWN)
    matches: dict[int, Matches] = {}
    for index in chosen:
        scene = subject.scene(index)
        if scene is not None and scene[1].boxes is not None:
            found = decode(subject.run(scene[0]))[0] if answers is None else answers[index]
            matches[index] = match(scene[1].boxes, found)
    balance = best_score(list(matches.values()))
    least = _DRAWN_FROM if balance is None else balance

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        boxes, found = target.boxes, decode(outputs)[0]
        assert boxes is not None
        mine = match(boxes, found)
        right, wrong = mine.above(least)
        shown = found[found[:, 4] >= least]
        return {
            "facts": f"{right} of {mine.objects} {_plural('object', mine.objects)} found, {wrong} wrong "
            f"{_plural('box', wrong, 'boxes')}",
            "panels": marked(box_panels(image, boxes, shown, subject.palette)),
        }

    scores: list[float | None] = [None] * count
    for index, each in matches.items():
        scores[index] = each.precision()
    cases = grouped(subject, scores if answers is not None else None, card)
    cases.drawn_from, cases.balanced, cases.looked_at = least, balance is not None, len(matches)
    return cases


def image_iou(truth: Tensor, prediction: Tensor) -> float | None:
    """The mean IoU over the classes that are in the truth or the prediction (h, w), of the pixels that are not void."""
    counted = truth != VOID
    if not counted.any():
        return None
    true, said = truth[counted].long(), prediction[counted].long()
    size = int(torch.maximum(true.max(), said.max())) + 1
    confusion = torch.bincount(true * size + said, minlength=size * size).view(size, size).double()
    hit, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((hit / union)[union > 0].mean())


def grouped(subject: Subject, scores: Sequence[float | None] | None, card: Callable[..., dict[str, Any]]) -> Cases:
    """The worst and the best by `scores`, one an image, where any is known; each as `card` shows it."""
    known = [score for score in scores or () if score is not None]
    if scores is not None and known:
        worst, best = extremes(scores, SHOWN)
        chosen = [("The worst", worst), ("The best", best)]
    else:
        chosen = [("An even selection", evenly(len(subject.names), 2 * SHOWN))]
    groups = [(heading, subject.cards(indices, card)) for heading, indices in chosen]
    return Cases([group for group in groups if group[1]], known, bool(known), len(known))


def marked(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Panels for a page."""
    return [{"caption": panel.caption, "source": Markup(panel.source)} for panel in panels]


def percent(value: float | None) -> str:
    """A part of 1 for people."""
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _plural(word: str, count: int, several: str = "") -> str:
    return word if count == 1 else several or f"{word}s"
