"""Writes docs/models.md, the page of all registered models; `--check` only says whether it is up to date.

    python docs/models.py [--check]

Nothing is computed: the models stand on torch's meta device and run once on shapes alone. Figures that others
published stand here, with their source; those of weights in `srattn.models.weights`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import srattn
from srattn.models import build_model, list_models
from srattn.models.registry import count_parameters, variant
from srattn.models.weights import find_weights

PAGE = Path(__file__).with_suffix(".md")

TITLES = {
    "pvt": "PVT",
    "pvt_v2": "PVT v2",
    "twins": "Twins",
    "mit": "MiT, the encoder of SegFormer",
    "cmt": "CMT",
    "p2t": "P2T",
    "shunted": "Shunted Transformer",
    "cvt": "CvT",
    "mvitv2": "MViTv2",
    "segformer3d": "SegFormer3D",
}

_TIMM = "timm's results table"
_PVT = "the PVT paper (arXiv:2102.12122)"
_CMT = "the authors' repository, github.com/ggjy/CMT.pytorch"
_P2T = "the P2T paper (arXiv:2106.12011)"
_SHUNTED = "the authors' repository, github.com/OliverRensu/Shunted-Transformer"
_CVT = "the CvT paper (arXiv:2103.15808)"
_MVIT = "the MViTv2 paper (arXiv:2112.01526)"

# Multiply-adds of one image in units of 10^9, by model.
PUBLISHED_GMACS: dict[str, tuple[float, str]] = {
    "pvt_tiny": (1.9, _PVT),
    "pvt_small": (3.8, _PVT),
    "pvt_medium": (6.7, _PVT),
    "pvt_large": (9.8, _PVT),
    "pvt_v2_b0": (0.57, _TIMM),
    "pvt_v2_b1": (2.12, _TIMM),
    "pvt_v2_b2": (4.05, _TIMM),
    "pvt_v2_b2_li": (3.91, _TIMM),
    "pvt_v2_b3": (6.92, _TIMM),
    "pvt_v2_b4": (10.14, _TIMM),
    "pvt_v2_b5": (11.76, _TIMM),
    "twins_pcpvt_small": (3.83, _TIMM),
    "twins_pcpvt_base": (6.68, _TIMM),
    "twins_pcpvt_large": (9.84, _TIMM),
    "twins_svt_small": (2.94, _TIMM),
    "twins_svt_base": (8.59, _TIMM),
    "twins_svt_large": (15.15, _TIMM),
    "p2t_tiny": (1.8, _P2T),
    "p2t_small": (3.7, _P2T),
    "p2t_base": (6.5, _P2T),
    "p2t_large": (9.8, _P2T),
    "cvt_13": (4.5, _CVT),
    "cvt_21": (7.1, _CVT),
    "mvitv2_tiny": (4.7, _MVIT),
    "mvitv2_small": (7.0, _MVIT),
    "mvitv2_base": (10.2, _MVIT),
    "mvitv2_large": (42.1, _MVIT),
}
TOLERANCE = 0.02

# Where ours is further away than that, and why.
EXCEPTIONS = {
    "p2t_small": "the paper's figures of all four sizes are ours, cut off after one decimal instead of rounded.",
    "mvitv2_large": "the paper's figure; the card of the same weights at timm says 43.9, and 42.2 of a larger variant "
    "with a class token.",
}

# ImageNet-1k accuracy in per cent of models whose weights are not in the table of weights.
PUBLISHED_TOP1: dict[str, tuple[float, str]] = {
    "cmt_ti": (79.0, _CMT),
    "cmt_xs": (81.8, _CMT),
    "cmt_s": (83.5, _CMT),
    "cmt_b": (84.5, _CMT),
    "p2t_tiny": (79.8, _P2T),
    "p2t_small": (82.4, _P2T),
    "p2t_base": (83.5, _P2T),
    "p2t_large": (83.9, _P2T),
    "shunted_tiny": (79.8, _SHUNTED),
    "shunted_small": (82.9, _SHUNTED),
    "shunted_base": (84.0, _SHUNTED),
}

INTRODUCTION = """# Models

Written by `python docs/models.py`.

- **GMACs** are 10⁹ multiply-adds of one image: half of what `torch.utils.flop_counter` counts, on the plain path of \
the attention (`srattn.force_path("plain")`), whose products are those of the published formula; `srattn plan` counts \
the path that really runs. Counted are convolutions and matrix products, pooling among them where it is computed as \
one. Not counted are norms, activation functions, softmax, residuals and other pooling.
- **Activations** are 10⁶ values that these convolutions and products put out, as timm counts them.
- **Published** are the multiply-adds that others state, and how far ours are from them; {tolerance:.0%} at most but \
for the exceptions named below.
- **Top-1** is the published accuracy on ImageNet-1k. Numbers in brackets are [sources](#sources).
- **Weights** lie in these repositories of the Hugging Face hub; `srattn.create_model(name, pretrained=True)` loads \
them. timm's names mean the same: `pvt_v2_b0.in1k`, or with the repository `hf-hub:timm/pvt_v2_b0.in1k`, wherever a \
model is named. The licence is that of the weights. For the others, `srattn convert --list` names the layouts of files \
that `srattn.load_checkpoint` takes.
"""


class Measured(NamedTuple):
    """What is counted of one model: parameters, the image, multiply-adds, values put out."""

    parameters: int
    size: tuple[int, ...]
    macs: int
    activations: int


class _Outputs(TorchDispatchMode):
    """Counts the values that convolutions and matrix products put out."""

    count = 0
    PRODUCTS = frozenset(getattr(torch.ops.aten, name) for name in ("convolution", "mm", "addmm", "bmm", "baddbmm"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.PRODUCTS:
            self.count += out.numel()
        return out


def measure(name: str) -> Measured:
    """Counts one model at the image size that it is registered with."""
    model = build_model(name, device="meta").eval().requires_grad_(False)
    size = model.config["img_size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    image = torch.empty(1, model.config["in_chans"], *size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), srattn.force_path("plain"), _Outputs() as outputs, counter:
        model(image)
    return Measured(count_parameters(model), size, counter.get_total_flops() // 2, outputs.count)


def deviation(name: str, macs: int) -> float | None:
    """How far our multiply-adds are from the published ones, relative to those; None where none are published."""
    if name not in PUBLISHED_GMACS:
        return None
    return round(macs / 1e9, 3) / PUBLISHED_GMACS[name][0] - 1  # of the figure on the page


class _Sources:
    """Numbers sources in the order in which they are cited."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def cite(self, source: str) -> str:
        return f"[{self.numbers.setdefault(source, len(self.numbers) + 1)}]"


def row(name: str, measured: Measured, sources: _Sources) -> list[str]:
    weights = find_weights(name)
    published, top1, where, licence = "", "", "", ""
    difference = deviation(name, measured.macs)
    if difference is not None:
        figure, source = PUBLISHED_GMACS[name]
        mark = "\\*" if name in EXCEPTIONS else ""
        published = f"{figure} {sources.cite(source)}, {difference:+.1%}{mark}"
    if weights is not None:
        source = weights.top1_source
        if source == "the authors' repository":
            source += f", {weights.source.removeprefix('https://')}"
        top1 = f"{weights.top1} {sources.cite(source)}"
        where = f"[{weights.repo}](https://huggingface.co/{weights.repo})"
        licence = weights.licence + ("" if weights.commercial else " (no commercial use)")
    elif name in PUBLISHED_TOP1:
        figure, source = PUBLISHED_TOP1[name]
        top1 = f"{figure} {sources.cite(source)}"
    return [
        f"`{name}`",
        f"{measured.parameters:,}",
        "x".join(map(str, measured.size)),
        f"{measured.macs / 1e9:.3f}",
        published,
        f"{measured.activations / 1e6:.2f}",
        top1,
        where,
        licence,
    ]


HEAD = ["model", "parameters", "image", "GMACs", "published", "activations", "top-1 %", "weights", "licence"]
_RIGHT = {"parameters", "GMACs", "activations"}


def render(figures: Mapping[str, Measured]) -> str:
    """The page, from what was measured."""
    families: dict[str, list[str]] = {}
    for name in figures:
        families.setdefault(variant(name).family.__module__, []).append(name)
    sources = _Sources()
    parts = [INTRODUCTION.format(tolerance=TOLERANCE)]
    for module, names in families.items():
        family = module.rpartition(".")[2]
        text = inspect.cleandoc(sys.modules[module].__doc__ or "").partition("\n\n")[0]
        rows = [row(name, figures[name], sources) for name in names]
        parts.append(f"## {TITLES.get(family, family)}\n\n{' '.join(text.split())}\n\n{_table(rows)}")
        notes = [f"\\* `{name}`: {EXCEPTIONS[name]}" for name in names if name in EXCEPTIONS]
        parts += ["\n".join(notes) + "\n"] if notes else []
    cited = (f"{number}. {source}" for source, number in sources.numbers.items())
    parts.append("## Sources\n\n" + "\n".join(cited) + "\n")
    return "\n".join(parts)


def _table(rows: Iterable[list[str]]) -> str:
    rule = ["---:" if name in _RIGHT else "---" for name in HEAD]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [HEAD, rule, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/models.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is out of date")
    check = parser.parse_args().check
    text = render({name: measure(name) for name in list_models()})
    if check:
        if text != PAGE.read_text(encoding="utf-8"):
            print(f"{PAGE.name} is out of date: run python docs/models.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
