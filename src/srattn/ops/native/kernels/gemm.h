// C = A B (+ C) with what follows in the same pass: bias, ReLU, a tensor added. A is read where it lies, row by row;
// B lies in panels: 2 * LANES columns (the last panel LANES, where that is enough), row after row of the panel.
#pragma once
#include <algorithm>
#include <atomic>

#include "operand.h"

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

// B[k][n] = w[n * column_step + k * row_step] into panels; of rows that come in pairs, the two of a column side by side.
static void pack(const float* w, long n, long k, long column_step, long row_step, Operand* out) {
  for (long first = 0; first < n; first += PANEL) {
    long width = n - first > LANES ? PANEL : LANES, valid = std::min<long>(n - first, width);
    for (long row = 0; row < k; row += PAIR, out += PAIR * width) {
      const float* from = w + first * column_step + row * row_step;
      for (long p = 0; p < PAIR; ++p)
        for (long j = 0; j < width; ++j)
          out[PAIR * j + p] = operand(j < valid && row + p < k ? from[j * column_step + p * row_step] : 0.0f);
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

// Whether the next panel is fetched while the tiles of one are computed: of one image, weights are read from memory once,
// and the first tile of a panel would wait for them. Set by every call for its own batch.
static std::atomic<bool> fetches_ahead{false};

template <int VECS>
static void tiles(long rows, long depth, const Operand* a, long a_step, const Operand* b, const Operand* next, float* c,
                  long c_step, long columns, Tail tail) {
  // Tiles of nearly equal height: 49 rows are 4 x 6 + 5 x 5, not 8 x 6 + 1.
  long count = (rows + TILE_ROWS - 1) / TILE_ROWS;
  constexpr long LINE = 64;
  bool fetches = next && fetches_ahead.load(std::memory_order_relaxed);
  long lines = fetches ? (paired(depth) * VECS * LANES * sizeof(Operand) + LINE - 1) / LINE : 0;
  for (long t = 0, row = 0; t < count; ++t) {
    long height = (rows - row + (count - t) - 1) / (count - t);
    for (long line = lines * t / count; line < lines * (t + 1) / count; ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(next) + line * LINE, 0, 2);
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
  long blocks = (depth + DEPTH - 1) / DEPTH;
  for (long block = 0, k = 0; block < blocks; ++block) {
    long step = std::min(depth - k, paired((depth - k + (blocks - block) - 1) / (blocks - block)));
    Tail part;
    part.accumulate = block > 0 || tail.accumulate;
    if (block == 0) part.bias = tail.bias, part.add = tail.add, part.add_step = tail.add_step;
    part.relu = tail.relu && block == blocks - 1;
    const Operand* panel = b;
    for (long j = 0; j < columns; j += PANEL) {
      long left = columns - j, width = left > LANES ? PANEL : LANES;
      Tail here = part;
      if (here.bias) here.bias += j;
      if (here.add) here.add += j;
      const Operand* from = panel + (first + k) * width;
      panel += panel_depth * width;
      const Operand* next = left > width ? panel + (first + k) * (left - width > LANES ? PANEL : LANES) : nullptr;
      if (width == PANEL)
        tiles<2>(rows, step, a + k, a_step, from, next, c + j, c_step, left, here);
      else
        tiles<1>(rows, step, a + k, a_step, from, next, c + j, c_step, left, here);
    }
    k += step;
  }
}
