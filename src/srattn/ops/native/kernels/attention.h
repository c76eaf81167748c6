// x + attention(norm(x)) over few keys: x is read once for the keys and once for everything else.
//
// Two forms, one result. `absorbed`: W^Q goes into the keys and W^O into the values, so that a tile of queries meets
// two GEMMs a head. `projected`: queries, heads and W^O, all within the tile. Scores never leave the cache.
#pragma once
#include "head.h"
#include "patch.h"

struct Attention {
  long dim, heads, width;        // channels of x, heads, channels of all queries
  long cells_h, cells_w;         // pooled reduction; 0 where there is none
  long reduces;                  // a strided reduction: `patch`
  Patch patch;                   // strided: the reduction; pooled: its projection
  Norm norm;
  float scale;
  const Operand *key, *value;         // heads x panels (columns of a head, depth dim)
  const Operand *query, *out;         // panels (width or dim columns, depth dim), for `projected`
  const Operand* query_heads;         // heads x panels (dim columns, depth width / heads), for `absorbed`
  const Operand* out_heads;           // heads x panels (dim columns, depth dim / heads), for `absorbed`
  const float *key_bias, *value_bias, *query_bias, *out_bias;
};

// Mean of norm(x) over the cells of row `cell` of a fixed grid, (cells_w, dim).
static void pool_row(const Attention& a, const float* x, long height, long width, long cell, float* to) {
  float *line = worker.take((width + a.cells_w) * a.dim), *sums = line + width * a.dim;
  long top = cell * height / a.cells_h, bottom = ((cell + 1) * height + a.cells_h - 1) / a.cells_h;
  std::memset(sums, 0, 4 * a.cells_w * a.dim);
  for (long y = top; y < bottom; ++y) {
    norm_rows(x + y * width * a.dim, width, a.dim, a.norm, line);
    for (long cx = 0; cx < a.cells_w; ++cx) {
      long left = cx * width / a.cells_w, right = ((cx + 1) * width + a.cells_w - 1) / a.cells_w;
      for (long w = left; w < right; ++w)
        for (long i = 0; i < a.dim; ++i) sums[cx * a.dim + i] += line[w * a.dim + i];
    }
  }
  for (long cx = 0; cx < a.cells_w; ++cx) {
    long left = cx * width / a.cells_w, right = ((cx + 1) * width + a.cells_w - 1) / a.cells_w;
    float factor = 1.0f / ((bottom - top) * (right - left));
    for (long i = 0; i < a.dim; ++i) to[cx * a.dim + i] = sums[cx * a.dim + i] * factor;
  }
}

// The reduced tokens z (batch, keys, dim).
static void reduce(const Attention& a, const float* x, long batch, long height, long width, long keys_h, long keys_w,
                   float* z, int threads) {
  long size = height * width * a.dim, keys = keys_h * keys_w;
  if (a.reduces) {
    long steps[4] = {size, 1, width * a.dim, a.dim};
    patches(a.patch, x, steps, batch, height, width, z, keys_h, keys_w, threads);
  } else if (a.cells_h) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
    for (long b = 0; b < batch; ++b)
      for (long cell = 0; cell < keys_h; ++cell)
        pool_row(a, x + b * size, height, width, cell, z + (b * keys + cell * keys_w) * a.dim);
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
    for (long b = 0; b < batch; ++b)
      for (long cell = 0; cell < keys_h; ++cell) {
        Pieces pieces(worker.take(room({keys_w * a.dim, keys_w * a.dim})));
        float *copy = pieces.take<float>(keys_w * a.dim), *to = z + (b * keys + cell * keys_w) * a.dim;
        std::memcpy(copy, to, 4 * keys_w * a.dim);
        const Operand* rows = narrowed(copy, keys_w * a.dim, pieces.take<Operand>(keys_w * a.dim));
        MatrixUnits units;
        Tail tail;
        tail.bias = a.patch.bias;
        gemm(keys_w, a.dim, a.dim, rows, a.dim, a.patch.weight, whole_steps(a.dim), 0, to, a.dim, tail);
        norm_rows(to, keys_w, a.dim, a.patch.after, to);
        gelu_all(to, keys_w * a.dim, to);
      }
  } else {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < batch * keys; ++i) norm_row(x + i * a.dim, a.dim, a.norm, z + i * a.dim);
  }
}

// The projection (keys, columns) of the reduced tokens; `wide` and `narrow` are room for what absorbs it.
struct Projected {
  float *here, *wide;
  Operand* narrow;
};
static Projected project(const Attention& a, long m, const Operand* z, const Operand* panels, const float* bias,
                         long columns, long head) {
  Pieces pieces(worker.take(room({m * columns, m * a.dim, m * columns})));
  Projected p = {pieces.take<float>(m * columns), pieces.take<float>(m * a.dim), pieces.take<Operand>(m * columns)};
  Tail tail;
  tail.bias = bias ? bias + head * packed_columns(columns) : nullptr;
  gemm(m, columns, a.dim, z, a.dim, panels + head * packed_columns(columns) * paired(a.dim), a.dim, 0, p.here, columns,
       tail);
  return p;
}

static void prepare_keys(const Attention& a, const Kept& kept, bool absorbed, const Operand* z, long head, float* to) {
  MatrixUnits units;
  long d = a.width / a.heads, m = kept.keys;
  auto [k, wide, narrow] = project(a, m, z, a.key, a.key_bias, d, head);
  Head h = head_at(kept, to);
  for (long i = 0; i < m * d; ++i) k[i] *= a.scale;
  std::fill(h.bias, h.bias + m, 0.0f);
  std::fill(h.bias + m, h.bias + kept.wide, -1e30f);  // what fills the last panel is no key
  if (!absorbed) return pack(k, m, d, d, 1, h.keys, d, kept.wide);
  if (a.query_bias)
    for (long i = 0; i < m; ++i)
      for (long j = 0; j < d; ++j) h.bias[i] += k[i * d + j] * a.query_bias[head * d + j];
  const Operand* query = a.query_heads + head * packed_columns(a.dim) * paired(d);
  gemm(m, a.dim, d, narrowed(k, m * d, narrow), d, query, d, 0, wide, a.dim, Tail());
  pack(wide, m, a.dim, a.dim, 1, h.keys, a.dim, kept.wide);
}

static void prepare_values(const Attention& a, const Kept& kept, bool absorbed, const Operand* z, long head,
                           float* to) {
  MatrixUnits units;
  long dv = a.dim / a.heads, m = kept.keys;
  auto [v, wide, narrow] = project(a, m, z, a.value, a.value_bias, dv, head);
  Head h = head_at(kept, to);
  if (!absorbed) return pack(v, dv, m, 1, dv, h.values, weighed(kept.keys));
  const Operand* out = a.out_heads + head * packed_columns(a.dim) * paired(dv);
  gemm(m, a.dim, dv, narrowed(v, m * dv, narrow), dv, out, dv, 0, wide, a.dim, Tail());
  pack(wide, a.dim, m, 1, a.dim, h.values, weighed(kept.keys));
}

// `rows` tokens of x to y, which may be x; a query meets `block` keys at a time.
static void attend_tile(const Attention& a, const Kept& kept, bool absorbed, long block, float* heads, const float* x,
                        float* y, long rows) {
  MatrixUnits units;
  long d = a.width / a.heads, all = rows * a.dim, projected = absorbed ? 0 : rows * a.width;
  Pieces pieces(worker.take(room({all, projected, projected, all}) + Seekers::size(kept, rows, block)));
  Operand* xn = pieces.take<Operand>(all);
  float* queries = pieces.take<float>(projected);
  Operand *narrow = pieces.take<Operand>(projected), *joined = pieces.take<Operand>(all);
  const Seekers seekers(kept, rows, block, pieces);
  norm_rows(x, rows, a.dim, a.norm, xn);
  const Operand* q = xn;
  if (!absorbed) {
    Tail tail;
    tail.bias = a.query_bias;
    gemm(rows, a.width, a.dim, xn, a.dim, a.query, a.dim, 0, queries, a.width, tail);
    q = narrowed(queries, projected, narrow);
  }
  for (long head = 0; head < a.heads; ++head) {
    seekers.seek(kept, head_at(kept, heads + head * kept.size()), absorbed ? q : q + head * d, absorbed ? a.dim : a.width);
    const float *found = seekers.found, *bias = head == 0 ? a.out_bias : nullptr;
    for (long i = 0; i < rows; ++i, found += kept.columns) {
      vec factor = splat(seekers.factors[i]);
      float* to = y + i * a.dim;
      const float* add = head == 0 ? x + i * a.dim : to;
      Operand* beside = joined + i * a.dim + head * kept.columns;
      lanes_of(kept.columns, [&](long c, auto lanes) {
        vec v = take(found + c, lanes) * factor;
        if (!absorbed) return put(beside + c, v, lanes);
        if (bias) v += take(bias + c, lanes);
        put(to + c, v + take(add + c, lanes), lanes);
      });
    }
  }
  if (!absorbed) {
    Tail into;
    into.bias = a.out_bias, into.add = x, into.add_step = a.dim;
    gemm(rows, a.dim, a.dim, joined, a.dim, a.out, a.dim, 0, y, a.dim, into);
  }
}

// y = x + attention(norm(x)) on (batch, height, width, dim); y may be x.
static void attend(const Attention& a, const float* x, float* y, long batch, long height, long width, long keys_h,
                   long keys_w, bool absorbed, long cache, int threads) {
  long tokens = height * width, size = tokens * a.dim, keys = keys_h * keys_w;
  Kept kept{keys, scored(keys), absorbed ? a.dim : a.width / a.heads, absorbed ? a.dim : a.dim / a.heads};
  // `patches` may use the common memory only for images that are planes, never for tokens.
  Pieces pieces(common.take(room({batch * keys * a.dim, batch * keys * a.dim, batch * a.heads * kept.size()})));
  float* reduced = pieces.take<float>(batch * keys * a.dim);
  reduce(a, x, batch, height, width, keys_h, keys_w, reduced, threads);
  const Operand* z = narrowed(reduced, batch * keys * a.dim, pieces.take<Operand>(NARROW ? batch * keys * a.dim : 0));
  float* heads = pieces.take<float>(batch * a.heads * kept.size());
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
  for (long b = 0; b < batch; ++b)
    for (long half = 0; half < 2 * a.heads; ++half)
      (half % 2 ? prepare_values : prepare_keys)(a, kept, absorbed, z + b * keys * a.dim, half / 2,
                                                 heads + (b * a.heads + half / 2) * kept.size());
  long parts = parts_of(tokens, queries_at_once(keys), batch, threads), block = keys_at_once(keys, cache);
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
  for (long b = 0; b < batch; ++b)
    for (long part = 0; part < parts; ++part) {
      long token = part_at(tokens, part, parts), count = part_at(tokens, part + 1, parts) - token;
      if (count <= 0) continue;
      attend_tile(a, kept, absorbed, block, heads + b * a.heads * kept.size(), x + b * size + token * a.dim,
                  y + b * size + token * a.dim, count);
    }
  common.trim();
}
