"""The fast form: the same numbers in float64, fewer products where it says so, and the model left alone."""

from __future__ import annotations

import itertools

import pytest
import torch

import srattn
from srattn.export import Options
from srattn.export.fast import Centre, FastAttention, FastBlock, FastFeedForward, Form, InTurn, absorbed_in, fast_form
from srattn.export.graph import FORMS as CHOSEN
from srattn.export.graph import form_for
from srattn.models.backbone import Backbone
from tests.models.small import short_numbers

SMALL = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "mlp_ratios": (2, 2, 2, 2), "depths": (1, 1, 1, 1)}
FORMS = [
    Form(*parts[:4], centred=parts[4])
    for parts in itertools.product(
        ("tokens", "map", "channels"), ("fused", "products"), (None, 1), (False, True), (False, True)
    )
]


def unsettled(name: str = "pvt_v2_b0", **options: object) -> Backbone:
    """A small model in float64 whose norms and biases are nobody's defaults."""
    model = srattn.create_model(name, num_classes=5, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("form", FORMS, ids=str)
@torch.no_grad()
def test_every_form_is_exact(form: Form) -> None:
    model = unsettled()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    fast = fast_form(model, (64, 96), True, form)
    assert sum(isinstance(module, FastBlock) for module in fast.modules()) == 4
    assert apart(fast(images), model(images)) < 1e-12
    for a, b in zip(
        fast.forward_intermediates(images, intermediates_only=True),
        model.forward_intermediates(images, intermediates_only=True),
        strict=True,
    ):
        assert apart(a, b) < 1e-12


@pytest.mark.parametrize("name", ["cvt_13", "mvitv2_tiny", "cmt_ti", "p2t_tiny", "shunted_tiny"])
@torch.no_grad()
def test_families_of_other_blocks_stay_as_they_are(name: str) -> None:
    model = srattn.create_model(name, **short_numbers(name)).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for form in CHOSEN.values():
        assert apart(fast_form(model, (64, 64), True, form)(images), model(images)) < 1e-12


@pytest.mark.parametrize("form", FORMS[::2], ids=str)
@torch.no_grad()
def test_images_in_turn_and_channels_in_parts(form: Form) -> None:
    model = unsettled(mlp_ratios=(20, 16, 8, 4))  # 160, 256, 192 and 128 hidden channels
    images = torch.randn(5, 3, 64, 96, dtype=torch.float64)
    hidden = 8 * 16 * 24 * 160  # bytes of the first stage
    fast = fast_form(model, (64, 96), True, form._replace(in_turn=2 * hidden, in_parts=hidden // 3), batch=5, item=8)
    turns = [module.images for module in fast.modules() if isinstance(module, InTurn)]
    assert turns == [2]  # 2, 2 and 1; all five fit in later stages
    parts = [len(module.parts) for module in fast.modules() if isinstance(module, FastFeedForward)]
    assert parts == [2, 2, 1, 1]  # of at least 64 channels, and small maps are whole
    assert apart(fast(images), model(images)) < 1e-12
    whole = fast_form(model, (64, 96), True, form._replace(in_turn=2 * hidden), batch=None, item=8)
    assert not any(isinstance(module, InTurn) for module in whole.modules())
    assert apart(whole(images[:3]), model(images[:3])) < 1e-12


@pytest.mark.parametrize(
    "options", [{"edge": "pad"}, {"edge": "floor"}, {"linear": True}, {"qkv_bias": False}], ids=str
)
@pytest.mark.parametrize("centred", [False, True])
@torch.no_grad()
def test_sizes_that_no_ratio_divides(options: dict[str, object], centred: bool) -> None:
    model = unsettled(**options)
    fast = fast_form(model, (64, 64), False, Form("channels", "products", centred=centred))
    for size in [(64, 64), (75, 91), (50, 41)]:
        images = torch.randn(1, 3, *size, dtype=torch.float64)
        assert apart(fast(images), model(images)) < 1e-12


@pytest.mark.parametrize("name", ["pvt_tiny", "twins_pcpvt_small", "mit_b0"])
@pytest.mark.parametrize("centred", [False, True])
@torch.no_grad()
def test_other_families_with_the_same_blocks(name: str, centred: bool) -> None:
    model = unsettled(name, img_size=64) if name == "pvt_tiny" else unsettled(name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fast = fast_form(model, (64, 64), True, Form(centred=centred))
    assert any(isinstance(module, FastBlock) for module in fast.modules())
    assert any(isinstance(module, Centre) for module in fast.modules()) is (centred and name == "mit_b0")
    assert apart(fast(images), model(images)) < 1e-12


@torch.no_grad()
def test_a_model_of_other_blocks_stays_what_it_is() -> None:
    model = srattn.create_model("cvt_13", num_classes=3).eval()
    fast = fast_form(model, (64, 64), True, Form())
    images = torch.randn(1, 3, 64, 64)
    assert not any(isinstance(module, FastBlock) for module in fast.modules())
    assert apart(fast(images), model(images)) < 1e-5


def test_the_model_is_not_changed() -> None:
    model = unsettled().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast_form(model, (64, 64), True, Form())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_absorbs_where_that_is_less_work_at_the_declared_size() -> None:
    model = srattn.create_model("pvt_v2_b0")
    at_224 = fast_form(model, (224, 224), True, Form())
    assert absorbed_in(at_224) == [True] * 4 + [False] * 4
    absorbed = next(module for module in at_224.modules() if isinstance(module, FastAttention))
    assert {name for name, _ in absorbed.named_parameters(recurse=False)} == {"keys", "shift", "values", "bias"}
    assert sum(absorbed_in(fast_form(model, (1024, 1024), True, Form()))) < 4
    of_one_head = fast_form(model, (224, 224), True, Form(absorb_heads=1))
    assert absorbed_in(of_one_head) == [True] * 2 + [False] * 6


def test_the_form_follows_the_precision() -> None:
    chosen = CHOSEN["openvino"]
    assert form_for(Options("openvino")) == chosen and chosen.in_parts > 0 < chosen.in_turn
    assert form_for(Options("openvino", precision="bfloat16")) == chosen._replace(in_parts=0)
    assert form_for(Options("openvino", precision="int8")) == chosen._replace(in_turn=0, in_parts=0, centred=False)
    assert form_for(Options("openvino", precision="int8-weights")) == Form()
