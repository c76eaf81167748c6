"""What the page of a run says about each task, in words."""

from __future__ import annotations

import dataclasses

from srattn.tasks.contours import TOLERANCE
from srattn.tasks.pose.metrics import PART


@dataclasses.dataclass(frozen=True)
class Words:
    """Sentences for one task.

    Attributes:
        units: one of what is measured, and several.
        headline: what the figure at the head of the page is, up to "on N validation images".
        rule: what counts as right.
        records: of the table behind the curves.
        rows: heading of the table of classes, joints or distances, and what one row is.
        amount: heading of how much there is of each row.
        columns: what the columns of that table are.
        ranked: by what images are the worst and the best.
        score: the same in a few words.
        pictures: what is drawn, and in which colours.
    """

    units: tuple[str, str]
    headline: str
    rule: str
    rows: tuple[str, str]
    amount: str
    columns: str
    ranked: str
    score: str
    pictures: str = ""
    records: str = "figures other than losses are shares of 1"


_IMAGES = ("image", "images")
WORDS = {
    "segmentation": Words(
        units=_IMAGES,
        headline="mean intersection over union of {classes}",
        rule="For each class: the pixels that are rightly said to be of it, as a share of all that are or are said to "
        "be.",
        rows=("Class by class", "class"),
        amount="of all pixels",
        columns="Found: the share of the class's pixels that were said to be of it. Boundary F: of precision and "
        f"recall of its contours, where they count as met within {100 * TOLERANCE:.2f} % of the image's diagonal. A "
        "dash: the class does not occur.",
        ranked="mean IoU over the classes in the truth or the prediction",
        score="mean IoU",
    ),
    "detection": Words(
        units=_IMAGES,
        headline="mean average precision of {classes}",
        rule="A box counts as right if it overlaps an object of its class by at least half (intersection over union), "
        "and is the first to.",
        rows=("Class by class", "class"),
        amount="objects",
        columns="AP: the mean precision over all recalls. The second column is the mean over ten overlaps from 0.5 to "
        "0.95. A dash: there is no object of the class.",
        ranked="average precision of their own, all classes together",
        score="AP at IoU 0.5",
    ),
    "depth": Words(
        units=_IMAGES,
        headline="of the known pixels are within 25 % of their distance",
        rule="The larger of prediction and truth is less than 1.25 times the smaller (delta1): the mean over images, "
        "of each over its known pixels.",
        rows=("By distance", "true distance"),
        amount="of all known pixels",
        columns="AbsRel: the mean error as a part of the distance. RMSE: the root of the mean squared error, in "
        "metres. Over the pixels of all images together. A dash: no pixel is so far.",
        ranked="share of known pixels within 25 %",
        score="pixels within 25 %",
        pictures="Truth and prediction have the colours of one scale, from the nearest to the farthest that is known "
        "of the image; grey is not known.",
        records="delta1 to delta3 are shares of 1, rmse is in metres",
    ),
    "pose": Words(
        units=("person", "people"),
        headline="mean average precision of poses",
        rule="A person counts as found from a similarity on (OKS: how far the joints are off, for the person's size): "
        "the mean over ten similarities from 0.50 to 0.95, as COCO measures it.",
        rows=("Joint by joint", "joint"),
        amount="labelled",
        columns=f"PCK: the share of the labelled joints that are found within {PART:g} of the longer side of the "
        "person's box. OKS: their mean similarity. A dash: nobody has the joint.",
        ranked="similarity of joints (OKS)",
        score="OKS",
        pictures="Joints that are labelled, as the model's input shows them; hollow: labelled, but hidden. On the "
        "right a line from where a joint is (hollow) to where it was found (filled), red where that is too far for "
        "PCK.",
    ),
}


def counted(count: int, units: tuple[str, str], kind: str = "") -> str:
    """`3` -> `3 images`; `kind` stands between."""
    return f"{count:,} {kind}{units[count != 1]}"


def headline_words(task: str, classes: int, images: int) -> str:
    """The sentence beside the figure at the head of the page."""
    words = WORDS[task]
    what = words.headline.format(classes=counted(classes, ("class", "classes")))
    return f"{what}{',' if task == 'depth' else ''} on {counted(images, words.units, 'validation ')}."
