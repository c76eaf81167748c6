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
from srattn.explain.scene_pictures import Objects, Panel, box_panels, mask_panels
from srattn.explain.scene_scores import Matches, best_score, evenly, extremes, match
from srattn.tasks.detection.stages.metrics import answered_mask
from srattn.tasks.losses import VOID
from srattn.tasks.segmentation import class_map

SHOWN = 4
"""Images of each kind."""
MATCHED = 500
"""Images whose boxes are matched."""
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
        ignored: whether any of the boxes that are drawn counts nowhere.
    """

    groups: list[tuple[str, list[dict[str, Any]]]]
    scores: list[float]
    ranked: bool
    looked_at: int
    drawn_from: float | None = None
    balanced: bool = False
    ignored: bool = False


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
    """Masks; `per_image` is the mean IoU of each image, where it was measured."""

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        assert target.mask is not None
        size = (target.mask.shape[0], target.mask.shape[1])
        prediction = class_map(outputs, size)[0]
        return {
            "facts": f"IoU {percent(image_iou(target.mask, prediction))}",
            "panels": marked(mask_panels(image, target.mask, prediction, subject.palette)),
        }

    return grouped(subject, per_image, card)


def box_cases(
    subject: Subject, decode: Callable[[Tensor], Tensor], answers: Tensor | None, masks: bool = False
) -> Cases:
    """Boxes.

    Args:
        decode: from outputs to detections (1, D, 6).
        answers: detections (N, D, 6) of all images; where they are not known, a few images are looked at.
        masks: whether outputs have the masks of the objects, as `srattn.tasks.detection.stages` answers.
    """
    count = len(subject.names)
    chosen = evenly(count, MATCHED if answers is not None else 2 * SHOWN)
    matches: dict[int, Matches] = {}
    for index in chosen:
        scene = subject.scene(index)
        if scene is not None and scene[1].boxes is not None:
            found = decode(subject.run(scene[0]))[0] if answers is None else answers[index]
            matches[index] = match(scene[1].boxes, found, scene[1].ignored)
    balance = best_score(list(matches.values()))
    least = _DRAWN_FROM if balance is None else balance
    uncounted = False

    def card(image: Tensor, target: Target, outputs: Tensor) -> dict[str, Any]:
        nonlocal uncounted
        truth, found = true_objects(target), decode(outputs)[0]
        mine = match(truth.boxes, found, truth.ignored)
        right, wrong = mine.above(least)
        out = 0 if truth.ignored is None else int(truth.ignored.sum())
        uncounted |= out > 0
        said = answered_objects(outputs, found, least, masks)
        return {
            "facts": f"{right} of {mine.objects} {_plural('object', mine.objects)} found, {wrong} wrong "
            f"{_plural('box', wrong, 'boxes')}{f', {out} ignored' if out else ''}",
            "panels": marked(box_panels(image, truth, said, subject.palette)),
        }

    scores: list[float | None] = [None] * count
    for index, each in matches.items():
        scores[index] = each.precision()
    cases = grouped(subject, scores if answers is not None else None, card)
    cases.drawn_from, cases.balanced, cases.looked_at = least, balance is not None, len(matches)
    cases.ignored = uncounted
    return cases


def true_objects(target: Target) -> Objects:
    """Those that are known of an image, as they are drawn."""
    boxes = torch.zeros(0, 5) if target.boxes is None else target.boxes
    return Objects(boxes, None if target.masks is None else target.masks.runs, target.ignored)


def answered_objects(outputs: Tensor, found: Tensor, least: float, masks: bool) -> Objects:
    """Those that are drawn of a model's outputs for one image, from the score `least` on.

    Args:
        found: detections (D, 6), what `outputs` (1, D, ...) decode to.
        masks: whether the outputs have them.
    """
    sure = (found[:, 5] >= 0) & (found[:, 4] >= least)
    return Objects(found[sure], [answered_mask(row)[1] for row in outputs[0][sure]] if masks else None)


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
