"""Stratified splits."""

from __future__ import annotations

import pytest

from srattn.data.split import stratified_split
from srattn.errors import SrattnError

CLASSES = ["a", "b"]
LABELS = [0] * 10 + [1] * 5


def test_each_class_gives_its_part() -> None:
    train, val = stratified_split(LABELS, 0.2, 0, CLASSES)
    assert sorted(train + val) == list(range(15))
    assert [LABELS[index] for index in val].count(0) == 2
    assert [LABELS[index] for index in val].count(1) == 1


def test_the_seed_alone_chooses() -> None:
    first = stratified_split(LABELS, 0.2, 0, CLASSES)
    assert first == stratified_split(LABELS, 0.2, 0, CLASSES)
    assert any(first != stratified_split(LABELS, 0.2, seed, CLASSES) for seed in range(1, 5))


def test_it_stays_what_it_was() -> None:
    """Or a model would be measured on what an earlier version trained it on."""
    labels = [n % 3 % 2 for n in range(24)]
    train, val = stratified_split(labels, 0.25, 7, CLASSES)
    assert val == [0, 4, 9, 11, 13, 21]
    assert train == [n for n in range(24) if n not in val]
    _, some = stratified_split([0] * 8 + [1] * 6, 0.3, 1, CLASSES)
    assert sum(n < 8 for n in some) == sum(n >= 8 for n in some) == 2  # of 2.4 and 1.8


def test_small_classes_are_in_both_parts() -> None:
    train, val = stratified_split([0, 0, 1, 1], 0.01, 0, CLASSES)
    assert {0, 1} == {[0, 0, 1, 1][index] for index in val} == {[0, 0, 1, 1][index] for index in train}
    _, most = stratified_split([0, 0, 1, 1], 0.99, 0, CLASSES)
    assert len(most) == 2


def test_what_cannot_be_split() -> None:
    with pytest.raises(SrattnError, match="class 'b' has 1"):
        stratified_split([0, 0, 1], 0.2, 0, CLASSES)
    with pytest.raises(SrattnError, match="val_fraction"):
        stratified_split(LABELS, 1.0, 0, CLASSES)
