"""The other implementations: who has which family, and how one is built with our weights in it.

Each peer is at its own defaults. All of them fit one environment on a CPU build of torch; `benchmarks/README.md` says
how that is set up.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from srattn.bench.case import Case
from srattn.convert import convert_state_dict, save_checkpoint
from srattn.convert.hf import written_eps
from srattn.convert.layouts import get_layout
from srattn.convert.state import from_ours
from srattn.convert.variants import context_of, family_of
from srattn.errors import SrattnError
from srattn.models.backbone import Backbone


class Peer(NamedTuple):
    """One implementation: the layout that its weights have, and what builds its module with ours.

    The module maps images (B, 3, H, W) to logits. `needs` is the package to import, or None.
    """

    layout: str
    build: Callable[[Backbone, Case], nn.Module]
    needs: str | None = None


class Absent(Exception):
    """This peer cannot run here; the message says why."""


def build_peer(name: str, ours: Backbone, case: Case) -> nn.Module:
    """The peer's float32 module with our weights, in the mode of the case.

    Raises:
        Absent: it is not installed, cannot be imported, or has no such model.
    """
    peer = PEERS[name]
    if peer.needs is not None:
        if importlib.util.find_spec(peer.needs) is None:
            raise Absent("not installed")
        try:
            importlib.import_module(peer.needs)
        except Exception as error:  # whatever foreign code raises at import
            raise Absent(f"cannot be imported: {one_line(error)}") from error
    family = family_of(ours)
    if family not in get_layout(peer.layout).rules:
        raise Absent(f"has no {family}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = peer.build(ours, case)
    except Exception as error:
        raise Absent(one_line(error)) from error
    return module.train(case.mode == "train")


def settings_of(name: str, ours: Backbone) -> tuple[dict[str, float], str]:
    """The norm epsilons and the edge policy that the peer's code applies."""
    family = family_of(ours)
    layout = get_layout(PEERS[name].layout, family)
    if layout.name == "srattn":
        return ours.norm_eps, ours.edge
    eps = written_eps(family, ours.norm_eps) if layout.name == "transformers" else layout.eps_of(family)
    return eps, layout.edge


def our_names(name: str, ours: Backbone, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The peer's gradients by our names: a gradient moves as its weight does."""
    found = {key.removeprefix(Logits.PREFIX): tensor for key, tensor in gradients.items()}
    layout = PEERS[name].layout
    if layout == "srattn":
        return found
    return convert_state_dict(found, "srattn", layout, context=context_of(ours))


class Logits(nn.Module):
    """A model of transformers as a function of images alone."""

    PREFIX = "model."

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def one_line(error: BaseException) -> str:
    """What an error says, in at most 160 characters; of a chain of errors the first one, which caused the others."""
    while error.__cause__ is not None and not isinstance(error, SrattnError | Absent):
        error = error.__cause__
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
    text = text if isinstance(error, SrattnError | Absent) else f"{type(error).__name__}: {text}"
    return text if len(text) <= 160 else text[:157] + "..."


def _timm(ours: Backbone, case: Case) -> nn.Module:
    timm: Any = importlib.import_module("timm")
    name, family = ours.config["name"], family_of(ours)
    # Families whose embedding or positions are built for one size; the others refuse the argument.
    sized = {"img_size": case.size} if family in ("twins", "mvitv2") else {}
    model = timm.create_model(name, num_classes=ours.num_classes, **sized)
    state, _ = from_ours(ours.state_dict(), "timm", family, context_of(ours))
    model.load_state_dict(state)
    return model


def _transformers(ours: Backbone, case: Case) -> nn.Module:
    hf: Any = importlib.import_module("transformers")
    hf.utils.logging.disable_progress_bar()
    hf.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(ours, Path(folder) / "peer", layout="transformers")
        model = hf.AutoModelForImageClassification.from_pretrained(path, dtype=torch.float32)
    return Logits(model)


# Runtimes execute the export of the first of these that has the model.
PEERS: dict[str, Peer] = {
    "timm": Peer("timm", _timm, "timm"),
    "transformers": Peer("transformers", _transformers, "transformers"),
}
