// What the feed-forward for training is made of: GELU with its derivative, rows of the convolution and of its
// gradients, and the products that give the gradients of weights. All of it on GROUP channels of a map.
#pragma once
#include "gemm.h"
#include "rows.h"

namespace training {

constexpr long GROUP = 32;  // hidden channels at a time: whole panels on AVX2 and on AVX-512
constexpr long DEEP = 128;  // tokens that one tile of a weight gradient sums up: both operands stay in the first cache
static_assert(GROUP % PANEL == 0, "a group is whole panels");

static inline long rounded(long n) { return (n + GROUP - 1) / GROUP * GROUP; }

static inline long padded_columns(long n) { return (n + PANEL - 1) / PANEL * PANEL; }

// GELU(u) = u Phi(u) and its derivative Phi(u) + u phi(u), as exact as what they are stored as.
static inline void gelu_and_slope(vec u, vec& value, vec& slope, const float* stored = nullptr) {
  vec phi = normal(u);
  value = u * phi;
  slope = phi + u * exponential_for(stored, splat(-0.5f) * u * u) * splat(0.398942280f);
}
static inline void gelu_and_slope(vec u, vec& value, vec& slope, const Half* stored) {
  vec phi = normal_coarse(u);
  value = u * phi;
  slope = phi + u * exponential_for(stored, splat(-0.5f) * u * u) * splat(0.398942280f);
}

// What a 3x3 sees of GROUP channels: a row of zeros where the map ends.
struct Rows {
  const float* data;
  long width, first, last;  // rows first..last of the map are at `data`
  const float* zero;
  const float* operator()(long row) const {
    return row < first || row >= last ? zero : data + (row - first) * width * GROUP;
  }
};

// each(x, sum) for every column of one row: sum over the 3x3 around it of LANES channels from c, `back` with the taps
// turned around.
template <typename Each>
static inline void convolve(const Rows& in, long row, long c, const float* taps, long hidden, bool back, vec bias,
                            Each each) {
  const float *up = in(row - 1) + c, *mid = in(row) + c, *low = in(row + 1) + c;
  vec w[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) w[i] = load(taps + (back ? 8 - i : i) * hidden + c);
  vec left = {}, here = bias;  // sums of the outputs before and at the column that is read
  for (long x = 0; x < in.width; ++x) {
    vec u = load(up + x * GROUP), m = load(mid + x * GROUP), l = load(low + x * GROUP);
    left += u * w[2] + m * w[5] + l * w[8];
    here += u * w[1] + m * w[4] + l * w[7];
    vec next = bias + u * w[0] + m * w[3] + l * w[6];
    if (x > 0) each(x - 1, left);
    left = here, here = next;
  }
  each(in.width - 1, left);
}

// taps[c][i] += sum over one row of d(x) h(x + i): the gradient of the taps.
static inline void taps_gradient(const Rows& h, const float* d, long row, long c, float* taps, long hidden) {
  const float* rows[3] = {h(row - 1) + c, h(row) + c, h(row + 1) + c};
  vec sum[9] = {};
  vec before = {}, here = load(d + c);  // of d at the columns before and at x, which reads h at x
  for (long x = 0; x < h.width; ++x) {
    vec after = x + 1 < h.width ? load(d + (x + 1) * GROUP + c) : vec{};
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
      vec v = load(rows[r] + x * GROUP);
      sum[3 * r] += after * v;
      sum[3 * r + 1] += here * v;
      sum[3 * r + 2] += before * v;
    }
    before = here, here = after;
  }
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) store(taps + i * hidden + c, load(taps + i * hidden + c) + sum[i]);
}

// Rows of tokens as panels that a weight gradient reads: (columns / PANEL, tokens, PANEL), padded with zeros.
static void panels_of(const float* x, long tokens, long columns, float* to) {
  for (long j = 0; j < columns; j += PANEL) {
    long valid = std::min<long>(PANEL, columns - j);
    for (long t = 0; t < tokens; ++t, to += PANEL) {
      std::memcpy(to, x + t * columns + j, 4 * valid);
      for (long i = valid; i < PANEL; ++i) to[i] = 0.0f;
    }
  }
}

template <int ROWS>
static inline void outer_tile(long tokens, const float* a, const float* b, float* c, long c_step) {
  vec sum[ROWS][2] = {};
  for (long t = 0; t < tokens; ++t, a += GROUP, b += PANEL) {
    vec b0 = load(b), b1 = load(b + LANES);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      vec left = splat(a[i]);
      sum[i][0] += left * b0;
      sum[i][1] += left * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    float* to = c + i * c_step;
    store(to, load(to) + sum[i][0]);
    store(to + LANES, load(to + LANES) + sum[i][1]);
  }
}

// c (channels, padded columns) += a^T b: a (tokens, GROUP), of which `channels` count; b panels of `columns`.
static void outer(long tokens, long channels, const float* a, const float* b, long columns, float* c) {
  long step = padded_columns(columns);
  for (long t = 0; t < tokens; t += DEEP) {
    long deep = std::min(DEEP, tokens - t);
    for (long j = 0; j < step; j += PANEL) {
      const float* from = b + j * tokens + t * PANEL;
      long i = 0;
      for (; i + 6 <= channels; i += 6) outer_tile<6>(deep, a + t * GROUP + i, from, c + i * step + j, step);
      for (; i + 4 <= channels; i += 4) outer_tile<4>(deep, a + t * GROUP + i, from, c + i * step + j, step);
      for (; i < channels; ++i) outer_tile<1>(deep, a + t * GROUP + i, from, c + i * step + j, step);
    }
  }
}

// Sums in blocks: of many terms added one by one the last would be rounded away.
static inline void add_columns(const float* x, long tokens, long step, long columns, float* sums) {
  for (long first = 0; first < tokens; first += DEEP)
    for (long c = 0; c < columns; c += LANES) {
      vec sum = {};
      for (long t = first; t < std::min(first + DEEP, tokens); ++t) sum += load(x + t * step + c);
      store(sums + c, load(sums + c) + sum);
    }
}

}  // namespace training
