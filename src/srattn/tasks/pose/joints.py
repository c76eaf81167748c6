"""Facts of joints that measures need."""

from __future__ import annotations

from collections.abc import Sequence

# How far people disagree about a joint, as a part of the person's size: "Keypoint Evaluation" on cocodataset.org.
COCO_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
COCO_SKELETON = (
    ("left_ankle", "left_knee"),
    ("left_knee", "left_hip"),
    ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"),
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_eye", "right_eye"),
    ("nose", "left_eye"),
    ("nose", "right_eye"),
    ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
    ("left_ear", "left_shoulder"),
    ("right_ear", "right_shoulder"),
)
"""The bones that COCO's own files name."""
UNIFORM = sum(COCO_SIGMAS.values()) / len(COCO_SIGMAS)


def sigmas_of(names: Sequence[str]) -> list[float]:
    """Of each joint: COCO's where the joints are its 17, else for all alike the mean of those."""
    if set(names) == set(COCO_SIGMAS):
        return [COCO_SIGMAS[name] for name in names]
    return [UNIFORM] * len(names)


def skeleton_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """COCO's bones between joints of these names, as pairs of numbers; a bone without both its joints is left out."""
    place = {name: number for number, name in enumerate(names)}
    return [(place[a], place[b]) for a, b in COCO_SKELETON if a in place and b in place]
