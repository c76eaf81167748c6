// x += fc2(GELU(conv(fc1(norm(x))))): the hidden tensor lives and dies in the cache.
//
// Hidden channels are taken in chunks and the rows of the map in groups. Of a chunk only the rows that the 3x3
// convolution still needs are kept, in a ring, so that no hidden value is computed twice within a band. Maps of one size
// may lie one below the other: weights are then read once for several images.
#pragma once
#include "gemm.h"
#include "rows.h"

struct FeedForward {
  long dim, hidden;
  long conv, relu;               // a depthwise 3x3 convolution, a ReLU before it
  Norm norm;
  const Operand* fc1;            // panels
  const float* fc1_bias;
  const float *taps, *taps_bias; // (9, hidden), (hidden)
  const Operand* fc2;            // panels
  const float* fc2_bias;
};

constexpr long TOKENS = 96;  // about as many are in hand at a time
// Or whole maps of as many tokens: the faster the products, the more of them must meet each weight.
static long tokens_at_once() { return matrix_units ? 224 : TOKENS; }

// How the work of one map is cut.
struct Cut {
  long rows;   // of the map in one group
  long chunk;  // hidden channels at a time
};

// The width of chunks of nearly equal width, whole panels and at most about `most`, that make up `hidden`.
static long even(long hidden, long most) {
  long count = (hidden + most - 1) / std::max<long>(most, 1);
  return ((hidden + count - 1) / std::max<long>(count, 1) + PANEL - 1) / PANEL * PANEL;
}

// Rows in the ring. A group needs one more above and below; with room for two groups each is one product in one piece,
// which matters where the products are fastest.
static long ring_of(const FeedForward& f, long rows, long height) {
  long most = matrix_units ? std::max<long>(2 * rows, 3) : rows + 2;
  return f.conv ? std::min(most, height) : rows;
}

static Cut cut(const FeedForward& f, long height, long width, long cache) {
  Cut c;
  bool whole = height * width <= tokens_at_once();
  c.rows = std::max<long>(1, whole ? height : std::min(height, (TOKENS + width - 1) / std::max<long>(width, 1)));
  long held = f.conv ? ring_of(f, c.rows, height) + c.rows + 1 : c.rows;
  long each = 4 * (held * width + 2 * f.dim);  // bytes of the cache for one channel
  // Twice the private cache: longer sums are worth more than the misses, as measured.
  long fit = cache * 2 / std::max<long>(each, 1) / PANEL * PANEL;
  c.chunk = even(f.hidden, std::max<long>(2 * PANEL, std::min<long>(fit, 512)));
  return c;
}

// One row of the depthwise convolution and GELU: up, mid, low (width, step) to out (width, step).
static void depthwise_row(const float* up, const float* mid, const float* low, long width, long step, long channels,
                          const float* taps, const float* bias, long hidden, Operand* out) {
  for (long c = 0; c < channels; c += LANES) {
    vec w[9], b = load(bias + c);
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) w[i] = load(taps + i * hidden + c);
    vec left = {}, here = b;  // sums of the outputs before and at the column that is read
    for (long x = 0; x < width; ++x) {
      vec u = load(up + x * step + c), m = load(mid + x * step + c), l = load(low + x * step + c);
      left += u * w[2] + m * w[5] + l * w[8];
      here += u * w[1] + m * w[4] + l * w[7];
      vec next = b + u * w[0] + m * w[3] + l * w[6];
      if (x > 0) store(out + (x - 1) * step + c, gelu_for(out, left));
      left = here, here = next;
    }
    store(out + (width - 1) * step + c, gelu_for(out, left));
  }
}

// Adds to `y` the part of hidden channels from..to, on rows top..bottom of `rows` of which `xn` is the norm: maps of
// `height` rows one below the other.
static void hidden_part(const FeedForward& f, const Cut& c, const Operand* xn, float* y, long rows, long height,
                        long width, long top, long bottom, long from, long to, bool with_bias) {
  MatrixUnits units;
  // One cache line more than a chunk: at a power of two apart, pixels would fall on the same lines of the cache.
  long origin = std::max<long>(f.conv ? top - 1 : top, 0);  // the first row that is needed
  long ring = ring_of(f, c.rows, rows - origin), step = c.chunk + 16;
  Pieces pieces(worker.take(room({ring * width * step, c.rows * width * step, width * step})));
  float *h = pieces.take<float>(ring * width * step), *zero = pieces.take<float>(width * step);
  Operand* g = pieces.take<Operand>(c.rows * width * step);
  if (f.conv) std::memset(zero, 0, 4 * width * step);
  auto last = [&](long row) { return std::min(std::min(row + c.rows, bottom) + (f.conv ? 1 : 0), rows); };
  // The rows of the first group end where the ring does, so that those of others begin where it begins.
  long shift = std::max<long>(ring - (last(top) - origin), 0);
  auto slot = [&](long row) { return h + (row - origin + shift) % ring * width * step; };
  for (long first = from; first < to; first += c.chunk) {
    long channels = std::min(c.chunk, to - first);
    long ready = origin;  // rows from there up to this one are in the ring
    for (long row = top; row < bottom; row += c.rows) {
      long end = std::min(row + c.rows, bottom), need = last(row);
      while (ready < need) {
        long count = std::min(need - ready, ring - (ready - origin + shift) % ring);
        Tail tail;
        tail.bias = f.fc1_bias + first;
        tail.relu = f.relu;
        gemm(count * width, channels, f.dim, xn + ready * width * f.dim, f.dim, f.fc1 + first * f.dim, f.dim, 0,
             slot(ready), step, tail);
        ready += count;
      }
      const Operand* a = g;
      if (f.conv) {
        for (long r = row; r < end; ++r) {
          const float* up = r % height > 0 ? slot(r - 1) : zero;
          const float* low = (r + 1) % height > 0 ? slot(r + 1) : zero;
          depthwise_row(up, slot(r), low, width, step, channels, f.taps + first, f.taps_bias + first, f.hidden,
                        g + (r - row) * width * step);
        }
      } else {
        gelu_all(slot(row), (end - row) * width * step, in_place(slot(row), g));
        a = in_place(slot(row), g);
      }
      Tail tail;
      tail.accumulate = true;
      if (with_bias && first == 0) tail.bias = f.fc2_bias;
      gemm((end - row) * width, f.dim, channels, a, step, f.fc2, f.hidden, first, y + row * width * f.dim, f.dim,
           tail);
    }
  }
}

// In place on x (batch, height, width, dim).
static void feed_forward(const FeedForward& f, float* x, long batch, long height, long width, long cache, int threads) {
  long tokens = height * width, size = tokens * f.dim;
  bool images = batch % threads == 0 || batch >= 4L * threads;
  if (images || threads == 1) {
    // As many images at a time as make a group, if every thread has enough of them.
    long most = std::max<long>(1, tokens_at_once() / std::max<long>(tokens, 1));
    long groups = std::min(batch, ((batch + most - 1) / most + threads - 1) / threads * threads);
    long largest = (batch + groups - 1) / groups, room = largest * size;
    Cut c = cut(f, largest * height, width, cache);
    // The norm lies behind the ring in the worker's memory, so it is taken apart from it.
    Operand* norms = Pieces(common.take(threads * room)).take<Operand>(threads * room);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long group = 0; group < groups; ++group) {
      long first = batch * group / groups, count = batch * (group + 1) / groups - first;
      Operand* xn = norms + omp_get_thread_num() * room;
      norm_rows(x + first * size, count * tokens, f.dim, f.norm, xn);
      hidden_part(f, c, xn, x + first * size, count * height, height, width, 0, count * height, 0, f.hidden, true);
    }
    common.trim();
    return;
  }
  Cut c = cut(f, height, width, cache);
  // Few images: a map of few rows is shared by hidden channels (the sums of all threads are added afterwards), one of
  // many rows by rows, of which two are then computed twice.
  long panels = (f.hidden + PANEL - 1) / PANEL;
  bool by_rows = height >= 12L * threads || panels < 2L * threads;
  Pieces pieces(common.take(room({size, size * (by_rows ? 0 : threads - 1)})));
  Operand* xn = pieces.take<Operand>(size);
  float* sums = pieces.take<float>(size * (by_rows ? 0 : threads - 1));  // of the threads after the first
  for (long b = 0; b < batch; ++b) {
    float* y = x + b * size;
#pragma omp parallel num_threads(threads)
    {
      long me = omp_get_thread_num(), team = omp_get_num_threads();  // fewer than asked for in a nested region
      long row = height * me / team, end = height * (me + 1) / team;
      norm_rows(y + row * width * f.dim, (end - row) * width, f.dim, f.norm, xn + row * width * f.dim);
#pragma omp barrier
      if (by_rows) {
        if (row < end) hidden_part(f, c, xn, y, height, height, width, row, end, 0, f.hidden, true);
      } else {
        long from = panels * me / team * PANEL, to = std::min(f.hidden, panels * (me + 1) / team * PANEL);
        Cut part{c.rows, even(to - from, c.chunk)};
        float* own = me == 0 ? y : sums + (me - 1) * size;
        if (me > 0) std::memset(own, 0, 4 * size);
        hidden_part(f, part, xn, own, height, height, width, 0, height, from, to, me == 0);
#pragma omp barrier
        long begin = size * me / team, stop = size * (me + 1) / team;
        for (long t = 1; t < team; ++t)
          for (long i = begin; i < stop; ++i) y[i] += sums[(t - 1) * size + i];
      }
    }
  }
  common.trim();
}
