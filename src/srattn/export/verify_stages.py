"""How far a file of a detector of two stages is from the model, step by step.

Where two boxes are nearly as good the file may choose the other one, and all that follows is of that one. So every
step is held against the model given what the file itself answered to the step before: what the first stage says of the
anchors against the model in float64; the file's proposals against the rule they are chosen by; the scores and boxes of
those proposals against the model's second stage in float64, which looks at the same ones; the file's detections against
the rule; and their masks against those that the model has for them. Numbers may be as far off as those of other files
(`srattn.export.verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from srattn.errors import SrattnError
from srattn.export import answers
from srattn.export.graph import Graph
from srattn.export.stages import FOUND, STEPS, choice_of, first_stage
from srattn.export.verify import FLOOR, LEEWAY, NEAR, apart, check_shapes, judge_detections, judge_kept
from srattn.heads.roi import map_of_boxes
from srattn.ops.boxes import clip_boxes
from srattn.tasks.detection.coding import boxes_of_steps
from srattn.tasks.detection.stages.propose import OVERLAP

_BESIDE = 1e-5
"""Of a box's side: two runtimes may read a box from different maps if its side is as near to their limit."""


class _Seen:
    """A model that has seen the images, and is asked for its second stage of boxes given."""

    def __init__(self, graph: Graph, images: Tensor) -> None:
        model: Any = graph.model
        images = graph.pictures(images) if graph.pictures is not None else images
        self.head, self.size = model.head, (images.shape[2], images.shape[3])
        self.maps = model.features(images)
        self.regions = self.head.rpn(self.maps)
        self.dtype = images.dtype

    def first(self) -> list[Tensor]:
        return list(first_stage(self.regions, self.size))

    def second(self, proposals: Tensor, there: Tensor) -> list[Tensor]:
        proposals = proposals.to(self.dtype)
        # One image after the other: a thousand boxes of each in float64 are a gigabyte.
        parts = [self.head.classify(maps, boxes.unsqueeze(0)) for maps, boxes in self._by_image(proposals)]
        logits, steps = (torch.cat(each) for each in zip(*parts, strict=True))
        boxes = boxes_of_steps(proposals.unsqueeze(2), steps.to(self.dtype))
        return [logits.softmax(2)[..., :-1] * there.unsqueeze(2), clip_boxes(boxes, *self.size)]

    def masks(self, detections: Tensor) -> list[Tensor]:
        boxes = detections[..., :4].to(self.dtype)
        logits = torch.cat([self.head.masks(maps, one.unsqueeze(0)) for maps, one in self._by_image(boxes)])
        there = detections[..., 5] >= 0
        label = detections[..., 5].long().clamp(min=0).view(*there.shape, 1, 1, 1)
        own = logits.gather(2, label.expand(-1, -1, 1, *logits.shape[3:])).squeeze(2)
        return [own.sigmoid() * there.unsqueeze(2).unsqueeze(3)]

    def _by_image(self, boxes: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        return (([x[n : n + 1] for x in self.maps], one) for n, one in enumerate(boxes))


class Judge:
    """What a file answers to one batch of images, beside what the model does.

    Args:
        exact, others: see `srattn.export.verify.references`.
        images: as the graph takes them.
    """

    def __init__(self, exact: Graph, others: Sequence[tuple[Graph, bool]], images: Tensor) -> None:
        doubled = images if images.dtype == torch.uint8 else images.double()
        self._shape = "x".join(map(str, images.shape))
        self._pictures, self._sides = exact.pictures, (images.shape[1], images.shape[2])
        self._exact = _Seen(exact, doubled)
        self._others = [_Seen(graph, doubled if is_exact else images) for graph, is_exact in others]
        self.worst = (0.0, FLOOR)

    @torch.inference_mode()
    def judge(self, found: Mapping[str, Tensor]) -> None:
        """Of a file that answers with all its steps.

        Raises:
            SrattnError: one of them is not what the model, or the rule, makes of the one before.
        """
        head, exact = self._exact.head, self._exact
        self._hold(STEPS[:2], found, lambda seen: seen.first())
        judge_proposals(found, exact.regions.counts, head.proposals)
        proposals, there = found["proposals"], found["sources"] >= 0
        sure = self._sure(proposals)
        self._hold(STEPS[4:], found, lambda seen: seen.second(proposals, there), sure)
        detections = found[FOUND] if FOUND in found else found["detections"]
        judge_detections(detections, found["boxes"], found["scores"], choice_of(head))
        if FOUND in found:
            self._judge_place(found["detections"], detections)
        if "masks" in found:
            self._hold(["masks"], found, lambda seen: seen.masks(detections), self._sure(detections[..., :4]))

    @torch.inference_mode()
    def judge_trimmed(self, left: Mapping[str, Tensor], whole: Sequence[Mapping[str, Tensor]]) -> None:
        """Of the same file without its steps.

        Args:
            whole: what it answered with them, each time that it was run: a runtime may round pixels otherwise once it
                knows their number, and is then to be held against itself.

        Raises:
            SrattnError: it answers otherwise than each of them, by more than a runtime that takes another way may.
        """
        if any(all(torch.equal(value, found[name]) for name, value in left.items()) for found in whole):
            return
        detections = left["detections"]
        if self._pictures is not None:
            boxes = answers.of_picture(detections[..., :4], self._pictures.preprocess, *self._sides)
            detections = torch.cat([boxes * (detections[..., 5:] >= 0), detections[..., 4:]], 2)
        self._judge_against_any(detections, whole)
        if "masks" in left:
            sure = self._sure(detections[..., :4])
            self._hold(["masks"], left, lambda seen: seen.masks(detections), sure, floor=NEAR)

    def _judge_against_any(self, detections: Tensor, whole: Sequence[Mapping[str, Tensor]]) -> None:
        failures: list[SrattnError] = []
        for found in whole:
            try:
                return judge_detections(detections, found["boxes"], found["scores"], choice_of(self._exact.head))
            except SrattnError as error:
                failures.append(error)
        raise failures[0]

    def _hold(
        self,
        names: Sequence[str],
        found: Mapping[str, Tensor],
        answer: Callable[[_Seen], list[Tensor]],
        sure: Tensor | None = None,
        floor: float = FLOOR,
    ) -> None:
        """Holds answers against the truth, but for boxes that may be read from either of two maps."""
        truth, others = answer(self._exact), [answer(seen) for seen in self._others]
        values = [found[name] for name in names]
        check_shapes(values, truth)
        for number, (name, value, true) in enumerate(zip(names, values, truth, strict=True)):
            if not torch.isfinite(value).all():
                raise SrattnError(f"the file's {name} are not finite at {self._shape}; nothing was written")
            allowed = max([floor, *(LEEWAY * apart(other[number], true) for other in others)])
            if sure is not None:
                kept = sure.view(*sure.shape, *[1] * (value.ndim - 2))
                value = torch.where(kept, value.to(true.dtype), true)
            error = apart(value, true)
            if not error <= allowed:
                raise SrattnError(
                    f"the file's {name} differ from eager's by {error:.1e} at {self._shape}, {allowed:.1e} is allowed; "
                    "nothing was written"
                )
            if error > self.worst[0]:
                self.worst = (error, allowed)

    def _sure(self, boxes: Tensor) -> Tensor:
        """Which boxes (B, R, 4) no runtime reads from another map."""
        strides = self._exact.head.strides[: self._exact.head.read]
        low, high = (map_of_boxes(boxes.double() * (1 + sign * _BESIDE), strides) for sign in (-1, 1))
        return low == high

    def _judge_place(self, detections: Tensor, seen: Tensor) -> None:
        """Holds detections in pixels of the picture against the same in those of the model's input."""
        assert self._pictures is not None
        boxes = answers.in_picture(seen[..., :4].double(), self._pictures.preprocess, *self._sides)
        boxes = boxes * (seen[..., 5:] >= 0)
        check_shapes([detections], [seen])
        off = (detections[..., :4] - boxes).abs().max() > NEAR * max(self._sides)
        if bool(off) or not torch.equal(detections[..., 4:], seen[..., 4:]):
            raise SrattnError("the file's boxes lie elsewhere in the picture than its own masks; nothing was written")


def judge_proposals(found: Mapping[str, Tensor], counts: Sequence[int], most: int) -> None:
    """Holds a file's proposals against the rule, given what it says itself of all anchors.

    Args:
        found: the first four of `STEPS`.
        counts: anchors of each map.
        most: proposals of an image; of each map as many stand for election.

    Raises:
        SrattnError: it is not the rule of `srattn.tasks.detection.stages.propose`.
    """
    places, objectness, proposals, sources = (found[name] for name in STEPS[:4])
    count = min(most, sum(min(most, length) for length in counts))
    shape = torch.empty(len(places), count, device="meta")
    check_shapes([proposals, sources], [shape.unsqueeze(2).expand(-1, -1, 4), shape])
    slack = NEAR * float(objectness.abs().max())
    for boxes, scores, chosen, anchors in zip(places, objectness, proposals, sources, strict=True):
        there = anchors >= 0
        if bool((anchors >= len(scores)).any()) or bool(chosen[~there].any()):
            raise SrattnError("the file proposes boxes that are none of its anchors'; nothing was written")
        kept = torch.cat([chosen[there], scores[anchors[there]].unsqueeze(1)], 1)
        if len(kept) and bool((kept[1:, 4] > kept[:-1, 4] + slack).any()):
            raise SrattnError("the file's proposals are not the best first; nothing was written")
        least = -torch.inf if len(kept) < count else float(kept[:, 4].min())
        start = 0
        for length in counts:
            mine = (anchors[there] >= start) & (anchors[there] < start + length)
            own, values = boxes[start : start + length], scores[start : start + length]
            counted = float(values.topk(min(most, length)).values.min())
            able = (own[:, 2:] > own[:, :2]).all(1) & (values >= counted - slack)
            judge_kept(kept[mine], own[able], values[able], max(least, counted), OVERLAP, slack)
            start += length
