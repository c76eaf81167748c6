"""The contract of every registered model, at reduced width: a new family gets all of this by being registered."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import srattn
from srattn import SrattnError
from srattn.layers.reduction import Reduction
from srattn.models import build_model, list_models
from srattn.models.backbone import Backbone
from srattn.ops.plan import PATHS
from tests.models.small import short_numbers, small_numbers

# One name of each kind of architecture: within a family only numbers differ, and those are overridden here.
KINDS = [
    "pvt_tiny",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
    "twins_pcpvt_small",
    "twins_svt_small",
    "shunted_small",
    "cvt_13",
    "mit_b0",
    "mvitv2_tiny",
    "mvitv2_large",
    "cmt_ti",
    "p2t_tiny",
]
every_kind = pytest.mark.parametrize("name", KINDS)


def small(name: str, **options: Any) -> Any:
    return build_model(name, **{**small_numbers(name), "img_size": 64, **options}).eval()


def short(name: str) -> Any:
    return build_model(name, **short_numbers(name), img_size=64).eval()


def test_every_registered_model_is_of_a_kind_tested_here() -> None:
    def kind(name: str) -> tuple[object, ...]:
        model = build_model(name, device="meta")
        structure = ("linear", "window_sizes", "expand_attn")
        return type(model), *(bool(model.config.get(option)) for option in structure)

    # Models of volumes have tests of their own.
    assert {kind(n) for n in list_models(dimensions=2)} == {kind(n) for n in KINDS}


@every_kind
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 50), (112, 40), (47, 131)])
def test_any_size_from_32_up(name: str, size: tuple[int, int]) -> None:
    model, images = small(name), torch.randn(2, 3, *size)
    final, maps = model.forward_intermediates(images)
    for feature, info in zip(maps, model.feature_info, strict=True):
        grid = tuple(-(-s // info.reduction) for s in size)
        assert feature.shape == (2, info.channels, *grid)
    logits = model(images)
    assert logits.shape == (2, 5) and logits.isfinite().all()
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(logits, model.forward_head(final))


@every_kind
def test_every_path_gives_the_same_model(name: str) -> None:
    model, images = small(name).double(), torch.randn(2, 3, 70, 45, dtype=torch.float64)
    results = []
    for path in PATHS:
        with srattn.force_path(path):
            results.append(model(images))
    assert all(torch.allclose(r, results[0], atol=1e-12) for r in [*results, model(images)])


@every_kind
def test_below_the_minimum_or_of_other_channels(name: str) -> None:
    with pytest.raises(SrattnError, match=r"image 31x64 is below the minimum of 32x32: enlarge it"):
        small(name)(torch.randn(1, 3, 31, 64))
    with pytest.raises(SrattnError, match=r"images are \(batch, 3, height, width\), got \(1, 1, 64, 64\)"):
        small(name)(torch.randn(1, 1, 64, 64))


@every_kind
@pytest.mark.parametrize("stride", [1, 2])
def test_small_images_with_a_smaller_stem(name: str, stride: int) -> None:
    model = small(name, stem_stride=stride, in_chans=1, img_size=16)
    assert model.min_size == 8 * stride
    assert model.feature_info.reduction() == [stride, 2 * stride, 4 * stride, 8 * stride]
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 5)


@every_kind
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = small(name).train()
    # The sum over logits and images of a random weighting: a plain sum would vanish behind the norms.
    logits = model(torch.randn(3, 3, 64, 64))
    (logits * torch.randn_like(logits)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_kind
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model, images = small(name).train(), torch.randn(2, 3, 64, 64)
    lean = copy.deepcopy(model)
    lean.set_grad_checkpointing()
    calls: list[int] = []
    lean.stages[2].blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    for m in (model, lean):
        m(images).square().sum().backward()
    assert len(calls) == 2, "the block was not computed again in backward"
    for a, b in zip(model.parameters(), lean.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-6)
    lean.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in lean.stages)


@every_kind
def test_intermediates(name: str) -> None:
    model, images = small(name), torch.randn(1, 3, 64, 96)
    _, maps = model.forward_intermediates(images)
    _, some = model.forward_intermediates(images, indices=[0, -1])
    assert len(some) == 2 and torch.equal(some[0], maps[0]) and torch.equal(some[1], maps[3])
    only = model.forward_intermediates(images, indices=2, intermediates_only=True)
    assert len(only) == 2 and torch.equal(only[0], maps[2]) and torch.equal(only[1], maps[3])
    early = model.forward_intermediates(images, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[1])
    last = model.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(last[3].permute(0, 3, 1, 2), maps[3])
    with pytest.raises(SrattnError, match=r"NCHW"):
        model.forward_intermediates(images, output_fmt="NLC")
    with pytest.raises(SrattnError, match=r"intermediates_only=True"):
        model.forward_intermediates(images, indices=[0], stop_early=True)


@every_kind
def test_stages_after_the_last_one_asked_for_do_not_run(name: str) -> None:
    model = small(name)
    ran: list[int] = []
    for i, stage in enumerate(model.stages):
        stage.patch_embed.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=[0, 1], intermediates_only=True)
    assert ran == [0, 1]


@every_kind
def test_features_only(name: str) -> None:
    whole = small(name, class_token=False) if "class_token" in small(name).config else small(name)
    pyramid = small(name, features_only=True, out_indices=(0, -2))
    missing, unexpected = pyramid.model.load_state_dict(whole.state_dict(), strict=False)
    assert missing == [] and all(k.startswith(("stages.3", "norm.", "fc.", "head.")) for k in unexpected)
    images = torch.randn(1, 3, 64, 96)
    expected = whole.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    for a, b in zip(pyramid(images), expected, strict=True):
        assert torch.equal(a, b)
    channels = [16, 32] if name == "mvitv2_large" else [8, 20]  # the first widens at the end of a stage
    assert pyramid.feature_info.channels() == channels and pyramid.feature_info.reduction() == [4, 16]
    assert len(pyramid.model.stages) == 3
    assert pyramid.feature_info[1]["num_chs"] == channels[1]


def test_what_users_of_timm_ask_of_feature_info() -> None:
    info = small("pvt_v2_b0", features_only=True, out_indices=(0, 2)).feature_info
    first, second = ({"num_chs": c, "reduction": r, "module": f"stages.{i}"} for c, r, i in ((8, 4, 0), (20, 16, 2)))
    assert info.info == info.get_dicts() == [first, second]
    assert info.get_dicts(idx=1) == second and info.get_dicts(["reduction"], [-1]) == [{"reduction": 16}]
    assert info.get_dicts(("num_chs", "module"), 0) == {"num_chs": 8, "module": "stages.0"}
    assert (info.channels(0), info.reduction(1), info.module_name(-1)) == (8, 16, "stages.2")
    assert (info.channels([1]), info.reduction((0, 1)), info.module_name()) == ([20], [4, 16], ["stages.0", "stages.2"])
    assert info.get("num_chs") == [8, 20] and info.get("module", 0) == "stages.0"


@every_kind
def test_a_pyramid_answers_for_its_backbone(name: str) -> None:
    pyramid = small(name, features_only=True)
    model, names = pyramid.model, {n for n, _ in pyramid.named_parameters()}
    assert pyramid.no_weight_decay() == {f"model.{n}" for n in model.no_weight_decay()} <= names
    for coarse in (False, True):
        matcher, own = pyramid.group_matcher(coarse), model.group_matcher(coarse)
        assert matcher.keys() == own.keys()
        lists = [m["blocks"] if isinstance(m["blocks"], list) else [(m["blocks"], None)] for m in (matcher, own)]
        patterns, theirs = (
            [m["stem"], *(p for p, _ in blocks)] for m, blocks in zip((matcher, own), lists, strict=True)
        )
        for n in names:
            found = [i for i, p in enumerate(patterns) if re.match(p, n)]
            assert found == [i for i, p in enumerate(theirs) if re.match(p, n.removeprefix("model."))] and found, n
    pyramid.set_memory("lean"), pyramid.set_edge("floor"), pyramid.set_norm_eps(block=1e-3)
    assert (model.memory, model.edge, model.norm_eps["block"]) == ("lean", "floor", 1e-3)
    assert pyramid.config["edge"] == "floor"
    pyramid.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in model.stages)


@every_kind
def test_every_parameter_of_a_pyramid_is_used(name: str) -> None:
    pyramid = small(name, features_only=True).train()
    sum((f * torch.randn_like(f)).sum() for f in pyramid(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in pyramid.named_parameters() if p.grad is None] == []


@every_kind
def test_classifier(name: str) -> None:
    model, images = small(name), torch.randn(2, 3, 64, 64)
    assert isinstance(model.get_classifier(), nn.Linear)
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model.num_classes == model.config["num_classes"] == 7
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)


@every_kind
def test_global_pool_is_what_it_is(name: str) -> None:
    own, other = ("token", "avg") if "class_token" in small(name).config else ("avg", "token")
    model = small(name, global_pool=own)
    assert model.global_pool == own and "global_pool" not in model.config
    for accepted in (None, own):
        model.reset_classifier(7, accepted)
    for refused in (other, "", "max"):
        message = f"the model pools by '{own}', got global_pool='{refused}': leave it out"
        with pytest.raises(SrattnError, match=message):
            model.reset_classifier(3, global_pool=refused)
        with pytest.raises(SrattnError, match=message):
            small(name, global_pool=refused)
    assert model.num_classes == 7
    if own == "token":
        assert small(name, class_token=False, global_pool="avg").global_pool == "avg"


@every_kind
def test_parameter_groups_cover_everything_in_order(name: str) -> None:
    model = small(name)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    for coarse in (False, True):
        matcher = model.group_matcher(coarse)
        blocks = matcher["blocks"] if isinstance(matcher["blocks"], list) else [(matcher["blocks"], None)]
        patterns = [matcher["stem"], *(p for p, _ in blocks)]
        unmatched = {n for n in names if not any(re.match(p, n) for p in patterns)}
        assert all(n.startswith("head." if not coarse else ("norm.", "fc.", "head.")) for n in unmatched)


def test_no_weight_decay_names_positions_and_the_class_token() -> None:
    assert small("pvt_tiny").no_weight_decay() == {f"stages.{i}.position.weight" for i in range(4)} | {
        "class_token",
        "class_position",
    }
    assert small("cmt_ti").no_weight_decay() == {f"stages.{i}.position_bias.weight" for i in range(4)}
    assert small("pvt_v2_b0").no_weight_decay() == set()


@every_kind
def test_norm_epsilons_and_edge_are_settings(name: str) -> None:
    model: Backbone = small(name)
    own = {"cvt": {"block": 1e-5}, "mvitv2": {"reduction": 1e-6, "patch": 1e-6}}
    published = {"block": 1e-6, "reduction": 1e-5, "patch": 1e-5} | own.get(name.partition("_")[0], {})
    assert model.norm_eps == published
    model.set_norm_eps(block=1e-3, reduction=1e-4, patch=1e-2)
    reductions = [m for m in model.modules() if isinstance(m, Reduction) and hasattr(m, "norm")]
    assert reductions and all(m.norm.eps == 1e-4 for m in reductions)
    assert model.stages[0].blocks[0].norm2.eps == 1e-3
    if name.startswith("mvitv2_"):  # whose patches have no norm
        assert model.norm_eps == {"block": 1e-3, "reduction": 1e-4, "patch": 1e-6}
    else:
        assert model.norm_eps == {"block": 1e-3, "reduction": 1e-4, "patch": 1e-2}
        assert model.stages[1].patch_embed.norm.eps == 1e-2
    model.set_edge("floor")
    assert model.edge == model.config["edge"] == "floor"
    assert all(m.edge == "floor" for m in reductions)
    reduction = reductions[0]
    # The convolutions of CvT and MViTv2 are padded at any size.
    if reduction.ratio != (1, 1) and not name.startswith(("cvt_", "mvitv2_")):
        with pytest.raises(SrattnError, match=r"smaller than the ratio"):
            reduction(torch.randn(1, 1, 1, reduction.norm.weight.numel()))


@every_kind
def test_memory_format_and_precision(name: str) -> None:
    model, images = small(name), torch.randn(2, 3, 64, 64)
    expected = model(images)
    assert torch.allclose(model(images.to(memory_format=torch.channels_last)), expected, atol=1e-6)
    half = model.to(torch.bfloat16)(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max()


@every_kind
def test_dropout_and_stochastic_depth_are_heard(name: str) -> None:
    for rate in ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate"):
        model = small(name, **{rate: 0.5}).train()
        images = torch.randn(4, 3, 64, 64)
        assert not torch.equal(model(images), model(images)), rate
        model.eval()
        assert torch.equal(model(images), model(images)), rate


@every_kind
def test_compiles_without_a_graph_break(name: str) -> None:
    torch.compiler.reset()
    model = short(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    check_equal(compiled, model, [(2, 3, 64, 64), (1, 3, 50, 96)])


def test_compiles_with_dynamic_sizes() -> None:
    """One kind for all: symbolic sizes take many times longer to trace."""
    torch.compiler.reset()
    model = short("pvt_v2_b0")
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    check_equal(compiled, model, [(2, 3, 64, 64), (1, 3, 50, 96)])


def check_equal(compiled: Any, model: Any, sizes: list[tuple[int, ...]]) -> None:
    for size in sizes:
        images = torch.randn(*size)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            assert torch.allclose(compiled(images), model(images), atol=1e-5)


@every_kind
def test_exports_with_dynamic_batch_height_and_width(name: str) -> None:
    model = short(name)
    # Torch's convolutions take a map larger than 1x1 for granted, so a dynamic size starts at 33.
    sizes = {
        0: torch.export.Dim("b", min=1, max=64),
        2: torch.export.Dim("h", min=33),
        3: torch.export.Dim("w", min=33),
    }
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,))
    for size in [(1, 3, 33, 64), (3, 3, 50, 70), (2, 3, 96, 64)]:
        images = torch.randn(*size)
        assert torch.allclose(exported.module()(images), model(images), atol=1e-5)


def test_attentions_are_named_in_order() -> None:
    names = [name for name, _ in small("pvt_v2_b0").attentions()]
    assert names == [f"stages.{i}.blocks.{j}.attn" for i, d in enumerate((1, 1, 2, 1)) for j in range(d)]
