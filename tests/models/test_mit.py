"""Mix Transformer: published counts, and what sets it apart from PVT v2."""

from __future__ import annotations

import pytest
import torch

import srattn
from srattn import SrattnError
from srattn.convert import convert_state_dict, detect_layout
from srattn.models import build_model
from srattn.models.registry import count_parameters
from tests.models.small import SMALL

# Of the classifiers with 1000 classes, as transformers' implementation has them.
PARAMETERS = {
    "mit_b0": 3_576_392,
    "mit_b1": 13_664_424,
    "mit_b2": 24_709_288,
    "mit_b3": 44_585_128,
    "mit_b4": 61_355_688,
    "mit_b5": 81_956_008,
}


def test_all_sizes_have_the_published_parameters() -> None:
    assert srattn.list_models("mit*") == list(PARAMETERS)
    for name, count in PARAMETERS.items():
        assert count_parameters(build_model(name, device="meta")) == count


def test_the_feed_forward_is_what_differs_from_pvt_v2() -> None:
    torch.manual_seed(3)
    mit = build_model("mit_b0", **SMALL).eval()
    torch.manual_seed(3)
    pvt = build_model("pvt_v2_b0", **SMALL, mlp_ratios=(4, 4, 4, 4)).eval()
    images = torch.randn(1, 3, 50, 70)
    assert torch.equal(mit(images), pvt(images))
    with pytest.raises(SrattnError, match="no option 'linear'"):
        build_model("mit_b0", linear=True)


def test_names_and_plan() -> None:
    rows = srattn.plan(build_model("mit_b2", device="meta"), 512).to_rows()
    assert [row["keys"] for row in rows] == [(16, 16)] * 4
    assert [row["blocks"] for row in rows] == [3, 4, 6, 3]


@pytest.mark.parametrize("layout", ["official", "srattn"])
def test_numbers_tell_what_names_do_not(layout: str) -> None:
    """The keys of the authors are those of PVT v2; the widths of the feed-forward tell the two apart."""
    for name, family in (("mit_b1", "mit"), ("pvt_v2_b1", "pvt_v2")):
        state = convert_state_dict(build_model(name, device="meta").state_dict(), layout)
        assert detect_layout(state) == (layout, family)
    state = convert_state_dict(build_model("mit_b1", device="meta").state_dict(), "official")
    with pytest.raises(SrattnError, match=r"these weights fit mit_b1$"):
        srattn.load_checkpoint(build_model("pvt_v2_b1", device="meta"), state)
    with pytest.raises(SrattnError, match=r"these weights fit mit_b1$"):
        srattn.load_checkpoint(build_model("mit_b2", device="meta"), state)


def test_weights_of_an_encoder_alone_load_without_a_classifier() -> None:
    """segmentation_models.pytorch has the authors' keys without the head."""
    theirs = build_model("mit_b0", **SMALL)
    state = convert_state_dict(theirs.state_dict(), "official")
    encoder = {key: value for key, value in state.items() if not key.startswith("head.")}
    pyramid = build_model("mit_b0", **SMALL, features_only=True)
    report = srattn.load_checkpoint(pyramid, encoder)
    assert not report.missing and report.norm_eps == {"block": 1e-6, "reduction": 1e-5, "patch": 1e-5}
    images = torch.randn(1, 3, 64, 64)
    theirs.set_edge("floor")
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pyramid(images), expected, strict=True))
    with pytest.raises(SrattnError, match='head="keep"'):
        srattn.load_checkpoint(build_model("mit_b0", **SMALL), encoder)
