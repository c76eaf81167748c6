"""The config.json of transformers for CvT, whose words are its own: one list entry a stage for nearly everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from srattn.errors import SrattnError

_LISTS = {"num_heads": "num_heads", "stride_kv": "sr_ratios"}


def check_cvt(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> None:
    """Refuses what no tensor's shape tells: other heads, strides, or projections without convolutions."""
    for theirs, ours in _LISTS.items():
        stated, wanted = config.get(theirs), list(model_config.get(ours, ()))
        if stated is not None and list(stated) != wanted:
            raise SrattnError(
                f"config.json: {theirs} is {stated}, the model has {ours} {wanted}; build it with {ours}={stated}"
            )
    methods = config.get("qkv_projection_method", ["dw_bn"])
    if set(methods) != {"dw_bn"}:
        raise SrattnError(f"config.json: qkv_projection_method is {methods}; these models have dw_bn alone")


def cvt_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json for a CvT of ours.

    Raises:
        SrattnError: the model has something that transformers' class has not.
    """
    ratios = config["sr_ratios"]
    if any(isinstance(ratio, Sequence) and len(set(ratio)) > 1 for ratio in ratios):
        raise SrattnError(f"transformers has no projections that are not square, got sr_ratios {ratios}")
    ratios = [ratio[0] if isinstance(ratio, Sequence) else ratio for ratio in ratios]
    stages, classes = len(config["depths"]), config.get("num_classes", 0)
    if stages != 3:
        raise SrattnError(f"transformers' class token is of the third stage; this model has {stages} stages")
    if len(set(ratios) - {1, 2}):
        raise SrattnError(f"transformers has one kernel for queries and keys, 3 at strides 1 and 2; got {ratios}")
    strides = [config.get("stem_stride", 4)] + [2] * (stages - 1)
    result: dict[str, Any] = {
        "architectures": ["CvtForImageClassification" if classes else "CvtModel"],
        "model_type": "cvt",
        "num_channels": config.get("in_chans", 3),
        "patch_sizes": [max(3, 2 * stride - 1) for stride in strides],
        "patch_stride": strides,
        "patch_padding": [max(1, stride // 2) for stride in strides],
        "embed_dim": list(config["embed_dims"]),
        "num_heads": list(config["num_heads"]),
        "depth": list(config["depths"]),
        "mlp_ratio": [float(ratio) for ratio in config["mlp_ratios"]],
        "attention_drop_rate": [config.get("attn_drop_rate", 0.0)] * stages,
        "drop_rate": [config.get("proj_drop_rate", 0.0)] * stages,
        "drop_path_rate": [0.0] * (stages - 1) + [config.get("drop_path_rate", 0.0)],
        "qkv_bias": [config.get("qkv_bias", True)] * stages,
        "cls_token": [False] * (stages - 1) + [config.get("class_token", True)],
        "qkv_projection_method": ["dw_bn"] * stages,
        "kernel_qkv": [3] * stages,
        "padding_q": [1] * stages,
        "stride_q": [1] * stages,
        "padding_kv": [1] * stages,
        "stride_kv": ratios,
    }
    if classes:
        result["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        result["label2id"] = {f"LABEL_{i}": i for i in range(classes)}
    return result
