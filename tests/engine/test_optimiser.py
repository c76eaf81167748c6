"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from srattn.engine import TrainConfig
from srattn.engine.optimiser import layer_depths, make_optimiser, optimiser_state, set_learning_rate
from srattn.engine.schedule import learning_rate, warmup_steps
from srattn.errors import SrattnError
from srattn.models import build_model
from srattn.tasks.dense import segmentation_model


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.position = nn.Parameter(torch.zeros(1, 2, 2, 4))
        self.frozen = nn.Parameter(torch.zeros(5, 5), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        return {"position"}


def test_groups() -> None:
    model = Small()
    decay, plain = make_optimiser(model, 1e-3, 0.05).param_groups
    assert decay["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decay["params"]] == [(4, 3)]
    expected = {id(p) for p in (model.linear.bias, model.norm.weight, model.norm.bias, model.position)}
    assert {id(p) for p in plain["params"]} == expected


def test_layers_by_depth() -> None:
    model = build_model("pvt_v2_b0", num_classes=3, depths=[1, 2, 1, 1])
    depth = layer_depths(model)
    expected = {
        "stages.0.patch_embed.proj.weight": 0,
        "stages.0.blocks.0.attn.q.weight": 1,
        "stages.0.norm.weight": 1,
        "stages.1.patch_embed.proj.weight": 2,
        "stages.1.blocks.0.norm1.weight": 2,
        "stages.1.blocks.1.mlp.fc1.weight": 3,
        "stages.1.norm.bias": 3,
        "stages.3.blocks.0.attn.proj.weight": 5,
        "head.weight": 6,
        "head.bias": 6,
    }
    assert {name: depth[name] for name in expected} == expected
    assert set(depth.values()) == set(range(7))
    optimiser = make_optimiser(model, 1.0, 0.05, layer_decay=0.5)
    set_learning_rate(optimiser, 0.1)
    rate = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(0.1 * 0.5 ** (6 - depth[name])), name
    decays = {(group["scale"], group["weight_decay"]) for group in optimiser.param_groups}
    assert len(decays) == len(optimiser.param_groups)


@pytest.mark.parametrize("name", ["pvt_tiny", "twins_pcpvt_small", "mit_b0"])
def test_layers_of_other_families(name: str) -> None:
    depth = layer_depths(build_model(name, num_classes=2, device="meta"))
    assert sorted(set(depth.values())) == list(range(max(depth.values()) + 1))
    assert depth["head.weight"] == max(depth.values())
    blocks = [depth[n] for n in depth if n.startswith("stages.3.blocks.")]
    assert min(blocks) > max(depth[n] for n in depth if n.startswith("stages.1.blocks."))


@pytest.mark.parametrize(
    "name", ["pvt_tiny", "pvt_v2_b0", "twins_svt_small", "cmt_ti", "p2t_tiny", "shunted_tiny", "cvt_13"]
)
@pytest.mark.parametrize("coarse", [False, True])
def test_layers_of_a_whole_model_are_those_of_its_backbone(name: str, coarse: bool) -> None:
    model = segmentation_model(name, 2, "unet", device="meta")
    groups, own = model.group_matcher(coarse), model.backbone.group_matcher(coarse)
    model.group_matcher, model.backbone.group_matcher = lambda: groups, lambda: own  # type: ignore[method-assign]
    depth, expected = layer_depths(model), layer_depths(model.backbone)
    assert {name: depth[f"backbone.{name}"] for name in expected} == expected
    # A backbone without a head has no layer behind its blocks; here there is one.
    assert {depth[name] for name in depth if name.startswith("head.")} == {max(expected.values()) + 1}


def test_rates_of_a_whole_model() -> None:
    model = segmentation_model("pvt_v2_b0", 3, "semantic_fpn", {"width": 8, "hidden": 8}, depths=[1, 1, 1, 1])
    optimiser = make_optimiser(model, 1.0, 0.05, layer_decay=0.5)
    scale = {id(p): group["scale"] for group in optimiser.param_groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert found["head.classifier.weight"] == found["head.fpn.laterals.0.weight"] == 1
    assert found["backbone.stages.3.blocks.0.attn.q.weight"] == 0.5
    assert found["backbone.stages.0.patch_embed.proj.weight"] == 0.5**5


def test_positions_of_a_whole_model_do_not_decay() -> None:
    model = segmentation_model("pvt_tiny", 3, "semantic_fpn", {"width": 8, "hidden": 8}, device="meta")
    plain = make_optimiser(model, 1.0, 0.05).param_groups[-1]
    assert plain["weight_decay"] == 0
    held = {id(p) for p in plain["params"]}
    assert all(id(p) in held for name, p in model.named_parameters() if ".position." in name or p.ndim == 1)


def test_primed_state_changes_nothing() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(3, 4), nn.Linear(3, 4)]
    models[1].load_state_dict(models[0].state_dict())
    primed, fresh = make_optimiser(models[0], 0.1, 0.05), torch.optim.AdamW(models[1].parameters(), 0.1, fused=True)
    primed.param_groups[-1]["weight_decay"] = fresh.param_groups[0]["weight_decay"] = 0.05
    state = optimiser_state(models[0], primed)
    assert sorted(state) == sorted(f"{n}.{k}" for n in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq"))
    for _ in range(3):
        for model, optimiser in zip(models, (primed, fresh), strict=True):
            optimiser.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_muon_moves_the_linear_maps_outside_the_head() -> None:
    model = build_model("pvt_v2_b0", num_classes=3, depths=[1, 1, 1, 1], device="meta")
    optimiser = make_optimiser(model, 1e-3, 0.05, layer_decay=0.5, kind="muon")
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimiser.param_groups)
    names = dict(model.named_parameters())
    assert groups.keys() == {id(p) for p in names.values()}
    orthogonal = {name for name, p in names.items() if "momentum" in groups[id(p)]}
    of_block = ("attn.q", "attn.k", "attn.v", "attn.reduction.proj", "attn.proj", "mlp.fc1", "mlp.fc2")
    all_maps = {f"stages.{stage}.blocks.0.{name}.weight" for stage in range(4) for name in of_block}
    assert orthogonal == all_maps - {"stages.3.blocks.0.attn.reduction.proj.weight"}  # its ratio is 1
    assert {groups[id(names[name])]["scale"] for name in orthogonal} == {0.5, 0.25, 0.125, 0.0625}


def test_muon_beside_adamw() -> None:
    torch.manual_seed(0)
    model, other = (nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)) for _ in range(2))
    other.load_state_dict(model.state_dict())
    both = make_optimiser(model, 1.0, 0.05, kind="muon")
    set_learning_rate(both, 0.1)
    rest = [p for p in other.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(rest, 0.1, weight_decay=0.0, fused=True)
    state = optimiser_state(model, both)
    assert {name for name in state if name.startswith("0.weight")} == {"0.weight.momentum_buffer"}
    assert {"0.bias.step", "0.bias.exp_avg", "1.weight.exp_avg_sq"} <= state.keys()
    for _ in range(3):
        before = model[0].weight.detach().clone()
        for each in (model, other):
            each.zero_grad()
            each(torch.arange(12.0).reshape(2, 6)).pow(3).sum().backward()
        both.step()
        adamw.step()
        with torch.no_grad():
            other[0].weight.copy_(model[0].weight)  # Muon's alone; judged by its own property below
        # All singular values of the step are alike, within what five iterations leave (0.5 to 1.5 of their target).
        moved = (before * (1 - 0.1 * 0.05) - model[0].weight.detach()) / (0.1 * 0.2 * 6**0.5)
        values = torch.linalg.svdvals(moved)
        assert values[0] < 1.6 and values[1] > 0.4, values
        for a, b in zip((p for p in model.parameters() if p.ndim == 1), rest, strict=True):
            assert torch.equal(a, b)
    both.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_muon_steps_by_a_scaler_of_losses() -> None:
    """fp16: gradients are unscaled for both, and a step with an infinite one is left out by both."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimisers = [make_optimiser(model, 0.1, 0.05, kind="muon") for model in models]
    for factor in (1.0, float("inf")):
        before = [p.detach().clone() for p in models[0].parameters()]
        losses = [model(torch.arange(12.0).reshape(2, 6)).pow(3).sum() * factor for model in models]
        scaler.scale(losses[0]).backward()
        scaler.unscale_(optimisers[0])
        scaler.step(optimisers[0])
        scaler.update()
        optimisers[0].zero_grad()
        if factor == 1.0:
            losses[1].backward()
            optimisers[1].step()
            for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), before, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_a_kernel_as_the_linear_map_of_patches(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel, linear = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(12, 5)
    with torch.no_grad():
        linear.weight.copy_(kernel.weight.flatten(1))
        linear.bias.copy_(kernel.bias)
    kernel.weight.data = kernel.weight.data.contiguous(memory_format=layout)
    models = (kernel, linear)
    optimisers = [make_optimiser(model, 1.0, 0.05, kind="muon_conv") for model in models]
    x = torch.randn(4, 3, 2, 2)
    for rate in (0.1, 0.05, 0.02):  # the rate of a step reaches the views too
        for model, optimiser, given in zip(models, optimisers, (x, x.flatten(1)), strict=True):
            set_learning_rate(optimiser, rate)
            optimiser.zero_grad()
            model(given).flatten(1).pow(3).sum().backward()
            optimiser.step()
        assert kernel.weight.stride() == torch.empty(5, 3, 2, 2).to(memory_format=layout).stride()
        # Where directions are computed in bfloat16, columns in another order are rounded otherwise.
        torch.testing.assert_close(kernel.weight.flatten(1), linear.weight, atol=0.05 * rate, rtol=0)
    state = optimiser_state(kernel, optimisers[0])
    assert state["weight.momentum_buffer"].count_nonzero() == 60


def test_muon_conv_leaves_depthwise_kernels_to_adamw() -> None:
    model = build_model("pvt_v2_b0", num_classes=3, depths=[1, 1, 1, 1], device="meta")
    optimiser = make_optimiser(model, 1e-3, 0.05, kind="muon_conv")
    moved = {id(p) for group in optimiser.param_groups if "momentum" in group for p in group["params"]}
    kernels = {name: id(p) in moved for name, p in model.named_parameters() if p.ndim == 4}
    assert {name for name, by_muon in kernels.items() if by_muon} == {n for n in kernels if "dwconv" not in n}
    assert len(set(kernels.values())) == 2


def test_muon_is_refused_where_it_has_no_matrix() -> None:
    with pytest.raises(SrattnError, match=r"no linear map outside the head .* optimiser muon_conv or adamw"):
        make_optimiser(nn.Conv2d(3, 4, 3), 0.1, 0.05, kind="muon")
    with pytest.raises(SrattnError, match=r"no matrix outside the head .* take optimiser adamw"):
        make_optimiser(nn.Conv2d(4, 4, 3, groups=4), 0.1, 0.05, kind="muon_conv")
    with pytest.raises(SrattnError, match="whole matrices, which fsdp divides"):
        TrainConfig(optimiser="muon", distributed="fsdp")


def test_warmup_is_at_most_half() -> None:
    assert warmup_steps(2.0, 10, 100) == 20
    assert warmup_steps(2.0, 10, 20) == 10
    assert warmup_steps(2.0, 10, 11) == 5  # of an odd number less than half
    assert warmup_steps(0.25, 11, 100) == 3


def test_warmup_then_cosine() -> None:
    rates = [learning_rate(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert (rates[54] + rates[55]) / 2 == pytest.approx(0.55, abs=0.01)
    assert learning_rate(0, 1, 0, 1.0, 0.1) == 1.0
    assert [learning_rate(step, 2, 0, 1.0, 0.1) for step in range(2)] == pytest.approx([1.0, 0.1])
    assert [learning_rate(step, 3, 1, 1.0, 0.1) for step in range(3)] == pytest.approx([1.0, 1.0, 0.1])


def test_a_cosine_that_falls_by_the_clock() -> None:
    rates = [learning_rate(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert learning_rate(50, 100, 10, 1.0, 0.1, elapsed=0.2) == rates[50]  # the steps are further on
    assert learning_rate(50, 100, 10, 1.0, 0.1, elapsed=0.5) == pytest.approx(0.55)
    assert learning_rate(3, 100, 10, 1.0, 0.1, elapsed=0.5) == rates[3]  # of the warm-up, which is lower yet
    for step in (3, 50):
        assert learning_rate(step, 100, 10, 1.0, 0.1, elapsed=1.2) == pytest.approx(0.1)
