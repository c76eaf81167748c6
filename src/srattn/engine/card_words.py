"""What a model card says of each task: the hub's name for it, its figures, how it is called, and where it ends."""

from __future__ import annotations

import dataclasses

from srattn.engine.weights import LoadedRun


@dataclasses.dataclass(frozen=True)
class Words:
    """Of a task.

    Attributes:
        pipeline: the hub's name of the task; None where it has none.
        is_a: what the model is; `{count}` stands for the number of its classes.
        use: Python that uses it; `{mode}` stands for "L" or "RGB".
        limits: lines of the list of limits.
        classes: what the classes are called; empty where there are none.
        data: the hub's word for the form of the data.
    """

    pipeline: str | None
    is_a: str
    use: str
    limits: tuple[str, ...]
    classes: str = "classes"
    data: str = "image-folder"


METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "miou": ("mean_iou", "mIoU"),
    "map50": ("ap50", "AP50"),
    "delta1": ("delta1", "pixels within 25 %"),
    "oks_ap": ("oks_ap", "OKS AP"),
}
"""The hub's type and the name of the figure that is a task's headline."""

_OPENED = 'import srattn\n{imports}\nmodel = srattn.from_pretrained("REPO")  # images (B, C, H, W), normalised, to {to}'
_PHOTO = 'image = Image.open("photo.jpg").convert("{mode}")'


def _simple(to: str) -> str:
    return _OPENED.replace("{imports}", "").replace("{to}", to)


def _on_a_photo(function: str, to: str, line: str) -> str:
    imports = f"from PIL import Image\nfrom srattn.engine.scene_predict import {function}\n"
    return "\n".join([_OPENED.replace("{imports}", imports).replace("{to}", to), _PHOTO, line])


_KNOWN = {
    "classification": Words(
        "image-classification",
        "An image classifier of {count} classes",
        _simple("logits"),
        (
            "Every picture gets one of its classes, also one that shows none of them; the probabilities are those of a "
            "softmax, and no check was made that they are frequencies.",
        ),
    ),
    "segmentation": Words(
        "image-segmentation",
        "A model for semantic segmentation into {count} classes",
        _on_a_photo(
            "predict_mask",
            "logits (B, classes, H / 4, W / 4)",
            "mask = predict_mask(model.run, image)  # uint8 (H, W): numbers of model.labels",
        ),
        (
            "Every pixel gets one of its classes, also where none of them is shown; objects of one class are not told "
            "apart.",
            "Logits stand on a grid of a quarter of the image's sides: what is narrower than some pixels may be lost.",
        ),
        data="image-mask-folder",
    ),
    "detection": Words(
        "object-detection",
        "An object detector of {count} classes",
        _on_a_photo(
            "predict_boxes",
            "rows that predict_boxes decodes",
            "boxes = predict_boxes(model.run, image)  # (N, 6): x1, y1, x2, y2 in pixels, score, label number",
        ),
        (
            "Scores are for ranking, and no check was made that they are frequencies; `predict_boxes` leaves out those "
            "below 0.3 unless it is told otherwise.",
            "Of boxes of one class that overlap much the surest alone is given: crowded objects may be missed.",
        ),
        data="image-box-folder",
    ),
    "depth": Words(
        "depth-estimation",
        "A model for the depth of every pixel",
        _on_a_photo(
            "predict_depth", "depths (B, H, W)", "depth = predict_depth(model.run, image)  # float32 (H, W), in metres"
        ),
        (
            "Depths are those of the cameras and scenes that it was trained on; one picture does not tell the scale of "
            "others.",
        ),
        classes="",
        data="image-depth-folder",
    ),
    "pose": Words(
        "keypoint-detection",
        "A model for the {count} joints of the person in a window",
        _on_a_photo(
            "predict_joints",
            "heatmaps or logits of the joints",
            "joints = predict_joints(model.run, image)  # (1, joints, 3): x, y in pixels, score; boxes= for several",
        ),
        ("It takes a window around one person, which it does not find itself, and gives every joint a place in it.",),
        classes="joints",
        data="image-joints-folder",
    ),
}


def words_of(task: str) -> Words:
    """Of a task that another package adds: no more than its name."""
    return _KNOWN.get(task) or Words(None, f"A model for {task} of {{count}} classes", _simple("its answers"), ())


def use_of(run: LoadedRun) -> str:
    """Python that opens the model, as REPO, and asks it something."""
    return words_of(run.task).use.replace("{mode}", "L" if run.preprocess.channels == 1 else "RGB")
