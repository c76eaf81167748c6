"""The service under load: throughput and latency with and without batching, every answer checked, hostile files.

    python benchmarks/serve.py            # writes benchmarks/results/serve.json, serve.md and serve.png
    python benchmarks/serve.py --short    # the same with fewer requests

The service runs in a process of its own (`srattn serve`) and the clients in this one, over keep-alive connections to
127.0.0.1, each sending the next request when it has the answer to the last. The pictures are random JPEG files. Give
both processes cores of their own for figures that mean something.

1. Images per second, and the median and 99th percentile of the latency, at each concurrency; once with batches and once
   with `--max_batch 1 --max_wait_ms 0`.
2. Concurrent requests with pictures that differ, each answer compared with what the model says of that picture alone.
3. Damaged images: none may be answered by a code of 500 or more; the memory of the service is read ten times.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe
from PIL import Image

RESULTS = Path(__file__).parent / "results"
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
WITHOUT = ("--max_batch", "1", "--max_wait_ms", "0")


class Line:
    """One keep-alive connection, with as little work for a request as possible."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        kind = "image/jpeg" if body else "text/plain"
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextlib.contextmanager
def service(model: str, *options: str) -> Iterator[tuple[str, int]]:
    """Address and process number of `srattn serve`, which is stopped by SIGTERM and must then end with code 0."""
    command = [sys.executable, "-m", "srattn", "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    assert code == 0, f"the service ended with code {code}"


def pictures(count: int, side: int = 224) -> list[bytes]:
    """Different JPEG files of that side."""
    import torch

    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        coarse = torch.randint(0, 256, (6, 6, 3), generator=generator, dtype=torch.uint8)
        image = Image.frombytes("RGB", (6, 6), coarse.numpy().tobytes()).resize((side, side), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def damaged(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes) of files that are no whole pictures, or claim too much; a few flipped ones may still be whole."""
    dice = random.Random(seed)
    whole = _whole()
    makers = (_truncated, _flipped, _bomb, _wrong_type, _spliced)
    for number in range(count):
        kind, data = makers[number % len(makers)](dice, whole)
        yield kind, data


def _whole() -> dict[str, bytes]:
    noise = Image.frombytes("RGB", (64, 48), random.Random(1).randbytes(64 * 48 * 3))
    found = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        noise.save(file, kind)
        found[kind] = file.getvalue()
    return found


def _truncated(dice: random.Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    kind = dice.choice(sorted(whole))
    return f"truncated {kind}", whole[kind][: dice.randrange(1, len(whole[kind]) * 9 // 10)]


def _flipped(dice: random.Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    kind = dice.choice(sorted(whole))
    data = bytearray(whole[kind])
    for _ in range(dice.randrange(1, 40)):
        data[dice.randrange(min(len(data), 400))] ^= 1 << dice.randrange(8)
    return f"flipped {kind}", bytes(data)


def _bomb(dice: random.Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    side = dice.choice((20_000, 65_000, 2**31 - 1))
    if dice.random() < 0.3:
        return "bomb PPM", f"P6 {side} {side} 255\n".encode()
    if dice.random() < 0.3:
        return "bomb GIF", b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\x80\x00\x00" + bytes(20)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, dice.choice((0, 2, 6)), 0, 0, 0)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(20_000_000))) if dice.random() < 0.2 else b""
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    kind = "bomb PNG with text" if text else "bomb PNG"
    return kind, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + pixels + chunk(b"IEND", b"")


def _wrong_type(dice: random.Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    texts = {
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "ZIP": b"PK\x03\x04" + dice.randbytes(200),
        "GZIP": b"\x1f\x8b\x08" + dice.randbytes(200),
        "ELF": b"\x7fELF\x02\x01\x01" + dice.randbytes(200),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "random": dice.randbytes(dice.randrange(1, 4000)),
        "zeros": bytes(dice.randrange(1, 4000)),
        "ICO": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\4\0\0\x16\0\0\0" + bytes(300),
    }
    kind = dice.choice(sorted(texts))
    return kind, texts[kind]


def _spliced(dice: random.Random, whole: dict[str, bytes]) -> tuple[str, bytes]:
    """The head of one format before the body of another."""
    first, second = dice.sample(sorted(whole), 2)
    return f"{first} before {second}", whole[first][: dice.randrange(4, 60)] + whole[second][dice.randrange(8, 200) :]


async def load(url: str, files: list[bytes], lines: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each request over `lines` connections, and of all."""
    numbers, seconds = iter(range(requests)), []

    async def client() -> None:
        line = Line(url)
        for number in numbers:
            started = time.perf_counter()
            status, answer = await line.ask("POST", "/predict", files[number % len(files)])
            assert status == 200, answer
            seconds.append(time.perf_counter() - started)
        line.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(lines)))
    return seconds, time.perf_counter() - started


def speed(model: str, requests: int) -> list[dict[str, Any]]:
    """A row for each concurrency, with and without batches."""
    files, rows = pictures(64), []
    for kind, options in (("batches", ()), ("one by one", WITHOUT)):
        with service(model, *options) as (url, _):
            asyncio.run(load(url, files, 4, 16))
            for lines in CONCURRENCY:
                seconds, whole = asyncio.run(load(url, files, lines, max(requests, 2 * lines)))
                ranked = sorted(seconds)
                rows.append(
                    {
                        "kind": kind,
                        "concurrency": lines,
                        "requests": len(seconds),
                        "images_per_second": len(seconds) / whole,
                        "p50_ms": 1000 * statistics.median(ranked),
                        "p99_ms": 1000 * ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))],
                    }
                )
                print(rows[-1], flush=True)
    return rows


def checked(model: str, requests: int, lines: int) -> dict[str, Any]:
    """Concurrent requests, each of whose answers is compared with the model's own for that picture alone."""
    import torch

    from srattn.engine.open_model import open_model
    from srattn.engine.predict import classify
    from srattn.engine.rows.base import Source

    torch.set_num_threads(1)
    files = pictures(256)
    run = open_model(model)
    alone = list(classify(run, [Source(str(n), data) for n, data in enumerate(files)], batch_size=1))
    expected = [dict(zip(each.classes, each.probabilities, strict=True)) for each in alone]
    # The tolerance may not let another picture's answer through.
    tolerance = 1e-4
    rows = torch.tensor([[each[name] for name in run.classes] for each in expected])
    distance = (rows[:, None] - rows[None]).abs().amax(dim=2) + torch.eye(len(rows))
    nearest, worst = float(distance.min()), 0.0
    assert nearest > 2 * tolerance, f"two pictures are answered alike ({nearest:.1e})"
    numbers = iter(range(requests))

    async def client(url: str) -> None:
        nonlocal worst
        line = Line(url)
        for number in numbers:
            status, answer = await line.ask("POST", f"/predict?top={len(run.classes)}", files[number % len(files)])
            assert status == 200, answer
            true = expected[number % len(files)]
            for each in json.loads(answer)["answers"][0]["classes"]:
                worst = max(worst, abs(each["probability"] - true[each["name"]]))
        line.close()

    async def all_of(url: str) -> None:
        await asyncio.gather(*(client(url) for _ in range(lines)))

    with service(model, "--queue", str(2 * lines), "--timeout", "600") as (url, _):
        asyncio.run(all_of(url))
    assert worst <= tolerance, f"an answer is off by {worst:.1e}"
    return {"requests": requests, "concurrency": lines, "pictures": len(files), "worst": worst, "nearest": nearest}


def hostile(model: str, count: int) -> dict[str, Any]:
    """Damaged files, one after another: status codes, and resident memory after a tenth of them and after all."""

    async def send(url: str, pid: int) -> tuple[Counter[int], list[int]]:
        line, codes, memory = Line(url), Counter(), []
        for number, (kind, data) in enumerate(damaged(count)):
            status, answer = await line.ask("POST", "/predict", data)
            assert status < 500 and (status == 200 or set(json.loads(answer)) == {"error"}), (kind, status, answer)
            codes[status] += 1
            if (number + 1) % max(1, count // 10) == 0:
                memory.append(resident(pid))
        status, _ = await line.ask("GET", "/health")
        assert status == 200
        line.close()
        return codes, memory

    with service(model) as (url, pid):
        codes, memory = asyncio.run(send(url, pid))
    return {"files": count, "codes": {str(code): codes[code] for code in sorted(codes)}, "resident_bytes": memory}


def resident(pid: int) -> int:
    """VmRSS of a process, in bytes; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return 1024 * int(line.split()[1])
    return 0


def page(result: dict[str, Any]) -> str:
    """The result for people."""
    machine, check, bad = result["machine"], result["checked"], result["hostile"]
    memory = [f"{value / 1e6:.0f}" for value in bad["resident_bytes"]]
    lines = [
        "# The service under load",
        "",
        f"{machine['cpu']}, torch {machine['torch']}, fastapi {result['versions']['fastapi']}, uvicorn "
        f"{result['versions']['uvicorn']}, srattn {machine['commit']}. Model: {result['model']}; pictures are JPEG "
        f"files of 224 x 224. {result['note']} Written by `{result['command']}`.",
        "",
        "| concurrency | as | requests | images/s | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(result["speed"], key=lambda row: (row["concurrency"], row["kind"])):
        figures = (f"{row['images_per_second']:.1f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}")
        lines.append(f"| {row['concurrency']} | {row['kind']} | {row['requests']} | {' | '.join(figures)} |")
    lines += [
        "",
        f"{check['requests']:,} requests with {check['pictures']} pictures over {check['concurrency']} connections at "
        f"once: every answer is its own picture's. The probabilities differ from those of the picture alone by "
        f"{check['worst']:.1e} at most; the two pictures that are closest differ by {check['nearest']:.1e}.",
        "",
        f"{bad['files']:,} damaged files (truncated, flipped, bombs, wrong types, spliced): status codes "
        f"{', '.join(f'{code} ({count})' for code, count in bad['codes'].items())}; 200 is a file that is still "
        f"a picture. Resident memory of the service after each tenth, MB: {', '.join(memory)}.",
    ]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for kind, colour in (("batches", "#0d7a70"), ("one by one", "#b8431f")):
        rows = [row for row in result["speed"] if row["kind"] == kind]
        x = [row["concurrency"] for row in rows]
        axes[0].plot(x, [row["images_per_second"] for row in rows], "o-", color=colour, label=kind, ms=4)
        axes[1].plot(x, [row["p50_ms"] for row in rows], "o-", color=colour, label=f"{kind}, p50", ms=4)
        axes[1].plot(x, [row["p99_ms"] for row in rows], "o--", color=colour, label=f"{kind}, p99", ms=4, alpha=0.6)
    for each, title in zip(axes, ("Images per second", "Latency, ms"), strict=True):
        each.set_title(title, loc="left", fontsize=10)
        each.set_xscale("log", base=2)
        each.set_xticks(CONCURRENCY, [str(lines) for lines in CONCURRENCY])
        each.set_xlabel("requests at once")
        each.set_ylim(bottom=0)
        each.grid(color="#dddbd6", lw=0.6)
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="box-small", help="as srattn serve takes it")
    parser.add_argument("--requests", type=int, default=2000, help="of each concurrency")
    parser.add_argument("--checked", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=1000, help="at once, for the checked requests")
    parser.add_argument("--damaged", type=int, default=1000)
    parser.add_argument("--short", action="store_true", help="fewer requests")
    parser.add_argument("--note", default="", help="what else has to be said of the machine")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    args = parser.parse_args()
    if args.short:
        args.requests, args.checked, args.connections = 128, 2000, 200
    command = " ".join(["python", "benchmarks/serve.py", *(["--short"] if args.short else [])])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    result = {
        "machine": describe(cores),
        "versions": {name: version(name) for name in ("fastapi", "starlette", "uvicorn", "pillow", "torch")},
        "command": command,
        "model": "the small model in the box" if args.model == "box-small" else args.model,
        "note": args.note or f"Service and clients share {cores} core(s).",
        "hostile": hostile(args.model, args.damaged),
        "checked": checked(args.model, args.checked, args.connections),
        "speed": speed(args.model, args.requests),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(result))
    plot(result, args.out.with_suffix(".png"))
    print(page(result))


if __name__ == "__main__":
    main()
