"""Maps as arrays: attention, rollout, Grad-CAM, receptive fields and what each key sees, against plain computations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import srattn
from srattn.errors import SrattnError
from srattn.explain import maps
from srattn.explain.attention import LARGEST, attention_maps
from srattn.explain.grad_cam import coarse_cam
from srattn.explain.receptive_field import field_share
from srattn.models import build_model

SIZE = (37, 50)  # nothing divides it
SMALL: dict[str, Any] = {"embed_dims": (8, 16, 16, 24), "num_heads": (1, 2, 2, 4), "depths": (2, 1, 2, 1)}
OWN: dict[str, dict[str, Any]] = {
    "cvt_13": {"embed_dims": (8, 16, 24), "num_heads": (1, 2, 4), "depths": (1, 2, 2)},
    "shunted_tiny": SMALL | {"num_heads": (2, 2, 2, 4)},
    "mvitv2_tiny": SMALL | {"embed_dims": (8, 16, 32, 64)},
}
FAMILIES = [
    "pvt_v2_b0", "pvt_v2_b2_li", "pvt_tiny", "mit_b0", "twins_pcpvt_small", "twins_svt_small", "cmt_ti", "p2t_tiny",
    "shunted_tiny", "cvt_13", "mvitv2_tiny",
]  # fmt: skip


def make(name: str, **changes: Any) -> Any:
    options = {"num_classes": 3, "in_chans": 1, "img_size": 48, "stem_stride": 2, **OWN.get(name, SMALL), **changes}
    return build_model(name, **options).eval()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def plain_attention(attn: Any, x: Tensor) -> Tensor:
    """(heads, N, M): softmax over each query's products with the keys, one by one."""
    q, k = attn.q(x.flatten(1, 2))[0], attn.k(attn.reduction(x).flatten(1, 2))[0]
    width = q.shape[1] // attn.num_heads
    rows = torch.zeros(attn.num_heads, len(q), len(k), dtype=x.dtype)
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        for n in range(len(q)):
            products = [float(q[n, part] @ k[m, part]) / math.sqrt(width) for m in range(len(k))]
            top = max(products)
            total = sum(math.exp(p - top) for p in products)
            rows[head, n] = torch.tensor([math.exp(p - top) / total for p in products])
    return rows


def block_spread(tokens: tuple[int, int], keys: tuple[int, int], ratio: int) -> Tensor:
    """(keys, tokens): each key's even share of the tokens in its block, by a loop."""
    matrix = torch.zeros(keys[0] * keys[1], tokens[0] * tokens[1], dtype=torch.float64)
    for y in range(tokens[0]):
        for x in range(tokens[1]):
            if y // ratio < keys[0] and x // ratio < keys[1]:
                matrix[(y // ratio) * keys[1] + x // ratio, y * tokens[1] + x] = 1
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1)


def entering(model: Any, image: Tensor) -> dict[tuple[int, int], Tensor]:
    """What enters each block's attention."""
    seen, handles = {}, []
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage.blocks):
            keep = lambda _, args, place=(s, b): seen.__setitem__(place, args[0].detach().clone())  # noqa: E731
            handles.append(block.attn.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(image[None])
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("stage, ratio, stride", [(0, 8, 2), (2, 2, 8)])
def test_attention_in_float64(stage: int, ratio: int, stride: int) -> None:
    model, image = make("pvt_v2_b0").double(), torch.randn(1, *SIZE).double()
    tokens = entering(model, image)[stage, 1]
    grid = (tokens.shape[1], tokens.shape[2])
    keys = (-(-grid[0] // ratio), -(-grid[1] // ratio))
    point = (31, 22)
    with torch.no_grad():
        rows = plain_attention(model.stages[stage].blocks[1].attn, tokens)
    row = rows[:, (point[1] // stride) * grid[1] + point[0] // stride]  # (heads, M)
    expected = (row @ block_spread(SIZE, keys, ratio * stride)).unflatten(1, SIZE)
    found = maps.attention_map(model, image, point, stage, 1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(len(found)).double())
    for head in range(len(found)):
        assert torch.equal(maps.attention_map(model, image[None], point, stage - 4, -1, head), found[head : head + 1])


def test_no_path_changes_the_maps() -> None:
    model, image = make("pvt_v2_b0"), torch.randn(1, *SIZE)
    expected = maps.attention_map(model, image, (0, 0), 0, 0)  # what enters the first block is the same on all paths
    for path in ("plain", "sdpa", "absorbed"):
        with srattn.force_path(path):
            assert torch.equal(maps.attention_map(model, image, (0, 0), 0, 0), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_maps(name: str) -> None:
    model, image = make(name), torch.randn(1, *SIZE)
    for stage in range(len(model.stages)):
        for each in attention_maps(model, image[None], [(stage, 0)]):
            rows = each.probabilities.sum(-1)
            if name == "twins_svt_small":  # windows with padding, which lies on no map
                assert bool((rows <= 1 + 1e-6).all()) and bool((rows > 0.1).all())
            else:
                torch.testing.assert_close(rows, torch.ones_like(rows))
        found = maps.attention_map(model, image, (49, 36), stage, 0)
        assert found.shape[1:] == SIZE and bool((found >= 0).all()) and bool((found.sum((1, 2)) <= 1 + 1e-5).all())
        assert maps.grad_cam(model, image, 1, stage).shape == SIZE
    assert maps.effective_receptive_field(model, SIZE, 0, probes=1).shape == SIZE
    whole = maps.rollout(model, image)
    assert whole.shape == SIZE and bool((whole >= 0).all())
    if name not in ("twins_svt_small", "pvt_tiny", "cvt_13"):  # padded windows and class tokens keep a part
        torch.testing.assert_close(whole.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny", "cmt_ti"])
def test_model_answers_and_hooks_are_as_before(name: str) -> None:
    model, image = make(name, drop_path_rate=0.5), torch.randn(1, *SIZE)
    with torch.inference_mode():
        before = model(image[None])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    model.stages[1].eval()  # a frozen part
    flags = [module.training for module in model.modules()]
    maps.attention_map(model, image, (3, 4), 1)
    maps.rollout(model, image)
    maps.grad_cam(model, image)
    maps.effective_receptive_field(model, SIZE, probes=1)
    maps.reduction_support(model, SIZE, 2)
    assert [module.training for module in model.modules()] == flags and hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(model.eval()(image[None]), before)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny"])
def test_hooks_are_removed_after_an_error(name: str) -> None:
    model, image = make(name).train(), torch.randn(1, *SIZE)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken on purpose")

    broken = [model.stages[3].blocks[0].mlp.register_forward_pre_hook(fail)]
    broken.append(model.stages[2].patch_embed.proj.register_forward_hook(fail))
    for call in (
        lambda: maps.attention_map(model, image, (3, 4), 3),
        lambda: maps.rollout(model, image),
        lambda: maps.grad_cam(model, image),
        lambda: maps.effective_receptive_field(model, SIZE),
        lambda: maps.reduction_support(model, SIZE, 3),
    ):
        with pytest.raises(RuntimeError, match="broken on purpose"):
            call()
        assert hooks(model) == 2 and all(module.training for module in model.modules())
    broken.pop().remove()
    with pytest.raises(RuntimeError, match="broken on purpose"):  # now from within the last stage
        maps.grad_cam(model, image)
    assert hooks(model) == 1


def test_errors_name_what_there_is() -> None:
    model, image = make("pvt_v2_b0"), torch.randn(1, *SIZE)
    for point in ((50, 0), (0, 37), (-1, 0)):
        with pytest.raises(SrattnError, match="50 pixels wide and 37 high"):
            maps.attention_map(model, image, point, 0)
        with pytest.raises(SrattnError, match="50 pixels wide and 37 high"):
            maps.rollout(model, image, point)
    with pytest.raises(SrattnError, match="no stage 4; it has 4"):
        maps.attention_map(model, image, (0, 0), 4)
    with pytest.raises(SrattnError, match="no block 2 in stage 0; that stage has 2"):
        maps.attention_map(model, image, (0, 0), 0, 2)
    with pytest.raises(SrattnError, match="head 2 does not exist; the block has 2"):
        maps.attention_map(model, image, (0, 0), 1, 0, 2)
    with pytest.raises(SrattnError, match="one image"):
        maps.attention_map(model, torch.randn(2, 1, *SIZE), (0, 0), 0)
    with pytest.raises(SrattnError, match="class 3 does not exist; the model has 3"):
        maps.grad_cam(model, image, 3)
    with pytest.raises(SrattnError, match="no classifier"):
        maps.grad_cam(make("pvt_v2_b0", num_classes=0), image)
    with pytest.raises(SrattnError, match=r"\(batch, channels, 37, 50\)"):
        maps.effective_receptive_field(model, SIZE, images=torch.randn(1, 1, 37, 51))
    with pytest.raises(SrattnError, match="probes"):
        maps.effective_receptive_field(model, SIZE, probes=0)
    with pytest.raises(SrattnError, match="share one reduction"):
        maps.reduction_support(model, SIZE, 0, 0, 1)
    with pytest.raises(SrattnError, match="2 groups of heads"):
        maps.reduction_support(make("shunted_tiny"), SIZE, 0, 0, 2)
    with pytest.raises(SrattnError, match="volumes"):
        maps.rollout(build_model("segformer3d", img_size=32), image)
    with pytest.raises(SrattnError, match="got Linear"):
        maps.grad_cam(nn.Linear(1, 1), image)


def test_a_map_too_large_is_refused_before_it_is_made() -> None:
    model = make("twins_svt_small", stem_stride=1, depths=(1, 1, 1, 1))
    side = math.isqrt(math.isqrt(LARGEST // 4)) + 1  # one head, side^2 queries and as many keys
    with pytest.raises(SrattnError, match="use a smaller image"):
        maps.attention_map(model, torch.zeros(1, side, side), (0, 0), 0, 0)


def matrices(model: Any, image: Tensor) -> Tensor:
    """The product of all (W S + I) / 2 and of all embeddings, as whole matrices: (last tokens, pixels)."""
    product, last = None, SIZE
    strides, ratios = [2, 4, 8, 16], [8, 4, 2, 1]
    for stage in range(4):
        step = strides[stage] // ([1, *strides][stage])
        grid = (-(-last[0] // step), -(-last[1] // step))
        down = block_spread(last, grid, step)
        product = down if product is None else down @ product
        for each in attention_maps(model, image[None], [(stage, b) for b in range(len(model.stages[stage].blocks))]):
            weights = each.probabilities[0].mean(0)
            if each.class_token:
                spread = torch.block_diag(torch.ones(1, 1).double(), block_spread(grid, each.key_grid, ratios[stage]))
                if product.shape[0] == weights.shape[0] - 1:
                    product = torch.cat([torch.zeros(1, product.shape[1]).double(), product])
            else:
                spread = block_spread(grid, each.key_grid, ratios[stage])
            product = (weights @ spread + torch.eye(len(weights)).double()) / 2 @ product
        last = grid
    assert product is not None
    return product


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny"])
def test_rollout_is_the_product_of_all_matrices(name: str) -> None:
    model, image = make(name).double(), torch.randn(1, *SIZE).double()
    product = matrices(model, image).unflatten(1, SIZE)
    token = int(name == "pvt_tiny")
    expected = product[0] if token else product.mean(0)
    torch.testing.assert_close(maps.rollout(model, image), expected)
    found = maps.rollout(model, image, (33, 20))
    torch.testing.assert_close(found, product[token + 1 * 4 + 2])


def test_grad_cam_of_a_mean_and_a_linear_head_is_the_head() -> None:
    # Behind the last map there is a mean over h w places and W x + b: a_k = W[c, k] / (h w).
    model, image = make("pvt_v2_b0").double(), torch.randn(1, *SIZE).double()
    with torch.no_grad():
        last = model.forward_features(image[None])[0]  # (K, h, w)
    for target in range(3):
        expected = (model.head.weight[target][:, None, None] * last).sum(0).relu() / last[0].numel()
        torch.testing.assert_close(coarse_cam(model, image, target), expected.detach())
        enlarged = nn.functional.interpolate(expected[None, None], SIZE, mode="bilinear")[0, 0]
        torch.testing.assert_close(maps.grad_cam(model, image, target), enlarged.detach())
    predicted = int(model(image[None]).argmax())
    assert torch.equal(maps.grad_cam(model, image), maps.grad_cam(model, image, predicted))


@pytest.mark.parametrize("name, stage", [("pvt_v2_b0", 1), ("pvt_tiny", 3), ("cvt_13", 2)])
def test_grad_cam_by_finite_differences(name: str, stage: int) -> None:
    model, image, target, step = make(name).double(), torch.randn(1, *SIZE).double(), 2, 1e-4
    token = name != "pvt_v2_b0"
    place = model.stages[stage].blocks[-1] if token else model.stages[stage]
    added: Tensor | None = None
    maps_seen: list[Tensor] = []

    def change(x: Tensor) -> Tensor:
        maps_seen.append(x.detach())
        return x if added is None else x + added

    if token:
        hook = place.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        hook = place.register_forward_hook(lambda _, __, out: change(out))
    with torch.no_grad():
        model(image[None])
        whole = maps_seen[0]  # tokens (1, ..., 1 + h w, K), or a map (1, K, h, w)
        flat = whole.flatten(1, -2)[0, 1:] if token else whole[0].flatten(1).T  # (h w, K)
        slopes = torch.zeros(flat.shape[1]).double()
        for k in range(flat.shape[1]):
            values = []
            for sign in (1, -1):
                added = torch.zeros_like(whole)
                (added[..., 1:, k] if token else added[:, k]).fill_(sign * step)
                values.append(float(model(image[None])[0, target]))
            slopes[k] = (values[0] - values[1]) / (2 * step) / len(flat)
    hook.remove()
    expected = (flat @ slopes).relu()
    found = coarse_cam(model, image, target, stage).flatten()
    # Central differences err by step^2 times third derivatives, which is far below the values here.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(flat.abs().max() * slopes.abs().max()))


def test_receptive_field_is_that_of_the_gradients() -> None:
    model, images = make("pvt_v2_b0", in_chans=2).double(), torch.randn(2, 2, *SIZE).double()
    found = maps.effective_receptive_field(model, SIZE, 1, images, probes=2, seed=5)
    generator, total = torch.Generator().manual_seed(5), torch.zeros(SIZE).double()
    for image in images:

        def unit(x: Tensor) -> Tensor:
            out = model.stages[1](model.stages[0](x[None]))
            return out[0, :, out.shape[2] // 2, out.shape[3] // 2]

        jacobian = torch.autograd.functional.jacobian(unit, image)
        assert isinstance(jacobian, Tensor)  # (C, 2, H, W)
        for _ in range(2):
            signs = (torch.randint(0, 2, jacobian.shape[:1], generator=generator) * 2 - 1).double()
            total += torch.einsum("c,cihw->ihw", signs, jacobian).square().sum(0)
    expected = total.sqrt() / total.sqrt().sum()
    torch.testing.assert_close(found, expected.float())
    assert math.isclose(field_share(found), float((expected > 0.0455 * expected.max()).float().mean()))


def test_receptive_field_of_patches_alone_is_their_kernel() -> None:
    model = make("pvt_v2_b0")
    for block in model.stages[0].blocks:
        for last in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(last.weight)
    found = maps.effective_receptive_field(model, SIZE, 0) > 0
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[17:20, 23:26] = True  # a 3x3 at stride 2 around the token at row 19 // 2, column 25 // 2
    assert torch.equal(found, expected)


def key_through_embeddings(model: Any, image: Tensor, stage: int, block: int, group: int) -> Tensor:
    """(M, C): the keys before W^K, as if all blocks passed their tokens on."""
    x = image[None]
    for index in range(stage + 1):
        each = model.stages[index]
        tokens = each.patch_embed(x)
        for number, part in enumerate(each.blocks):
            if index == stage and number == block:
                break
            pool = getattr(part.attn, "query_reduction", None)
            if part.attn.query_size(*tokens.shape[1:3]) != tuple(tokens.shape[1:3]):
                tokens = pool.proj(
                    part.attn.q(tokens).unflatten(3, (part.attn.num_heads, -1)).permute(0, 3, 4, 1, 2)[0]
                )
                tokens = tokens.permute(2, 3, 0, 1).flatten(2)[None]
        x = tokens.movedim(-1, 1)
    attn = model.stages[stage].blocks[block].attn
    if hasattr(attn, "groups"):
        return attn.iter_groups()[group].reduction(tokens)[0].flatten(0, 1)
    if hasattr(attn, "position") and hasattr(attn, "query_reduction"):  # MViTv2 pools what is projected
        tokens = attn.k(tokens)
    return attn.reduction(tokens)[0].flatten(0, 1)


@pytest.mark.parametrize(
    "name, stage, block, group, edge",
    [
        ("pvt_v2_b0", 0, 1, -1, "pad"),
        ("pvt_v2_b0", 1, 0, -1, "floor"),
        ("pvt_v2_b2_li", 1, 0, -1, "pad"),
        ("pvt_tiny", 2, 1, -1, "pad"),
        ("pvt_tiny", 1, 0, -1, "floor"),
        ("cmt_ti", 1, 0, -1, "pad"),
        ("p2t_tiny", 2, 0, -1, "pad"),
        ("shunted_tiny", 1, 0, 0, "pad"),
        ("shunted_tiny", 1, 0, 1, "floor"),
        ("cvt_13", 1, 0, -1, "pad"),
        ("mvitv2_tiny", 1, 0, -1, "pad"),
        ("mvitv2_tiny", 2, 1, -1, "pad"),
    ],
)
def test_support_is_where_the_gradient_is_not_zero(name: str, stage: int, block: int, group: int, edge: str) -> None:
    model = make(name, edge=edge).double()
    for module in model.modules():
        if isinstance(module, nn.ReLU):  # of the Shunted stem: its zeros would hide pixels
            module.forward = lambda x: x * 1.5  # type: ignore[method-assign]
    image = torch.randn(1, *SIZE).double().requires_grad_()
    support = maps.reduction_support(model, SIZE, stage, block, group)
    keys = key_through_embeddings(model, image, stage, block, group)
    assert len(keys) == len(support.pixels) == len(support.tokens) == math.prod(support.key_grid)
    seen = torch.zeros(SIZE, dtype=torch.bool)
    signal = torch.randn(keys.shape[1]).double()
    for number, key in enumerate(keys):
        (gradient,) = torch.autograd.grad(key @ signal, image, retain_graph=True)
        assert torch.equal(support.mask(number), gradient[0] != 0), number
        seen |= gradient[0] != 0
    assert torch.equal(support.unseen(), ~seen)
    with pytest.raises(SrattnError, match="counted from 0"):
        support.mask(len(keys))


def test_support_of_blocks_that_do_not_overlap() -> None:
    model = make("pvt_tiny", edge="floor", class_token=False)
    support = maps.reduction_support(model, SIZE, 0)  # patches of 2, blocks of 8: 16 pixels a side, the rest is lost
    assert (support.grid, support.key_grid) == ((18, 25), (2, 3))
    assert support.tokens.tolist()[4] == [8, 8, 16, 16] and support.pixels.tolist()[4] == [16, 16, 32, 32]
    lost = torch.ones(SIZE, dtype=torch.bool)
    lost[:32, :48] = False
    assert torch.equal(support.unseen(), lost)
    with pytest.raises(SrattnError, match="edge='pad'"):
        maps.reduction_support(make("pvt_tiny", edge="error"), SIZE, 0)
    with pytest.raises(SrattnError, match="below the minimum"):
        maps.reduction_support(model, 15, 0)
