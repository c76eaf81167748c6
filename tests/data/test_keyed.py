"""Randomness that depends on its keys alone."""

from __future__ import annotations

import pytest
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


def _plain_hash(*keys: int) -> int:
    """SplitMix64's finaliser in whole numbers, once a key: what a run drew, a later version has to draw again."""
    state, mask = 0, 2**64 - 1
    for key in keys:
        state = ((state ^ (key & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


@pytest.mark.parametrize("keys", [(), (0,), (5, 7), (7, 5), (-1, 2**63, 3), (2**64 - 1, -(2**63), 12345)])
def test_numbers_are_those_of_whole_number_arithmetic(keys: tuple[int, ...]) -> None:
    assert int(hashed(*keys)) % 2**64 == _plain_hash(*keys)
    assert seed_of(*keys) == _plain_hash(*keys) % 2**63
    assert uniform(5, *keys).tolist() == [(_plain_hash(*keys, n) >> 11) / 2**53 for n in range(5)]
    signed = [(_plain_hash(*keys, n) + 2**63) % 2**64 for n in range(50)]
    assert permutation(50, *keys).tolist() == sorted(range(50), key=lambda n: signed[n])


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
