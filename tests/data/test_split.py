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
