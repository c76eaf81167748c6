"""Which kernel and which block sizes for a shape: what was tuned on this device, else a rule of thumb.

Nothing is tuned on the way: a first forward never stalls. `srattn.bench.gpu` tunes, and `cache` keeps the result.
"""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch

from srattn.ops.triton import cache
from srattn.ops.triton.language import ceil_div, power_of_two

MAX_KEYS, MAX_HEADS, MAX_CHANNELS = 1024, 16, 512
MAX_PROGRAMS = 65_535
"""Of a grid's second and third axis."""
WHOLE_ROWS = 256
"""Most rows (heads x keys, padded) whose keys and values `whole_forward` keeps on chip."""
WHOLE_GRADIENT = 64 * 128
"""Most elements of dK' (and of dV') that `whole_backward` keeps in registers."""
HOPPER_SHARED = 227 * 1024
"""Bytes of shared memory that a program may have on an H100 or H200."""

# What tuning tries beside the rules of thumb: queries of a tile, 0, warps, stages, tiles of one program. What spills
# many registers on Hopper is not among it (docs/gpu.md).
WHOLE_FORWARD = (
    (64, 0, 8, 2), (128, 0, 8, 2), (64, 0, 8, 1), (64, 0, 8, 3), (64, 0, 8, 2, 4), (128, 0, 8, 1, 4), (64, 0, 8, 2, 8),
    (64, 0, 4, 2), (64, 0, 4, 3), (128, 0, 4, 2), (64, 0, 4, 2, 4), (64, 0, 4, 3, 8), (64, 0, 4, 1, 1),
)  # fmt: skip
WHOLE_BACKWARD = ((64, 0, 8, 1), (64, 0, 4, 1), (64, 0, 4, 2), (64, 0, 8, 2, 4), (64, 0, 8, 2, 8), (128, 0, 8, 1))
# And queries of a tile, keys of a block, warps, stages: for up to 64 channels, up to 128, and more.
BLOCKED_FORWARD = {
    64: ((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 128, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3),
         (128, 128, 8, 2), (64, 32, 4, 3)),
    128: ((64, 64, 8, 2), (64, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2), (128, 32, 8, 2), (128, 32, 8, 3)),
    512: ((64, 64, 8, 1), (64, 64, 8, 2), (128, 64, 8, 1)),
}  # fmt: skip
BLOCKED_BACKWARD = {
    64: ((64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 8, 1), (128, 64, 8, 1), (64, 32, 4, 2), (128, 32, 8, 1)),
    128: ((64, 64, 8, 1), (64, 32, 8, 1), (64, 32, 8, 2), (128, 32, 8, 1)),
    512: ((64, 64, 8, 1), (64, 32, 8, 1)),
}


class Few(NamedTuple):
    """The sizes of one absorbed attention: images, queries, keys, channels in and out, heads, bytes of an element."""

    batch: int
    queries: int
    keys: int
    dim: int
    out_dim: int
    heads: int
    itemsize: int
    bias: bool = False
    """Whether there is a bias for each pair of query and key."""
    norm: bool = False
    """Whether x is normalised in the kernel."""

    @property
    def rows(self) -> int:
        """Heads times keys, each padded to a power of two."""
        return (1 << (self.heads - 1).bit_length()) * power_of_two(self.keys)


class Blocks(NamedTuple):
    """How a kernel is launched. `tiles`: tiles of queries that one program walks over; 0 fills the device."""

    kind: str
    """"whole", where the keys stay on chip, or "blocked"."""
    block_n: int
    block_m: int
    warps: int
    stages: int
    tiles: int = 0


class Chunks(NamedTuple):
    """Channels in blocks that powers of two allow."""

    block: int
    number: int


def chunks(channels: int, held: int) -> Chunks:
    """One block where `held` channels or fewer can be held at once, else blocks of 64."""
    whole = power_of_two(channels)
    return Chunks(whole, 1) if whole <= held else Chunks(64, ceil_div(channels, 64))


def held_channels(itemsize: int) -> int:
    """Channels of a tile that are held at once."""
    return 128 if itemsize >= 4 else 256


def norm_fits(channels: int, itemsize: int) -> bool:
    """A norm inside the kernel needs all channels of a token in one block."""
    return power_of_two(channels) <= held_channels(itemsize)


def can_be_whole(s: Few, shared: int = HOPPER_SHARED) -> bool:
    """Whether K' and V' fit on a chip with so many bytes of shared memory, beside the tiles that pass."""
    wide = max(power_of_two(s.dim), power_of_two(s.out_dim))
    on_chip = s.rows * (power_of_two(s.dim) + power_of_two(s.out_dim)) * s.itemsize
    return not s.bias and s.rows <= WHOLE_ROWS and wide <= 128 and on_chip <= 9 * shared // 16


def gradient_can_be_whole(s: Few, shared: int = HOPPER_SHARED) -> bool:
    wide = max(power_of_two(s.dim), power_of_two(s.out_dim))
    return can_be_whole(s, shared) and s.rows * wide <= WHOLE_GRADIENT and s.heads <= 4


def _blocks(s: Few, shared: int) -> tuple[int, int]:
    """Queries and keys of a block, so that it and its tile of scores fit: fewer of many channels, in fp32, and on
    chips with less shared memory than those for data centres."""
    wide = max(power_of_two(s.dim), power_of_two(s.out_dim))
    small = shared < HOPPER_SHARED // 2
    if s.itemsize >= 4:
        return (16, 16) if small else (32, min(power_of_two(s.keys), 32))
    block_m = 32 if small or (wide > 128 and s.keys > 64) else 64
    return 32 if small else 64, min(power_of_two(s.keys), block_m)


def default_forward(s: Few, shared: int = HOPPER_SHARED) -> Blocks:
    """The rule of thumb; on large chips what was fastest on an H100 (benchmarks/results/gpu_h100.json)."""
    wide = max(power_of_two(s.dim), power_of_two(s.out_dim))
    if shared >= HOPPER_SHARED // 2 and s.itemsize < 4 and s.rows > 128 and wide <= 128:
        block_n, block_m, warps, stages = (64, 32, 4, 3) if wide <= 64 else (128, 64, 8, 2)
        return Blocks("blocked", block_n, min(power_of_two(s.keys), block_m), warps, stages)
    stages = 2 if wide <= 256 and shared >= HOPPER_SHARED // 2 else 1
    if can_be_whole(s, shared) and s.itemsize < 4:
        return Blocks("whole", 64, 0, 8 if s.rows > 128 else 4, stages)
    if can_be_whole(s, shared) and s.rows * wide <= 64 * 64:
        return Blocks("whole", 32, 0, 4, 1)
    return Blocks("blocked", *_blocks(s, shared), 8 if wide > 64 else 4, stages)


def default_backward(s: Few, shared: int = HOPPER_SHARED) -> Blocks:
    wide = max(power_of_two(s.dim), power_of_two(s.out_dim))
    if gradient_can_be_whole(s, shared) and s.itemsize < 4:
        large = shared >= HOPPER_SHARED // 2
        return Blocks("whole", 64, 0, 4 if large and s.rows * wide <= 64 * 64 else 8, 2 if large else 1)
    if gradient_can_be_whole(s, shared) and s.rows * wide <= 64 * 64:
        return Blocks("whole", 32, 0, 8, 1)
    return Blocks("blocked", *_blocks(s, shared), 8 if wide > 64 else 4, 1)


def candidates(s: Few, backward: bool) -> list[Blocks]:
    """What tuning tries, the rule of thumb first."""
    wide = max(64, power_of_two(s.dim), power_of_two(s.out_dim))
    found = [default_backward(s) if backward else default_forward(s)]
    if gradient_can_be_whole(s) if backward else can_be_whole(s):
        large = not backward and s.rows * wide > 64 * 64  # then eight warps hold what four would spill
        whole = WHOLE_BACKWARD if backward else WHOLE_FORWARD
        found += [Blocks("whole", *numbers) for numbers in whole if not large or numbers[2] >= 8]
    blocked = BLOCKED_BACKWARD if backward else BLOCKED_FORWARD
    for block_n, block_m, warps, stages in blocked[wide if wide <= 128 else 512]:
        found.append(Blocks("blocked", block_n, min(block_m, power_of_two(s.keys)), warps, stages))
    return list(dict.fromkeys(found))


def forward_blocks(s: Few, device: torch.device) -> Blocks:
    """Tuned for this device and shape, or for its nearest batch and map; else the rule of thumb."""
    return _tuned("forward", s, device) or default_forward(s, shared_memory(device))


def backward_blocks(s: Few, device: torch.device) -> Blocks:
    return _tuned("backward", s, device) or default_backward(s, shared_memory(device))


def keep(kind: str, s: Few, device: torch.device, blocks: Blocks) -> None:
    """Writes what tuning found for "forward" or "backward"."""
    cache.keep(device, _key(kind, s), [s.batch * s.queries, list(blocks)])


def _key(kind: str, s: Few) -> str:
    extras = ("+bias" if s.bias else "") + ("+norm" if s.norm else "")
    return f"{kind}/keys{s.keys}/channels{s.dim}-{s.out_dim}/heads{s.heads}/bytes{s.itemsize}{extras}"


def _tuned(kind: str, s: Few, device: torch.device) -> Blocks | None:
    """The entry of the nearest number of queries; what was tuned without a norm serves with one."""
    entries = cache.entries(device, _key(kind, s)) or cache.entries(device, _key(kind, s._replace(norm=False)))
    best, least = None, float("inf")
    for entry in entries:
        blocks = _read(entry)
        if blocks is None or (blocks.kind == "whole" and not _may_be_whole(kind, s)):
            continue
        distance = abs(entry[0] - s.batch * s.queries)
        if distance < least:
            best, least = blocks, distance
    return best


def _may_be_whole(kind: str, s: Few) -> bool:
    return gradient_can_be_whole(s) if kind == "backward" else can_be_whole(s)


def _read(entry: object) -> Blocks | None:
    """An entry of the cache, unless it is none of ours."""
    try:
        count, values = entry  # type: ignore[misc]
        kind, *numbers = values
        block_n, block_m, warps, stages, tiles = (int(n) for n in numbers)
        sound = (
            isinstance(count, int)
            and kind in ("whole", "blocked")
            and block_n in (16, 32, 64, 128, 256)
            and block_m in (0, 16, 32, 64, 128, 256)
            and (block_m > 0) == (kind == "blocked")
            and warps in (1, 2, 4, 8, 16)
            and 1 <= stages <= 6
            and 0 <= tiles <= 1024
        )
    except (TypeError, ValueError):
        return None
    return Blocks(kind, block_n, block_m, warps, stages, tiles) if sound else None


def keep_faster(s: Few, device: torch.device, training: bool, path: str) -> None:
    """Writes which path was measured to be the faster one, "absorbed" or "sdpa"."""
    cache.keep(device, _path_key(s.keys, s.dim, s.heads, s.itemsize, training), [s.batch * s.queries, path])


def faster_path(
    queries: int, keys: int, dim: int, heads: int, itemsize: int, training: bool
) -> Literal["absorbed", "sdpa"] | None:
    """What was measured on this device for this number of queries (of all images), keys, channels and heads."""
    for count, path in cache.entries(_here(), _path_key(keys, dim, heads, itemsize, training)):
        if count == queries and path in ("absorbed", "sdpa"):
            return path
    return None


def _path_key(keys: int, dim: int, heads: int, itemsize: int, training: bool) -> str:
    mode = "training" if training else "inference"
    return f"path/{mode}/keys{keys}/channels{dim}/heads{heads}/bytes{itemsize}"


def _here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def described(shape: Any) -> str:
    """The kernel and its blocks for a `srattn.ops.plan.Shape`, and where they come from."""
    s = Few(shape.batch, shape.queries, shape.keys, shape.dim, shape.dim, shape.heads, shape.itemsize)
    tuned = _tuned("forward", s, _here())
    b = tuned or default_forward(s, shared_memory(_here()))
    keys = "all keys on chip" if b.kind == "whole" else f"keys in blocks of {b.block_m}"
    return f"{b.block_n} queries a tile, {keys}, {'tuned here' if tuned else 'by rule of thumb'}"


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; 132 (an H200) where none is asked."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have on the GPU; those of an H200 where none is asked."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return HOPPER_SHARED
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", HOPPER_SHARED)


def split(tiles: int, others: int, wanted: int, asked: int = 0) -> tuple[int, int]:
    """(programs, tiles of each) along the queries, so that programs times `others` is about `wanted`."""
    each = asked or max(1, tiles * others // max(wanted, 1))
    each = min(each, tiles)
    return ceil_div(tiles, each), each
