"""Kernels of the layer norm of tokens, rows of C channels that are adjacent in memory, with or without a sum before it.

A tile holds `BLOCK_R` whole rows, so that mean and variance are sums within it. `forward` takes one tile a program;
a program of `gradients` goes from tile to tile, keeps its part of dweight and dbias in registers, element by element,
and adds up their rows once, at its end. Sums are in fp32, and offsets of rows are 64-bit.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.language import jit, tl


@jit
def channels(ptr, c, C: tl.constexpr):
    """A vector over channels as one row, fp32; zero beyond C."""
    return tl.load(ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@jit
def forward(
    x_ptr, add_ptr, w_ptr, b_ptr, y_ptr, s_ptr, mean_ptr, rstd_ptr, rows, eps,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """y = (s - mean) rstd w + b with s = x (ADD: x + add, which is written), and the mean and rstd of each row."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < C)[None, :]
    at = r[:, None] * C + c[None, :]
    s = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        s += tl.load(add_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = s.to(s_ptr.dtype.element_ty)  # the gradient sees no other s than this
        tl.store(s_ptr + at, rounded, mask=inside)
        s = rounded.to(tl.float32)
    mean = tl.sum(s, 1) / C
    s = tl.where((c < C)[None, :], s - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(s * s, 1) / C + eps)
    y = s * rstd[:, None] * channels(w_ptr, c, C) + channels(b_ptr, c, C)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + r, mean, mask=r < rows)
    tl.store(rstd_ptr + r, rstd, mask=r < rows)


@jit
def gradients(
    dy_ptr, ds_ptr, s_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, da_ptr, parts_ptr, rows, programs,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, HAS_DS: tl.constexpr, HAS_DA: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """dx = ds + the gradient of s through y (HAS_DA: in da's type too); parts (programs, 2, C) of dweight and dbias."""
    c = tl.arange(0, BLOCK_C)
    w = channels(w_ptr, c, C)
    dw = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    db = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BLOCK_R), programs, num_stages=STAGES):
        r = (tile * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = (r < rows)[:, None] & (c < C)[None, :]
        at = r[:, None] * C + c[None, :]
        s = tl.load(s_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + r, mask=r < rows, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + r, mask=r < rows, other=0.0)[:, None]
        s = (s - mean) * rstd  # beyond C it is not zero, but there dy and w are
        dw += dy * s
        db += dy
        dy *= w
        dx = (dy - (tl.sum(dy, 1) / C)[:, None] - s * (tl.sum(dy * s, 1) / C)[:, None]) * rstd
        if HAS_DS:
            dx += tl.load(ds_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if HAS_DA:
            tl.store(da_ptr + at, dx.to(da_ptr.dtype.element_ty), mask=inside)
    part = parts_ptr + tl.program_id(0) * 2 * C + c
    tl.store(part, tl.sum(dw, 0), mask=c < C)
    tl.store(part + C, tl.sum(db, 0), mask=c < C)
