"""People in COCO's form: what is read, the window around each, and that joints stay on their pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srattn.data.boxes.keypoints import read_coco_people_folder
from srattn.data.dense import Target, parse_joint
from srattn.data.dense.joint import DRAWS
from srattn.data.dense.joints import Joints, flip_order
from srattn.data.dense.loader import SceneLoader
from srattn.data.dense.people import open_people
from srattn.data.dense.person import PersonAugment, cut_window, person_matrix, person_windows
from srattn.data.dense.read import divide_scenes, load_scenes
from srattn.data.dense.target import nothing, stacked
from srattn.data.keyed import uniform
from srattn.data.preprocess import Preprocess
from srattn.errors import SrattnError
from srattn.tasks.pose import in_image

NAMES = ["nose", "left_hand", "right_hand"]
PLAIN = Preprocess(size=(48, 48), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fit="inside")


def annotation(number: int, image: int, joints: list[float], box: list[float], **more: Any) -> dict[str, Any]:
    known = sum(value > 0 for value in joints[2::3])
    return {
        "id": number, "image_id": image, "category_id": 1, "keypoints": joints, "num_keypoints": known, "bbox": box,
        "area": box[2] * box[3] / 2, "iscrowd": 0, **more,
    }  # fmt: skip


def save_people(
    root: Path,
    annotations: list[dict[str, Any]],
    images: dict[int, np.ndarray],
    part: str = "train",
    names: list[str] = NAMES,
) -> Path:
    """annotations/person_keypoints_PART.json and images/PART/ID.png."""
    for number, pixels in images.items():
        path = root / "images" / part / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": pixels.shape[0], "width": pixels.shape[1]}
            for number, pixels in images.items()
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2], [1, 3]]}],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"person_keypoints_{part}.json").write_text(json.dumps(content))
    return root


def dots(size: tuple[int, int], joints: list[float]) -> np.ndarray:
    """A black image with a square of 3x3 of a colour of its own at each joint (integers): red, green, blue."""
    image = np.zeros((*size, 3), np.uint8)
    for number, (x, y) in enumerate(zip(joints[::3], joints[1::3], strict=True)):
        image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2, number] = 255
    return image


JOINTS = [60.0, 30, 2, 40, 52, 2, 85, 58, 1]
BOX = [34.0, 22.0, 58.0, 44.0]


def person(root: Path, many: int = 1) -> Path:
    images = {7 + n: dots((90, 120), JOINTS) for n in range(many)}
    return save_people(root, [annotation(70 + n, 7 + n, JOINTS, BOX) for n in range(many)], images)


def test_a_folder_is_read(tmp_path: Path) -> None:
    root = person(tmp_path)
    save_people(root, [annotation(1, 3, JOINTS, BOX, area=0)], {3: dots((90, 120), JOINTS)}, "val")
    index = read_coco_people_folder(root)
    assert index.names == NAMES and index.skeleton == [(0, 1), (0, 2)] and not index.problems
    (one,), (other,) = index.parts["train"], index.parts["val"]
    assert one.box.tolist() == [34, 22, 92, 66] and one.area == 58 * 44 / 2 and other.area == 58 * 44
    # COCO counts pixels from 0, we from the edge
    assert one.joints.tolist() == [[60.5, 30.5, 2], [40.5, 52.5, 2], [85.5, 58.5, 1]]
    assert (one.image, other.image, index.images) == (0, 1, 2)
    assert one.size == (90, 120) and one.source == root / "images" / "train" / "7.png"


def test_what_cannot_be_used_is_named_and_the_rest_is_left(tmp_path: Path) -> None:
    unseen, off = [*JOINTS], [*JOINTS]
    unseen[2::3] = [0, 0, 0]
    off[8] = 0
    image = dots((90, 120), JOINTS)
    rows = [
        annotation(1, 7, JOINTS, BOX),
        annotation(2, 7, unseen, BOX),
        annotation(3, 7, JOINTS, BOX, iscrowd=1),
        annotation(4, 99, JOINTS, BOX),
        annotation(5, 7, JOINTS[:-1], BOX),
        annotation(6, 7, JOINTS, [3, 4, 0, 5]),
        annotation(7, 7, JOINTS, [500, 4, 5, 5]),
        annotation(8, 8, JOINTS, BOX),
        annotation(9, 7, off, BOX),
        annotation(10, 7, [math.nan, *JOINTS[1:]], BOX),
        annotation(11, 7, JOINTS, BOX, category_id=2),
        annotation(12, 7, [1e300, *JOINTS[1:]], BOX),
        annotation(13, 7, JOINTS, [3, 4, 1e300, 5]),
        annotation(14, 7, JOINTS, BOX, area=1e300),
        annotation(15, 7, JOINTS, BOX, category_id=[]),
        annotation(16, 7, [10**400, *JOINTS[1:]], BOX),
    ]
    root = save_people(tmp_path, rows, {7: image, 8: image})
    (root / "images" / "train" / "8.png").unlink()
    file = root / "annotations" / "person_keypoints_train.json"
    content = json.loads(file.read_text())
    del content["images"][1]["height"]
    file.write_text(json.dumps(content))
    index = read_coco_people_folder(root)
    assert [one.name for one in index.parts["train"]] == ["7.png (1)", "7.png (9)", "7.png (14)"]
    assert index.parts["train"][2].area == 58 * 44
    assert index.parts["train"][1].joints[2].tolist() == [0, 0, 0]  # what is not labelled has no place
    assert index.unlabelled == 2
    text = "\n".join(index.problems)
    for words in ("8.png: no such file", "annotation 4 is of image 99", "annotation 5 has no 3 joints"):
        assert words in text
    for words in ("annotation 6 has a box without area", "annotation 7 has a box outside", "annotation 10 has no 3"):
        assert words in text
    for words in ("annotation 12 has a joint at 1e+300", "annotation 13 has a box outside"):
        assert words in text
    assert "annotation 16 has no 3 joints" in text and len(index.problems) == 9
    with pytest.raises(SrattnError, match=r"8\.png: no such file; put it right"):
        read_coco_people_folder(root, on_bad_box="error")
    assert "2 without a labelled joint" in open_people(str(root))[0].notes[0]


def test_refusals_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match=r"no people in COCO's form: put them in .*person_keypoints_train.json"):
        open_people(str(tmp_path))
    root = person(tmp_path)
    save_people(root, [annotation(1, 3, JOINTS, BOX)], {3: dots((90, 120), JOINTS)}, "val", ["a", "b", "c"])
    with pytest.raises(SrattnError, match="its joints are others than those of the part before"):
        open_people(str(root))
    (root / "annotations" / "person_keypoints_val.json").unlink()
    save_people(root, [], {}, "train2017")
    with pytest.raises(SrattnError, match=r"person_keypoints_train2017\.json; leave one"):
        open_people(str(root))
    (root / "annotations" / "person_keypoints_train2017.json").unlink()
    content = json.loads((root / "annotations" / "person_keypoints_train.json").read_text())
    content["images"][0]["file_name"] = "../../secret.png"
    (root / "annotations" / "person_keypoints_train.json").write_text(json.dumps(content))
    with pytest.raises(SrattnError, match="leads out of the folder"):
        open_people(str(root))


def test_left_and_right_change_places_in_a_mirror_alone() -> None:
    order = flip_order(["nose", "left_eye", "right_eye", "Hand Right", "Hand Left", "upleft"])
    assert order.tolist() == [0, 2, 1, 4, 3, 5]
    with pytest.raises(SrattnError, match="'left_eye' is 'right_eye', and there is no such joint"):
        flip_order(["nose", "left_eye"])
    place = torch.tensor([[1.0, 2, 2], [3, 4, 1], [5, 6, 2]])
    joints = Joints.of(place, (10, 20), (0, 1, 1), flip_order(NAMES))
    mirror = torch.tensor([[-1.0, 0, 20], [0, 1, 0]], dtype=torch.float64)
    down = torch.tensor([[1.0, 0, 0], [0, -1, 10]], dtype=torch.float64)
    moved = joints.moved(mirror, (10, 20))
    assert moved.place.tolist() == [[19, 2, 2], [15, 6, 2], [17, 4, 1]]
    both = moved.moved(down, (10, 20))  # half a turn: nobody's left became right
    assert both.place.tolist() == [[19, 8, 2], [17, 6, 1], [15, 4, 2]]
    assert both.matrix.tolist() == [[-1, 0, 20], [0, -1, 10]]
    assert torch.equal(Joints.of(place, (10, 20), (0, 1, 1)).moved(mirror, (10, 20)).place[:, 2], place[:, 2])
    rows = both.rows()
    assert rows.shape == (7, 3) and rows[3:].tolist() == [[-1, 0, 20], [0, -1, 10], [0, 1, 1], [20, 10, 0]]


@pytest.mark.parametrize("size", [(48, 48), (64, 48), (33, 50)])
def test_the_window_is_the_box_in_the_middle_with_its_margin(size: tuple[int, int]) -> None:
    box = torch.tensor([34.0, 22, 92, 66])
    matrix = person_matrix(box, size)
    corners = torch.tensor([[34.0, 92], [22, 66]], dtype=torch.float64)
    seen = matrix[:, :2] @ corners + matrix[:, 2:]
    middle = seen.mean(1)
    assert middle.tolist() == pytest.approx([size[1] / 2, size[0] / 2])
    width, height = (seen[:, 1] - seen[:, 0]).tolist()
    assert width / height == pytest.approx(58 / 44)
    assert max(width / size[1], height / size[0]) == pytest.approx(1 / 1.25)
    assert torch.isfinite(person_matrix(torch.tensor([5.0, 5, 5, 5]), size)).all()


def middles(window: torch.Tensor) -> torch.Tensor:
    """(3, 2): where red, green and blue have their centre of mass, x and y from the edge."""
    weights = window.double() / window.double().sum((1, 2), keepdim=True)
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in window.shape[1:])
    return torch.stack([(weights.sum(1) * x).sum(1), (weights.sum(2) * y).sum(1)], 1)


@pytest.mark.parametrize(
    "spec", ["none", "scale=0.7-1.3", "flip=1", "flipv=1", "rotate=40", "scale=0.8-2,rotate=180,flip"]
)
def test_joints_stay_on_their_pixels(spec: str, tmp_path: Path) -> None:
    """Through both steps of a training image: what is kept of it, and what is shown."""
    found, _ = open_people(str(person(tmp_path)), mirrored=True)
    augment = parse_joint(spec, PLAIN, PersonAugment)
    assert isinstance(augment, PersonAugment)
    data = load_scenes(
        found.__class__(NAMES, {"train": found.parts["train"], "val": found.parts["train"]}, [], ""), augment, PLAIN
    )
    kept, target = data.train.scene(0)  # type: ignore[attr-defined]
    for number in range(6):
        window, seen = augment.scene(kept, target, uniform(DRAWS, number))
        assert window.shape == (3, 48, 48) and seen.joints is not None
        place = seen.joints.place
        mirrored = float(torch.linalg.det(seen.joints.matrix[:, :2])) < 0
        colours = middles(window)[[0, 2, 1] if mirrored else [0, 1, 2]]
        inside = (place[:, :2] > 3).all(1) & (place[:, :2] < 45).all(1)
        assert inside.any()
        # The dots are 3 pixels wide; a window is up to half a pixel off where they are sampled.
        assert (colours[inside] - place[inside, :2]).abs().max() < 0.5, spec
        back = in_image(
            torch.cat([place[:, :2] / 48, place[:, 2:]], 1).unsqueeze(0), seen.joints.matrix.unsqueeze(0), (48, 48)
        )
        order = [0, 2, 1] if mirrored else [0, 1, 2]
        true = torch.tensor([[60.5, 30.5], [40.5, 52.5], [85.5, 58.5]], dtype=torch.float64)[order]
        assert torch.allclose(back[0, :, :2], true, atol=1e-3)  # float32 joints of up to 100 pixels


def test_the_measured_window_is_the_predicted_one(tmp_path: Path) -> None:
    root = person(tmp_path)
    found, index = open_people(str(root))
    augment = parse_joint("none", PLAIN, PersonAugment)
    data = load_scenes(
        found.__class__(NAMES, {"train": found.parts["train"], "val": found.parts["train"]}, [], ""), augment, PLAIN
    )
    pixels, target = data.val.scene(0)  # type: ignore[attr-defined]
    with Image.open(root / "images" / "train" / "7.png") as image:
        windows, matrices = person_windows(image.convert("RGB"), index.parts["train"][0].box.unsqueeze(0), PLAIN)
        assert person_windows(image.convert("RGB"), torch.zeros(0, 4), PLAIN)[0].shape == (0, 3, 48, 48)
    assert torch.equal(windows[0], pixels.float() / 255) and torch.equal(matrices[0], target.joints.matrix)
    # and what is learnt without variation is the same but for being sampled twice
    shown, seen = augment.scene(*data.train.scene(0), torch.full((DRAWS,), 0.5))  # type: ignore[attr-defined]
    assert torch.allclose(seen.joints.place, target.joints.place, atol=1e-3)
    assert (middles(shown) - middles(windows[0])).abs().max() < 0.2
    assert seen.boxes is None and stacked([seen, seen]).shape == (2, 7, 3)
    assert nothing(seen.emptied(), (48, 48)).shape == (0, 7, 3)


def test_the_mean_colour_is_where_the_image_ends() -> None:
    pixels = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    matrix = person_matrix(torch.tensor([-10.0, -10, 10, 10]), (40, 40), margin=1.0)
    window = cut_window(pixels, matrix, (40, 40), (0.5, 0.25, 0.0))
    assert window[:, :19, :].float().mean((1, 2)).tolist() == [128, 64, 0]
    assert (window[:, 21:, 21:] == 200).all()
    far = torch.tensor([[1.0, 0, -5000], [0, 1, 0]], dtype=torch.float64)  # nothing of the image is in it
    assert (cut_window(pixels, far, (4, 4), (0.0, 1.0, 0.0))[1] == 255).all()


def test_people_of_one_image_are_not_divided(tmp_path: Path) -> None:
    images = {n: dots((90, 120), JOINTS) for n in range(6)}
    rows = [annotation(3 * n + k, n, JOINTS, BOX) for n in range(6) for k in range(3)]
    found, index = open_people(str(save_people(tmp_path, rows[::-1], images)))
    assert [one.image for one in index.parts["train"]] == sorted(one.image for one in index.parts["train"])
    train, held = divide_scenes(found.parts, None, 0.4, 0)
    assert len(train) == 12 and len(held) == 6
    assert not {one.image for one in train} & {one.image for one in held}


def test_the_loader_gives_windows_and_rows(tmp_path: Path) -> None:
    found, _ = open_people(str(person(tmp_path, 5)), mirrored=True)
    augment = parse_joint("scale=0.7-1.3,rotate=40,flip,jitter", PLAIN, PersonAugment)
    data = load_scenes(found, augment, PLAIN)
    loader = SceneLoader(data, augment, 4, 0)
    (batch,) = loader.train(0)
    assert batch.inputs.shape == (4, 3, 48, 48) and batch.labels.shape == (4, 7, 3)
    (again,) = SceneLoader(data, augment, 4, 0, workers=2).train(0)
    assert torch.equal(batch.inputs, again.inputs) and torch.equal(batch.labels, again.labels)
    (held,) = loader.val()
    assert held.labels.shape == (1, 7, 3) and held.labels[0, 6].tolist() == [48, 48, 0]
    assert loader._nothing().labels.shape == (0, 7, 3)
    cold = load_scenes(found, augment, PLAIN, hold_bytes=0)
    (unheld,) = SceneLoader(cold, augment, 4, 0).train(0)
    assert torch.equal(batch.inputs, unheld.inputs) and torch.equal(batch.labels, unheld.labels)


def test_an_image_of_another_size_is_left_out(tmp_path: Path) -> None:
    root = person(tmp_path, 5)
    Image.fromarray(dots((90, 121), JOINTS)).save(root / "images" / "train" / "8.png")
    augment = parse_joint("none", PLAIN, PersonAugment)
    data = load_scenes(open_people(str(root))[0], augment, PLAIN, val_fraction=0.5)
    assert any("8.png (71): the image is 121x90, declared is 120x90" in line for line in data.skipped)


def test_the_kept_part_is_what_can_be_seen() -> None:
    """Every corner of every drawn window lies in what is kept."""
    augment = PersonAugment(Preprocess(size=(64, 48)), scale=(0.7, 1.3), rotate=60.0, flip=0.5)
    rows, columns = round(64 * augment.reach), math.ceil(48 * augment.reach)
    corners = torch.tensor([[0.0, 0, 48, 48], [0, 64, 0, 64]], dtype=torch.float64)
    for number in range(200):
        matrix = augment.matrix((rows, columns), uniform(DRAWS, number).tolist())
        x, y = torch.linalg.solve(matrix[:, :2], corners - matrix[:, 2:])
        assert x.min() > -1 and y.min() > -1 and x.max() < columns + 1 and y.max() < rows + 1  # sides are rounded
    assert Target(joints=None).grid == ()
