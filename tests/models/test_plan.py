"""The plan: what is chosen, why, and that `forward` does it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import srattn
from srattn import SpatialReductionAttention, SrattnError
from srattn.models import build_model
from srattn.ops import attend, plan
from srattn.ops import native as kernels
from srattn.ops.plan import PATHS, Path, Shape, choose, cost_of

FUNCTIONS = ("plain", "sdpa", "absorbed_grouped", "absorbed_streamed")


def ran(attn: SpatialReductionAttention, x: torch.Tensor) -> str:
    """Which function computes attn(x)."""
    called: list[str] = []

    def spy(name: str):
        original = getattr(attend, name)
        return lambda *args: (called.append(name), original(*args))[1]

    with mock.patch.multiple(attend, **{name: spy(name) for name in FUNCTIONS}):
        attn(x)
    assert len(called) == 1
    return called[0]


@pytest.mark.parametrize(
    ("size", "heads", "dim", "ratio"),
    [(56, 1, 64, 8), (28, 2, 128, 4), (14, 5, 160, 2), (7, 8, 64, 1), (64, 2, 32, 4), (40, 1, 32, 2)],
)
@pytest.mark.parametrize("training", [False, True])
def test_forward_takes_the_planned_path(size: int, heads: int, dim: int, ratio: int, training: bool) -> None:
    attn = SpatialReductionAttention(dim, heads, ratio)
    choice = attn.plan_for(size, size, 2, training=training)
    with torch.set_grad_enabled(training):
        function = ran(attn, torch.randn(2, size, size, dim))
    assert function.split("_")[0] == choice.path
    if choice.path == "absorbed":
        assert function == ("absorbed_streamed" if choice.streamed else "absorbed_grouped")


def test_forced_paths_run_and_are_undone() -> None:
    attn, x = SpatialReductionAttention(8, 2, 2), torch.randn(1, 4, 4, 8)
    free = ran(attn, x)
    for path in PATHS:
        with srattn.force_path(path):
            assert ran(attn, x).startswith(path)
            assert attn.plan_for(4, 4).reason == "forced by force_path"
    with pytest.raises(RuntimeError), srattn.force_path("plain"):
        raise RuntimeError
    assert ran(attn, x) == free
    with (
        pytest.raises(SrattnError, match=r"no path 'flash'.*paths are plain, sdpa, absorbed"),
        srattn.force_path("flash"),
    ):
        pass


def test_multiply_adds_by_hand() -> None:
    # 2 C^2 + 2 M C for each query before, 2 h M C after (and 2 M C^2 once for K' and V').
    shape = Shape(batch=3, queries=100, keys=10, dim=16, heads=4, width=16)
    assert cost_of("sdpa", shape).macs == 3 * (100 * (2 * 16 * 16 + 2 * 10 * 16))
    assert cost_of("absorbed", shape).macs == 3 * (100 * 2 * 4 * 10 * 16 + 2 * 10 * 16 * 16)


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        # What each step reads and writes; x and the output are n x c, queries and heads n x d, scores h x n x m.
        ("sdpa", ["x", "q", "q", "k", "v", "heads", "heads", "y"]),
        ("plain", ["x", "q", "q", "k", "v", "heads", "heads", "y", *["scores"] * 6]),  # of which two scale them
        ("absorbed", ["x", "y", *["keys of x", "values of x"] * 2, *["scores"] * 4]),
    ],
)
def test_bytes_moved_by_hand(path: Path, steps: list[str]) -> None:
    batch, n, m, c, h, d = 3, 100, 10, 16, 4, 24
    sizes = {"x": n * c, "y": n * c, "q": n * d, "heads": n * d, "k": m * d, "v": m * d, "scores": h * n * m}
    sizes |= {"keys of x": h * m * c, "values of x": h * m * c}
    shape = Shape(batch, n, m, c, h, d, itemsize=2)
    assert cost_of(path, shape).bytes == batch * 2 * sum(sizes[step] for step in steps)
    cost = cost_of(path, shape)
    assert cost.total("cpu") == cost.macs + 10 * cost.bytes
    assert cost.total("cuda") == cost.total("xpu") == cost.macs + 90 * cost.bytes  # other devices are taken for GPUs


def test_the_reason_names_both_ratios() -> None:
    # 2 C^2 + 2 M C against 2 h M C + 2 M C^2 / N multiply-adds; bytes as above.
    n, m, c, h = 100, 10, 16, 4
    work = (2 * h * m * c + 2 * m * c * c / n) / (2 * c * c + 2 * m * c)
    moved = (2 * n * c + 4 * h * m * c + 4 * n * h * m) / (6 * n * c + 2 * m * c)
    told = f"absorbed needs {work:.2f}x the multiply-adds and {moved:.2f}x the bytes of sdpa"
    assert choose(Shape(3, n, m, c, h, c)).reason.endswith(told)


@pytest.mark.parametrize(
    ("hip", "triton", "capability", "said"),
    [
        (None, object(), (8, 0), None),
        (None, object(), (9, 0), None),
        (None, object(), (7, 5), "compute capability 7.5 is below 8.0"),
        (None, None, (9, 0), "Triton is not installed"),
        ("6.2", object(), (9, 4), "untried on AMD"),
    ],
)
def test_which_gpus_have_the_kernel(
    hip: str | None, triton: object, capability: tuple[int, int], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: triton)
    monkeypatch.setattr(plan, "_answers", {})
    assert plan.why_not_here() == said


def test_one_symbolic_size_makes_a_shape_unknown() -> None:
    symbol = torch.SymInt(None)
    assert plan.known(4, 5) and not plan.known(4, symbol) and not plan.known(symbol, 5)


def test_one_head_without_kept_scores_moves_none() -> None:
    one = Shape(1, 100, 10, 16, 1, 16)
    kept = cost_of("absorbed", one._replace(keeps_scores=True)).bytes
    assert kept - cost_of("absorbed", one).bytes == 4 * 4 * 100 * 10


def test_one_head_is_always_absorbed_and_many_keys_never_with_several() -> None:
    one = choose(Shape(1, 4096, 256, 64, 1, 64))
    assert one.path == "absorbed" and one.streamed and one.reason.startswith("one head")
    many = choose(Shape(1, 4096, 256, 128, 2, 128))
    assert many.path == "sdpa" and "2 heads x 256 keys are too many" in many.reason


def test_a_trained_logit_bias_keeps_the_scores() -> None:
    attn = SpatialReductionAttention(64, 1, 8)
    assert ran(attn, torch.randn(1, 56, 56, 64)) == "absorbed_grouped"
    with torch.no_grad():
        assert ran(attn, torch.randn(1, 56, 56, 64)) == "absorbed_streamed"


def test_the_plan_of_a_model() -> None:
    plan = srattn.plan(build_model("pvt_v2_b0"), 512)
    assert [(row.tokens, row.keys) for row in plan] == [((s, s), (16, 16)) for s in (128, 64, 32, 16)]
    text = str(plan)
    assert text.count("\n") == 9 and "pvt_v2_b0 at 512x512" in text
    for row in plan:
        assert row.path in text and row.reason in text and row.macs > 0 and row.bytes > 0
        assert f"feed-forward of stage {row.stage}: {row.feed_forward}" in text
    assert plan.to_rows()[0]["path"] == "absorbed"


def test_the_plan_knows_pyramids_class_tokens_and_default_sizes() -> None:
    assert [row.tokens for row in srattn.plan(build_model("pvt_tiny"))][-1] == (1, 50)
    pyramid = build_model("pvt_tiny", features_only=True, out_indices=(0, 1))
    assert [row.tokens for row in srattn.plan(pyramid, (64, 96))] == [(16, 24), (8, 12)]
    with pytest.raises(SrattnError, match=r"below the minimum"):
        srattn.plan(pyramid, 16)


@pytest.mark.skipif(not kernels.available(), reason=f"no compiled kernels here: {kernels.why_not()}")
@pytest.mark.parametrize(
    ("name", "size", "by_torch"),
    [
        ("pvt_tiny", (64, 96), 0),
        ("pvt_v2_b2_li", (64, 96), 0),
        ("twins_svt_small", (224, 224), 0),
        ("twins_svt_small", (200, 224), 3),  # windows that do not divide the maps of three stages
    ],
)
def test_the_plan_names_the_kernels_where_they_run(name: str, size: tuple[int, int], by_torch: int) -> None:
    model = build_model(name, depths=(2, 2, 2, 2)).eval()
    with torch.no_grad(), mock.patch.object(SpatialReductionAttention, "_attend", autospec=True) as attend:
        attend.side_effect = lambda attn, queries, *rest: torch.zeros_like(queries)
        model(torch.randn(1, 3, *size))
    rows = list(srattn.plan(model, size))
    assert attend.call_count == by_torch
    assert sum(not row.reason.startswith("kernel") for row in rows) == by_torch
    assert all(row.feed_forward.startswith("kernel") for row in rows)
