"""CvT's layouts: between them bit for bit, and numbers against transformers' own model where it is installed."""

from __future__ import annotations

import pytest
import torch

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict, detect_layout

NUMBERS = {"embed_dims": (16, 24, 48), "num_heads": (1, 3, 6), "depths": (1, 2, 3), "num_classes": 10}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic with a value of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(7)
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            positive = name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1)
            tensor.copy_(1 + noise.abs() if positive else noise / max(tensor.shape[-1], 10) ** 0.5)
    return model.eval()


def ours(**options: object) -> torch.nn.Module:
    return randomised(srattn.create_model("cvt_13", **{**NUMBERS, **options}))


@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_layouts_round_trip_bit_for_bit(layout: str) -> None:
    state = ours().state_dict()
    there = convert_state_dict(state, layout)
    assert detect_layout(there) == (layout, "cvt") and len(there) == len(state)
    back = convert_state_dict(there, "srattn")
    assert set(back) == set(state) and all(torch.equal(back[key], state[key]) for key in state)
    assert "stage2.cls_token" in there or "cvt.encoder.stages.2.cls_token" in there


def test_origin_sets_epsilons_and_edge() -> None:
    for layout in ("official", "transformers"):
        model = srattn.create_model("cvt_13", **NUMBERS)
        model.set_norm_eps(1e-3, 1e-3, 1e-3)
        report = srattn.load_checkpoint(model, convert_state_dict(ours().state_dict(), layout))
        assert report.norm_eps == dict.fromkeys(("block", "reduction", "patch"), 1e-5) and model.edge == "floor"
        assert all(m.eps == 1e-5 for m in model.modules() if hasattr(m, "eps"))


def test_files_round_trip_and_wrong_models_are_named(tmp_path) -> None:
    state = convert_state_dict(srattn.create_model("cvt_21").state_dict(), "official")
    with pytest.raises(SrattnError, match=r"these weights fit cvt_21"):
        srattn.load_checkpoint(srattn.create_model("cvt_13"), state)
    model = ours()
    with pytest.warns(UserWarning, match=r"edge policy"):
        srattn.save_checkpoint(model, tmp_path / "folder", "transformers")
    again = srattn.create_model("cvt_13", **NUMBERS)
    srattn.load_checkpoint(again, tmp_path / "folder")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(SrattnError, match=r"stride_kv is \[2, 2, 2\], the model has sr_ratios \[2, 2, 1\]"):
        srattn.load_checkpoint(srattn.create_model("cvt_13", **NUMBERS, sr_ratios=(2, 2, 1)), tmp_path / "folder")
    with pytest.raises(SrattnError, match=r"the model has num_heads \[1, 3, 3\]"):
        options = {**NUMBERS, "num_heads": (1, 3, 3)}
        srattn.load_checkpoint(srattn.create_model("cvt_13", **options), tmp_path / "folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sr_ratios": ((2, 1), 2, 2)}, r"not square"),
        ({"sr_ratios": (2, 2, 4)}, r"one kernel for queries and keys"),
        (
            {"embed_dims": (16, 24), "num_heads": (1, 3), "depths": (1, 1), "mlp_ratios": (4, 4), "sr_ratios": (2, 2)},
            r"third stage",
        ),
    ],
)
def test_what_transformers_cannot_hold(options: dict[str, object], message: str, tmp_path) -> None:
    with pytest.raises(SrattnError, match=message):
        srattn.save_checkpoint(srattn.create_model("cvt_13", **{**NUMBERS, **options}), tmp_path / "x", "transformers")


@pytest.mark.parametrize("path", ["sdpa", "plain", "absorbed"])
@pytest.mark.parametrize("class_token", [True, False])
def test_numbers_are_those_of_transformers(class_token: bool, path: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CvtConfig(
        embed_dim=[16, 24, 48],
        num_heads=[1, 3, 6],
        depth=[1, 2, 3],
        num_labels=10,
        cls_token=[False, False, class_token],
    )
    theirs = randomised(transformers.CvtForImageClassification(config))
    model = srattn.create_model("cvt_13", **NUMBERS, class_token=class_token).eval()
    srattn.load_checkpoint(model, theirs.state_dict())
    for size in [(64, 64), (98, 67), (34, 50), (32, 47)]:
        images = torch.randn(2, 3, *size)
        with torch.no_grad(), srattn.force_path(path):
            final, maps = model.forward_intermediates(images)
            expected = theirs(images, output_hidden_states=True)
            pairs = [*zip(maps, expected.hidden_states, strict=True), (model.forward_head(final), expected.logits)]
        assert max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) < 1e-5
