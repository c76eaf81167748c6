"""Which columns of a table hold the images, their labels and their parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srattn.errors import SrattnError, nearest

IMAGE = ("image", "img", "jpg", "png", "picture", "path", "file", "filename", "file_name", "image_path")
LABEL = ("label", "labels", "class", "cls", "target", "category", "fine_label")
_SPLIT = ("split", "part", "subset")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns in lists, Parquet files and `datasets` tables; None for the usual ones.

    Usual are image, img, jpg, png, picture, path, file, filename, file_name or image_path for an image; label, labels,
    class, cls, target, category or fine_label for its class; split, part or subset for its part.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = None


def find_columns(
    have: Sequence[str], columns: Columns, where: str, labelled: bool = True, named: bool = True
) -> tuple[str, str, str]:
    """The columns of images, labels and parts; "" for labels or parts that there are not.

    Args:
        labelled: a column of labels is needed.
        named: whoever reads has options for the names of columns, which messages may advise.

    Raises:
        SrattnError: a named column is not there, or none of the usual names is.
    """
    found = []
    for kind, wanted, usual in (
        ("image", columns.image, IMAGE),
        ("label", columns.label, LABEL),
        ("split", columns.split, _SPLIT),
    ):
        if wanted is not None and wanted not in have:
            raise SrattnError(f"{where} has no column {wanted!r}{nearest(wanted, have)}; it has {', '.join(have)}")
        name = wanted if wanted is not None else next((name for name in usual if name in have), "")
        if not name and (kind == "image" or (kind == "label" and labelled)):
            option = f", or name it with --{kind}_column" if named else ""
            raise SrattnError(
                f"{where} has no column for the {kind} (usual names: {', '.join(usual)}); "
                f"it has {', '.join(map(str, have)) or 'none'}; rename one{option}"
            )
        found.append(name)
    return found[0], found[1], found[2]
