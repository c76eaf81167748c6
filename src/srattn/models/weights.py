"""Published weights by model: where they lie, under which licence, how well they score, and how images are prepared.

A table alone: `srattn.convert.pretrained` fetches. Repositories, file names and licences were read from the hub's
public listings; where a listing was not seen, `note` says so.
"""

from dataclasses import dataclass

from srattn.errors import SrattnError


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the model's input.

    The shorter side is resized to `size / crop_pct`, the centre cropped to `size`, values in [0, 1] normalised.
    """

    size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Weights:
    """One set of published weights.

    Attributes:
        model: the registered name.
        repo, file: repository and file on the Hugging Face hub.
        layout: the state-dict layout of the file.
        top1: ImageNet-1k accuracy in per cent, as published by `top1_source`.
        classes: of the classifier in the file.
        source: the authors' repository, where the weights come from.
        commercial: whether the licence allows commercial use.
    """

    model: str
    repo: str
    file: str
    layout: str
    licence: str
    source: str
    top1: float
    top1_source: str
    preprocessing: Preprocessing
    classes: int = 1000
    note: str = ""
    commercial: bool = True

    @property
    def tag(self) -> str:
        """What stands behind the model's name in timm's names of weights: "in1k" is ImageNet-1k."""
        return self.repo.partition(".")[2] or "in1k"


_AUTHORS = "https://github.com/whai362/PVT"
_PVT_PREPROCESSING = Preprocessing(crop_pct=0.875)


def _pvt(size: str, top1: float, note: str = "") -> Weights:
    return Weights(
        model=f"pvt_{size}",
        repo=f"Zetatech/pvt-{size}-224",
        file="model.safetensors",
        layout="transformers",
        licence="Apache-2.0",
        source=_AUTHORS,
        top1=top1,
        top1_source="the authors' repository",
        preprocessing=_PVT_PREPROCESSING,
        note=note,
    )


def _pvt_v2(size: str, top1: float) -> Weights:
    return Weights(
        model=f"pvt_v2_{size}",
        repo=f"timm/pvt_v2_{size}.in1k",
        file="model.safetensors",
        layout="timm",
        licence="Apache-2.0",
        source=_AUTHORS,
        top1=top1,
        top1_source="timm's results table",
        preprocessing=Preprocessing(),
    )


def _twins(size: str, top1: float, note: str = "") -> Weights:
    return Weights(
        model=f"twins_{size}",
        repo=f"timm/twins_{size}.in1k",
        file="model.safetensors",
        layout="timm",
        licence="Apache-2.0",
        source="https://github.com/Meituan-AutoML/Twins",
        top1=top1,
        top1_source="timm's results table",
        preprocessing=Preprocessing(),
        note=note,
    )


def _mit(size: str, top1: float) -> Weights:
    return Weights(
        model=f"mit_{size}",
        repo=f"nvidia/mit-{size}",
        file="pytorch_model.bin",
        layout="transformers",
        licence="NVIDIA Source Code License for SegFormer",
        source="https://github.com/NVlabs/SegFormer",
        top1=top1,
        top1_source="the SegFormer paper (arXiv:2105.15203)",
        preprocessing=_PVT_PREPROCESSING,
        note="the hub calls the licence 'other' and points to the authors' repository",
        commercial=False,
    )


def _cvt(size: str, file: str, top1: float) -> Weights:
    return Weights(
        model=f"cvt_{size}",
        repo=f"microsoft/cvt-{size}",
        file=file,
        layout="transformers",
        licence="Apache-2.0",
        source="https://github.com/microsoft/CvT",
        top1=top1,
        top1_source="the authors' repository",
        preprocessing=_PVT_PREPROCESSING,
        note="the repository's listing was seen, with its licence and kinds of files, but not the file's name",
    )


def _mvitv2(size: str, top1: float, note: str = "") -> Weights:
    return Weights(
        model=f"mvitv2_{size}",
        repo=f"timm/mvitv2_{size}.fb_in1k",
        file="model.safetensors",
        layout="timm",
        licence="Apache-2.0",
        source="https://github.com/facebookresearch/mvit",
        top1=top1,
        top1_source="the MViTv2 paper (arXiv:2112.01526)",
        preprocessing=Preprocessing(),
        note=note,
    )


WEIGHTS: tuple[Weights, ...] = (
    _pvt("tiny", 75.1),
    _pvt("small", 79.8, note="the repository's listing was seen to hold safetensors, but not the file's name"),
    _pvt("medium", 81.2),
    _pvt("large", 81.7),
    _pvt_v2("b0", 70.65),
    _pvt_v2("b1", 78.70),
    _pvt_v2("b2", 82.06),
    _pvt_v2("b2_li", 82.20),
    _pvt_v2("b3", 83.12),
    _pvt_v2("b4", 83.71),
    _pvt_v2("b5", 83.76),
    _twins("pcpvt_small", 81.12),
    _twins("pcpvt_base", 82.72),
    _twins("pcpvt_large", 83.16),
    _twins("svt_small", 81.69),
    _twins("svt_base", 83.12, note="the repository was seen to be linked, but not its listing of files"),
    _twins("svt_large", 83.72),
    _mit("b0", 70.5),
    _mit("b1", 78.7),
    _mit("b2", 81.6),
    _mit("b3", 83.1),
    _mit("b4", 83.6),
    _mit("b5", 83.8),
    _cvt("13", "model.safetensors", 81.6),
    _cvt("21", "pytorch_model.bin", 82.5),
    _mvitv2("tiny", 82.3, note="the repository is named by timm, but its listing was not seen"),
    _mvitv2("small", 83.6),
    _mvitv2("base", 84.4),
    _mvitv2("large", 85.3, note="the repository was seen, with its licence and kinds of files, but not their names"),
)


def find_weights(model: str) -> Weights | None:
    """The published weights of a registered model, or None."""
    return next((row for row in WEIGHTS if row.model == model), None)


HUB = ("hf-hub:", "hf_hub:")
"""What timm puts before a repository of the hub."""


def without_tag(name: str) -> str:
    """A model's name without what names its weights: "timm/pvt_v2_b0.in1k" to "pvt_v2_b0"."""
    return name.rpartition(":")[2].rpartition("/")[2].partition(".")[0]


def model_of(name: str) -> str | None:
    """The model whose published weights are called `name`: NAME.TAG as timm has it, or their repository on the hub,
    OWNER/NAME, with timm's prefix hf-hub: or without; None where `name` is of no such form.

    Raises:
        SrattnError: there are no such weights.
    """
    repo = next((name.removeprefix(prefix) for prefix in HUB if name.startswith(prefix)), name)
    for row in WEIGHTS:
        if repo == row.repo or name == f"{row.model}.{row.tag}":
            return row.model
    if repo != name:
        raise SrattnError(
            f"{repo} is no repository of published weights that srattn models lists; srattn.from_pretrained opens what "
            "srattn push wrote, and srattn.load_checkpoint a file of another layout"
        )
    row = find_weights(name.partition(".")[0])
    if row is not None and "." in name:
        raise SrattnError(f"no weights {name!r} of {row.model}; those published are {row.model}.{row.tag}")
    return None
