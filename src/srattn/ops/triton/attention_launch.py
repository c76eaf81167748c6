"""Arguments and grids of the attention kernels."""

from typing import Any

import torch
from torch import Tensor

from srattn.ops.triton import attention_gradients, attention_kernels
from srattn.ops.triton.choices import (
    Blocks,
    Few,
    backward_blocks,
    chunks,
    forward_blocks,
    held_channels,
    multiprocessors,
    split,
)
from srattn.ops.triton.language import ceil_div, launch, power_of_two

Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def sizes(x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, norm_eps: float | None) -> Few:
    """Read off the tensors."""
    tokens = x.shape[1] if x.ndim == 3 else x.shape[1] * x.shape[2]
    batch, heads, m, dim = (int(n) for n in keys.shape)
    out_dim, size = int(values.shape[3]), keys.itemsize
    return Few(batch, int(tokens), m, dim, out_dim, heads, size, bias is not None, norm_eps is not None)


def precision(dtype: torch.dtype) -> str:
    """Of products of fp32: "ieee", unless the process allows tf32."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def _on_grid(*maps: Tensor | None) -> bool:
    """Whether some map (B, H, W, C) is strided in both directions, so that its tokens lie on no line."""
    return any(t is not None and t.ndim == 4 and t.stride(1) != t.shape[2] * t.stride(2) for t in maps)


def _map(name: str, t: Tensor) -> dict[str, Any]:
    """A map of tokens and its strides over images, rows, columns and channels."""
    last = name[0] if name == "x" else "d"
    if t.ndim == 3:
        steps = (t.stride(0), 0, t.stride(1), t.stride(2))
    else:
        steps = (t.stride(0), t.stride(1), t.stride(2), t.stride(3))
    names = [f"{name}_{axis}" for axis in ("b", "h", "w", "c" if last == "x" else "d")]
    return {f"{name}_ptr": t, **dict(zip(names, steps, strict=True))}


def _table(name: str, axes: str, t: Tensor | None, like: Tensor) -> dict[str, Any]:
    """A tensor and its strides; `like` in place of one that is absent (and is never read)."""
    steps = (0,) * len(axes) if t is None else t.stride()
    names = [f"{name}_{axis}" for axis in axes]
    return {f"{name}_ptr": like if t is None else t, **dict(zip(names, steps, strict=True))}


def _common(
    x: Tensor, keys: Tensor, values: Tensor, key_bias: Tensor | None, norm_eps: float | None, s: Few, grid: bool
) -> dict[str, Any]:
    return {
        **_map("x", x),
        **_table("k", "bhmc", keys, keys),
        **_table("v", "bhmd", values, values),
        **_table("c", "bhm", key_bias, x),
        "N": s.queries,
        "M": s.keys,
        "C": s.dim,
        "D": s.out_dim,
        "W": x.shape[2] if x.ndim == 4 else s.queries,
        "H": s.heads,
        "eps": 0.0 if norm_eps is None else norm_eps,
        "HAS_C": key_bias is not None,
        "NORM": norm_eps is not None,
        "GRID": grid,
        "PRECISION": precision(keys.dtype),
    }


def _whole(s: Few, b: Blocks) -> dict[str, Any]:
    """Block sizes of the kernels that keep all keys."""
    return {
        "HEADS": 1 << (s.heads - 1).bit_length(),
        "BLOCK_M": power_of_two(s.keys),
        "BLOCK_N": b.block_n,
        "BLOCK_C": power_of_two(s.dim),
        "BLOCK_D": power_of_two(s.out_dim),
    }


def forward(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    out_bias: Tensor | None,
    residual: Tensor | None,
    add_x: bool,
    norm_eps: float | None,
    out: Tensor,
    lse: Tensor,
    save: bool,
    blocks: Blocks | None = None,
) -> None:
    """Fills `out` and, where `save`, `lse`; with given blocks in place of the chosen ones."""
    s = sizes(x, keys, values, bias, norm_eps)
    b = forward_blocks(s, x.device) if blocks is None else blocks
    arguments = {
        **_common(x, keys, values, key_bias, norm_eps, s, _on_grid(x, residual)),
        **_map("r", x if residual is None else residual),
        "b_ptr": x if out_bias is None else out_bias,
        "out_ptr": out,
        "lse_ptr": lse,
        "HAS_B": out_bias is not None,
        "ADD": 1 if add_x else 2 if residual is not None else 0,
        "SAVE": save,
    }
    tiles = ceil_div(s.queries, b.block_n)
    options = {"num_warps": b.warps, "num_stages": b.stages}
    if b.kind == "whole":
        programs, each = split(tiles, s.batch, 8 * multiprocessors(x.device), b.tiles)
        arguments |= {**_whole(s, b), "tiles": each}
        launch(attention_kernels.whole_forward, (programs, s.batch, 1), arguments, **options)
        return
    c = chunks(s.dim, held_channels(s.itemsize))
    block_d = min(power_of_two(s.out_dim), held_channels(s.itemsize))
    one = s.keys <= b.block_m
    rest = 0 if one else s.keys % b.block_m
    arguments |= {
        **_table("bias", "bhnm", bias, x),
        "BLOCK_N": b.block_n,
        "BLOCK_M": min(b.block_m, power_of_two(s.keys)),
        "TAIL": power_of_two(rest) if rest else 0,
        "ONE": one,
        "BLOCK_C": c.block,
        "CHUNKS": c.number,
        "BLOCK_D": block_d,
        "HAS_BIAS": bias is not None,
    }
    grid = (tiles, s.batch, ceil_div(s.out_dim, block_d))
    launch(attention_kernels.blocked_forward, grid, arguments, **options)


def backward(
    grad: Tensor,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    key_bias: Tensor | None,
    bias: Tensor | None,
    lse: Tensor,
    add_x: bool,
    norm_eps: float | None,
    made: Six,
    blocks: Blocks | None = None,
) -> Six:
    """Gradients of x, keys, values, key_bias, bias and out_bias, in the types of the tensors in `made`."""
    s = sizes(x, keys, values, bias, norm_eps)
    b = backward_blocks(s, x.device) if blocks is None else blocks
    wants_bias, wants_out_bias = made[4].numel() > 0, made[5].numel() > 0
    arguments = {
        **_common(x, keys, values, key_bias, norm_eps, s, _on_grid(x, grad)),
        **_map("do", grad),
        "lse_ptr": lse,
        "ADD": 1 if add_x else 0,
    }
    options = {"num_warps": b.warps, "num_stages": b.stages}
    run = _backward_whole if b.kind == "whole" else _backward_blocked
    arguments["dx_ptr"] = made[0]
    dk, dv, dc, db = run(arguments, options, s, b, x, bias, made[4] if wants_bias else None, wants_out_bias)
    if wants_out_bias and db is None:
        db = grad.flatten(0, -2).sum(0, dtype=torch.float32)
    return (
        made[0],
        _added(dk, made[1]),
        _added(dv, made[2]),
        made[3] if dc is None else _added(dc, made[3]),
        made[4],
        made[5] if db is None else db.to(made[5].dtype),
    )


def _added(parts: Tensor, like: Tensor) -> Tensor:
    """The sum of the parts, in the type of `like`."""
    return (parts[0] if parts.shape[0] == 1 else parts.sum(0)).to(like.dtype)


def _parts(x: Tensor, s: Few, programs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the parts of dK', dV' and dc."""
    rows = (programs, s.batch, s.heads, s.keys)
    return tuple(x.new_empty(shape, dtype=torch.float32) for shape in ((*rows, s.dim), (*rows, s.out_dim), rows))  # type: ignore[return-value]


def _backward_whole(
    arguments: dict[str, Any],
    options: dict[str, int],
    s: Few,
    b: Blocks,
    x: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    wants_out_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    tiles = ceil_div(s.queries, b.block_n)
    programs, each = split(tiles, s.batch, 2 * multiprocessors(x.device), b.tiles)
    dk, dv, dc = _parts(x, s, programs)
    db = x.new_empty((programs * s.batch, s.out_dim) if wants_out_bias else (0,), dtype=torch.float32)
    arguments = arguments | {
        **_whole(s, b),
        "dk_ptr": dk,
        "dv_ptr": dv,
        "dc_ptr": dc,
        "db_ptr": db,
        "B": s.batch,
        "tiles": each,
        "HAS_B": wants_out_bias,
    }
    launch(attention_gradients.whole_backward, (programs, s.batch, 1), arguments, **options)
    return dk, dv, dc if arguments["HAS_C"] else None, db.sum(0) if wants_out_bias else None


def _backward_blocked(
    arguments: dict[str, Any],
    options: dict[str, int],
    s: Few,
    b: Blocks,
    x: Tensor,
    bias: Tensor | None,
    dbias: Tensor | None,
    wants_out_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    tiles, blocks = ceil_div(s.queries, b.block_n), ceil_div(s.keys, b.block_m)
    held = held_channels(s.itemsize) if arguments["NORM"] else 128
    c, d = chunks(s.dim, held), chunks(s.out_dim, held)
    slices = max(c.number, d.number)
    programs, each = split(tiles, s.batch * s.heads * blocks * slices, 4 * multiprocessors(x.device), b.tiles)
    dk, dv, dc = _parts(x, s, programs)
    delta = x.new_empty((s.batch, s.heads, s.queries), dtype=torch.float32)
    add, dx = arguments.pop("ADD"), arguments.pop("dx_ptr")
    arguments = arguments | {
        **_table("bias", "bhnm", bias, x),
        "delta_ptr": delta,
        "BLOCK_N": b.block_n,
        "BLOCK_M": b.block_m,
        "BLOCK_C": c.block,
        "CHUNKS": c.number,
        "BLOCK_D": d.block,
        "CHUNKS_D": d.number,
        "HAS_BIAS": bias is not None,
    }
    queries = {
        "dx_ptr": dx,
        "dbias_ptr": x if dbias is None else dbias,
        "ADD": add,
        "ONE": blocks == 1,
        "WANT_BIAS": dbias is not None,
    }
    launch(attention_gradients.query_gradients, (tiles, s.batch, c.number), arguments | queries, **options)
    keys = {"dk_ptr": dk, "dv_ptr": dv, "dc_ptr": dc, "B": s.batch, "tiles": each, "slices": slices}
    grid = (blocks, s.batch * s.heads, programs * slices)
    launch(attention_gradients.key_gradients, grid, arguments | keys, **options)
    return dk, dv, dc if arguments["HAS_C"] else None, None
