// Batch normalisation of tokens while training, with GELU before it if asked: statistics, results and gradients in two
// passes each over what is read, and nothing kept but the input, the mean and 1 / the standard deviation.
#pragma once
#include <algorithm>
#include <vector>

#include "halves.h"
#include "training_parts.h"

namespace batch_norm {

constexpr long ROWS = 256;  // tokens of one sum in float32; those sums are added in float64

// Tokens at p as the norm sees them.
template <bool GELU, typename T>
static inline vec seen(const T* p, long count) {
  vec u = take(p, count);
  return GELU ? gelu_for(p, u) : u;
}

// each(first, last, block) for every block of tokens.
template <typename Each>
static void blocks(long rows, int threads, Each each) {
  long count = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long b = 0; b < count; ++b) each(b * ROWS, std::min(rows, (b + 1) * ROWS), b);
}

// Adds the blocks' pairs of sums in order, so that the result does not depend on the number of threads.
static void total(const std::vector<float>& parts, long count, long channels, double* a, double* b) {
  std::fill(a, a + channels, 0.0), std::fill(b, b + channels, 0.0);
  for (long n = 0; n < count; ++n)
    for (long c = 0; c < channels; ++c) {
      a[c] += parts[(2 * n) * channels + c];
      b[c] += parts[(2 * n + 1) * channels + c];
    }
}

// x, y (rows, channels); mean, var (biased) and inverse (channels).
template <typename T, bool GELU>
static void forward(const T* x, long rows, long channels, const float* weight, const float* bias, float eps, T* y,
                    float* mean, float* var, float* inverse, int threads) {
  long count = (rows + ROWS - 1) / ROWS;
  std::vector<float> parts(2 * count * channels), shift(channels);
  // Deviations from a value that occurs: their sums of squares lose nothing.
  vectors(0, 1, channels, [&](long at, long c, auto left) {
    put(shift.data() + c, seen<GELU>(x + at, left), left);
  });
  blocks(rows, threads, [&](long first, long last, long number) {
    float *sums = parts.data() + 2 * number * channels, *squares = sums + channels;
    vectors(first, last, channels, [&](long at, long c, auto left) {
      vec d = seen<GELU>(x + at, left) - take(shift.data() + c, left);
      put(sums + c, take(sums + c, left) + d, left);
      put(squares + c, take(squares + c, left) + d * d, left);
    });
  });
  std::vector<double> sums(channels), squares(channels);
  total(parts, count, channels, sums.data(), squares.data());
  std::vector<float> slope(channels), offset(channels);
  for (long c = 0; c < channels; ++c) {
    double m = sums[c] / rows, v = std::max(0.0, squares[c] / rows - m * m);
    mean[c] = m + shift[c], var[c] = v, inverse[c] = 1 / std::sqrt(v + eps);
    slope[c] = inverse[c] * (weight ? weight[c] : 1.0f);
    offset[c] = (bias ? bias[c] : 0.0f) - mean[c] * slope[c];
  }
  blocks(rows, threads, [&](long first, long last, long) {
    vectors(first, last, channels, [&](long at, long c, auto left) {
      vec h = seen<GELU>(x + at, left);
      put(y + at, h * take(slope.data() + c, left) + take(offset.data() + c, left), left);
    });
  });
}

// dx of x as `forward` read it; the gradients of weight and bias (channels) always.
template <typename T, bool GELU>
static void backward(const T* dy, const T* x, long rows, long channels, const float* weight, const float* mean,
                     const float* inverse, T* dx, float* dweight, float* dbias, int threads) {
  long count = (rows + ROWS - 1) / ROWS;
  std::vector<float> parts(2 * count * channels);
  blocks(rows, threads, [&](long first, long last, long number) {
    float *sums = parts.data() + 2 * number * channels, *products = sums + channels;
    vectors(first, last, channels, [&](long at, long c, auto left) {
      vec d = take(dy + at, left), h = seen<GELU>(x + at, left);
      put(sums + c, take(sums + c, left) + d, left);
      vec normal = (h - take(mean + c, left)) * take(inverse + c, left);
      put(products + c, take(products + c, left) + d * normal, left);
    });
  });
  std::vector<double> sums(channels), products(channels);
  total(parts, count, channels, sums.data(), products.data());
  std::vector<float> scale(channels), flat(channels), tilt(channels);
  for (long c = 0; c < channels; ++c) {
    dbias[c] = sums[c], dweight[c] = products[c];
    scale[c] = inverse[c] * (weight ? weight[c] : 1.0f);
    flat[c] = sums[c] / rows, tilt[c] = products[c] / rows * inverse[c];
  }
  blocks(rows, threads, [&](long first, long last, long) {
    vectors(first, last, channels, [&](long at, long c, auto left) {
      vec u = take(x + at, left), h = u, slope = splat(1.0f);
      if (GELU) training::gelu_and_slope(u, h, slope, x);
      vec d = take(dy + at, left) - take(flat.data() + c, left);
      d -= (h - take(mean + c, left)) * take(tilt.data() + c, left);
      put(dx + at, d * take(scale.data() + c, left) * slope, left);
    });
  });
}

}  // namespace batch_norm

#define SRATTN_BATCH_NORM(NAME, ARGUMENTS)                                     \
  if (half && gelu) batch_norm::NAME<Half, true> ARGUMENTS(Half);              \
  else if (half) batch_norm::NAME<Half, false> ARGUMENTS(Half);                \
  else if (gelu) batch_norm::NAME<float, true> ARGUMENTS(float);               \
  else batch_norm::NAME<float, false> ARGUMENTS(float);

extern "C" {
int srattn_batch_norm_forward(const void* x, long rows, long channels, const float* weight, const float* bias,
                              float eps, int half, int gelu, void* y, float* mean, float* var, float* inverse,
                              int threads) {
#define ARGUMENTS(T) ((const T*)x, rows, channels, weight, bias, eps, (T*)y, mean, var, inverse, threads)
  GUARDED(SRATTN_BATCH_NORM(forward, ARGUMENTS))
#undef ARGUMENTS
}
int srattn_batch_norm_backward(const void* dy, const void* x, long rows, long channels, const float* weight,
                               const float* mean, const float* inverse, int half, int gelu, void* dx, float* dweight,
                               float* dbias, int threads) {
#define ARGUMENTS(T) ((const T*)dy, (const T*)x, rows, channels, weight, mean, inverse, (T*)dx, dweight, dbias, threads)
  GUARDED(SRATTN_BATCH_NORM(backward, ARGUMENTS))
#undef ARGUMENTS
}
}
#undef SRATTN_BATCH_NORM
