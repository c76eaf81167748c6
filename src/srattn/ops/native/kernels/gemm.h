// C = A B (+ C) with what follows in the same pass: bias, ReLU, a tensor added. A is read where it lies, row by row;
// B lies in panels: 2 * LANES columns (the last panel LANES, where that is enough), row after row of the panel.
#pragma once
#include <algorithm>

#include "simd.h"

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14;  // 28 accumulators of 32 registers
#else
constexpr int TILE_ROWS = 6;  // 12 accumulators of 16
#endif
constexpr int PANEL = 2 * LANES;
constexpr long DEPTH = 320;  // rows of a panel that stay in the first cache

static inline long packed_columns(long n) {
  long rest = n % PANEL;
  return n - rest + (rest == 0 ? 0 : rest <= LANES ? LANES : PANEL);
}

// B[k][n] = w[n * column_step + k * row_step] into panels.
static void pack(const float* w, long n, long k, long column_step, long row_step, float* out) {
  for (long first = 0; first < n; first += PANEL) {
    long width = n - first > LANES ? PANEL : LANES, valid = std::min<long>(n - first, width);
    for (long row = 0; row < k; ++row, out += width) {
      const float* from = w + first * column_step + row * row_step;
      for (long j = 0; j < valid; ++j) out[j] = from[j * column_step];
      for (long j = valid; j < width; ++j) out[j] = 0.0f;
    }
  }
}

// The tail of a product. `bias` has packed_columns(n) entries; `add` has the layout of C.
struct Tail {
  const float* bias = nullptr;
  const float* add = nullptr;
  long add_step = 0;
  bool accumulate = false;
  bool relu = false;
};

template <int ROWS, int VECS>
static inline void tile(long depth, const float* a, long a_step, const float* b, float* c, long c_step, long columns,
                        const Tail& tail) {
  vec sum[ROWS][VECS] = {};
  for (long k = 0; k < depth; ++k, b += VECS * LANES) {
    vec right[VECS];
#pragma GCC unroll 2
    for (int j = 0; j < VECS; ++j) right[j] = load(b + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      vec left = splat(a[i * a_step + k]);
#pragma GCC unroll 2
      for (int j = 0; j < VECS; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < VECS; ++j) {
    long valid = std::min<long>(columns - j * LANES, LANES);
    if (valid <= 0) break;
    vec bias = tail.bias ? load(tail.bias + j * LANES) : vec{};
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      float* to = c + i * c_step + j * LANES;
      vec v = sum[i][j] + bias;
      if (valid == LANES) {
        if (tail.accumulate) v += load(to);
        if (tail.add) v += load(tail.add + i * tail.add_step + j * LANES);
        if (tail.relu) v = relu(v);
        store(to, v);
      } else {
        if (tail.accumulate) v += load_part(to, valid);
        if (tail.add) v += load_part(tail.add + i * tail.add_step + j * LANES, valid);
        if (tail.relu) v = relu(v);
        store_part(to, v, valid);
      }
    }
  }
}

template <int VECS>
static void tiles(long rows, long depth, const float* a, long a_step, const float* b, float* c, long c_step,
                  long columns, Tail tail) {
  // Tiles of nearly equal height: 49 rows are 4 x 6 + 5 x 5, not 8 x 6 + 1.
  long count = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (long t = 0, row = 0; t < count; ++t) {
    long height = (rows - row + (count - t) - 1) / (count - t);
    switch (height) {
#define CASE(R) \
  case R: tile<R, VECS>(depth, a, a_step, b, c, c_step, columns, tail); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
      CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
#undef CASE
    }
    row += height;
    a += height * a_step;
    c += height * c_step;
    if (tail.add) tail.add += height * tail.add_step;
  }
}

// C (rows x columns) = A (rows x depth) B, with B's rows first..first+depth of a panel of `panel_depth` rows.
static void gemm(long rows, long columns, long depth, const float* a, long a_step, const float* b, long panel_depth,
                 long first, float* c, long c_step, const Tail& tail) {
  if (rows <= 0) return;
  long blocks = (depth + DEPTH - 1) / DEPTH;
  for (long block = 0, k = 0; block < blocks; ++block) {
    long step = (depth - k + (blocks - block) - 1) / (blocks - block);
    Tail part;
    part.accumulate = block > 0 || tail.accumulate;
    if (block == 0) part.bias = tail.bias, part.add = tail.add, part.add_step = tail.add_step;
    part.relu = tail.relu && block == blocks - 1;
    const float* panel = b;
    for (long j = 0; j < columns; j += PANEL) {
      long left = columns - j, width = left > LANES ? PANEL : LANES;
      Tail here = part;
      if (here.bias) here.bias += j;
      if (here.add) here.add += j;
      const float* from = panel + (first + k) * width;
      if (width == PANEL)
        tiles<2>(rows, step, a + k, a_step, from, c + j, c_step, left, here);
      else
        tiles<1>(rows, step, a + k, a_step, from, c + j, c_step, left, here);
      panel += panel_depth * width;
    }
    k += step;
  }
}
