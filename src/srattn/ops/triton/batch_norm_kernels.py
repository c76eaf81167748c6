"""Kernels of the batch norm of tokens x (rows, C), contiguous, behind an exact GELU where GELU is set: of a = GELU(x).

A program walks over `share` rows of `BLOCK_C` channels, tile by tile. Sums of a walk are kept for each place of the
tile, in fp32, and added up at its end; what the walks of a channel found is put together by a small kernel of its own,
in an order that does not change. Variances come from each walk's own mean (Chan's formula), and a walk takes the mean
of its first tile off all of its rows: neither a large mean nor a row unlike the others takes digits from them. C is a
multiple of VECTOR, and said to be one, so that as many channels are loaded at once.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.gelu_kernels import gelu, gelu_and_slope
from srattn.ops.triton.language import jit, tl


@jit
def values(at, inside, GELU: tl.constexpr):
    """a in fp32, zero outside."""
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        x = gelu(x, at.dtype.element_ty.primitive_bitwidth < 32)
    return x


@jit
def channel(ptr, c, C):
    return tl.load(ptr + c, mask=c < C, other=0.0).to(tl.float32)


@jit
def statistics(
    x_ptr, parts_ptr, rows, C, share,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, GELU: tl.constexpr, VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """In `parts` (walks, 2, C) the mean of a walk's rows and the sum of their squared distances from it."""
    C = C // VECTOR * VECTOR
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * share
    count = tl.minimum(share, rows - first).to(tl.int32)
    base = x_ptr + first * C
    at = r[:, None] * C + c[None, :]
    whole = (r < count)[:, None] & (c < C)[None, :]
    shift = tl.sum(values(base + at, whole, GELU), 0) / tl.minimum(count, BLOCK_R)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for done in tl.range(0, count, BLOCK_R, num_stages=STAGES):
        inside = (done + r < count)[:, None] & (c < C)[None, :]
        d = tl.where(inside, values(base + at, inside, GELU) - shift[None, :], 0.0)
        total += d
        squares += d * d
        base += BLOCK_R * C
    by = tl.sum(total, 0)
    mean = by / count
    to = parts_ptr + tl.program_id(1) * 2 * C + c
    tl.store(to, shift + mean, mask=c < C)
    tl.store(to + C, tl.maximum(tl.sum(squares, 0) - by * mean, 0.0), mask=c < C)


@jit
def merged_statistics(
    parts_ptr, mean_ptr, var_ptr, inverse_ptr, rows, C, share, walks, eps,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, biased variance and 1 / sqrt(variance + eps) of all rows, (C) each."""
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = channel(parts_ptr, c, C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for done in range(0, walks, BLOCK_R):
        walk = done + r
        inside = (walk < walks)[:, None] & (c < C)[None, :]
        count = tl.minimum(share, rows - walk * share).to(tl.float32)[:, None]
        mean = tl.load(parts_ptr + walk[:, None] * 2 * C + c[None, :], mask=inside, other=0.0)
        total += tl.where(inside, (mean - shift[None, :]) * count, 0.0)
    middle = shift + tl.sum(total, 0) / rows
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for done in range(0, walks, BLOCK_R):
        walk = done + r
        inside = (walk < walks)[:, None] & (c < C)[None, :]
        count = tl.minimum(share, rows - walk * share).to(tl.float32)[:, None]
        at = parts_ptr + walk[:, None] * 2 * C + c[None, :]
        d = tl.load(at, mask=inside, other=0.0) - middle[None, :]
        total += tl.where(inside, tl.load(at + C, mask=inside, other=0.0) + d * d * count, 0.0)
    var = tl.sum(total, 0) / rows
    tl.store(mean_ptr + c, middle, mask=c < C)
    tl.store(var_ptr + c, var, mask=c < C)
    tl.store(inverse_ptr + c, tl.rsqrt(var + eps), mask=c < C)


@jit
def normalise(
    x_ptr, mean_ptr, inverse_ptr, w_ptr, b_ptr, y_ptr, rows, C, share,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, GELU: tl.constexpr, VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """y = (a - mean) inverse w + b."""
    C = C // VECTOR * VECTOR
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * share
    count = tl.minimum(share, rows - first).to(tl.int32)
    mean = channel(mean_ptr, c, C)[None, :]
    scale = (channel(inverse_ptr, c, C) * channel(w_ptr, c, C))[None, :]
    b = channel(b_ptr, c, C)[None, :]
    base, to = x_ptr + first * C, y_ptr + first * C
    at = r[:, None] * C + c[None, :]
    for done in tl.range(0, count, BLOCK_R, num_stages=STAGES):
        inside = (done + r < count)[:, None] & (c < C)[None, :]
        y = (values(base + at, inside, GELU) - mean) * scale + b
        tl.store(to + at, y.to(y_ptr.dtype.element_ty), mask=inside)
        base += BLOCK_R * C
        to += BLOCK_R * C


@jit
def gradient_sums(
    dy_ptr, x_ptr, mean_ptr, inverse_ptr, parts_ptr, rows, C, share,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, GELU: tl.constexpr, VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """In `parts` (walks, 2, C) the sums of dy (a - mean) inverse and of dy."""
    C = C // VECTOR * VECTOR
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * share
    count = tl.minimum(share, rows - first).to(tl.int32)
    mean = channel(mean_ptr, c, C)[None, :]
    x_base, dy_base = x_ptr + first * C, dy_ptr + first * C
    at = r[:, None] * C + c[None, :]
    dw = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    db = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for done in tl.range(0, count, BLOCK_R, num_stages=STAGES):
        inside = (done + r < count)[:, None] & (c < C)[None, :]
        dy = tl.load(dy_base + at, mask=inside, other=0.0).to(tl.float32)
        dw += dy * (values(x_base + at, inside, GELU) - mean)
        db += dy
        x_base += BLOCK_R * C
        dy_base += BLOCK_R * C
    to = parts_ptr + tl.program_id(1) * 2 * C + c
    tl.store(to, tl.sum(dw, 0) * channel(inverse_ptr, c, C), mask=c < C)
    tl.store(to + C, tl.sum(db, 0), mask=c < C)


@jit
def merged_gradients(
    parts_ptr, sums_ptr, dw_ptr, db_ptr, C, walks, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """dw and db in the parameters' type, and both in `sums` (2, C) as they are."""
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    dw = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    db = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for done in range(0, walks, BLOCK_R):
        inside = (done + r < walks)[:, None] & (c < C)[None, :]
        at = parts_ptr + (done + r)[:, None] * 2 * C + c[None, :]
        dw += tl.load(at, mask=inside, other=0.0)
        db += tl.load(at + C, mask=inside, other=0.0)
    by_weight, by_bias = tl.sum(dw, 0), tl.sum(db, 0)
    tl.store(sums_ptr + c, by_weight, mask=c < C)
    tl.store(sums_ptr + C + c, by_bias, mask=c < C)
    tl.store(dw_ptr + c, by_weight.to(dw_ptr.dtype.element_ty), mask=c < C)
    tl.store(db_ptr + c, by_bias.to(db_ptr.dtype.element_ty), mask=c < C)


@jit
def gradient(
    dy_ptr, x_ptr, mean_ptr, inverse_ptr, w_ptr, sums_ptr, dx_ptr, rows, C, share,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, GELU: tl.constexpr, VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """dx = w inverse (dy - (db + (a - mean) inverse dw) / rows), times GELU'(x)."""
    C = C // VECTOR * VECTOR
    r, c = tl.arange(0, BLOCK_R), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1).to(tl.int64) * share
    count = tl.minimum(share, rows - first).to(tl.int32)
    mean, inverse = channel(mean_ptr, c, C)[None, :], channel(inverse_ptr, c, C)[None, :]
    tilt = inverse * channel(sums_ptr, c, C)[None, :] / rows
    middle = channel(sums_ptr + C, c, C)[None, :] / rows
    scale = channel(w_ptr, c, C)[None, :] * inverse
    x_base, dy_base, to = x_ptr + first * C, dy_ptr + first * C, dx_ptr + first * C
    at = r[:, None] * C + c[None, :]
    for done in tl.range(0, count, BLOCK_R, num_stages=STAGES):
        inside = (done + r < count)[:, None] & (c < C)[None, :]
        x = tl.load(x_base + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_base + at, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            a, slope = gelu_and_slope(x, x_ptr.dtype.element_ty.primitive_bitwidth < 32)
            dx = scale * slope * (dy - middle - (a - mean) * tilt)
        else:
            dx = scale * (dy - middle - (x - mean) * tilt)
        tl.store(to + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        x_base += BLOCK_R * C
        dy_base += BLOCK_R * C
        to += BLOCK_R * C
