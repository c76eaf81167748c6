"""What weights bring along beside their tensors: settings of a model that follow from no option of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srattn.convert.heads import set_relu
from srattn.models.backbone import Backbone

_RELU = "extra_relu"


def settings_of(model: Backbone) -> dict[str, Any]:
    """Epsilons of norms, the edge policy and, of a detector, whether its pyramid has a ReLU between extra maps."""
    relu = getattr(getattr(model, "neck", None), _RELU, None)
    return {"norm_eps": model.norm_eps, "edge": model.edge, **({} if relu is None else {_RELU: relu})}


def apply_settings(model: Backbone, settings: Mapping[str, Any]) -> None:
    """Gives `model` those of another of its kind; what is not named stays.

    Raises:
        SrattnError: no such edge policy.
        AttributeError, TypeError, ValueError: something else than what `settings_of` gives.
    """
    if "norm_eps" in settings:
        model.set_norm_eps(**{kind: float(eps) for kind, eps in settings["norm_eps"].items()})
    if "edge" in settings:
        model.set_edge(settings["edge"])
    set_relu(model, settings, foreign=False)
