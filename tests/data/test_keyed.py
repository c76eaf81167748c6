"""Randomness that depends on its keys alone."""

from __future__ import annotations

import torch

from srattn.data.keyed import hashed, permutation, seed_of, uniform


def test_same_keys_same_numbers_in_any_company() -> None:
    together = uniform(4, 7, torch.tensor([3, 1, 2]))
    alone = uniform(4, 7, torch.tensor([1]))
    assert torch.equal(together[1], alone[0])
    assert torch.equal(uniform(9, 7, torch.tensor([3]))[0, :4], together[0])
    assert torch.equal(hashed(7, 3, 2), hashed(7, torch.tensor(3), torch.tensor([2]))[0])


def test_every_key_and_its_place_matter() -> None:
    seen = {seed_of(*keys) for keys in [(1, 2), (2, 1), (1, 2, 0), (1,), (-1,), (2**63,), (0,), ()]}
    assert len(seen) == 8
    assert all(0 <= seed < 2**63 for seed in seen)


def test_splitmix64_reference() -> None:
    # The first outputs of SplitMix64 from the state 0 are the finaliser of one, two, three times gamma.
    assert int(hashed(0)) & (2**64 - 1) == 0xE220A8397B1DCDAF


def test_uniform_is_uniform() -> None:
    numbers = uniform(2, 0, torch.arange(50_000))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.flatten(), bins=10, min=0, max=1)
    assert (counts - 10_000).abs().max() < 400  # four standard deviations
    assert torch.corrcoef(numbers.T)[0, 1].abs() < 0.02


def test_permutation_holds_each_once() -> None:
    order = permutation(100, 1, 2)
    assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(order, permutation(100, 1, 3))
