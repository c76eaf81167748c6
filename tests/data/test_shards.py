"""Tar shards: their forms, their ends, their URLs."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from srattn.data.decode import BadImage
from srattn.data.download import download
from srattn.data.loader import Loader
from srattn.data.patterns import expand, part_of
from srattn.data.preprocess import Preprocess
from srattn.data.reader import load_data, open_data
from srattn.data.samples import ImageData
from srattn.data.spec import parse_augment
from srattn.data.tar import read_contents
from srattn.errors import SrattnError

AUGMENT = parse_augment("none", Preprocess(size=(8, 8)))


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(start: int, count: int) -> list[tuple[str, bytes]]:
    rows = [[(f"{n:04d}.png", png(n)), (f"{n:04d}.cls", str(n % 3).encode())] for n in range(start, start + count)]
    return [file for row in rows for file in row]


def load(data: Path | str, **options: Any) -> ImageData:
    return load_data(str(data), AUGMENT, **options)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards of nine images and a validation shard of three."""
    for number in range(2):
        write_tar(tmp_path / "shards" / f"train-{number:04d}.tar", samples(9 * number, 9))
    write_tar(tmp_path / "shards" / "val-0000.tar", samples(100, 3))
    return tmp_path / "shards"


def test_a_folder_a_pattern_and_a_glob(shards: Path) -> None:
    whole = load(shards)
    assert whole.classes == ["0", "1", "2"] and whole.skipped == []
    assert (len(whole.train), len(whole.val)) == (18, 3)
    assert whole.train.pixels(12).unique().tolist() == [12] and whole.train.labels[12] == 0
    assert whole.train.names[12] == "train-0001.tar/0012"
    braces = load(f"{shards}/train-{{0000..0001}}.tar", val=f"{shards}/val-{{0000..0000}}.tar")
    assert braces.fingerprint() == whole.fingerprint()
    assert load(f"{shards}/*.tar").fingerprint() == whole.fingerprint()
    assert load(f"{shards}/*.tar", hold_bytes=0).contents() == whole.contents()
    assert braces.contents() == whole.contents()
    assert len(load(f"{shards}/train-*.tar", val="split").val) == 3
    with pytest.raises(SrattnError, match=r"no file matches .*nothing-\*"):
        load(f"{shards}/nothing-*.tar")


def test_any_step_on_any_process_without_loss_or_repetition(shards: Path) -> None:
    data = load(shards, hold_bytes=0)
    loaders = [Loader(data, AUGMENT, 4, seed=2, workers=2, rank=rank, world=2) for rank in range(2)]
    seen = torch.cat([batch.indices for loader in loaders for batch in loader.train(0)])
    assert seen.sort().values.tolist() == list(range(18))
    later = next(iter(Loader(data, AUGMENT, 4, seed=2).train(0, first_step=3)))
    assert torch.equal(later.inputs, list(Loader(data, AUGMENT, 4, seed=2).train(0))[3].inputs)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_contents_are_what_the_standard_library_finds(tmp_path: Path, kind: int) -> None:
    long = "deep/" * (8 if kind == tarfile.USTAR_FORMAT else 60) + "x" * 60 + ".png"
    files = [("a.png", png(1)), (long, png(2)), ("ü/b.txt", b""), ("c.png", b"x" * 512), ("d.png", b"y" * 513)]
    path = write_tar(tmp_path / "a.tar", files, kind)
    with tarfile.open(path, "a") as tar:
        link, folder = tarfile.TarInfo("link.png"), tarfile.TarInfo("folder")
        link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
        tar.addfile(link)
        tar.addfile(folder)
    members, wrong = read_contents(path)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    assert wrong == "" and [(m.name, m.offset, m.size) for m in members] == expected


def test_sizes_and_lengths_that_lead_nowhere(tmp_path: Path) -> None:
    whole, end = tarfile.TarInfo("a.png"), bytes(1024)
    whole.size = 3
    first = whole.tobuf() + b"png".ljust(512, b"\0")
    below = tarfile.TarInfo("b.png")
    below.size = -512  # `tarfile` comes back to this header, for ever
    (tmp_path / "below.tar").write_bytes(first + below.tobuf(tarfile.GNU_FORMAT) + end)
    members, wrong = read_contents(tmp_path / "below.tar")
    assert [member.name for member in members] == ["a.png"] and "within the file 'b.png'" in wrong
    # Lengths of records: none, beyond the end, of more digits than a number may have, too short to hold themselves.
    record = "20 path=renamed.png\n"
    assert len(record) == 20
    for text, name in (
        (record, "renamed.png"),
        (f"{record}9 x=1\n", "renamed.png"),
        (f" {record}", "a.png"),
        (f"{'9' * 5000} {record}", "a.png"),
        (f"1 {record}", "a.png"),
        (f"{'2 ' * 1000}{record}", "renamed.png"),
    ):
        extra = tarfile.TarInfo("x")
        extra.size, extra.type = len(text), tarfile.XHDTYPE
        padded = text.encode() + bytes(-len(text) % 512)
        (tmp_path / "pax.tar").write_bytes(extra.tobuf() + padded + first + end)
        assert [member.name for member in read_contents(tmp_path / "pax.tar")[0]] == [name]


def test_labels_in_their_several_forms(tmp_path: Path) -> None:
    files = [
        ("a/1.png", png(1)), ("a/1.json", json.dumps({"label": "b", "text": "x"}).encode()),
        ("a/2.png", png(2)),
        ("b/3.x.png", png(3)),
        ("b/4.json", b"{broken"), ("b/4.jpg", b"junk"),
        ("5.png", png(5)), ("5.txt", b"a caption"),
        ("b/6.txt", b"no image"),
        ("__notes__", b""), ("b/._7.png", b"left by another system"),
    ]  # fmt: skip
    index = open_data(str(write_tar(tmp_path / "one.tar", files)))
    found = {item.name: index.classes[item.label] for item in index.parts["train"]}
    assert found == {"one.tar/a/1": "b", "one.tar/a/2": "a", "one.tar/b/3": "b"}
    assert len(index.skipped) == 3
    said = "\n".join(index.skipped)
    for words in ("b/6: there is no image among txt", "b/4: it has no label", "one.tar/5: it has no label"):
        assert words in said
    everything = open_data(str(tmp_path / "one.tar"), labelled=False)
    assert [item.label for item in everything.parts["train"]] == [1, 0, 1, -1, -1]


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.77])
def test_a_shard_that_ends_early(shards: Path, cut: float) -> None:
    path = shards / "train-0001.tar"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    read = load(shards)
    assert 9 < len(read.train) < 18
    assert any("train-0001.tar ends early" in line for line in read.skipped)
    with pytest.raises(BadImage, match=r"train-0001\.tar"):
        load(shards, on_bad_image="error")
    for index in range(len(read.train)):
        assert read.train.pixels(index).unique().tolist() == [index]


def test_shards_that_are_missing_empty_or_none_at_all(shards: Path) -> None:
    (shards / "train-0002.tar").write_bytes(b"")
    (shards / "train-0003.tar").write_bytes(b"junk" * 1000)
    pattern = f"{shards}/train-{{0000..0004}}.tar"
    read = load(pattern, val="split")
    assert len(read.train) + len(read.val) == 18
    said = "\n".join(read.skipped)
    for words in ("0002.tar ends early", "0003.tar is no tar archive", "0004.tar: No such file"):
        assert words in said
    with pytest.raises(SrattnError, match="no image in 3 shard"):
        load(f"{shards}/train-{{0002..0004}}.tar")


def test_a_shard_that_shrinks_during_the_run(shards: Path) -> None:
    read = load(shards, hold_bytes=0)
    path = shards / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    batches = list(Loader(read, AUGMENT, 6, 0).train(0))
    assert sum(len(batch.indices) for batch in batches) == 18
    with pytest.raises(BadImage, match=r"ends .* before the image"):
        read.train.pixels(17)


def test_patterns() -> None:
    assert expand("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"]
    assert expand("https://x.org/{0..1}.tar?v=1") == ["https://x.org/0.tar?v=1", "https://x.org/1.tar?v=1"]
    for wrong in ("{3..1}", "{0..999999999}", "{0..9999}{0..9999}"):
        with pytest.raises(SrattnError):
            expand(wrong)
    assert [part_of(n) for n in ("imagenet-train-01", "val_3", "Testing", "contest")] == ["train", "val", "test", None]


class Server(BaseHTTPRequestHandler):
    """Files from a dictionary, with ranges; breaks off after `stop_after` bytes, once."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str | None] = []  # noqa: RUF012
    stop_after: int | None = None
    tag = '"one"'

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        if data is None:
            self.send_error(404)
            return
        if self.path.startswith("/chunked"):  # ends before its second piece
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n%x\r\n" % (len(data), data, len(data)))
            return
        start = 0
        if wanted and self.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", self.tag)
        self.end_headers()
        end = len(data) if Server.stop_after is None else start + Server.stop_after
        Server.stop_after = None
        self.wfile.write(data[start:end])

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    Server.files, Server.asked, Server.stop_after, Server.tag = {}, [], None, '"one"'
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()
    thread.join()


def test_shards_from_the_web(server: str, shards: Path) -> None:
    Server.files = {f"/{path.name}": path.read_bytes() for path in shards.iterdir()}
    urls = f"{server}/train-{{0000..0002}}.tar"
    read = load(urls, val=f"{server}/val-0000.tar")
    assert (len(read.train), len(read.val)) == (18, 3)
    assert len(read.skipped) == 1 and "train-0002.tar: 404" in read.skipped[0]
    asked = len(Server.asked)
    assert load(f"{server}/train-0000.tar", val="split").train.names[0].startswith("train-0000.tar/")
    assert len(Server.asked) == asked  # from the cache
    local = load((shards / "train-0000.tar").as_uri(), val="split")
    assert len(local.train) + len(local.val) == 9


def test_a_download_that_breaks_off_is_resumed(server: str) -> None:
    Server.files["/a.tar"] = bytes(range(256)) * 400
    Server.stop_after = 30_000
    with pytest.raises(BadImage, match=r"broke off after 30,000 of 102,400"):
        download(f"{server}/a.tar")
    path = download(f"{server}/a.tar")
    assert path.read_bytes() == Server.files["/a.tar"]
    assert Server.asked == [None, "bytes=30000-"]
    assert [file.name for file in path.parent.iterdir()] == ["a.tar"]


def test_an_answer_in_pieces_that_breaks_off_is_an_error_of_the_url(server: str, tmp_path: Path) -> None:
    Server.files["/chunked.tar"] = b"data" * 1000
    with pytest.raises(BadImage, match=r"chunked\.tar: IncompleteRead.*; what is there is kept, start again"):
        download(f"{server}/chunked.tar")
    (part,) = (tmp_path / "cache").rglob("*.part")
    assert part.read_bytes() == Server.files["/chunked.tar"]


def test_a_space_in_a_url_is_named(server: str) -> None:
    with pytest.raises(BadImage, match=r"a b\.tar: URL can't contain control characters"):
        download(f"{server}/a b.tar")


def test_a_file_that_changed_meanwhile_is_taken_anew(server: str) -> None:
    Server.files["/a.tar"], Server.stop_after = b"old" * 1000, 1000
    with pytest.raises(BadImage, match="broke off"):
        download(f"{server}/a.tar")
    Server.files["/a.tar"], Server.tag = b"new" * 900, '"two"'
    assert download(f"{server}/a.tar").read_bytes() == b"new" * 900


def test_downloads_are_bounded(server: str, tmp_path: Path) -> None:
    Server.files["/a.tar"] = bytes(5000)
    with pytest.raises(BadImage, match="5,000 bytes are more than the 4,000"):
        download(f"{server}/a.tar", most=4000)
    assert not list((tmp_path / "cache").rglob("*.tar"))
    with pytest.raises(BadImage, match="404"):
        download(f"{server}/none.tar")
    with pytest.raises(SrattnError, match="names the machine 'elsewhere'"):
        download("file://elsewhere/a.tar")


def test_a_shard_that_ends_within_a_filling_says_how_long_it_is(tmp_path: Path) -> None:
    """No more bytes than the file has, though the next header would be further on."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("0.cls")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"3"))
    path.write_bytes(path.read_bytes()[:600])
    members, wrong = read_contents(path)
    assert [member.name for member in members] == ["0.cls"]
    assert wrong == "ends early, after 600 bytes and 1 whole files"
