"""Which path computes the attention for the shapes at hand, and why, in words.

Each path is counted in multiply-adds and in bytes moved through memory, and the planner takes the smallest

    cost = multiply-adds + MACS_PER_BYTE[device] * bytes

with one machine constant per kind of device: how many multiply-adds of a GEMM pass in the time that one byte is
copied. Counting stops at what differs between the paths: the reduction and W^K, W^V are the same in all.

On a GPU the absorbed path is one kernel (`srattn.ops.triton`) that reads x and writes the output once, at some price in
launches: a map whose other path takes no longer than those is left to `sdpa`. What `srattn bench gpu` measured on a
device stands above the counting.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

from srattn.errors import SrattnError, nearest
from srattn.ops import switch
from srattn.ops.tracing import constant_while_compiling

Path = Literal["plain", "sdpa", "absorbed"]
PATHS: tuple[Path, ...] = ("plain", "sdpa", "absorbed")

# CPU: 150 G multiply-adds/s of fp32 GEMM against 14 GB/s of copy. GPU (H200): 395 T in bf16 against 4.3 TB/s.
MACS_PER_BYTE = {"cpu": 10, "cuda": 90}

KERNEL_WORK = {"inference": 3, "training": 2}
"""What a multiply-add of the GPU's kernel takes, in those of torch's operators; in training theirs are slower too, as
the gradients of few keys keep few multiprocessors busy. Read off benchmarks/results/gpu_h100.json, where these pick the
faster path of all shapes."""

KERNEL_DEVICES = {"cuda"}
"""Kinds of device that the kernels of `srattn.ops.triton` run on."""
KERNEL_LIMITS = {"keys": 1024, "dim": 512, "heads": 16}
KERNEL_MIN_BYTES = 24_000_000
"""Bytes moved by the `sdpa` path below which its few launches cost as much as its work (5 us of copying on an H200)."""
KERNEL_MAX_PROGRAMS = 65_535
"""Images times heads: a limit of CUDA's grids."""

_forced: Path | None = None


class Shape(NamedTuple):
    """What the choice depends on."""

    batch: int
    queries: int
    keys: int
    dim: int
    """Channels of the queries' input and of the output."""
    heads: int
    width: int
    """Channels of all heads side by side."""
    itemsize: int = 4
    device: str = "cpu"
    keeps_scores: bool = False
    """True where a streamed attention is not to be had: a logit bias that wants a gradient."""
    kernel: bool = True
    """False where the kernel is not to be had for another reason: dropout on the weights, a graph that is exported."""
    training: bool = False
    """Whether gradients will be wanted."""


class Cost(NamedTuple):
    """Multiply-adds and bytes moved of one attention, from x to the output of W^O."""

    macs: int
    bytes: int

    def total(self, device: str) -> int:
        return self.macs + MACS_PER_BYTE.get(device, MACS_PER_BYTE["cuda"]) * self.bytes


class Choice(NamedTuple):
    """A path, whether its scores are streamed (never kept), its cost, and the reason."""

    path: Path
    streamed: bool
    cost: Cost
    reason: str


def cost_of(path: Path, s: Shape) -> Cost:
    """Counted work of a path: inputs are read once and results written once by each kernel."""
    n, m, c, h, d = s.queries, s.keys, s.dim, s.heads, s.width
    if path == "absorbed":
        macs = 2 * n * h * m * c + 2 * m * c * d  # the second term makes K' and V'
        values = 2 * n * c + 4 * h * m * c  # x, output; K' and V' written and read
        if not streams(path, s):
            values += 4 * n * h * m  # scores: written, read and written by the softmax, read
    else:
        macs = 2 * n * c * d + 2 * n * m * d
        values = 2 * n * c + 4 * n * d + 2 * m * d  # x, output; q twice, heads twice; k, v
        if path == "plain":
            values += 6 * n * h * m  # as above, and once more for the scaling
    return Cost(s.batch * macs, s.batch * values * s.itemsize)


def streams(path: Path, s: Shape) -> bool:
    """Whether the path leaves no N x M scores in memory."""
    return path == "sdpa" or (path == "absorbed" and (takes_kernel(s) or (s.heads == 1 and not s.keeps_scores)))


def takes_kernel(s: Shape) -> bool:
    """Whether the absorbed path is the kernel of `srattn.ops.triton` for this shape."""
    return s.device in KERNEL_DEVICES and why_no_kernel(s) is None


def why_no_kernel(s: Shape) -> str | None:
    """What stands against the kernel on a GPU, in words; None where nothing does."""
    if not s.kernel:
        return "attention dropout or an exported graph"
    for name, most in KERNEL_LIMITS.items():
        if getattr(s, name) > most:
            return f"{getattr(s, name)} {'channels' if name == 'dim' else name} are more than {most}"
    if s.itemsize > 4:
        return "float64"
    if s.batch * s.heads > KERNEL_MAX_PROGRAMS:
        return f"{s.batch} images x {s.heads} heads are more than {KERNEL_MAX_PROGRAMS}"
    if s.keys == 0 or s.queries == 0 or s.batch == 0:
        return "nothing to attend to"
    return why_not_here()


_answers: dict[tuple[object, ...], object] = {}


@constant_while_compiling
def why_not_here() -> str | None:
    """What stands against kernels on this machine. One without a GPU plans for another, and finds nothing."""
    if switch.is_off():
        return switch.OFF
    if () not in _answers:
        _answers[()] = _look_around()
    return _answers[()]  # type: ignore[return-value]


def _look_around() -> str | None:
    if not torch.cuda.is_available():
        return None
    if torch.version.hip is not None:
        return "untried on AMD"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"compute capability {major}.{minor} is below 8.0"


def _measured(s: Shape) -> Path | None:
    """The path that was faster on this device at this shape, if `srattn bench gpu` kept one."""
    return _looked_up(s.batch * s.queries, s.keys, s.dim, s.heads, s.itemsize, s.training)


@constant_while_compiling
def _looked_up(queries: int, keys: int, dim: int, heads: int, itemsize: int, training: bool) -> Path | None:
    asked = (queries, keys, dim, heads, itemsize, training)
    if asked not in _answers:
        from srattn.ops.triton import choices

        _answers[asked] = choices.faster_path(*asked)
    return _answers[asked]  # type: ignore[return-value]


def forget() -> None:
    """Forgets what was looked up, after a tuning in this process."""
    _answers.clear()


def cheapest(s: Shape) -> Path:
    """The path of smallest counted cost, without the words (this is what runs in `forward`)."""
    if _forced is not None:
        return _forced
    absorbed, sdpa = cost_of("absorbed", s), cost_of("sdpa", s)
    if takes_kernel(s):
        if (path := _measured(s)) is not None:
            return path
        if sdpa.bytes < KERNEL_MIN_BYTES:
            return "sdpa"
        absorbed = absorbed._replace(macs=KERNEL_WORK["training" if s.training else "inference"] * absorbed.macs)
    return "absorbed" if absorbed.total(s.device) < sdpa.total(s.device) else "sdpa"


def choose(s: Shape) -> Choice:
    """The path that `forward` takes for these shapes, with its cost and the reason."""
    path = cheapest(s)
    cost = cost_of(path, s)
    return Choice(path, streams(path, s), cost, _reason(path, s))


def _reason(path: Path, s: Shape) -> str:
    if _forced is not None:
        return "forced by force_path"
    absorbed, sdpa = cost_of("absorbed", s), cost_of("sdpa", s)
    work, moved = absorbed.macs / max(sdpa.macs, 1), absorbed.bytes / max(sdpa.bytes, 1)
    counts = f"absorbed needs {work:.2f}x the multiply-adds and {moved:.2f}x the bytes of sdpa"
    if s.device in KERNEL_DEVICES:
        return f"{_kernel_reason(path, s, sdpa)}: {counts}"
    if path == "absorbed" and s.heads == 1:
        return f"one head, x itself is the query: {counts}"
    if path == "absorbed":
        return f"few keys ({s.heads} heads x {s.keys} keys): {counts}"
    heads = "1 head" if s.heads == 1 else f"{s.heads} heads"
    return f"{heads} x {s.keys} keys are too many to absorb at {s.dim} channels: {counts}"


def _kernel_reason(path: Path, s: Shape, sdpa: Cost) -> str:
    """Why this path on a GPU, before the counts."""
    if (against := why_no_kernel(s)) is not None:
        return f"no kernel ({against})"
    if _measured(s) is not None:
        return f"measured faster on this device ({'the kernel' if path == 'absorbed' else 'the plain path'})"
    if path == "absorbed":
        from srattn.ops.triton import choices

        return f"one kernel, x read and the output written once, {choices.described(s)}"
    if sdpa.bytes < KERNEL_MIN_BYTES:
        return f"a small map, {sdpa.bytes / 1e6:.1f} MB moved: launches cost more than the kernel saves"
    return f"{s.heads} heads x {s.keys} keys are too many to absorb at {s.dim} channels"


@contextmanager
def force_path(path: Path) -> Iterator[None]:
    """Forces one path ("plain", "sdpa", "absorbed") on every attention of the process while the context is open.

    Raises:
        SrattnError: for a name that is no path.
    """
    global _forced
    if path not in PATHS:
        raise SrattnError(f"no path {path!r}{nearest(str(path), PATHS)}; paths are {', '.join(PATHS)}")
    before, _forced = _forced, path
    try:
        yield
    finally:
        _forced = before


def forced() -> Path | None:
    """The path that `force_path` asks for, or None: for attentions that have other paths to choose from."""
    return _forced


def known(*sizes: int) -> bool:
    """False while exporting with symbolic sizes: a choice by size would pin them to one example."""
    return not any(isinstance(size, torch.SymInt) for size in sizes)
