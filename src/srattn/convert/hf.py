"""The config.json of transformers for its families: what it tells about weights, and how to write it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from srattn.convert.hf_cvt import check_cvt, cvt_config
from srattn.convert.layouts.transformers import TRANSFORMERS
from srattn.convert.layouts.transforms import Context, Grid
from srattn.errors import SrattnError

_DEFAULT_EPS = 1e-6
_EPS_IN_CONFIG = ("pvt", "pvt_v2")
_MODEL_TYPES = {"mit": "segformer"}


def eps_from(config: Mapping[str, Any], family: str) -> dict[str, float]:
    """The one epsilon that transformers gives every layer norm, by our three kinds."""
    if family not in _EPS_IN_CONFIG:  # SegFormer, GLPN and CvT have a layer_norm_eps and never read it
        return TRANSFORMERS.eps_of(family)
    eps = config.get("layer_norm_eps", _DEFAULT_EPS)
    if not isinstance(eps, int | float) or not 0 < eps < 1:
        raise SrattnError(f"config.json: layer_norm_eps is {eps!r}, expected a small positive number")
    return {"block": float(eps), "reduction": float(eps), "patch": float(eps)}


def written_eps(family: str, norm_eps: Mapping[str, float]) -> dict[str, float]:
    """The epsilons that transformers will use in a model that `config_for` described."""
    return dict.fromkeys(norm_eps, norm_eps["block"]) if family in _EPS_IN_CONFIG else TRANSFORMERS.eps_of(family)


def set_depth(head: nn.Module, config: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Gives a depth head the largest depth that its weights were trained for, where config.json or our file says it."""
    depth = config.get("max_depth", saved.get("max_depth"))
    if hasattr(head, "max_depth") and isinstance(depth, int | float) and depth > 0:
        head.max_depth = float(depth)  # type: ignore[assignment]


def context_from(config: Mapping[str, Any]) -> Context:
    """The grids of the position embeddings, by the image size that the config states."""
    size, strides = config.get("image_size"), config.get("strides")
    if config.get("model_type") != "pvt" or not isinstance(strides, list) or size is None:
        return Context()
    pair = size if isinstance(size, list) else [size, size]
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in [*pair, *strides]):
        raise SrattnError(f"config.json: image_size {size!r} and strides {strides!r} are no sizes in pixels")
    grids: list[Grid] = []
    height, width = pair
    for stride in strides:
        height, width = height // stride, width // stride
        grids.append((height, width))
    return Context(grids=tuple(grids))


def check_config(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> None:
    """Refuses what no tensor's shape tells: another number of heads, another activation."""
    if config.get("model_type") == "cvt":
        return check_cvt(config, model_config)
    theirs, ours = config.get("num_attention_heads"), model_config.get("num_heads")
    if theirs is not None and ours is not None and list(theirs) != list(ours):
        raise SrattnError(
            f"config.json: num_attention_heads is {theirs}, the model has num_heads {list(ours)}; "
            f"build the model with num_heads={theirs}"
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise SrattnError(f"config.json: hidden_act is {config['hidden_act']!r}; these models have gelu alone")


def config_for(
    family: str, config: Mapping[str, Any], norm_eps: Mapping[str, float], head: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json for a model of ours, from its configuration, its epsilons and its head's configuration.

    Raises:
        SrattnError: the model has something that transformers' class has not.
    """
    if family == "cvt":
        return cvt_config(config)
    if family not in ("pvt", "pvt_v2", "mit"):
        raise SrattnError(f"writing a transformers folder for {family} is not supported")
    ratios = config["sr_ratios"]
    if any(isinstance(ratio, Sequence) and len(set(ratio)) > 1 for ratio in ratios):
        raise SrattnError(f"transformers has no reductions that are not square, got sr_ratios {ratios}")
    ratios = [ratio[0] if isinstance(ratio, Sequence) else ratio for ratio in ratios]
    stages = len(config["depths"])
    strides = [config.get("stem_stride", 4)] + [2] * (stages - 1)
    classes = config.get("num_classes", 0)
    name = {"pvt": "Pvt", "pvt_v2": "PvtV2", "mit": "Segformer"}[family]
    result: dict[str, Any] = {
        "architectures": [f"{name}ForImageClassification" if classes else f"{name}Model"],
        "model_type": _MODEL_TYPES.get(family, family),
        "num_channels": config.get("in_chans", 3),
        "num_encoder_blocks": stages,
        "depths": list(config["depths"]),
        "hidden_sizes": list(config["embed_dims"]),
        "num_attention_heads": list(config["num_heads"]),
        "mlp_ratios": list(config["mlp_ratios"]),
        "strides": strides,
        "hidden_act": "gelu",
        "qkv_bias": config.get("qkv_bias", True),
        "layer_norm_eps": norm_eps["block"],
        "hidden_dropout_prob": config.get("proj_drop_rate", 0.0),
        "attention_probs_dropout_prob": config.get("attn_drop_rate", 0.0),
        "drop_path_rate": config.get("drop_path_rate", 0.0),
    }
    if family == "mit" and head is not None:
        result |= _of_head(head)
        classes = head.get("num_classes", 0)
    if classes:
        result["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        result["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    size = config.get("img_size", 224)
    if family == "pvt":
        if not config.get("class_token", True):
            raise SrattnError("transformers' PVT always has a class token; this model was built with class_token=False")
        result |= {"image_size": _square(size), "sequence_reduction_ratios": ratios, "patch_sizes": strides}
        if classes:
            result["num_labels"] = classes  # its default would win over the names
    elif family == "mit":
        if not config.get("qkv_bias", True):
            raise SrattnError("transformers' SegFormer always has biases on query, key and value: not qkv_bias=False")
        del result["qkv_bias"], result["layer_norm_eps"]
        result |= {"sr_ratios": ratios, "patch_sizes": [max(3, 2 * strides[0] - 1)] + [3] * (stages - 1)}
    else:
        linear = bool(config.get("linear", False))
        if linear and config.get("pool_size", 7) != 7:
            raise SrattnError(f"transformers pools to 7 x 7 cells, this model to pool_size={config['pool_size']}")
        height, width = size if isinstance(size, Sequence) else (size, size)
        result |= {
            "image_size": [height, width],
            "sr_ratios": ratios,
            "linear_attention": linear,
            "patch_sizes": [7] + [3] * (stages - 1),
        }
    return result


def _of_head(head: Mapping[str, Any]) -> dict[str, Any]:
    """What a decoder adds to SegFormer's config, or makes GLPN's of it."""
    if head["kind"] == "glpn":
        return {
            "architectures": ["GLPNForDepthEstimation"],
            "model_type": "glpn",
            "decoder_hidden_size": head["hidden"],
            # Theirs is an int by its type; other depths stand as they are.
            "max_depth": int(head["max_depth"]) if float(head["max_depth"]).is_integer() else head["max_depth"],
            "head_in_index": -1,
        }
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "decoder_hidden_size": head["hidden"],
        "classifier_dropout_prob": head.get("drop_rate", 0.1),
    }


def numbers_from(config: Mapping[str, Any]) -> list[int] | None:
    """The heads of each stage as a config.json states them, or None."""
    heads = config.get("num_attention_heads", config.get("num_heads"))
    if not isinstance(heads, list) or not all(isinstance(n, int) and n > 0 for n in heads):
        return None
    return heads


def _square(size: Any) -> Any:
    if isinstance(size, Sequence):
        if len(set(size)) == 1:
            return size[0]
        raise SrattnError(f"transformers' PVT has square position grids alone, this model's img_size is {tuple(size)}")
    return size


def same_eps(norm_eps: Mapping[str, float]) -> bool:
    """Whether the three kinds of norms have one epsilon, as transformers needs."""
    return all(math.isclose(eps, norm_eps["block"], rel_tol=1e-9) for eps in norm_eps.values())
