"""create_model: a model by name, with published weights where they are asked for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from srattn.convert.load import load_checkpoint
from srattn.convert.reach import reach_hub
from srattn.convert.variants import backbone_of
from srattn.errors import SrattnError, missing_extra
from srattn.models import build_model
from srattn.models.weights import WEIGHTS, Weights, find_weights

if TYPE_CHECKING:
    import torch

    from srattn.models.backbone import Backbone
    from srattn.models.features import PyramidFeatures

_log = logging.getLogger(__name__)
_told: set[str] = set()


@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[True], **options: Any
) -> PyramidFeatures: ...
@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[False] = False, **options: Any
) -> Backbone: ...
@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: bool = False, **options: Any
) -> Backbone | PyramidFeatures: ...
def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Backbone | PyramidFeatures:
    """Builds a model by name.

    With `pretrained` the published weights are fetched from the Hugging Face hub (or its local cache) and loaded with
    their origin's norm epsilons and edge policy; an `edge` that is given stays. A classifier of another `num_classes`
    keeps its fresh weights; other `in_chans` and `img_size` are adapted. The licence of the weights is told once a
    process: by a UserWarning where it forbids commercial use (MiT), else in the log.

    Args:
        name: one of `srattn.list_models()`; or, as timm has it, of its published weights: "pvt_v2_b0.in1k",
            "hf-hub:timm/pvt_v2_b0.in1k", which are loaded with `pretrained` alone.
        pretrained: load published weights; `srattn.models.weights` is their table.
        num_classes: outputs of the classifier, 1000 by default; 0 has none and returns pooled features.
        in_chans: channels of the images.
        img_size: int or (height, width) in pixels; any other size can still be given to the model.
        features_only: return the pyramid of feature maps, a list of (B, C, H, W).
        out_indices: the stages whose maps are returned, with `features_only`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block.
        device, dtype: of the parameters.
        overrides: embed_dims, num_heads, mlp_ratios, depths, sr_ratios, qkv_bias, linear, edge, stem_stride,
            attn_drop_rate, proj_drop_rate, class_token; and `global_pool`, which is no setting (see `build_model`).

    Raises:
        SrattnError: an unknown name or option (with the nearest match), no published weights, or none within reach.
    """
    weights = _weights_for(name) if pretrained else None
    model = build_model(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        features_only=features_only,
        out_indices=out_indices,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        device=device,
        dtype=dtype,
        **overrides,
    )
    if weights is None:
        return model
    head = "keep" if num_classes not in (None, 0, weights.classes) else "load"
    load_checkpoint(model, fetch(weights), layout=weights.layout, head=head)
    _tell_licence(weights)
    if overrides.get("edge") is not None:
        backbone_of(model).set_edge(overrides["edge"])
    return model


def fetch(weights: Weights) -> Path:
    """The local path of published weights, downloaded once into the hub's cache; what is there is not asked for again.

    Raises:
        SrattnError: huggingface_hub is not installed, or the file is neither in the cache nor within reach.
    """
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ModuleNotFoundError as error:
        raise missing_extra("huggingface_hub", "hub") from error
    try:
        if isinstance(cached := try_to_load_from_cache(weights.repo, weights.file), str):
            return Path(cached)
        reach_hub()
        return Path(hf_hub_download(weights.repo, weights.file))
    except Exception as error:  # the hub, its cache and the network fail in many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SrattnError(
            f"cannot get {weights.file} of {weights.repo} from the Hugging Face hub: {reason}. Without a network, put "
            "the file in the hub's cache (HF_HUB_CACHE; HF_HUB_OFFLINE=1 asks no server), or download it elsewhere "
            "and give it to srattn.load_checkpoint"
        ) from error


def _tell_licence(weights: Weights) -> None:
    """Says under which licence weights are, once a process for each licence."""
    if weights.licence in _told:
        return
    _told.add(weights.licence)
    text = f"the weights of {weights.model} ({weights.repo}) are under the {weights.licence}"
    if weights.commercial:
        _log.info("%s", text)
    else:
        warnings.warn(f"{text}: for non-commercial use only, see {weights.source}", UserWarning, stacklevel=3)


def _weights_for(name: str) -> Weights:
    from srattn.models.registry import registered_name

    name = registered_name(name)  # an unknown name gets its nearest match
    found = find_weights(name)
    if found is None:
        raise SrattnError(
            f"no weights are published for {name}; there are some for {', '.join(w.model for w in WEIGHTS)}"
        )
    return found
