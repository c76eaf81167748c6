"""What processes must have in common before they begin a run."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.preprocess import Preprocess
from srattn.data.samples import ImageData, Samples
from srattn.engine import TrainConfig
from srattn.engine.alike import check_data, check_options
from srattn.engine.config import ResolvedConfig
from srattn.engine.defaults import resolve
from srattn.engine.distributed import World
from srattn.errors import SrattnError

Launch = Callable[..., list[Any]]  # see conftest
PLACE = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Thread(World):
    """A process that is a thread of this one."""

    box: list[Any] = dataclasses.field(default_factory=list)
    gate: threading.Barrier | None = None

    def exchange(self, value: Any) -> list[Any]:
        assert self.gate is not None
        self.box[self.rank] = value
        self.gate.wait(10)
        found = list(self.box)
        self.gate.wait(10)
        return found

    def tell(self, value: Any) -> Any:
        return self.exchange(value)[0]


def in_all(check: Callable[[Any, World], None], each: list[Any]) -> list[str]:
    """What `check` refuses in every process; empty where it takes all."""
    box, gate, said = [None] * len(each), threading.Barrier(len(each)), [""] * len(each)

    def run(rank: int) -> None:
        try:
            check(each[rank], Thread(PLACE, rank, len(each), box=box, gate=gate))
        except SrattnError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(each))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return said


def data_of(names: str, labels: list[int], sizes: list[int] | None = None, root: str = "") -> ImageData:
    """Images called by a letter each; as many more are held out."""
    parts = []
    for part in ("t/", "v/"):
        pixels = torch.zeros(len(names), 1, 2, 2, dtype=torch.uint8)
        samples = Samples([root + part + name for name in names], torch.tensor(labels), pixels, 1)
        samples.stamps = None if sizes is None else torch.tensor(sizes) << 32
        parts.append(samples)
    return ImageData(["ant", "bee"], parts[0], parts[1], Preprocess(), [])


def test_the_same_data_is_taken() -> None:
    def check(data: ImageData, world: World) -> None:
        check_data(data, "photos", world)

    check(data_of("ab", [0, 1]), World(PLACE))
    assert in_all(check, [data_of("ab", [0, 1], [7, 8])] * 3) == ["", "", ""]
    # Absolute paths in a list: each machine may have the folder elsewhere.
    here, there = (data_of("ab", [0, 1], [7, 8], root) for root in ("/data/photos/", "/mnt/x/"))
    assert in_all(check, [here, there]) == ["", ""]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            data_of("abd", [0, 1, 1], [7, 8, 9]),
            ", by other names or labels; of those for training number 3 is t/c (bee, 9 bytes) in the first, "
            "t/d (bee, 9 bytes) in process 1",
        ),
        (
            data_of("abc", [0, 0, 1], [7, 8, 9]),
            ", by other names or labels; of those for training number 2 is t/b (bee, 8 bytes) in the first, "
            "t/b (ant, 8 bytes) in process 1",
        ),
        (
            data_of("abc", [0, 1, 1], [7, 6, 9]),
            ", with other contents; of those for training number 2 is t/b (bee, 8 bytes) in the first, "
            "t/b (bee, 6 bytes) in process 1",
        ),
        (
            data_of("ab", [0, 1], [7, 8]),
            "; of those for training number 3 is t/c (bee, 9 bytes) in the first, none in process 1",
        ),
    ],
)
def test_what_differs_is_named(other: ImageData, told: str) -> None:
    whole = data_of("abc", [0, 1, 1], [7, 8, 9])
    for processes in (2, 3):
        said = in_all(lambda data, world: check_data(data, "photos", world), [whole, *[other] * (processes - 1)])
        so = "; so differ process 2" if processes == 3 else ""
        assert len(set(said)) == 1 and f"{told}{so}; give all of them the same files" in said[0], said
        assert said[0].startswith("photos is not the same for all processes: the first has 3 images for training")


def test_targets_and_what_was_left_out() -> None:
    data = data_of("ab", [0, 1])
    other = data_of("ab", [0, 1])
    other.skipped, data.facts, other.facts = ["b: not whole"], "1", "2"  # type: ignore[attr-defined]
    said = in_all(lambda data, world: check_data(data, "photos", world), [data, other])
    assert "process 1 has 2 images for training, 2 held out, 2 classes, with other targets (left out: b: not" in said[0]


def test_other_options_are_refused(tmp_path: Path) -> None:
    first = resolve(TrainConfig(lr=0.5))

    def check(config: ResolvedConfig, world: World) -> None:
        check_options(config, world)

    elsewhere = dataclasses.replace(first, threads=7, num_workers=3, cache_mb=1, data=str(tmp_path), init="/a/b")
    assert in_all(check, [first, elsewhere]) == ["", ""]
    for name, value in (("lr", 0.25), ("batch_size", 32), ("distributed", "fsdp"), ("model_options", {"a": 1})):
        other = dataclasses.replace(first, **{name: value})
        said = in_all(check, [first, first, other, other])
        assert len(set(said)) == 1
        words = f"process 2 was not started with the options of the first: {name} is {value!r}, not "
        assert words in said[0] and "; so differ process 3; start all processes with the same options" in said[0]


def test_files_with_other_contents_and_other_options_stop_a_run(
    tiny: dict[str, Any], launch: Launch, tmp_path: Path
) -> None:
    for place in ("0", "1"):
        for level, name in ((40, "dusk"), (160, "day")):
            (tmp_path / place / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (24, 20), (level + index,) * 3).save(tmp_path / place / name / f"{index}.bmp")
    Image.new("RGB", (24, 20), (9, 9, 9)).save(tmp_path / "1" / "dusk" / "2.bmp")
    options = tiny | {"size": 16, "batch_size": 4, "num_workers": 0, "out": str(tmp_path / "run")}
    by_rank = [{"data": str(tmp_path / place)} for place in "01"]
    ended = launch(2, options=options, by_rank=by_rank)
    assert [process.code for process in ended] == [2, 2], [process.text for process in ended]
    assert all("with other contents; of those " in process.text for process in ended)
    assert all("dusk/2.bmp (dusk, 1,494 bytes) in process 1" in process.text for process in ended), ended[0].text
    ended = launch(2, options=options | {"data": str(tmp_path / "0")}, by_rank=[{}, {"lr": 0.5}])
    assert [process.code for process in ended] == [2, 2], [process.text for process in ended]
    assert all("process 1 was not started with the options of the first: lr is 0.5" in p.text for p in ended)
    assert not (tmp_path / "run").exists()
