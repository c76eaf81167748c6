// C = A B (+ C) with what follows in the same pass: bias, ReLU, a tensor added. A is read where it lies, row by row;
// B lies in panels: 2 * LANES columns (the last panel LANES, where that is enough), row after row of the panel.
#pragma once
#include "matrix_units.h"

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 14;  // 28 accumulators of 32 registers
#else
constexpr int TILE_ROWS = 6;  // 12 accumulators of 16
#endif
constexpr int PANEL = 2 * LANES;
constexpr long DEPTH = 320 * PAIR;  // rows of a panel that stay in the first cache

static inline long packed_columns(long n) {
  long rest = n % PANEL;
  return n - rest + (rest == 0 ? 0 : rest <= LANES ? LANES : PANEL);
}

// One row of a panel, or a pair: `valid` columns of `width`, from rows that lie in one piece each; no second, zeros.
static inline void pack_across(const float* from, [[maybe_unused]] const float* second, long valid, long width,
                               Operand* out) {
  for (long j = 0; j < width; j += LANES, out += PAIR * LANES) {
    long left = std::clamp<long>(valid - j, 0, LANES);
    vec upper = load_part(from + j, left);
#if defined(SRATTN_BF16)
    store_pairs(out, upper, second ? load_part(second + j, left) : vec{});
#else
    store(out, upper);
#endif
  }
}

// Column `j` of a panel of `width`, `count` numbers in one piece.
static inline void pack_along(const float* from, long count, long width, Operand* out) {
  Operand pairs[LANES];
  for (long k = 0; k < count; k += LANES) {
    long now = std::min<long>(count - k, LANES);
    now < LANES ? store(pairs, load_part(from + k, now)) : store(pairs, load(from + k));
    for (long p = 0; p < paired(now); p += PAIR, out += PAIR * width) std::memcpy(out, pairs + p, PAIR * sizeof(Operand));
  }
}

// B[k][n] = w[n * column_step + k * row_step] into panels of `depth` rows and `columns` (k and n, if not said), zero where
// w ends; of rows that come in pairs, the two of a column side by side. One of the steps is 1.
static void pack(const float* w, long n, long k, long column_step, long row_step, Operand* out, long depth = 0,
                 long columns = 0) {
  depth = paired(std::max(k, depth)), columns = std::max(n, columns);
  for (long first = 0; first < columns; first += PANEL) {
    long width = columns - first > LANES ? PANEL : LANES, valid = std::clamp<long>(n - first, 0, width);
    const float* from = w + first * column_step;
    if (column_step == 1) {
      for (long row = 0; row < k; row += PAIR) {
        const float* here = from + row * row_step;
        pack_across(here, row + 1 < k ? here + row_step : nullptr, valid, width, out + row * width);
      }
    } else {
      for (long j = 0; j < width; ++j)
        if (j < valid)
          pack_along(from + j * column_step, k, width, out + PAIR * j);
        else
          for (long row = 0; row < k; row += PAIR) std::memset(out + row * width + PAIR * j, 0, PAIR * sizeof(Operand));
    }
    std::memset(out + paired(k) * width, 0, (depth - paired(k)) * width * sizeof(Operand));
    out += depth * width;
  }
}

#if defined(SRATTN_BF16)
typedef __m512bh Pairs;
static inline Pairs load_pairs(const Operand* p) {
  Pairs v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline Pairs splat_pair(const Operand* p) {
  int both;
  std::memcpy(&both, p, sizeof both);
  return (Pairs)_mm512_set1_epi32(both);
}
static inline vec multiply_add(Pairs a, Pairs b, vec sum) { return (vec)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
typedef vec Pairs;
static inline Pairs load_pairs(const Operand* p) { return load(p); }
static inline Pairs splat_pair(const Operand* p) { return splat(*p); }
static inline vec multiply_add(Pairs a, Pairs b, vec sum) { return sum + a * b; }
#endif

template <int ROWS, int VECS>
static inline void tile(long depth, const Operand* a, long a_step, const Operand* b, float* c, long c_step,
                        long columns, const Tail& tail) {
  vec sum[ROWS][VECS] = {};
  for (long k = 0; k < depth; k += PAIR, b += PAIR * VECS * LANES) {
    Pairs right[VECS];
#pragma GCC unroll 2
    for (int j = 0; j < VECS; ++j) right[j] = load_pairs(b + PAIR * j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      Pairs left = splat_pair(a + i * a_step + k);
#pragma GCC unroll 2
      for (int j = 0; j < VECS; ++j) sum[i][j] = multiply_add(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < VECS; ++j) {
    long valid = std::min<long>(columns - j * LANES, LANES);
    if (valid <= 0) break;
    vec bias = tail.bias ? load(tail.bias + j * LANES) : vec{};
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const float* add = tail.add ? tail.add + i * tail.add_step + j * LANES : nullptr;
      finish(sum[i][j] + bias, c + i * c_step + j * LANES, add, valid, tail);
    }
  }
}

template <int VECS>
static void tiles(long rows, long depth, const Operand* a, long a_step, const Operand* b, const Operand* next, float* c,
                  long c_step, long columns, Tail tail) {
  // Tiles of nearly equal height: 49 rows are 4 x 6 + 5 x 5, not 8 x 6 + 1.
  long count = (rows + TILE_ROWS - 1) / TILE_ROWS;
  Ahead ahead(next, paired(depth) * VECS * LANES * sizeof(Operand));
  for (long t = 0, row = 0; t < count; ++t) {
    long height = (rows - row + (count - t) - 1) / (count - t);
    ahead.fetch(t, count);
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

// C (rows x columns) = A (rows x depth) B, with B's rows first..first+depth of a panel of `panel_depth` rows. Where
// operands come in pairs `first` is even, and of an odd depth the number after each row of A is finite.
static void gemm(long rows, long columns, long depth, const Operand* a, long a_step, const Operand* b,
                 long panel_depth, long first, float* c, long c_step, const Tail& tail) {
  if (rows <= 0) return;
  panel_depth = paired(panel_depth);
#if defined(SRATTN_MATRIX_UNITS)
  long whole = matrix_units && rows >= TILE ? depth / TILE_DEPTH * TILE_DEPTH : 0;  // vectors do the rest
#else
  constexpr long whole = 0;
#endif
  for (long k = 0, step; k < depth; k += step) {
    long rest = (k < whole ? whole : depth) - k, blocks = (rest + DEPTH - 1) / DEPTH;
    step = std::min(rest, ((rest + blocks - 1) / blocks + TILE_DEPTH - 1) / TILE_DEPTH * TILE_DEPTH);
    Tail part;
    part.accumulate = k > 0 || tail.accumulate;
    if (k == 0) part.bias = tail.bias, part.add = tail.add, part.add_step = tail.add_step;
    part.relu = tail.relu && k + step == depth;
    const Operand* panel = b;
    for (long j = 0; j < columns; j += PANEL) {
      long left = columns - j, width = left > LANES ? PANEL : LANES;
      Tail here = part;
      if (here.bias) here.bias += j;
      if (here.add) here.add += j;
      const Operand* from = panel + (first + k) * width;
      panel += panel_depth * width;
      const Operand* next = left > width ? panel + (first + k) * (left - width > LANES ? PANEL : LANES) : nullptr;
#if defined(SRATTN_MATRIX_UNITS)
      if (k < whole) {
        (width == PANEL ? matrix_tiles<2> : matrix_tiles<1>)(rows, step, a + k, a_step, from, next, c + j, c_step, left,
                                                             here);
        continue;
      }
#endif
      if (width == PANEL)
        tiles<2>(rows, step, a + k, a_step, from, next, c + j, c_step, left, here);
      else
        tiles<1>(rows, step, a + k, a_step, from, next, c + j, c_step, left, here);
    }
  }
}
