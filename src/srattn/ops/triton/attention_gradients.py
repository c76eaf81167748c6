"""Backward kernels of absorbed attention; the scores are computed again from x, K' and the stored `lse`.

With P the weights, dO the gradient of the output and, for each head, dP = dO V'^T, delta = sum_m P dP:

    dS = P (dP - delta),   dx = sum_h dS K',   dK' = dS^T x,   dV' = P^T dO,   dc = sum_n dS,   dbias = dS

- `whole_backward`: all of it in one pass over x and dO, where the keys and their gradients stay on chip.
- `query_gradients`: dx, delta and dbias, for any number of keys: two passes over them where they exceed one block.
- `key_gradients`: dK', dV' and dc of one block of keys and one head.

Sums over queries are written in `splits` parts and added afterwards: no atomics, the same bits in every run. Letters as
in `attention_kernels`; with NORM, x is normalised in here again and its gradient goes back through the norm.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.attention_kernels import LOG2E, key_scores, normalised, rows_of, tile_scores
from srattn.ops.triton.language import jit, tl


@jit
def norm_gradient(dxhat, xhat, factor, inside, C):
    """Gradient before a norm without affine part, from that behind it; columns beyond C are zero in both."""
    mean = tl.sum(dxhat, 1) / C
    along = tl.sum(dxhat * xhat, 1) / C
    return tl.where(inside, (dxhat - mean[:, None] - xhat * along[:, None]) * factor[:, None], 0.0)


@jit
def whole_backward(
    x_ptr, k_ptr, v_ptr, c_ptr, do_ptr, lse_ptr, dx_ptr, dk_ptr, dv_ptr, dc_ptr, db_ptr,
    x_b, x_h, x_w, x_c, k_b, k_h, k_m, k_c, v_b, v_h, v_m, v_d, c_b, c_h, c_m, do_b, do_h, do_w, do_d,
    N, M, C, D, W, H, B, tiles, eps,
    HEADS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_C: tl.constexpr, HAS_B: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, GRID: tl.constexpr,
    PRECISION: tl.constexpr,
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
    dk = tl.zeros((HEADS * BLOCK_M, BLOCK_C), tl.float32)
    dv = tl.zeros((HEADS * BLOCK_M, BLOCK_D), tl.float32)
    dc = tl.zeros((HEADS * BLOCK_M,), tl.float32)
    db = tl.zeros((BLOCK_D,), tl.float32)
    first = tl.program_id(0) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(N, BLOCK_N))):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        inside = in_n[:, None] & in_c[None, :]
        x_at = x_ptr + image * x_b + rows_of(n, W, x_h, x_w, GRID)
        x = tl.load(x_at[:, None] + c[None, :] * x_c, mask=inside, other=0.0)
        do_at = do_ptr + image * do_b + rows_of(n, W, do_h, do_w, GRID)
        do = tl.load(do_at[:, None] + d[None, :] * do_d, mask=in_n[:, None] & in_d[None, :], other=0.0)
        if NORM:
            xhat, factor = normalised(x.to(tl.float32), in_c[None, :], C, eps)
            q = xhat.to(k.dtype)
        else:
            q = x.to(k.dtype)
        g = do.to(v.dtype)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E + bias[None, :]
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        # Queries beyond N get lse = infinity, and so weights of zero.
        if HEADS == 1:
            lse = tl.load(lse_ptr + image * H * N + n, mask=in_n, other=float("inf"))
            p = tl.exp2(s - lse[:, None])
            ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        else:
            heads = tl.arange(0, HEADS)
            at = lse_ptr + image * H * N + n[:, None] + heads[None, :] * N
            lse = tl.load(at, mask=in_n[:, None] & (heads < H)[None, :], other=float("inf"))
            p = tl.exp2(tl.reshape(s, (BLOCK_N, HEADS, BLOCK_M)) - lse[:, :, None])
            dp = tl.reshape(dp, (BLOCK_N, HEADS, BLOCK_M))
            ds = tl.reshape(p * (dp - tl.sum(p * dp, 2)[:, :, None]), (BLOCK_N, HEADS * BLOCK_M))
            p = tl.reshape(p, (BLOCK_N, HEADS * BLOCK_M))
        dv = tl.dot(tl.trans(p.to(g.dtype)), g, dv, input_precision=PRECISION)
        dc += tl.sum(ds, 0)
        ds = ds.to(q.dtype)
        dk = tl.dot(tl.trans(ds), q, dk, input_precision=PRECISION)
        dx = tl.dot(ds, k, input_precision=PRECISION)
        if NORM:
            dx = norm_gradient(dx, xhat, factor, in_c[None, :], C)
        if ADD == 1:
            dx += do.to(tl.float32)
        if HAS_B:
            db += tl.sum(do.to(tl.float32), 0)
        dx_at = dx_ptr + (image * N + n) * C
        tl.store(dx_at[:, None] + c[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
    part = tl.program_id(0) * B + image
    row = (part * H + head) * M + m
    tl.store(dk_ptr + row[:, None] * C + c[None, :], dk, mask=valid[:, None] & in_c[None, :])
    tl.store(dv_ptr + row[:, None] * D + d[None, :], dv, mask=valid[:, None] & in_d[None, :])
    if HAS_C:
        tl.store(dc_ptr + row, dc, mask=valid)
    if HAS_B:
        tl.store(db_ptr + part * D + d, db, mask=in_d)


@jit
def tile_value_gradients(
    g, do_at, v_at, do_d, v_d, valid, in_n, D,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dP = dO V'^T of one tile of queries and one block of keys: rows at do_at (or g, held) and v_at."""
    dp = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in tl.static_range(CHUNKS):
        d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        v = tl.load(v_at[:, None] + d[None, :] * v_d, mask=valid[:, None] & (d < D)[None, :], other=0.0)
        if CHUNKS > 1:
            do = tl.load(do_at[:, None] + d[None, :] * do_d, mask=in_n[:, None] & (d < D)[None, :], other=0.0)
        else:
            do = g
        dp = tl.dot(do.to(v.dtype), tl.trans(v), dp, input_precision=PRECISION)
    return dp


@jit
def query_gradients(
    x_ptr, k_ptr, v_ptr, c_ptr, bias_ptr, do_ptr, lse_ptr, dx_ptr, delta_ptr, dbias_ptr,
    x_b, x_h, x_w, x_c, k_b, k_h, k_m, k_c, v_b, v_h, v_m, v_d, c_b, c_h, c_m, bias_b, bias_h, bias_n, bias_m,
    do_b, do_h, do_w, do_d, N, M, C, D, W, H, eps,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNKS_D: tl.constexpr, ONE: tl.constexpr, HAS_C: tl.constexpr, HAS_BIAS: tl.constexpr,
    WANT_BIAS: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, GRID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: one tile of queries, one chunk of dx's channels. ONE: all keys of a head lie in one block."""
    image = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = n < N
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    mine = chunk * BLOCK_C + c
    inside = in_n[:, None] & (mine < C)[None, :]
    x_at = x_ptr + image * x_b + rows_of(n, W, x_h, x_w, GRID)
    do_at = do_ptr + image * do_b + rows_of(n, W, do_h, do_w, GRID)
    q = tl.zeros((BLOCK_N, 1), tl.float32)
    g = tl.zeros((BLOCK_N, 1), tl.float32)
    if CHUNKS == 1:
        q = tl.load(x_at[:, None] + c[None, :] * x_c, mask=inside, other=0.0)
        if NORM:
            xhat, factor = normalised(q.to(tl.float32), (c < C)[None, :], C, eps)
            q = xhat.to(k_ptr.dtype.element_ty)
    if CHUNKS_D == 1:
        g = tl.load(do_at[:, None] + d[None, :] * do_d, mask=in_n[:, None] & (d < D)[None, :], other=0.0)
    dx = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    blocks = tl.cdiv(M, BLOCK_M)
    for head in range(H):
        k_head = k_ptr + image * k_b + head * k_h
        v_head = v_ptr + image * v_b + head * v_h
        c_head = c_ptr + image * c_b + head * c_h
        bias_at = bias_ptr + image * bias_b + head * bias_h + n.to(tl.int64) * bias_n
        row = (image * H + head) * N + n
        lse = tl.load(lse_ptr + row, mask=in_n, other=float("inf"))
        delta = tl.zeros((BLOCK_N,), tl.float32)
        if not ONE:
            for block in range(blocks):
                m = block * BLOCK_M + tl.arange(0, BLOCK_M)
                s = tile_scores(
                    q, x_at, k_head + m * k_m, c_head, bias_at, x_c, k_c, c_m, bias_m, m, m < M, in_n, C,
                    BLOCK_N, BLOCK_M, BLOCK_C, CHUNKS, True, HAS_C, HAS_BIAS, PRECISION,
                )  # fmt: skip
                dp = tile_value_gradients(
                    g, do_at, v_head + m * v_m, do_d, v_d, m < M, in_n, D,
                    BLOCK_N, BLOCK_M, BLOCK_D, CHUNKS_D, PRECISION,
                )  # fmt: skip
                delta += tl.sum(tl.exp2(s - lse[:, None]) * dp, 1)
        for block in range(blocks):
            m = block * BLOCK_M + tl.arange(0, BLOCK_M)
            s = tile_scores(
                q, x_at, k_head + m * k_m, c_head, bias_at, x_c, k_c, c_m, bias_m, m, m < M, in_n, C,
                BLOCK_N, BLOCK_M, BLOCK_C, CHUNKS, True, HAS_C, HAS_BIAS, PRECISION,
            )  # fmt: skip
            dp = tile_value_gradients(
                g, do_at, v_head + m * v_m, do_d, v_d, m < M, in_n, D,
                BLOCK_N, BLOCK_M, BLOCK_D, CHUNKS_D, PRECISION,
            )  # fmt: skip
            p = tl.exp2(s - lse[:, None])
            if ONE:
                delta = tl.sum(p * dp, 1)
            ds = p * (dp - delta[:, None])
            if WANT_BIAS:
                at = dbias_ptr + row[:, None] * M + m[None, :]
                tl.store(at, ds.to(dbias_ptr.dtype.element_ty), mask=in_n[:, None] & (m < M)[None, :] & (chunk == 0))
            k_at = k_head + m * k_m
            k = tl.load(k_at[:, None] + mine[None, :] * k_c, mask=(m < M)[:, None] & (mine < C)[None, :], other=0.0)
            dx = tl.dot(ds.to(k.dtype), k, dx, input_precision=PRECISION)
        tl.store(delta_ptr + row, delta, mask=in_n & (chunk == 0))
    if NORM:
        dx = norm_gradient(dx, xhat, factor, (c < C)[None, :], C)
    if ADD == 1:
        dx += tl.load(do_at[:, None] + mine[None, :] * do_d, mask=inside, other=0.0).to(tl.float32)
    dx_at = dx_ptr + (image * N + n) * C
    tl.store(dx_at[:, None] + mine[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)


@jit
def key_gradients(
    x_ptr, k_ptr, v_ptr, c_ptr, bias_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, dc_ptr,
    x_b, x_h, x_w, x_c, k_b, k_h, k_m, k_c, v_b, v_h, v_m, v_d, c_b, c_h, c_m, bias_b, bias_h, bias_n, bias_m,
    do_b, do_h, do_w, do_d, N, M, C, D, W, H, B, tiles, slices, eps,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr, CHUNKS_D: tl.constexpr, HAS_C: tl.constexpr, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
    GRID: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program: one block of keys of one head of one image, one of `slices` chunks of channels, one part of N."""
    image, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    part, chunk = tl.program_id(2) // slices, tl.program_id(2) % slices
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < M
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    my_c, my_d = chunk * BLOCK_C + c, chunk * BLOCK_D + d
    k_at = k_ptr + image * k_b + head * k_h + m * k_m
    v_at = v_ptr + image * v_b + head * v_h + m * v_m
    c_head = c_ptr + image * c_b + head * c_h
    dk = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    dv = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dc = tl.zeros((BLOCK_M,), tl.float32)
    first = part * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(N, BLOCK_N))):
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n < N
        x_at = x_ptr + image * x_b + rows_of(n, W, x_h, x_w, GRID)
        do_at = do_ptr + image * do_b + rows_of(n, W, do_h, do_w, GRID)
        bias_at = bias_ptr + image * bias_b + head * bias_h + n.to(tl.int64) * bias_n
        q = tl.load(x_at[:, None] + my_c[None, :] * x_c, mask=in_n[:, None] & (my_c < C)[None, :], other=0.0)
        if NORM:
            xhat, _ = normalised(q.to(tl.float32), (c < C)[None, :], C, eps)
            q = xhat
        q = q.to(k_ptr.dtype.element_ty)
        g = tl.load(do_at[:, None] + my_d[None, :] * do_d, mask=in_n[:, None] & (my_d < D)[None, :], other=0.0)
        g = g.to(v_ptr.dtype.element_ty)
        s = tile_scores(
            q, x_at, k_at, c_head, bias_at, x_c, k_c, c_m, bias_m, m, in_m, in_n, C,
            BLOCK_N, BLOCK_M, BLOCK_C, CHUNKS, True, HAS_C, HAS_BIAS, PRECISION,
        )  # fmt: skip
        dp = tile_value_gradients(
            g, do_at, v_at, do_d, v_d, in_m, in_n, D, BLOCK_N, BLOCK_M, BLOCK_D, CHUNKS_D, PRECISION,
        )  # fmt: skip
        row = (image * H + head) * N + n
        lse = tl.load(lse_ptr + row, mask=in_n, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=in_n, other=0.0)
        p = tl.exp2(s - lse[:, None])
        ds = p * (dp - delta[:, None])
        dv = tl.dot(tl.trans(p.to(g.dtype)), g, dv, input_precision=PRECISION)
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)
        dc += tl.sum(ds, 0)
    row = ((part * B + image) * H + head) * M + m
    tl.store(dk_ptr + row[:, None] * C + my_c[None, :], dk, mask=in_m[:, None] & (my_c < C)[None, :])
    tl.store(dv_ptr + row[:, None] * D + my_d[None, :], dv, mask=in_m[:, None] & (my_d < D)[None, :])
    if HAS_C:
        tl.store(dc_ptr + row, dc, mask=in_m & (chunk == 0))
