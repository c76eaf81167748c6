// A depthwise 3x3 convolution of tokens, with the map added to its result if asked, and its gradients.
//
// Both are limited by memory, so every map is walked through once, in the order in which it lies there.
#pragma once
#include <algorithm>
#include <vector>

#include "halves.h"

namespace depthwise {

constexpr long BLOCK = 1024;  // tokens whose sums are one part of the taps' gradient, about

struct Map {
  long batch, height, width, channels;
  long row() const { return width * channels; }
  long bands() const { return std::max<long>(1, (height * width + BLOCK - 1) / BLOCK); }  // of rows, of one image
};

// each(image, first, last, number) for every band of rows.
template <typename Each>
static void bands(const Map& m, int threads, Each each) {
  long count = m.bands();
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long i = 0; i < m.batch * count; ++i)
    each(i / count, m.height * (i % count) / count, m.height * (i % count + 1) / count, i);
}

// (channels, 9) as torch has them, to (9, channels); turned around for the gradient of what is read.
static std::vector<float> by_tap(const float* taps, long channels, bool turned) {
  std::vector<float> out(9 * channels);
  for (long c = 0; c < channels; ++c)
    for (long k = 0; k < 9; ++k) out[(turned ? 8 - k : k) * channels + c] = taps[c * 9 + k];
  return out;
}

// Row `row` of the result from an image `x`; `zero` has a token of zeros.
template <typename T>
static void convolve_row(const Map& m, const T* x, long row, const float* taps, const float* bias, bool residual,
                         const T* zero, T* to) {
  for (long col = 0; col < m.width; ++col) {
    const T* from[9];
    for (long k = 0; k < 9; ++k) {
      long y = row + k / 3 - 1, w = col + k % 3 - 1;
      bool inside = y >= 0 && y < m.height && w >= 0 && w < m.width;
      from[k] = inside ? x + (y * m.width + w) * m.channels : zero;
    }
    lanes_of(m.channels, [&](long c, auto left) {
      vec sum = bias ? take(bias + c, left) : vec{};
      vec middle = take(from[4] + c, left);
      if (residual) sum += middle;
      sum += middle * take(taps + 4 * m.channels + c, left);
#pragma GCC unroll 9
      for (long k = 0; k < 9; ++k)
        if (k != 4) sum += take(from[k] + c, left) * take(taps + k * m.channels + c, left);
      put(to + col * m.channels + c, sum, left);
    });
  }
}

template <typename T>
static void forward(const T* x, const Map& m, const float* taps, const float* bias, bool residual, T* y, int threads) {
  std::vector<float> ordered = by_tap(taps, m.channels, false);
  std::vector<T> zero(m.channels);
  bands(m, threads, [&](long image, long first, long last, long) {
    for (long row = first; row < last; ++row)
      convolve_row(m, x + image * m.height * m.row(), row, ordered.data(), bias, residual, zero.data(),
                   y + (image * m.height + row) * m.row());
  });
}

// Adds to `sums` (10, channels) what one row of dy gives the taps, and the bias behind them.
template <typename T>
static void taps_row(const Map& m, const T* x, const T* dy, long row, float* sums) {
  const T* rows[3];
  for (long r = 0; r < 3; ++r) {
    long y = row + r - 1;
    rows[r] = y < 0 || y >= m.height ? nullptr : x + y * m.row();
  }
  lanes_of(m.channels, [&](long c, auto left) {
    vec sum[9] = {}, flat = {};
    vec before = {}, here = take(dy + c, left);  // of dy at the columns before and at `col`, which reads x at `col`
    for (long col = 0; col < m.width; ++col) {
      vec after = col + 1 < m.width ? take(dy + (col + 1) * m.channels + c, left) : vec{};
      flat += here;
#pragma GCC unroll 3
      for (long r = 0; r < 3; ++r) {
        if (!rows[r]) continue;
        vec v = take(rows[r] + col * m.channels + c, left);
        sum[3 * r] += after * v;
        sum[3 * r + 1] += here * v;
        sum[3 * r + 2] += before * v;
      }
      before = here, here = after;
    }
#pragma GCC unroll 9
    for (long k = 0; k < 9; ++k) put(sums + k * m.channels + c, take(sums + k * m.channels + c, left) + sum[k], left);
    put(sums + 9 * m.channels + c, take(sums + 9 * m.channels + c, left) + flat, left);
  });
}

// dx, or none; dtaps (channels, 9) and dbias (channels) always. The order of sums does not depend on the threads.
template <typename T>
static void backward(const T* dy, const T* x, const Map& m, const float* taps, bool residual, T* dx, float* dtaps,
                     float* dbias, int threads) {
  std::vector<float> turned = by_tap(taps, m.channels, true);
  std::vector<T> zero(m.channels);
  long parts = m.batch * m.bands(), each = 10 * m.channels;
  std::vector<float> sums(parts * each);
  bands(m, threads, [&](long image, long first, long last, long number) {
    const T *map = x + image * m.height * m.row(), *gradients = dy + image * m.height * m.row();
    for (long row = first; row < last; ++row) {
      if (dx)
        convolve_row(m, gradients, row, turned.data(), nullptr, residual, zero.data(),
                     dx + (image * m.height + row) * m.row());
      // What comes next is read in columns: the row that is new to it is fetched in order.
      const char* next = reinterpret_cast<const char*>(map + std::min(row + 1, m.height - 1) * m.row());
      for (long i = 0; i < m.row() * (long)sizeof(T); i += 64) __builtin_prefetch(next + i);
      taps_row(m, map, gradients + row * m.row(), row, sums.data() + number * each);
    }
  });
  constexpr long PIECE = 256;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long piece = 0; piece < (each + PIECE - 1) / PIECE; ++piece) {
    long from = piece * PIECE, to = std::min(each, from + PIECE);
    double total[PIECE] = {};
    for (long n = 0; n < parts; ++n)
      for (long i = from; i < to; ++i) total[i - from] += sums[n * each + i];
    for (long i = from; i < to; ++i) {
      long k = i / m.channels, c = i % m.channels;
      (k < 9 ? dtaps[c * 9 + k] : dbias[c]) = total[i - from];
    }
  }
}

}  // namespace depthwise

extern "C" {
int srattn_depthwise_forward(const void* x, long batch, long height, long width, long channels, const float* taps,
                             const float* bias, int residual, int half, void* y, int threads) {
  depthwise::Map m{batch, height, width, channels};
  GUARDED(half ? depthwise::forward((const Half*)x, m, taps, bias, residual, (Half*)y, threads)
               : depthwise::forward((const float*)x, m, taps, bias, residual, (float*)y, threads))
}
int srattn_depthwise_backward(const void* dy, const void* x, long batch, long height, long width, long channels,
                              const float* taps, int residual, int half, void* dx, float* dtaps, float* dbias,
                              int threads) {
  depthwise::Map m{batch, height, width, channels};
  GUARDED(half ? depthwise::backward((const Half*)dy, (const Half*)x, m, taps, residual, (Half*)dx, dtaps, dbias, threads)
               : depthwise::backward((const float*)dy, (const float*)x, m, taps, residual, (float*)dx, dtaps, dbias,
                                     threads))
}
}
