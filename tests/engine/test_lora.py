"""Low-rank adapters: neutral at first, alike on every path, merged and taken out to the bit, and small on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import srattn
from srattn.engine.config import from_dict
from srattn.engine.freeze import freeze
from srattn.engine.lora import TARGETS, add_lora, load_lora, lora_state, merge_lora, unmerge_lora
from srattn.engine.lora_file import read_lora, save_lora
from srattn.engine.start import prepare_model
from srattn.errors import SrattnError
from srattn.models import build_model

SMALL: dict[str, Any] = {
    "num_classes": 3, "embed_dims": (8, 16, 16, 24), "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1),
}  # fmt: skip
FAMILIES = {
    "pvt_small": {"img_size": 32}, "pvt_v2_b0": {}, "pvt_v2_b2_li": {}, "mit_b0": {}, "twins_svt_small": {},
    "p2t_tiny": {}, "shunted_tiny": {"num_heads": (2, 2, 2, 4)}, "cmt_ti": {"img_size": 32},
}  # fmt: skip


def small(name: str = "pvt_v2_b0", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, **{**SMALL, **FAMILIES.get(name, {}), **changes}).eval()


def trained(parameters: list[nn.Parameter]) -> None:
    """Gives every factor a value of its own, as training would."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_neutral_then_differ_and_merge_exactly(name: str) -> None:
    model, images = small(name), torch.randn(2, 3, 32, 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model(images)
    parameters = add_lora(model, 2, 4.0, targets=("q", "v", "k", "proj"))
    torch.testing.assert_close(model(images), plain, rtol=0, atol=0)
    assert {id(p) for p in parameters} <= {id(p) for p in model.parameters()}

    trained(parameters)
    adapted = model(images)
    assert (adapted - plain).abs().max() > 1e-4
    count = merge_lora(model)
    assert count == len(parameters) // 2
    assert list(model.state_dict()) == list(before)
    torch.testing.assert_close(model(images), adapted, rtol=0, atol=0)
    assert unmerge_lora(model) == count
    torch.testing.assert_close(model(images), adapted, rtol=0, atol=0)
    state = model.state_dict()
    for key, value in before.items():
        own = key if key in state else key.removesuffix("weight") + "parametrizations.weight.original"
        assert torch.equal(state[own], value), key
    assert {id(p) for p in parameters} <= {id(p) for p in model.parameters()}  # an optimiser still holds them


def test_reductions_and_patches_are_no_targets() -> None:
    model = small("pvt_v2_b2_li")
    add_lora(model, 2, 2.0, targets=("proj",))
    names = {key.rpartition(".")[0] for key in lora_state(model)}
    assert names == {f"stages.{i}.blocks.0.attn.proj" for i in range(4)}
    both = small()
    assert (
        len(add_lora(both, 2, 2.0, targets=("q", "kv")))
        == len(add_lora(small(), 2, 2.0, targets=("qkv",)))
        == 4 * 3 * 2
    )
    shunted = small("shunted_tiny")
    add_lora(shunted, 2, 2.0, targets=("k",))
    assert "stages.0.blocks.0.attn.groups.1.k.a" in lora_state(shunted)


@pytest.mark.parametrize("path", ["plain", "sdpa", "absorbed"])
def test_every_path_uses_the_adapted_weights(path: Any) -> None:
    attn = srattn.SpatialReductionAttention(8, 2, 2).double()
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    parameters = add_lora(attn, 3, 6.0, targets=("q", "k", "v", "proj"))
    trained(parameters)
    other = srattn.SpatialReductionAttention(8, 2, 2).double()
    merged = copy.deepcopy(attn)
    merge_lora(merged)
    other.load_state_dict(merged.state_dict())
    with srattn.force_path("plain"):
        truth = other(x)
    with srattn.force_path(path):
        out = attn(x)
    torch.testing.assert_close(out, truth, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(out.square().sum(), parameters)
    assert all(bool(g.abs().max() > 0) for g in grads)


def test_weight_is_the_formula() -> None:
    attn = srattn.SpatialReductionAttention(8, 2, 2)
    weight = attn.q.weight.detach().clone()
    a, b = add_lora(attn, 2, 5.0, targets=("q",))
    trained([a, b])
    torch.testing.assert_close(attn.q.weight, weight + 5.0 / 2 * (b @ a), rtol=1e-6, atol=1e-7)
    assert (a.shape, b.shape) == ((2, 8), (8, 2))


def test_training_moves_the_adapters_alone() -> None:
    model, images = small(), torch.randn(2, 3, 64, 64)  # more than one key in every stage
    parameters = add_lora(model, 2, 2.0)
    freeze(model, ["*.original"])
    frozen = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("original")}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        model(images).square().sum().backward()
        optimiser.step()
    assert all(bool(p.detach().abs().max() > 0) for p in parameters)
    assert frozen and all(torch.equal(model.state_dict()[key], value) for key, value in frozen.items())


def test_dropout_leaves_features_out_while_training() -> None:
    attn = srattn.SpatialReductionAttention(8, 2, 1)
    add_lora(attn, 2, 2.0, ("q",), dropout=0.5)
    trained(list(attn.q.parametrizations.parameters()))
    attn.eval()
    kept = attn.q.weight.detach().clone()
    assert torch.equal(kept, attn.q.weight)
    attn.train()
    original = attn.q.parametrizations.weight.original
    term = attn.q.weight - original
    lost = (term == 0).all(0)
    assert 0 < int(lost.sum()) < 8
    torch.testing.assert_close(term[:, ~lost], 2 * (kept - original)[:, ~lost], rtol=1e-5, atol=1e-6)
    merge_lora(attn)
    assert torch.equal(attn.q.weight, kept)  # no dropout in what is merged


def test_state_goes_to_another_model() -> None:
    model, images = small(), torch.randn(1, 3, 32, 32)
    trained(add_lora(model, 2, 3.0))
    state = lora_state(model)
    fresh, same = small(), small()
    assert len(load_lora(fresh, state)) == len(add_lora(same, 2, 1.0))
    load_lora(same, state)  # alpha comes with the state
    torch.testing.assert_close(fresh(images), model(images), rtol=0, atol=0)
    torch.testing.assert_close(same(images), model(images), rtol=0, atol=0)
    twin = copy.deepcopy(model)
    merge_lora(twin)
    assert len(lora_state(model)) == len(state)  # a copy is merged alone
    torch.testing.assert_close(twin(images), model(images), rtol=0, atol=0)


def test_file_is_small_and_brings_the_classifier(tmp_path: Path) -> None:
    model, images = small(), torch.randn(1, 3, 32, 32)
    trained([*add_lora(model, 2, 3.0), *model.head.parameters()])  # type: ignore[union-attr]
    path = tmp_path / "adapter.safetensors"
    size = save_lora(path, model, also=["head.*"])
    values = sum(t.numel() for t in lora_state(model).values()) + 24 * 3 + 3
    assert path.stat().st_size == size < 4 * values + 8000
    fresh = small()
    read_lora(path, fresh)
    torch.testing.assert_close(fresh(images), model(images), rtol=0, atol=0)
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        save_lora(path, model)
    wider = small(num_classes=5)
    before = wider(images)
    with pytest.raises(SrattnError, match=r"head.bias is \(3,\), the model.s \(5,\)"):
        read_lora(path, wider)
    assert torch.equal(wider(images), before)


def test_what_cannot_be_adapted_is_named() -> None:
    model = small()
    for options, message in (
        ({"rank": 0, "alpha": 1.0}, "rank must be at least 1, got 0"),
        ({"rank": 1, "alpha": 0.0}, "alpha must be above 0"),
        ({"rank": 1, "alpha": 1.0, "dropout": 1.0}, "dropout must be at least 0 and below 1"),
        (
            {"rank": 1, "alpha": 1.0, "targets": ()},
            "no projection is named to adapt; name one or more of k, proj, q, v",
        ),
        (
            {"rank": 1, "alpha": 1.0, "targets": ("query",)},
            "no attention of this model has a projection 'query'.*they have k",
        ),
    ):
        with pytest.raises(SrattnError, match=message):
            add_lora(model, **options)  # type: ignore[arg-type]
    with pytest.raises(SrattnError, match="Sequential has no attention"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), 1, 1.0)
    with pytest.raises(SrattnError, match="has no adapters"):
        lora_state(model)
    add_lora(model, 1, 1.0)
    with pytest.raises(SrattnError, match="has adapters already"):
        add_lora(model, 1, 1.0)
    state = lora_state(model)
    name = next(iter(state)).rpartition(".")[0]
    for change, message in (
        ({f"{name}.a": torch.zeros(1, 3)}, "the weight 8 x 8"),
        ({f"{name}.b": torch.full((8, 1), float("nan"))}, "not finite"),
        ({"stages.9.q.a": torch.zeros(1, 3)}, "no projection 'stages.9.q'"),
        ({f"{name}.a": torch.zeros(2, 8), f"{name}.b": torch.zeros(8, 2)}, "has rank 1, the state 2"),
    ):
        with pytest.raises(SrattnError, match=message):
            load_lora(model, {**state, **change})
    merge_lora(model)
    with pytest.raises(SrattnError, match="merged: unmerge_lora first"):
        lora_state(model)


def test_targets_are_the_names_of_the_field() -> None:
    assert TARGETS == ("q", "k", "v", "kv", "qkv", "proj")


def prepared(**options: Any) -> Any:
    """The model of a run with adapters, as its first step finds it."""
    tiny = {"embed_dims": [8, 8, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
    config = from_dict({"size": 32, "lora_rank": 2, "model": "cvt_13", "model_options": tiny, **options})
    return prepare_model(config, ["a", "b"])[0]


def test_frozen_batch_norms_of_an_adapted_run_keep_their_statistics() -> None:
    model = prepared().train()
    norms = {name: each for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    before = {name: each.running_mean.clone() for name, each in norms.items()}
    model(torch.randn(4, 3, 32, 32) + 2)
    assert norms and all(torch.equal(each.running_mean, before[name]) for name, each in norms.items())


def test_what_lies_between_backbone_and_head_is_trained_beside_adapters() -> None:
    small = {"embed_dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
    model = prepared(task="detection", head="fcos", model="pvt_v2_b0", model_options=small)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    new = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert any(name.startswith("neck.") for name in new) and new <= trained
    assert all(name.endswith((".0.a", ".0.b")) for name in trained - new)
