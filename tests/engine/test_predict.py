"""Predictions from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srattn.data.decode import BadImage
from srattn.data.digits import read_digits
from srattn.data.preprocess import to_image
from srattn.engine import classify, load_run
from srattn.engine.predict import Source


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    val = read_digits(8).val
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(paths):
        to_image(val.pixels(index)).save(path)
    return paths


def test_files_give_what_validation_gave(finished: Path, pictures: list[Path]) -> None:
    run = load_run(finished)
    val = read_digits(8).val
    images = torch.stack([val.pixels(index) for index in range(5)]).float() / 255
    expected = run.model(run.preprocess.normalise(images)).softmax(1)
    for batch_size, workers in [(1, 0), (3, 2)]:
        answers = list(classify(run, pictures, batch_size, workers))
        assert [answer.path for answer in answers] == [str(path) for path in pictures]
        for answer, row in zip(answers, expected, strict=True):
            assert list(answer.probabilities) == sorted(answer.probabilities, reverse=True)
            by_class = dict(zip(answer.classes, answer.probabilities, strict=True))
            assert [by_class[name] for name in run.classes] == pytest.approx(row.tolist(), abs=1e-5)


def test_bad_images(finished: Path, pictures: list[Path]) -> None:
    pictures[1].write_bytes(b"no")
    run, told = load_run(finished), list[BadImage]()
    answers = list(classify(run, pictures, batch_size=2, on_bad_image=told.append))
    assert len(answers) == 4 and len(told) == 1 and "1.png" in str(told[0])
    with pytest.raises(BadImage, match=r"1\.png"):
        list(classify(run, pictures))
    only_bad = classify(run, [Source("a", b"")], on_bad_image=told.append)
    assert list(only_bad) == [] and str(told[1]).startswith("a: ")
