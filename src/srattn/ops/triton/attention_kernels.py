"""Forward kernels of absorbed attention: out = [r +] sum_h softmax(x K'_h^T + c_h + bias_h) V'_h + b.

x is read once and the output written once; scores live in registers. Two kernels, one result:

- `whole_forward`: the keys and values of all heads stay on chip while a program walks over tiles of queries.
- `blocked_forward`: heads and blocks of keys in a loop, with an online softmax; any number of keys, heads, channels.

Letters: N queries, M keys, C channels of x and K', D channels of V' and of the output, H heads, W the width of the grid
that queries lie on where x is strided in both directions. HAS_*, ADD and NORM are what a launch includes: ADD 1 adds x
itself (before its norm), 2 another tensor. Blocks of heads and keys lie in rows r = head * BLOCK_M + key.
Logarithms inside are to base 2; `lse` is stored so as well, one fp32 for each (image, head, query).
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.language import jit, tl

LOG2E = tl.constexpr(1.4426950408889634)


@jit
def rows_of(n, W, stride_h, stride_w, GRID: tl.constexpr):
    """Offsets of the tokens n within an image; 64-bit, as an image may exceed 2^31 elements."""
    if GRID:
        return (n // W).to(tl.int64) * stride_h + (n % W).to(tl.int64) * stride_w
    else:
        return n.to(tl.int64) * stride_w


@jit
def normalised(x, inside, C, eps):
    """(x - mean) / sqrt(var + eps) of each row of an fp32 tile, and the factor; columns beyond C stay zero."""
    mean = tl.sum(x, 1) / C
    x = tl.where(inside, x - mean[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    return x * factor[:, None], factor


@jit
def key_scores(c_ptr, stride_m, m, valid, HAS_C: tl.constexpr):
    """Bias of each key to base 2, minus infinity where there is no key."""
    if HAS_C:
        return tl.load(c_ptr + m * stride_m, mask=valid, other=float("-inf")).to(tl.float32) * LOG2E
    else:
        return tl.where(valid, 0.0, float("-inf"))


@jit
def whole_forward(
    x_ptr, k_ptr, v_ptr, c_ptr, b_ptr, r_ptr, out_ptr, lse_ptr,
    x_b, x_h, x_w, x_c, k_b, k_h, k_m, k_c, v_b, v_h, v_m, v_d, c_b, c_h, c_m, r_b, r_h, r_w, r_d,
    N, M, C, D, W, H, tiles, eps,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_C: tl.constexpr, HAS_B: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr,
    GRID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    r = tl.arange(0, HEADS * BLOCK_M)
    head, m = r // BLOCK_M, r % BLOCK_M
    valid = (m < M) & (head < H)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    in_c, in_d = c < C, d < D
    k_at = k_ptr + image * k_b + head * k_h + m * k_m
    k = tl.load(k_at[:, None] + c[None, :] * k_c, mask=valid[:, None] & in_c[None, :], other=0.0)
    v_at = v_ptr + image * v_b + head * v_h + m * v_m
    v = tl.load(v_at[:, None] + d[None, :] * v_d, mask=valid[:, None] & in_d[None, :], other=0.0)
    bias = key_scores(c_ptr + image * c_b + head * c_h, c_m, m, valid, HAS_C)
    if HAS_B:
        b = tl.load(b_ptr + d, mask=in_d, other=0.0).to(tl.float32)
    first = tl.program_id(0) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(N, BLOCK_N))):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        x_at = x_ptr + image * x_b + rows_of(n, W, x_h, x_w, GRID)
        x = tl.load(x_at[:, None] + c[None, :] * x_c, mask=in_n[:, None] & in_c[None, :], other=0.0)
        q = x
        if NORM:
            q, _ = normalised(x.to(tl.float32), in_c[None, :], C, eps)
        s = tl.dot(q.to(k.dtype), tl.trans(k), input_precision=PRECISION) * LOG2E + bias[None, :]
        if HEADS == 1:
            top = tl.max(s, 1)
            top = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(s - top[:, None])
            total = tl.sum(p, 1)
            total = tl.where(total == 0.0, 1.0, total)
            if SAVE:
                tl.store(lse_ptr + image * H * N + n, top + tl.log2(total), mask=in_n)
        else:
            s = tl.reshape(s, (BLOCK_N, HEADS, BLOCK_M))
            top = tl.max(s, 2)
            top = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(s - top[:, :, None])
            total = tl.sum(p, 2)
            total = tl.where(total == 0.0, 1.0, total)
            p = tl.reshape(p * (1.0 / total)[:, :, None], (BLOCK_N, HEADS * BLOCK_M))
            if SAVE:
                heads = tl.arange(0, HEADS)
                at = lse_ptr + image * H * N + n[:, None] + heads[None, :] * N
                tl.store(at, top + tl.log2(total), mask=in_n[:, None] & (heads < H)[None, :])
        o = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        if HEADS == 1:  # there are fewer outputs than weights to divide
            o *= (1.0 / total)[:, None]
        if HAS_B:
            o += b[None, :]
        inside = in_n[:, None] & in_d[None, :]
        if ADD == 1:
            o += x.to(tl.float32)
        if ADD == 2:
            r_at = r_ptr + image * r_b + rows_of(n, W, r_h, r_w, GRID)
            o += tl.load(r_at[:, None] + d[None, :] * r_d, mask=inside, other=0.0).to(tl.float32)
        out_at = out_ptr + (image * N + n) * D
        tl.store(out_at[:, None] + d[None, :], o.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def tile_scores(
    q, x_at, k_at, c_at, bias_at, x_c, k_c, c_m, bias_m, m, valid, in_n, C,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr, MASKED: tl.constexpr,
    HAS_C: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits to base 2 of one tile of queries and one block of keys: rows at x_at (or q, held) and k_at."""
    s = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
        k = tl.load(k_at[:, None] + c[None, :] * k_c, mask=valid[:, None] & (c < C)[None, :], other=0.0)
        if CHUNKS > 1:
            x = tl.load(x_at[:, None] + c[None, :] * x_c, mask=in_n[:, None] & (c < C)[None, :], other=0.0)
        else:
            x = q
        s = tl.dot(x.to(k.dtype), tl.trans(k), s, input_precision=PRECISION)
    s *= LOG2E
    if HAS_C or MASKED:
        s += key_scores(c_at, c_m, m, valid, HAS_C)[None, :]
    if HAS_BIAS:
        at = bias_at[:, None] + m.to(tl.int64)[None, :] * bias_m
        s += tl.load(at, mask=in_n[:, None] & valid[None, :], other=0.0).to(tl.float32) * LOG2E
    return s


@jit
def online(o, top, total, s, v, PRECISION: tl.constexpr):
    """One step of the online softmax: sums so far, the scores and values of one more block of keys."""
    new = tl.maximum(top, tl.max(s, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    shrink = tl.exp2(top - safe)
    p = tl.exp2(s - safe[:, None])
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision=PRECISION)
    return o, new, total * shrink + tl.sum(p, 1)


@jit
def blocked_forward(
    x_ptr, k_ptr, v_ptr, c_ptr, bias_ptr, b_ptr, r_ptr, out_ptr, lse_ptr,
    x_b, x_h, x_w, x_c, k_b, k_h, k_m, k_c, v_b, v_h, v_m, v_d, c_b, c_h, c_m, bias_b, bias_h, bias_n, bias_m,
    r_b, r_h, r_w, r_d, N, M, C, D, W, H, eps,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, TAIL: tl.constexpr, ONE: tl.constexpr, BLOCK_C: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr, HAS_C: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_B: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, SAVE: tl.constexpr, GRID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: one tile of queries, one block of the output's channels. ONE: all keys of a head lie in one block."""
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    c, d = tl.arange(0, BLOCK_C), tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = d < D
    inside = in_n[:, None] & in_d[None, :]
    x_at = x_ptr + image * x_b + rows_of(n, W, x_h, x_w, GRID)
    q = tl.zeros((BLOCK_N, 1), tl.float32)
    if CHUNKS == 1:
        q = tl.load(x_at[:, None] + c[None, :] * x_c, mask=in_n[:, None] & (c < C)[None, :], other=0.0)
        if NORM:
            xhat, _ = normalised(q.to(tl.float32), (c < C)[None, :], C, eps)
            q = xhat.to(k_ptr.dtype.element_ty)
    full = M // BLOCK_M
    out = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for head in range(H):
        k_head = k_ptr + image * k_b + head * k_h
        v_head = v_ptr + image * v_b + head * v_h
        c_head = c_ptr + image * c_b + head * c_h
        bias_at = bias_ptr + image * bias_b + head * bias_h + n.to(tl.int64) * bias_n
        if ONE:  # the weights of a head are whole, and go straight into the sum over heads
            m = tl.arange(0, BLOCK_M)
            s = tile_scores(
                q, x_at, k_head + m * k_m, c_head, bias_at, x_c, k_c, c_m, bias_m, m, m < M, in_n, C,
                BLOCK_N, BLOCK_M, BLOCK_C, CHUNKS, True, HAS_C, HAS_BIAS, PRECISION,
            )  # fmt: skip
            v_mask = (m < M)[:, None] & in_d[None, :]
            v = tl.load(v_head + (m * v_m)[:, None] + d[None, :] * v_d, mask=v_mask, other=0.0)
            top = tl.max(s, 1)
            p = tl.exp2(s - tl.where(top == float("-inf"), 0.0, top)[:, None])
            total = tl.sum(p, 1)
            total = tl.where(total == 0.0, 1.0, total)
            out = tl.dot((p * (1.0 / total)[:, None]).to(v.dtype), v, out, input_precision=PRECISION)
        else:
            top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_N,), tl.float32)
            o = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for block in range(full):
                m = block * BLOCK_M + tl.arange(0, BLOCK_M)
                s = tile_scores(
                    q, x_at, k_head + m * k_m, c_head, bias_at, x_c, k_c, c_m, bias_m, m, m < M, in_n, C,
                    BLOCK_N, BLOCK_M, BLOCK_C, CHUNKS, False, HAS_C, HAS_BIAS, PRECISION,
                )  # fmt: skip
                v = tl.load(v_head + (m * v_m)[:, None] + d[None, :] * v_d, mask=in_d[None, :], other=0.0)
                o, top, total = online(o, top, total, s, v, PRECISION)
            if TAIL > 0:
                m = full * BLOCK_M + tl.arange(0, TAIL)
                s = tile_scores(
                    q, x_at, k_head + m * k_m, c_head, bias_at, x_c, k_c, c_m, bias_m, m, m < M, in_n, C,
                    BLOCK_N, TAIL, BLOCK_C, CHUNKS, True, HAS_C, HAS_BIAS, PRECISION,
                )  # fmt: skip
                v_mask = (m < M)[:, None] & in_d[None, :]
                v = tl.load(v_head + (m * v_m)[:, None] + d[None, :] * v_d, mask=v_mask, other=0.0)
                o, top, total = online(o, top, total, s, v, PRECISION)
            total = tl.where(total == 0.0, 1.0, total)
            out += o * (1.0 / total)[:, None]
        if SAVE:
            lse = tl.where(top == float("-inf"), 0.0, top) + tl.log2(total)
            tl.store(lse_ptr + (image * H + head) * N + n, lse, mask=in_n & (tl.program_id(2) == 0))
    if HAS_B:
        out += tl.load(b_ptr + d, mask=in_d, other=0.0).to(tl.float32)[None, :]
    if ADD == 1:
        out += tl.load(x_at[:, None] + d[None, :] * x_c, mask=inside, other=0.0).to(tl.float32)
    if ADD == 2:
        r_at = r_ptr + image * r_b + rows_of(n, W, r_h, r_w, GRID)
        out += tl.load(r_at[:, None] + d[None, :] * r_d, mask=inside, other=0.0).to(tl.float32)
    out_at = out_ptr + (image * N + n) * D
    tl.store(out_at[:, None] + d[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
