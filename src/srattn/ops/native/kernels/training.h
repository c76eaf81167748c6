// The feed-forward for training: fc1, [ReLU], [depthwise 3x3], GELU, fc2 on tokens (batch, height, width, channels).
//
// Each thread takes units of a few rows (or a few small maps), and within a unit GROUP hidden channels at a time: what
// is hidden lives and dies in its private cache, in backward as well, where it is computed again. Weight gradients are
// summed thread by thread in a fixed order: the same number of threads gives the same bits.
#pragma once

#include "training_parts.h"

namespace training {

struct Mlp {
  const float *w1, *b1;      // (hidden, in), (hidden) or null
  const float *taps, *bias;  // (hidden, 3, 3), (hidden); null without convolution
  const float *w2, *b2;      // (out, hidden), (out) or null
  long in, hidden, out, relu;
};

struct MlpGradients {  // null where not wanted; those of w1 and w2 always are
  float *x, *w1, *b1, *taps, *bias, *w2, *b2;
};

// Rows first..last of maps image..image+count (all their rows, where there is more than one).
struct Unit {
  long image, count, first, last;
};

static inline long units(long batch, long height, long rows) {
  return rows >= height ? (batch + rows / height - 1) / (rows / height) : batch * ((height + rows - 1) / rows);
}

static inline Unit unit(long i, long batch, long height, long rows) {
  if (rows >= height) {
    long count = rows / height;
    return {i * count, std::min(count, batch - i * count), 0, height};
  }
  long bands = (height + rows - 1) / rows, b = i % bands;
  return {i / bands, 1, height * b / bands, height * (b + 1) / bands};
}

// Weights in the order in which the products read them.
struct Packed {
  const float *fc1, *fc2, *back1, *back2;  // panels of W1^T, W2^T; of W1, W2 for backward
  const float *b1, *b2, *bias, *taps;      // padded with zeros; taps (9, hidden)
};

static long packed_numbers(const Mlp& m) {
  long h = rounded(m.hidden);
  return 2 * h * (m.in + m.out) + 2 * m.hidden * (packed_columns(m.in) + packed_columns(m.out)) + 11 * h +
         packed_columns(m.out);
}

static Packed packed(const Mlp& m, float* at, bool backward, int threads) {
  Packed p = {};
  long h = rounded(m.hidden);
  auto take = [&](long count) {
    float* here = at;
    at += count;
    return here;
  };
  auto panels = [&](const float* w, long n, long k, long column_step, long row_step) {
    float* to = take(packed_columns(n) * k);
    long count = (n + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < count; ++i)
      pack(w + i * PANEL * column_step, std::min<long>(PANEL, n - i * PANEL), k, column_step, row_step,
           to + i * PANEL * k);
    return to;
  };
  auto padded = [&](const float* b, long n, long size) {
    float* to = take(size);
    for (long i = 0; i < size; ++i) to[i] = b && i < n ? b[i] : 0.0f;
    return to;
  };
  p.fc1 = panels(m.w1, m.hidden, m.in, m.in, 1);
  if (backward) {
    p.back2 = panels(m.w2, m.hidden, m.out, 1, m.hidden);
    p.back1 = panels(m.w1, m.in, m.hidden, 1, m.in);
  } else {
    p.fc2 = panels(m.w2, m.out, m.hidden, m.hidden, 1);
  }
  p.b1 = padded(m.b1, m.hidden, h);
  p.b2 = padded(m.b2, m.out, packed_columns(m.out));
  p.bias = padded(m.bias, m.hidden, h);
  float* taps = take(9 * h);
  if (m.taps)
    for (long i = 0; i < 9; ++i)
      for (long c = 0; c < h; ++c) taps[i * h + c] = c < m.hidden ? m.taps[c * 9 + i] : 0.0f;
  p.taps = taps;
  return p;
}

static void mlp_forward(const Mlp& m, const float* x, float* y, long batch, long height, long width, long rows,
                        int threads) {
  Packed p = packed(m, common.take(packed_numbers(m)), false, threads);
  long count = units(batch, height, rows), halo = m.taps ? 1 : 0, padded = rounded(m.hidden);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long i = 0; i < count; ++i) {
    Unit u = unit(i, batch, height, rows);
    long low = std::max<long>(u.first - halo, 0), high = std::min(u.last + halo, height);
    long seen = (high - low) * width, kept = (u.last - u.first) * width;  // tokens of one map, with and without halo
    float* zero = worker.take((width + u.count * (seen + kept)) * GROUP);
    float *h = zero + width * GROUP, *g = h + u.count * seen * GROUP;
    std::memset(zero, 0, 4 * width * GROUP);
    const float* from = x + (u.image * height + low) * width * m.in;
    float* to = y + (u.image * height + u.first) * width * m.out;
    for (long first = 0; first < m.hidden; first += GROUP) {
      long channels = std::min(GROUP, m.hidden - first);
      Tail tail;
      tail.bias = p.b1 + first;
      tail.relu = m.relu;
      gemm(u.count * seen, channels, m.in, from, m.in, p.fc1 + first * m.in, m.in, 0, h, GROUP, tail);
      if (!m.taps) {
        gelu_all(h, u.count * seen * GROUP, h);
      } else {
        for (long k = 0; k < u.count; ++k) {
          Rows in = {h + k * seen * GROUP, width, low, high, zero};
          for (long row = u.first; row < u.last; ++row) {
            float* out = g + (k * kept + (row - u.first) * width) * GROUP;
            for (long c = 0; c < channels; c += LANES)
              convolve(in, row, c, p.taps + first, padded, false, load(p.bias + first + c),
                       [&](long at, vec sum) { store(out + at * GROUP + c, gelu(sum)); });
          }
        }
      }
      Tail add;
      add.accumulate = first > 0;
      if (first == 0) add.bias = p.b2;
      gemm(u.count * kept, m.out, channels, m.taps ? g : h, GROUP, p.fc2, m.hidden, first, to, m.out, add);
    }
  }
  common.trim();
}

// What one thread sums up: gradients of W1 (hidden, padded in), W2^T (hidden, padded out), taps (9, hidden), b1 and
// the convolution's bias (hidden each), b2 (padded out).
struct Sums {
  float *w1, *w2, *taps, *b1, *bias, *b2;
};

static long sums_numbers(const Mlp& m) {
  return m.hidden * (padded_columns(m.in) + padded_columns(m.out)) + 11 * rounded(m.hidden) + padded_columns(m.out);
}

static Sums sums_at(const Mlp& m, float* at) {
  long h = rounded(m.hidden);
  Sums s;
  s.w1 = at;
  s.w2 = s.w1 + m.hidden * padded_columns(m.in);
  s.taps = s.w2 + m.hidden * padded_columns(m.out);
  s.b1 = s.taps + 9 * h;
  s.bias = s.b1 + h;
  s.b2 = s.bias + h;
  return s;
}

static void mlp_backward_unit(const Mlp& m, const Packed& p, const Unit& u, const float* x, const float* dy, float* dx,
                              const Sums& s, long height, long width) {
  long one = m.taps ? 1 : 0, padded = rounded(m.hidden);
  long low2 = std::max<long>(u.first - 2 * one, 0), high2 = std::min(u.last + 2 * one, height);
  long low = std::max<long>(u.first - one, 0), high = std::min(u.last + one, height);
  long seen = (high2 - low2) * width, wide = (high - low) * width, kept = (u.last - u.first) * width;
  long inner = (u.first - low) * width, tokens = u.count * kept;
  long in_panels = padded_columns(m.in), out_panels = padded_columns(m.out);
  float* zero = worker.take(width * GROUP + u.count * (seen + 2 * wide) * GROUP + tokens * (in_panels + out_panels));
  float *h = zero + width * GROUP, *d = h + u.count * seen * GROUP, *g = d + u.count * wide * GROUP;
  float *xp = g + u.count * wide * GROUP, *dyp = xp + tokens * in_panels;
  std::memset(zero, 0, 4 * width * GROUP);
  const float* x_kept = x + (u.image * height + u.first) * width * m.in;
  const float* dy_kept = dy + (u.image * height + u.first) * width * m.out;
  panels_of(x_kept, tokens, m.in, xp);
  panels_of(dy_kept, tokens, m.out, dyp);
  for (long j = 0; j < out_panels; j += PANEL) add_columns(dyp + j * tokens, tokens, PANEL, PANEL, s.b2 + j);
  // Where there is more than one map, the unit holds all their rows: no halo, and the maps lie side by side.
  for (long first = 0; first < m.hidden; first += GROUP) {
    long channels = std::min(GROUP, m.hidden - first);
    Tail tail;
    tail.bias = p.b1 + first;
    tail.relu = m.relu;
    gemm(u.count * seen, channels, m.in, x + (u.image * height + low2) * width * m.in, m.in, p.fc1 + first * m.in,
         m.in, 0, h, GROUP, tail);
    gemm(u.count * wide, channels, m.out, dy + (u.image * height + low) * width * m.out, m.out,
         p.back2 + first * m.out, m.out, 0, d, GROUP, Tail());
    // d: from the gradient of GELU(u) to that of u; g: GELU(u).
    if (!m.taps) {
      for (long i = 0; i < tokens * GROUP; i += LANES) {
        vec value, slope;
        gelu_and_slope(load(h + i), value, slope);
        store(g + i, value);
        store(d + i, load(d + i) * slope);
      }
    } else {
      for (long k = 0; k < u.count; ++k) {
        Rows in = {h + k * seen * GROUP, width, low2, high2, zero};
        for (long row = low; row < high; ++row) {
          long at = (k * wide + (row - low) * width) * GROUP;
          for (long c = 0; c < channels; c += LANES)
            convolve(in, row, c, p.taps + first, padded, false, load(p.bias + first + c), [&](long column, vec sum) {
              vec value, slope;
              gelu_and_slope(sum, value, slope);
              long here = at + column * GROUP + c;
              store(g + here, value);
              store(d + here, load(d + here) * slope);
            });
        }
      }
    }
    outer(tokens, channels, g + inner * GROUP, dyp, m.out, s.w2 + first * out_panels);
    float* dh = d;
    if (m.taps) {
      add_columns(d + inner * GROUP, tokens, GROUP, channels, s.bias + first);
      for (long k = 0; k < u.count; ++k) {
        Rows in = {h + k * seen * GROUP, width, low2, high2, zero};
        Rows du = {d + k * wide * GROUP, width, low, high, zero};
        for (long row = u.first; row < u.last; ++row) {
          float* out = g + (k * kept + (row - u.first) * width) * GROUP;
          for (long c = 0; c < channels; c += LANES) {
            taps_gradient(in, du(row), row, c, s.taps + first, padded);
            if (m.relu) {
              const float* seen_h = in(row) + c;
              convolve(du, row, c, p.taps + first, padded, true, vec{}, [&](long at, vec sum) {
                store(out + at * GROUP + c, load(seen_h + at * GROUP) > vec{} ? sum : vec{});
              });
            } else {
              convolve(du, row, c, p.taps + first, padded, true, vec{},
                       [&](long at, vec sum) { store(out + at * GROUP + c, sum); });
            }
          }
        }
      }
      dh = g;
    }
    add_columns(dh, tokens, GROUP, channels, s.b1 + first);
    outer(tokens, channels, dh, xp, m.in, s.w1 + first * in_panels);
    if (dx) {
      Tail add;
      add.accumulate = first > 0;
      gemm(tokens, m.in, channels, dh, GROUP, p.back1, m.hidden, first,
           dx + (u.image * height + u.first) * width * m.in, m.in, add);
    }
  }
}

static void mlp_backward(const Mlp& m, const float* x, const float* dy, const MlpGradients& g, long batch, long height,
                         long width, long rows, int threads) {
  long weights = packed_numbers(m), each = sums_numbers(m), count = units(batch, height, rows);
  threads = static_cast<int>(std::max<long>(1, std::min<long>(threads, count)));
  float* memory = common.take(weights + threads * each);
  float* sums = memory + weights;
  Packed p = packed(m, memory, true, threads);
#pragma omp parallel num_threads(threads)
  {
    long me = omp_get_thread_num(), team = omp_get_num_threads();  // fewer than asked for in a nested region
    Sums s = sums_at(m, sums + me * each);
    std::memset(s.w1, 0, 4 * each);
    for (long i = count * me / team; i < count * (me + 1) / team; ++i)
      mlp_backward_unit(m, p, unit(i, batch, height, rows), x, dy, g.x, s, height, width);
#pragma omp barrier
    for (long t = 1; t < team; ++t)
      for (long i = each * me / team; i < each * (me + 1) / team; ++i) sums[i] += sums[t * each + i];
  }
  Sums s = sums_at(m, sums);
  long in_panels = padded_columns(m.in), out_panels = padded_columns(m.out), h = rounded(m.hidden);
  for (long i = 0; i < m.hidden; ++i) std::memcpy(g.w1 + i * m.in, s.w1 + i * in_panels, 4 * m.in);
  for (long o = 0; o < m.out; ++o)
    for (long i = 0; i < m.hidden; ++i) g.w2[o * m.hidden + i] = s.w2[i * out_panels + o];
  if (g.b1) std::memcpy(g.b1, s.b1, 4 * m.hidden);
  if (g.bias) std::memcpy(g.bias, s.bias, 4 * m.hidden);
  if (g.b2) std::memcpy(g.b2, s.b2, 4 * m.out);
  if (g.taps)
    for (long c = 0; c < m.hidden; ++c)
      for (long i = 0; i < 9; ++i) g.taps[c * 9 + i] = s.taps[i * h + c];
  common.trim();
}

}  // namespace training

extern "C" {
long srattn_mlp_sizes(int which) { return which == 0 ? sizeof(training::Mlp) : sizeof(training::MlpGradients); }
int srattn_mlp_forward(const training::Mlp* m, const float* x, float* y, long batch, long height, long width, long rows,
                       int threads) {
  GUARDED(training::mlp_forward(*m, x, y, batch, height, width, rows, threads))
}
int srattn_mlp_backward(const training::Mlp* m, const float* x, const float* dy, const training::MlpGradients* g,
                        long batch, long height, long width, long rows, int threads) {
  GUARDED(training::mlp_backward(*m, x, dy, *g, batch, height, width, rows, threads))
}
}
