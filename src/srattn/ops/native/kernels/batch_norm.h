// Batch normalisation of tokens while training, with GELU before it if asked: statistics, results and gradients in two
// passes each over what is read, and nothing kept but the input, the mean and 1 / the standard deviation.
#pragma once
#include <algorithm>
#include <type_traits>
#include <vector>

#include "training_parts.h"

namespace batch_norm {

// bfloat16 in memory, on any machine: the upper half of a float32.
struct Half {
  uint16_t bits;
};
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

static inline vec widened(hvec h) {
  ivec bits = __builtin_convertvector(h, ivec) << 16;
  vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
static inline hvec halved(vec v) {  // to the nearest, ties to even
#if defined(__AVX512BF16__)
  return (hvec)_mm512_cvtneps_pbh((__m512)v);
#else
  ivec bits = (ivec)v;
  ivec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : ivec{} + 0x7fc0, hvec);
#endif
}
// `count` numbers, or all lanes; a size that the compiler knows is one instruction.
static inline vec take(const float* p, long count) { return count >= LANES ? load(p) : load_part(p, count); }
static inline vec take(const Half* p, long count) {
  hvec h = {};
  count >= LANES ? std::memcpy(&h, p, sizeof h) : std::memcpy(&h, p, 2 * count);
  return widened(h);
}
static inline void put(float* p, vec v, long count) { count >= LANES ? store(p, v) : store_part(p, v, count); }
static inline void put(Half* p, vec v, long count) {
  hvec h = halved(v);
  count >= LANES ? std::memcpy(p, &h, sizeof h) : std::memcpy(p, &h, 2 * count);
}

constexpr long ROWS = 256;  // tokens of one sum in float32; those sums are added in float64

template <bool GELU>
static inline vec before(vec u) {
  return GELU ? gelu(u) : u;
}

// each(first, last, block) for every block of tokens.
template <typename Each>
static void blocks(long rows, int threads, Each each) {
  long count = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long b = 0; b < count; ++b) each(b * ROWS, std::min(rows, (b + 1) * ROWS), b);
}

template <long N>
using Constant = std::integral_constant<long, N>;
constexpr long TILE = 4;  // vectors of channels at a time: a token's neighbours in memory, and independent work

// each(c, number, left) for every tile of `number` vectors of channels from c, of `left` lanes each; both are constants
// the compiler knows, but for the lanes of the last, narrow vector.
template <typename Each>
static inline void tiles(long channels, Each each) {
  long c = 0;
  for (; c + TILE * LANES <= channels; c += TILE * LANES) each(c, Constant<TILE>(), Constant<LANES>());
  for (; c + LANES <= channels; c += LANES) each(c, Constant<1>(), Constant<LANES>());
  if (c < channels) each(c, Constant<1>(), channels - c);
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
  tiles(channels, [&](long c, auto n, auto left) {  // of a value that occurs: sums of squares then lose nothing
    for (long i = 0; i < n; ++i) put(shift.data() + c + i * LANES, before<GELU>(take(x + c + i * LANES, left)), left);
  });
  blocks(rows, threads, [&](long first, long last, long number) {
    float *sums = parts.data() + 2 * number * channels, *squares = sums + channels;
    tiles(channels, [&](long c, auto n, auto left) {
      vec s[n], sum[n], square[n];
      for (long i = 0; i < n; ++i) s[i] = take(shift.data() + c + i * LANES, left), sum[i] = square[i] = vec{};
      for (long r = first; r < last; ++r) {
#pragma GCC unroll 4
        for (long i = 0; i < n; ++i) {
          vec d = before<GELU>(take(x + r * channels + c + i * LANES, left)) - s[i];
          sum[i] += d, square[i] += d * d;
        }
      }
      for (long i = 0; i < n; ++i) put(sums + c + i * LANES, sum[i], left), put(squares + c + i * LANES, square[i], left);
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
    tiles(channels, [&](long c, auto n, auto left) {
      vec a[n], b[n];
      for (long i = 0; i < n; ++i)
        a[i] = take(slope.data() + c + i * LANES, left), b[i] = take(offset.data() + c + i * LANES, left);
      for (long r = first; r < last; ++r) {
#pragma GCC unroll 4
        for (long i = 0; i < n; ++i) {
          long at = r * channels + c + i * LANES;
          put(y + at, before<GELU>(take(x + at, left)) * a[i] + b[i], left);
        }
      }
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
    tiles(channels, [&](long c, auto n, auto left) {
      vec m[n], v[n], sum[n], product[n];
      for (long i = 0; i < n; ++i) {
        m[i] = take(mean + c + i * LANES, left), v[i] = take(inverse + c + i * LANES, left);
        sum[i] = product[i] = vec{};
      }
      for (long r = first; r < last; ++r) {
#pragma GCC unroll 4
        for (long i = 0; i < n; ++i) {
          long at = r * channels + c + i * LANES;
          vec d = take(dy + at, left);
          sum[i] += d, product[i] += d * ((before<GELU>(take(x + at, left)) - m[i]) * v[i]);
        }
      }
      for (long i = 0; i < n; ++i)
        put(sums + c + i * LANES, sum[i], left), put(products + c + i * LANES, product[i], left);
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
    tiles(channels, [&](long c, auto n, auto left) {
      vec m[n], s[n], f[n], t[n];
      for (long i = 0; i < n; ++i) {
        m[i] = take(mean + c + i * LANES, left), s[i] = take(scale.data() + c + i * LANES, left);
        f[i] = take(flat.data() + c + i * LANES, left), t[i] = take(tilt.data() + c + i * LANES, left);
      }
      for (long r = first; r < last; ++r) {
#pragma GCC unroll 4
        for (long i = 0; i < n; ++i) {
          long at = r * channels + c + i * LANES;
          vec u = take(x + at, left), h = u, slope = splat(1.0f);
          if (GELU) training::gelu_and_slope(u, h, slope);
          put(dx + at, (take(dy + at, left) - f[i] - (h - m[i]) * t[i]) * s[i] * slope, left);
        }
      }
    });
  });
}

}  // namespace batch_norm

#define SRATTN_BATCH_NORM(NAME, ARGUMENTS)                                     \
  using batch_norm::Half;                                                      \
  if (half && gelu) batch_norm::NAME<Half, true> ARGUMENTS(Half);              \
  else if (half) batch_norm::NAME<Half, false> ARGUMENTS(Half);                \
  else if (gelu) batch_norm::NAME<float, true> ARGUMENTS(float);               \
  else batch_norm::NAME<float, false> ARGUMENTS(float);

extern "C" {
int srattn_batch_norm_forward(const void* x, long rows, long channels, const float* weight, const float* bias,
                              float eps, int half, int gelu, void* y, float* mean, float* var, float* inverse,
                              int threads) {
  try {
#define ARGUMENTS(T) ((const T*)x, rows, channels, weight, bias, eps, (T*)y, mean, var, inverse, threads)
    SRATTN_BATCH_NORM(forward, ARGUMENTS)
#undef ARGUMENTS
    return 0;
  } catch (...) {
    return 1;
  }
}
int srattn_batch_norm_backward(const void* dy, const void* x, long rows, long channels, const float* weight,
                               const float* mean, const float* inverse, int half, int gelu, void* dx, float* dweight,
                               float* dbias, int threads) {
  try {
#define ARGUMENTS(T) ((const T*)dy, (const T*)x, rows, channels, weight, mean, inverse, (T*)dx, dweight, dbias, threads)
    SRATTN_BATCH_NORM(backward, ARGUMENTS)
#undef ARGUMENTS
    return 0;
  } catch (...) {
    return 1;
  }
}
}
#undef SRATTN_BATCH_NORM
