"""Masks as lengths of runs: round trips, the text of COCO's tools, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from srattn import SrattnError
from srattn.ops.run_lengths import check_runs, decode_runs, encode_runs, read_runs, runs_at, write_runs


def masks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(5, 7, generator=generator) < share for share in (0.1, 0.5, 0.9)]
    return [*drawn, torch.zeros(5, 7) > 0, torch.ones(5, 7) > 0, torch.ones(1, 1) > 0]


@pytest.mark.parametrize("number", range(6))
def test_runs_are_counted_down_the_columns(number: int) -> None:
    mask = masks()[number]
    expected, inside = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != inside:
                inside = not inside
                expected.append(0)
            expected[-1] += 1
    runs = encode_runs(mask)
    assert runs.tolist() == expected
    size = (mask.shape[0], mask.shape[1])
    filled = torch.cat([runs, torch.zeros(4, dtype=torch.int64)])
    assert torch.equal(decode_runs(runs, size), mask) and torch.equal(decode_runs(filled, size), mask)
    places = torch.arange(mask.numel()).unsqueeze(0)
    assert torch.equal(runs_at(filled.unsqueeze(0), places)[0], mask.t().flatten())


def test_the_text_is_that_of_the_tools() -> None:
    tools = pytest.importorskip("faster_coco_eval.core.mask")
    for mask in masks():
        theirs = tools.encode(mask.numpy().astype("uint8", order="F"))["counts"]
        text = write_runs(encode_runs(mask).tolist())
        assert text == (theirs.decode() if isinstance(theirs, bytes) else theirs)
    wide = torch.zeros(700, 900)
    wide[100:650, 33:800] = 1
    theirs = tools.encode(wide.numpy().astype("uint8", order="F"))["counts"]
    assert write_runs(encode_runs(wide).tolist()) == (theirs.decode() if isinstance(theirs, bytes) else theirs)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_text_goes_round(runs: list[int]) -> None:
    assert read_runs(write_runs(runs), sum(runs)) == runs


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(SrattnError):
        assert sum(read_runs(text, 12)) == 12


def test_what_is_refused() -> None:
    for runs, words in (([3, -1, 2], "from 0 up"), ([1, 2.5], "whole number"), ([True, 3], "whole"), ([4], "add up")):
        with pytest.raises(SrattnError, match=words):
            check_runs(runs, 5)  # type: ignore[arg-type]
    for text, words in (("~", "no text of run lengths"), ("o" * 40, "no text"), ("P", "within a number"), ("99", "9")):
        with pytest.raises(SrattnError, match=words):
            read_runs(text, 5)
    with pytest.raises(SrattnError, match="2x3"):
        decode_runs(torch.tensor([1, 2]), (3, 2))
    with pytest.raises(SrattnError, match=r"\(H, W\)"):
        encode_runs(torch.zeros(1, 2, 3))
