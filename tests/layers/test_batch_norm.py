"""Batch norms of a single value, and those that several processes share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from srattn import convert_sync_batchnorm
from srattn.layers.batch_norm import MapBatchNorm, TokenBatchNorm
from srattn.models import build_model
from tests.models.small import small_numbers


def test_the_place_of_channels_stays() -> None:
    model = nn.Sequential(TokenBatchNorm(5), nn.Identity(), nn.Sequential(nn.BatchNorm2d(3)))
    for norm in (model[0], model[2][0]):
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    tokens, images = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = model.eval()[0](tokens), model[2](images)
    common = convert_sync_batchnorm(model).eval()
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in (common[0], common[2][0]))
    assert torch.allclose(common[0](tokens), expected[0], atol=1e-6)
    assert torch.allclose(common[2](images), expected[1], atol=1e-6)
    group = object()
    assert convert_sync_batchnorm(TokenBatchNorm(5), group).process_group is group


@pytest.mark.parametrize("name", ["cvt_13", "cmt_ti", "pvt_tiny"])
def test_a_model_in_one_process_is_the_same(name: str) -> None:
    model = build_model(name, **small_numbers(name), img_size=64).double().train()
    common = convert_sync_batchnorm(copy.deepcopy(model))
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    logits = [m(images) for m in (model, common)]
    torch.testing.assert_close(logits[1], logits[0])
    sum(y.square().sum() for y in logits).backward()
    for (key, p), q in zip(model.named_parameters(), common.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-6, atol=1e-9, msg=key)
    assert common.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(common.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_single_value_takes_the_running_statistics(gelu: bool) -> None:
    tokens, maps = TokenBatchNorm(3), MapBatchNorm(3)
    for norm in (tokens, maps):
        norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 1.0, 0.25])
    x = torch.randn(1, 1, 1, 3, requires_grad=True)
    got = tokens(x, gelu=gelu)
    torch.testing.assert_close(got, copy.deepcopy(tokens).eval()(x, gelu=gelu))
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert gradient.isfinite().all() and gradient.any()
    torch.testing.assert_close(maps(x.movedim(-1, 1)), copy.deepcopy(maps).eval()(x.movedim(-1, 1)))
    assert all(
        norm.running_mean.tolist() == [1.0, 2.0, 3.0] and not norm.num_batches_tracked for norm in (tokens, maps)
    )


def test_of_two_values_the_batch_has_statistics() -> None:
    own, plain = MapBatchNorm(3), torch.nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 1, 1)
    assert torch.equal(own(x), plain(x))
    assert all(torch.equal(own.state_dict()[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("name", ["cmt_ti", "cvt_13"])
def test_models_train_on_one_small_image(name: str) -> None:
    model = build_model(name, **small_numbers(name)).train()
    side = model.min_size
    model(torch.randn(1, 3, side, side)).sum().backward()
    assert all(value.isfinite().all() for value in model.buffers())
