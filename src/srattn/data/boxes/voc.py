"""Pascal VOC: an XML file for each image in Annotations/, images in JPEGImages/, parts in ImageSets/Main/.

VOC counts pixels from 1 and means both ends: a box from xmin to xmax covers those pixels and all between. Our boxes are
edges and the image begins at 0, so x1 = xmin - 1 and x2 = xmax; y alike. Writing turns it back, and what is read from
a written file is what was written. Boxes of one pixel in width or height are taken for slips of the mouse.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from srattn.data.boxes.index import (
    BoxIndex,
    BoxItem,
    OnBadBox,
    Problems,
    RawBox,
    make_item,
    read_bounded,
    usable_size,
)
from srattn.data.decode import SUFFIXES
from srattn.errors import SrattnError
from srattn.files import atomic_dir

MAX_XML = 4 << 20
"""Bytes of an annotation; a few hundred are usual."""
MAX_LIST = 256 << 20
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: str | Path,
    classes: Sequence[str] | None = None,
    *,
    on_bad_box: OnBadBox = "skip",
    check_images: bool = True,
) -> BoxIndex:
    """The images and boxes of a folder in VOC's layout, by parts (train.txt, val.txt, test.txt; else trainval.txt).

    Args:
        root: holds Annotations/, JPEGImages/ and ImageSets/Main/.
        classes: the names in their order; all that occur, ascending, if not given.
        on_bad_box: what to do with an image that is missing or of another size than declared, an annotation that is
            missing or broken, and a box of unknown class, without area, or (partly) outside of its image: leave it
            out (or cut it) and name it in `problems`, or raise it.
        check_images: open each image's header to compare its size.

    Raises:
        SrattnError: no such layout, no part or no class.
    """
    root, problems = Path(root), Problems(on_bad_box)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        if not (root / folder).is_dir():
            raise SrattnError(f"{root} is no folder in Pascal VOC's layout: it has no {folder}/")
    lists = _lists(root)
    found: dict[str, list[_Annotation]] = {}
    for problems.part, names in lists.items():
        found[problems.part] = _annotations(root, names, problems)
    if classes is None:
        classes = sorted({box.label for some in found.values() for a in some for box in a[2]})
    if not classes:
        raise SrattnError(f"{root}: the annotations name no class")
    index = BoxIndex(list(classes), {})
    for problems.part, some in found.items():
        items = index.parts[problems.part] = []
        for name, declared, boxes in some:
            path = _image(root, name)
            size = usable_size(name, path, declared, problems, check_images)
            if size is not None:
                items.append(make_item(name, path, size, boxes, classes, problems))
    index.problems, index.lost, index.of_parts = problems.lines, problems.lost, problems.of_parts
    return index


def write_voc(root: str | Path, index: BoxIndex, overwrite: bool = False) -> Path:
    """Writes images (as they are) and boxes in VOC's layout; the folder is complete or absent.

    Raises:
        SrattnError: `root` exists, or two images have one name.
    """
    with atomic_dir(root, overwrite) as aside:
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (aside / folder).mkdir(parents=True)
        seen: set[str] = set()
        for part, items in index.parts.items():
            stems = []
            for item in items:
                stem = Path(item.name).name
                stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
                if stem in seen:
                    raise SrattnError(
                        f"two images are called {stem!r}: VOC's layout has one folder for all; rename one"
                    )
                seen.add(stem)
                stems.append(stem)
                shutil.copyfile(item.source, aside / "JPEGImages" / f"{stem}{item.source.suffix}")
                tree = _to_xml(item, f"{stem}{item.source.suffix}", index.classes)
                tree.write(aside / "Annotations" / f"{stem}.xml", encoding="utf-8")
            text = "".join(f"{stem}\n" for stem in stems)
            (aside / "ImageSets" / "Main" / f"{part}.txt").write_text(text, encoding="utf-8")
    return Path(root)


def _lists(root: Path) -> dict[str, list[str]]:
    folder = root / "ImageSets" / "Main"
    there = {part: folder / f"{part}.txt" for part in ("train", "val", "test")}
    there = {part: path for part, path in there.items() if path.is_file()}
    if "train" not in there and (folder / "trainval.txt").is_file():
        there = {"train": folder / "trainval.txt"} | {part: path for part, path in there.items() if part == "test"}
    if not there:
        raise SrattnError(f"{folder} has no train.txt, val.txt, test.txt or trainval.txt")
    lists = {}
    for part, path in there.items():
        lines = read_bounded(path, MAX_LIST).decode("utf-8", "replace").splitlines()
        lists[part] = [line.split()[0] for line in lines if line.strip()]
        for name in lists[part]:
            if Path(name).name != name or "\\" in name:
                raise SrattnError(f"{path}: {name!r} is no name of an image in JPEGImages/")
    return lists


_Annotation = tuple[str, tuple[int, int] | None, list[RawBox]]


def _annotations(root: Path, names: Sequence[str], problems: Problems) -> list[_Annotation]:
    found: list[_Annotation] = []
    for name in names:
        path = root / "Annotations" / f"{name}.xml"
        try:
            tree = _parse(path)
        except SrattnError as error:
            problems.tell(str(error), image=True)
            continue
        height, width = (_number(tree.findtext(f"size/{side}")) for side in ("height", "width"))
        declared = (int(height), int(width)) if height and width else None  # zeros mean that nobody knew
        found.append((name, declared, list(_boxes(tree, name, problems))))
    return found


def _boxes(tree: ElementTree.Element, name: str, problems: Problems) -> list[RawBox]:
    boxes = []
    for number, entry in enumerate(tree.iterfind("object"), 1):
        label = (entry.findtext("name") or "").strip()
        texts = [entry.findtext(f"bndbox/{edge}") for edge in _EDGES]
        words = f"object {number} ({label or 'no name'}, {' '.join(str(text) for text in texts)})"
        edges = [_number(text) for text in texts]
        if None in edges:
            problems.tell(f"{name}: {words} has no box of four numbers and is left out")
            continue
        x1, y1, x2, y2 = (float(edge) for edge in edges if edge is not None)
        if x2 > x1 and y2 > y1:  # else as it is, and refused with its name
            x1, y1 = x1 - 1, y1 - 1
        boxes.append(RawBox((x1, y1, x2, y2), label, (entry.findtext("difficult") or "").strip() == "1", words))
    return boxes


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class _Plain(ElementTree.TreeBuilder):
    """Elements alone: what a document type can hold (entities that grow without end, files) is refused unread."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise SrattnError(f"a document type ({name}), which an annotation does not need and which is not read")


def _parse(path: Path) -> ElementTree.Element:
    data = read_bounded(path, MAX_XML)
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_Plain()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # SrattnError is a ValueError
        raise SrattnError(f"{path}: no usable annotation: {error}") from None


def _image(root: Path, name: str) -> Path:
    """The image of that name, whatever its suffix; that of JPEG where there is none."""
    usual = root / "JPEGImages" / f"{name}.jpg"
    if usual.is_file():
        return usual
    others = (usual.with_name(f"{name}{suffix}") for known in sorted(SUFFIXES) for suffix in (known, known.upper()))
    return next((path for path in others if path.is_file()), usual)


def _to_xml(item: BoxItem, filename: str, classes: Sequence[str]) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("height", "width"), item.size, strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    rows = zip(item.boxes.double().tolist(), item.labels.tolist(), item.difficult.tolist(), strict=True)
    for (x1, y1, x2, y2), label, difficult in rows:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = str(classes[label])
        ElementTree.SubElement(entry, "difficult").text = str(int(difficult))
        box = ElementTree.SubElement(entry, "bndbox")
        for name, value in zip(_EDGES, (x1 + 1, y1 + 1, x2, y2), strict=True):
            ElementTree.SubElement(box, name).text = str(int(value)) if value.is_integer() else repr(value)
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)
