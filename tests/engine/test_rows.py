"""Whole data sets: every kind of data gives its rows in order, and a kill neither repeats nor loses one."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.digits import digits_preprocess
from srattn.data.reader import open_data
from srattn.data.sources import file_of
from srattn.engine.predict import Classes
from srattn.engine.rows import Joined, Source, open_rows
from srattn.engine.rows.answer import pixels_of
from srattn.engine.rows.base import Listed
from srattn.engine.rows.job import answer_all
from srattn.engine.rows.ranks import Ranks
from srattn.engine.weights import LoadedRun, load_run, save_weights
from srattn.errors import SrattnError
from srattn.models import build_model


def png(level: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), level).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of digits."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    torch.manual_seed(0)
    model = build_model(
        "pvt_v2_b0", num_classes=10, in_chans=1, img_size=8, stem_stride=1, embed_dims=(8, 8, 8, 8),
        depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1),
    )  # fmt: skip
    save_weights(path, model, [str(digit) for digit in range(10)], digits_preprocess(8))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def run(weights: Path) -> LoadedRun:
    return load_run(weights)


@functools.cache
def rows_of(count: int = 50) -> Listed:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Listed([Source(f"pictures/{i}", picture, str(i % 10)) for i, picture in enumerate(pictures)])


# -- the kinds of data ------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]], metadata: dict[str, Any] | None = None, group: int = 3) -> None:
    table = pa.Table.from_pylist(rows)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=group)


def test_parquet_rows_from_any_place(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(i), "path": f"x/{i}.png"}, "label": i % 2} for i in range(10)]
    rows[4]["image"]["bytes"] = None
    names = {"info": {"features": {"label": {"names": ["no", "yes"]}}}}
    write_table(tmp_path / "test-0.parquet", rows, names)
    write_table(tmp_path / "train-0.parquet", [{"img": png(1), "label": 7, "id": 30}], None)
    found = open_rows([str(tmp_path)], split="test")
    assert len(found) == 10 and len(open_rows([str(tmp_path)])) == 11
    everything = list(found.read(0, 10))
    assert [source.name for source in everything] == [f"x/{i}.png" for i in range(10)]
    assert [source.label for source in everything] == ["no", "yes"] * 5
    # Without bytes the path counts, below the file's folder alone.
    assert everything[4].data == tmp_path / "x/4.png"
    for start, stop in [(2, 7), (7, 9), (3, 4), (0, 10), (9, 12), (5, 5)]:
        assert list(found.read(start, stop)) == everything[start:stop]
    (other,) = open_rows([str(tmp_path / "train-0.parquet")]).read(0, 1)
    assert (other.name, other.label, other.data) == ("30", "7", png(1))
    with pytest.raises(SrattnError, match=r"no files of split 'val'; there are test-0\.parquet"):
        open_rows([str(tmp_path)], split="val")


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "C:/x.png", "."])
def test_parquet_paths_of_strangers_stay_below(tmp_path: Path, path: str) -> None:
    rows = [{"image": {"bytes": None, "path": path}}, {"image": {"bytes": b"", "path": ""}}]
    write_table(tmp_path / "a.parquet", rows)
    first, second = open_rows([str(tmp_path / "a.parquet")]).read(0, 2)
    assert isinstance(first.data, BadImage) and "leads out of the folder" in str(first.data)
    assert isinstance(second.data, BadImage) and "there is no image in this row" in str(second.data)
    assert (second.name, second.label) == ("a.parquet:1", None)


@pytest.mark.parametrize(
    ("rows", "image", "label"),
    [
        ({"path": "a.png", "content": b"x", "label": 1}, "a.png", "1"),  # the name counts first
        ({"path": "a.png", "jpg": b"x", "label": 1}, b"x", "1"),  # jpg is the more usual one
        ({"image": 3, "file": "a.png", "cls": 1}, "a.png", "1"),  # a number is no image
        ({"content": b"x", "label": [1, 2], "target": "cat"}, b"x", "cat"),  # nothing is called so: bytes
        ({"photo": {"bytes": b"x", "path": "p"}, "label": "cat"}, b"x", "cat"),
    ],
)
def test_columns_of_parquet_are_those_of_training(
    tmp_path: Path, rows: dict[str, Any], image: bytes | str, label: str
) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [rows])
    (read,) = open_rows([str(path)]).read(0, 1)
    index = open_data(str(path))
    (item,) = index.parts["train"]
    expected = image if isinstance(image, bytes) else tmp_path / image
    assert read.data == item.source == expected
    assert read.label == index.classes[item.label] == label


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SrattnError, match="no whole Parquet file"):
        open_rows([str(tmp_path / "a.parquet")])
    write_table(tmp_path / "b.parquet", [{"text": "x", "label": 1}])
    with pytest.raises(SrattnError, match=r"no column for the image .*; it has text, label; rename one$"):
        open_rows([str(tmp_path / "b.parquet")])


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_shards(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "b.tar",
        [
            ("d/001.png", png(1)), ("d/001.cls", b"cat\n"), ("d/002.json", b'{"label": 3}'), ("d/002.v2.png", png(2)),
            ("d/003.txt", b"no image"), ("004.PNG", png(4)), ("dog/5.png", png(5)),
        ],
    )  # fmt: skip
    write_shard(tmp_path / "a.tar", [("000.png", png(0))])
    rows = open_rows([str(tmp_path)])
    everything = list(rows.read(0, len(rows)))
    assert [(s.name, s.label) for s in everything] == [
        ("000", None), ("d/001", "cat"), ("d/002", "3"), ("004", None), ("dog/5", "dog"),
    ]  # fmt: skip
    assert [file_of(source.data) for source in everything] == [png(0), png(1), png(2), png(4), png(5)]  # type: ignore[arg-type]
    assert list(rows.read(2, 9)) == everything[2:]


@pytest.mark.parametrize("kept", [700, 1600, 2048, 3072])
def test_a_shard_that_ends_early_is_refused(tmp_path: Path, kept: int) -> None:
    write_shard(tmp_path / "a.tar", [(f"{i}.png", png(i) + b"x" * 600) for i in range(3)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:kept])
    with pytest.raises(SrattnError, match=r"a\.tar is no whole tar file"):
        open_rows([str(tmp_path)])


@pytest.mark.parametrize("size", [-1024, -512])
def test_a_shard_with_a_size_below_zero_is_refused(tmp_path: Path, size: int) -> None:
    write_shard(tmp_path / "a.tar", [("0.png", png(0))])
    below = tarfile.TarInfo("1.png")
    below.size = size
    first = (tmp_path / "a.tar").read_bytes()[:1024]
    (tmp_path / "a.tar").write_bytes(first + below.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(SrattnError, match=r"a\.tar is no whole tar file \(it ends early.*'1\.png'"):
        open_rows([str(tmp_path)])


def test_lists_and_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png(1))
    (tmp_path / "loose.png").write_bytes(png(2))
    (tmp_path / "list.csv").write_text("label,path\ncat,train/cat/1.png\n,val/dog/1.png\n")
    (tmp_path / "list.jsonl").write_text('{"image": "train/cat/1.png", "class": 4}\n\n')
    table = list(open_rows([str(tmp_path / "list.csv")]).read(0, 9))
    assert [(s.data, s.label) for s in table] == [
        (tmp_path / "train/cat/1.png", "cat"),
        (tmp_path / "val/dog/1.png", None),
    ]
    (line,) = open_rows([str(tmp_path / "list.jsonl")]).read(0, 9)
    assert (line.name, line.label) == ("train/cat/1.png", "4")
    whole = list(open_rows([str(tmp_path)]).read(0, 9))
    assert [(s.data.name if isinstance(s.data, Path) else "", s.label) for s in whole] == [
        ("loose.png", None), ("1.png", "cat"), ("1.png", "dog"), ("1.png", "cat"), ("1.png", "dog"),
    ]  # fmt: skip
    assert [s.label for s in open_rows([str(tmp_path)], split="val").read(0, 9)] == ["cat", "dog"]
    (tmp_path / "val").rename(tmp_path / "Testing")  # the names that training knows
    assert [s.label for s in open_rows([str(tmp_path)]).read(0, 9)] == ["cat", "dog", None, "cat", "dog"]
    assert len(open_rows(["digits"])) == 1797 and len(open_rows(["digits"], split="val")) == 359
    for bad, words in [("x,y\n1,2\n", "no column for the image .*; rename one$"), ("path\n\n", "lists no image")]:
        (tmp_path / "list.csv").write_text(bad)
        with pytest.raises(SrattnError, match=words):
            open_rows([str(tmp_path / "list.csv")])
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(SrattnError, match="line 1 is no object such as"):
        open_rows([str(tmp_path / "list.jsonl")])
    (tmp_path / "list.ndjson").write_text('{"name": "../a.png", "": 1}\n{"name": "/b.png"}\n')
    rows = list(open_rows([str(tmp_path / "list.ndjson")]).read(0, 9))
    assert [(row.data, row.label) for row in rows] == [(tmp_path / "../a.png", None), (Path("/b.png"), None)]
    (tmp_path / "list.jsonl").write_text('{"path": "a.png", "label": ' + "9" * 5000 + "}\n")
    with pytest.raises(SrattnError, match="line 1 is no JSON that can be read"):
        open_rows([str(tmp_path / "list.jsonl")])
    with pytest.raises(SrattnError, match="digts does not exist; did you mean 'digits'"):
        open_rows(["digts"])


def test_patterns_and_what_only_training_reads(run: LoadedRun, tmp_path: Path) -> None:
    for number in range(3):
        write_shard(tmp_path / f"a-{number}.tar", [(f"{number}.png", png(number))])
    assert [s.name for s in open_rows([str(tmp_path / "a-{0..1}.tar")]).read(0, 9)] == ["0", "1"]
    assert len(open_rows([str(tmp_path / "a-*.tar")])) == 3
    with pytest.raises(SrattnError, match=r"a-3\.tar does not exist"):
        open_rows([str(tmp_path / "a-{2..3}.tar")])
    # MNIST's own form: magic number, sizes, bytes.
    (tmp_path / "idx").mkdir()
    pixels = bytes(range(32)) + bytes(32)
    head = b"".join(number.to_bytes(4, "big") for number in (0x803, 1, 8, 8))
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(head + pixels)
    labels = (0x801).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\x00"
    (tmp_path / "idx" / "train-labels-idx1-ubyte").write_bytes(labels)
    rows = open_rows([str(tmp_path / "idx")])
    (source,) = rows.read(0, 9)
    assert source.label is not None and isinstance(pixels_of(run, source), torch.Tensor)
    assert list(rows.stamp()) == list(open_rows([str(tmp_path / "idx")]).stamp())
    with pytest.raises(SrattnError, match="no split 'test'; there are train"):
        open_rows([str(tmp_path / "idx")], split="test")


def test_joined_rows_keep_their_places() -> None:
    rows = Joined([rows_of(3), Listed([]), rows_of(4)])
    names = [source.name for source in rows.read(0, 7)]
    assert len(rows) == 7 and names[3:] == [*names[:3], names[6]]
    for start in range(7):
        for stop in range(start, 9):
            assert [source.name for source in rows.read(start, stop)] == names[start:stop]


# -- parts ------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


class StopAfter(Classes):
    """Stops at a batch, as a kill would, but leaves the test alive."""

    def __init__(self, run: LoadedRun, batches: int) -> None:
        super().__init__(run)
        self.left = batches

    def compute(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.left -= 1
        if self.left == 0:
            raise Stop
        return super().compute(inputs)


def test_an_interrupted_pass_goes_on(run: LoadedRun, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    answer_all(whole, rows_of(), run, Classes(run), batch_size=4, part_rows=8)
    out = tmp_path / "out.parquet"
    with pytest.raises(Stop):
        answer_all(out, rows_of(), run, StopAfter(run, 7), batch_size=4, part_rows=8)
    parts = sorted(path.name for path in (tmp_path / "out.parquet.parts").iterdir())
    assert parts == ["manifest.json", "part-00000.parquet", "part-00001.parquet"] and not out.exists()
    # A part that was damaged since is made again; parts of another size would not fit between those that are there.
    (tmp_path / "out.parquet.parts" / "part-00001.parquet").write_bytes(b"damaged")
    seen = StopAfter(run, 99)
    written = answer_all(out, rows_of(), run, seen, batch_size=4, part_rows=20)
    assert written is not None and (written.rows, written.bad) == (50, 0)
    assert 99 - seen.left == 1 + 11  # one batch for the shapes; then 42 rows, in parts of 8 rows and batches of 4
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "whole.parquet"]
    table = pq.read_table(out)
    assert table.column("name").to_pylist() == [source.name for source in rows_of().read(0, 50)]
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        answer_all(out, rows_of(), run, Classes(run))


def test_other_data_model_or_options_are_refused(run: LoadedRun, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(Stop):
        answer_all(out, rows_of(), run, StopAfter(run, 4), batch_size=8, part_rows=8)
    with pytest.raises(SrattnError, match=r"begun with other data, rows: give what"):
        answer_all(out, rows_of(40), run, Classes(run))
    with pytest.raises(SrattnError, match="begun with other top"):
        answer_all(out, rows_of(), run, Classes(run, 2))
    before = run.model.head.weight.detach().clone()  # type: ignore[union-attr]
    with torch.no_grad():
        run.model.head.weight += 1  # type: ignore[operator]
    with pytest.raises(SrattnError, match="begun with other weights"):
        answer_all(out, rows_of(), run, Classes(run))
    with torch.no_grad():
        run.model.head.weight.copy_(before)  # type: ignore[operator]
    (tmp_path / "out.parquet.parts" / "manifest.json").write_text("{}")
    with pytest.raises(SrattnError, match=r"remove .* to begin anew"):
        answer_all(out, rows_of(), run, Classes(run))
    with pytest.raises(SrattnError, match=r"name it out\.parquet"):
        answer_all(tmp_path / "out.csv", rows_of(), run, Classes(run))
    with pytest.raises(SrattnError, match="no images"):
        answer_all(tmp_path / "none.parquet", Listed([]), run, Classes(run))


def test_killed_after_the_rename(run: LoadedRun, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    answer_all(out, rows_of(), run, Classes(run))
    before = out.read_bytes()
    (tmp_path / "out.parquet.parts").mkdir()  # its removal was under way
    written = answer_all(out, rows_of(), run, Classes(run))
    assert written is not None and out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_an_unreadable_image_keeps_its_row(run: LoadedRun, tmp_path: Path) -> None:
    rows = list(rows_of(5).read(0, 5))
    rows[1] = Source("broken\udcff", b"no image", "7")
    rows[3] = Source("gone", tmp_path / "gone.png")
    told: list[BadImage] = []
    written = answer_all(
        tmp_path / "out.parquet", Listed(rows), run, Classes(run), part_rows=2, on_bad_image=told.append
    )
    assert written is not None and (written.rows, written.bad) == (5, 2) and len(told) == 2
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["error"] is None for row in found] == [True, False, True, False, True]
    assert (found[1]["name"], found[1]["label"], found[1]["class"]) == ("broken�", "7", None)
    assert found[1]["top_classes"] is None and "not an image" in found[1]["error"]
    # A part without a single readable image has the same columns.
    only_bad = answer_all(tmp_path / "bad.parquet", Listed(rows[1:2]), run, Classes(run))
    assert only_bad is not None and only_bad.bad == 1
    assert pq.read_schema(tmp_path / "bad.parquet").equals(pq.read_schema(tmp_path / "out.parquet"))


KILLED = """
import os, random, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from srattn.engine.predict import Classes
from srattn.engine.rows import open_rows
from srattn.engine.rows.job import answer_all
from srattn.engine.rows.watch import Watch
from srattn.engine.weights import load_run

class Kill(Watch):
    def __init__(self, at):
        self.at = at
    def advance(self, rows):
        self.at -= 1
        if self.at <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

run, rows, out = load_run(sys.argv[1]), open_rows([sys.argv[3]]), Path(sys.argv[2])
draw, kills = random.Random(1), 0
while True:
    child = os.fork()
    if child == 0:
        answer_all(out, rows, run, Classes(run), batch_size=4, part_rows=8, watch=Kill(draw.randrange(3, 14)))
        os._exit(0)
    draw.random()
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status) or (kills < 2))
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file of 70 images in groups of 16 rows."""
    path = tmp_path_factory.mktemp("table") / "images.parquet"
    levels = torch.randint(256, (70, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    rows = []
    for number, picture in enumerate(levels):
        buffer = io.BytesIO()
        Image.fromarray(picture.numpy()).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{number}.png"}, "label": number % 10})
    write_table(path, rows, group=16)
    return path


def test_killed_at_random_and_resumed_is_the_same_file(
    weights: Path, table: Path, run: LoadedRun, tmp_path: Path
) -> None:
    out = tmp_path / "killed.parquet"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(weights), str(out), str(table)],
        env=environment(),
        capture_output=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr.decode()
    whole = tmp_path / "whole.parquet"
    answer_all(whole, open_rows([str(table)]), run, Classes(run), batch_size=4, part_rows=8)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.parquet", "whole.parquet"]


def test_two_processes_of_torchrun_give_the_file_of_one(
    weights: Path, table: Path, run: LoadedRun, tmp_path: Path
) -> None:
    out = tmp_path / "two.parquet"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "srattn"]
    command += ["predict", str(table), "--model", str(weights), "--out", str(out)]
    command += ["--batch_size", "4", "--part_rows", "8", "--num_workers", "0"]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == f"{out}: 70 rows\n"
    whole = tmp_path / "whole.parquet"
    answer_all(whole, open_rows([str(table)]), run, Classes(run), batch_size=4, part_rows=8)
    assert out.read_bytes() == whole.read_bytes()


# -- ranks ------------------------------------------------------------------------------------------------------------


class Together(Ranks):
    """Ranks that share a store in memory instead of one that torchrun brings."""

    def __init__(self, rank: int, world: int, store: Any) -> None:
        super().__init__(rank, world)
        self._store = store


def test_what_a_dead_rank_left_is_finished_by_one_process(run: LoadedRun, tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    out = tmp_path / "out.parquet"
    store.set("srattn/done 1", "done")  # it says so and has done nothing
    with pytest.raises(SrattnError, match=r"3 part\(s\) of .* are missing: give the same command again"):
        answer_all(out, rows_of(), run, Classes(run), part_rows=8, ranks=Together(0, 2, store))
    parts = sorted(path.name for path in (tmp_path / "out.parquet.parts").glob("part-*"))
    assert parts == [f"part-0000{number}.parquet" for number in (0, 2, 4, 6)]
    written = answer_all(out, rows_of(), run, Classes(run), part_rows=8)
    assert written is not None and pq.read_table(out).column("name").to_pylist() == [
        source.name for source in rows_of().read(0, 50)
    ]


def test_ranks_tell_each_other_why_they_stop(run: LoadedRun, tmp_path: Path) -> None:
    store = torch.distributed.HashStore()
    with pytest.raises(SrattnError, match="exists"):
        (tmp_path / "out.parquet").write_text("mine")
        answer_all(tmp_path / "out.parquet", rows_of(), run, Classes(run), ranks=Together(0, 2, store))
    with pytest.raises(SrattnError, match=r"rank 0 failed: .* exists and is not overwritten"):
        answer_all(tmp_path / "out.parquet", rows_of(), run, Classes(run), ranks=Together(1, 2, store))
    store = torch.distributed.HashStore()
    store.set("srattn/begun", "another")
    with pytest.raises(SrattnError, match="rank 1 sees another model or other data"):
        answer_all(tmp_path / "b.parquet", rows_of(), run, Classes(run), ranks=Together(1, 2, store))
    with pytest.raises(SrattnError, match="rank 1 failed: rank 1 sees another model"):
        answer_all(tmp_path / "b.parquet", rows_of(), run, Classes(run), ranks=Together(0, 2, store))


def test_ranks_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert Ranks.of_torchrun().world == 1
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks.of_torchrun()
    assert (ranks.rank, ranks.world, ranks.local) == (3, 4, 1)
    monkeypatch.setenv("RANK", "four")
    with pytest.raises(SrattnError, match="whole numbers"):
        Ranks.of_torchrun()
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(SrattnError, match="got 4 of 4"):
        Ranks.of_torchrun()
