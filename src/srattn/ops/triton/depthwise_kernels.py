"""Kernels of the depthwise 3x3 convolution on channels-last maps, x (B, H, W, C), zeros around it.

A program walks down one strip of `BLOCK_W` columns and `BLOCK_C` channels. `forward` reads each row three times (at
its three shifts, twice of them from a cache) and adds it to the three rows of output that it reaches. `gradients` keeps
three rows and sums up the parts of dW and db; where there is a GELU it computes the convolution again and writes
g = dy GELU'(pre). dx is `forward` of g (dy without GELU) with the taps turned round. Taps are (9, C), row by row. What
is convolved may be added (RESIDUAL): one more for the tap in the middle. Offsets within an image are 32-bit.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.gelu_kernels import gelu, gelu_slope
from srattn.ops.triton.language import jit, tl


@jit
def row_tile(base, i, j, c, x_h, x_w, x_c, H, W, C, RELU: tl.constexpr):
    """Tokens (i, j) of a map, fp32, zero outside it."""
    inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
    at = base + i * x_h + (j * x_w)[:, None] + c[None, :] * x_c
    x = tl.load(at, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)
    if RELU:
        x = tl.maximum(x, 0.0)
    return x


@jit
def tap(w_ptr, index, c, C):
    return tl.load(w_ptr + index * C + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@jit
def forward(
    x_ptr, w_ptr, b_ptr, gate_ptr, y_ptr, x_b, x_h, x_w, x_c, gate_b, gate_h, gate_w, gate_c, H, W, C, rows, bands,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, HAS_B: tl.constexpr, GELU: tl.constexpr, RELU: tl.constexpr,
    GATE: tl.constexpr, TURNED: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """y = GELU(conv(relu(x)) + b); GATE: y is zero where `gate` is not positive; TURNED: taps in reverse order."""
    image, band = (tl.program_id(2) // bands).to(tl.int64), tl.program_id(2) % bands
    j = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    base = x_ptr + image * x_b
    first = band * rows
    last = tl.minimum(first + rows, H)
    inside = (j < W)[:, None] & (c < C)[None, :]
    w0 = tap(w_ptr, 8 if TURNED else 0, c, C)
    w1 = tap(w_ptr, 7 if TURNED else 1, c, C)
    w2 = tap(w_ptr, 6 if TURNED else 2, c, C)
    w3 = tap(w_ptr, 5 if TURNED else 3, c, C)
    w4 = tap(w_ptr, 4, c, C)
    if RESIDUAL:
        w4 += 1.0
    w5 = tap(w_ptr, 3 if TURNED else 5, c, C)
    w6 = tap(w_ptr, 2 if TURNED else 6, c, C)
    w7 = tap(w_ptr, 1 if TURNED else 7, c, C)
    w8 = tap(w_ptr, 0 if TURNED else 8, c, C)
    start = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if HAS_B:
        start += tl.load(b_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    above, here = start, start
    for i in range(first - 1, last + 1):
        left = row_tile(base, i, j - 1, c, x_h, x_w, x_c, H, W, C, RELU)
        mid = row_tile(base, i, j, c, x_h, x_w, x_c, H, W, C, RELU)
        right = row_tile(base, i, j + 1, c, x_h, x_w, x_c, H, W, C, RELU)
        y = above + left * w6 + mid * w7 + right * w8  # row i is the last that output row i - 1 needs
        above = here + left * w3 + mid * w4 + right * w5
        here = start + left * w0 + mid * w1 + right * w2
        if GELU:
            y = gelu(y, x_ptr.dtype.element_ty.primitive_bitwidth < 32)
        wanted = inside & (i > first)
        if GATE:
            at = gate_ptr + image * gate_b + (i - 1) * gate_h
            gate = tl.load(at + (j * gate_w)[:, None] + c[None, :] * gate_c, mask=wanted, other=0.0)
            y = tl.where(gate > 0.0, y, 0.0)
        y_at = y_ptr + ((image * H + i - 1) * W + j)[:, None] * C + c[None, :]
        tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=wanted)


@jit
def added(parts_ptr, row, index, value, c, C):
    """Writes the sum of a tile over its tokens, one part of the gradient of one tap."""
    tl.store(parts_ptr + (row * 10 + index) * C + c, tl.sum(value, 0), mask=c < C)


@jit
def gradients(
    x_ptr, w_ptr, b_ptr, dy_ptr, g_ptr, parts_ptr, x_b, x_h, x_w, x_c, dy_b, dy_h, dy_w, dy_c, H, W, C, rows, bands,
    strips,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, HAS_B: tl.constexpr, GELU: tl.constexpr, RELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """In `parts` (programs, 10, C) the sums for dW and, last, db; GELU: g = dy GELU'(conv(relu(x)) + b) as well."""
    image, band = (tl.program_id(2) // bands).to(tl.int64), tl.program_id(2) % bands
    j = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    base = x_ptr + image * x_b
    first = band * rows
    last = tl.minimum(first + rows, H)
    inside = (j < W)[:, None] & (c < C)[None, :]
    bias = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if HAS_B:
        bias += tl.load(b_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    zero = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    d0, d1, d2, d3, d4, d5, d6, d7, d8, d9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    a0 = row_tile(base, first - 1, j - 1, c, x_h, x_w, x_c, H, W, C, RELU)
    a1 = row_tile(base, first - 1, j, c, x_h, x_w, x_c, H, W, C, RELU)
    a2 = row_tile(base, first - 1, j + 1, c, x_h, x_w, x_c, H, W, C, RELU)
    a3 = row_tile(base, first, j - 1, c, x_h, x_w, x_c, H, W, C, RELU)
    a4 = row_tile(base, first, j, c, x_h, x_w, x_c, H, W, C, RELU)
    a5 = row_tile(base, first, j + 1, c, x_h, x_w, x_c, H, W, C, RELU)
    for i in range(first, last):
        a6 = row_tile(base, i + 1, j - 1, c, x_h, x_w, x_c, H, W, C, RELU)
        a7 = row_tile(base, i + 1, j, c, x_h, x_w, x_c, H, W, C, RELU)
        a8 = row_tile(base, i + 1, j + 1, c, x_h, x_w, x_c, H, W, C, RELU)
        at = dy_ptr + image * dy_b + i * dy_h
        g = tl.load(at + (j * dy_w)[:, None] + c[None, :] * dy_c, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            pre = bias + a0 * tap(w_ptr, 0, c, C) + a1 * tap(w_ptr, 1, c, C) + a2 * tap(w_ptr, 2, c, C)
            pre += a3 * tap(w_ptr, 3, c, C) + a4 * tap(w_ptr, 4, c, C) + a5 * tap(w_ptr, 5, c, C)
            pre += a6 * tap(w_ptr, 6, c, C) + a7 * tap(w_ptr, 7, c, C) + a8 * tap(w_ptr, 8, c, C)
            if RESIDUAL:
                pre += a4
            g *= gelu_slope(pre, x_ptr.dtype.element_ty.primitive_bitwidth < 32)
            g_at = g_ptr + ((image * H + i) * W + j)[:, None] * C + c[None, :]
            tl.store(g_at, g.to(g_ptr.dtype.element_ty), mask=inside)
        d0 += g * a0
        d1 += g * a1
        d2 += g * a2
        d3 += g * a3
        d4 += g * a4
        d5 += g * a5
        d6 += g * a6
        d7 += g * a7
        d8 += g * a8
        d9 += g
        a0, a1, a2, a3, a4, a5 = a3, a4, a5, a6, a7, a8
    row = tl.program_id(2).to(tl.int64) * strips + tl.program_id(1)
    added(parts_ptr, row, 0, d0, c, C)
    added(parts_ptr, row, 1, d1, c, C)
    added(parts_ptr, row, 2, d2, c, C)
    added(parts_ptr, row, 3, d3, c, C)
    added(parts_ptr, row, 4, d4, c, C)
    added(parts_ptr, row, 5, d5, c, C)
    added(parts_ptr, row, 6, d6, c, C)
    added(parts_ptr, row, 7, d7, c, C)
    added(parts_ptr, row, 8, d8, c, C)
    added(parts_ptr, row, 9, d9, c, C)
