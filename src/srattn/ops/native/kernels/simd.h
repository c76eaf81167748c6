// Vectors of the machine's own width, and the two functions of one number that the kernels need.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

static inline vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
static inline vec splat(float s) { return s - vec{}; }
#if defined(__AVX512F__)
static inline vec maximum(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec minimum(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
static inline vec maximum(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vec minimum(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline vec maximum(vec a, vec b) { return a > b ? a : b; }
static inline vec minimum(vec a, vec b) { return a < b ? a : b; }
#endif
static inline vec relu(vec x) { return x < vec{} ? vec{} : x; }  // keeps NaN

// The first `count` lanes, the others as `fill`; and back.
static inline vec load_part(const float* p, long count, float fill = 0.0f) {
  vec v = splat(fill);
  std::memcpy(&v, p, 4 * count);
  return v;
}
static inline void store_part(float* p, vec v, long count) { std::memcpy(p, &v, 4 * count); }

static inline float sum_of(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

static inline float largest_of(vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float top = v[0];
  for (int i = 1; i < LANES; ++i) top = v[i] > top ? v[i] : top;
  return top;
#endif
}

// e^x to 2 ulp for x <= 88; 0 below -87, minus infinity included.
static inline vec exponential(vec x) {
  const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vec clipped = minimum(maximum(x, splat(-87.3f)), splat(88.0f));
  vec shifted = clipped * splat(1.44269504f) + magic;
  vec n = shifted - magic;
  vec r = clipped - n * splat(0.693359375f) + n * splat(2.12194440e-4f);
  vec p = splat(0.00138144667f);
  p = p * r + splat(0.00836878043f);
  p = p * r + splat(0.0416683942f);
  p = p * r + splat(0.166665201f);
  p = p * r + splat(0.499999934f);
  p = p * r * r + r + splat(1.0f);
  ivec bits = (ivec)shifted - (ivec)magic;
  vec power = (vec)((bits + 127) << 23);
  vec y = x < splat(-87.3f) ? vec{} : p * power;
  return x == x ? y : x;
}

// e^x within 3e-6 of it for x <= 0: as good as exact where the result is bfloat16.
static inline vec exponential_coarse(vec x) {
#if defined(__AVX512F__)
  vec t = x * splat(1.44269504f), n = (vec)_mm512_roundscale_ps((__m512)t, 0), r = t - n;
  vec p = splat(0.00957005098f);
  p = p * r + splat(0.0559178628f);
  p = p * r + splat(0.240247458f);
  p = p * r + splat(0.693121791f);
  p = p * r + splat(0.999999285f);
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return exponential(x);
#endif
}

// a / b to 2 ulp for b of moderate size: an estimate and one step of Newton's, a third of a division's time.
static inline vec quotient(vec a, vec b) {
#if defined(__AVX512F__)
  vec r = (vec)_mm512_rcp14_ps((__m512)b);
#elif defined(__AVX__)
  vec r = (vec)_mm256_rcp_ps((__m256)b);
#else
  return a / b;
#endif
#if defined(__AVX__)
  return a * (r * (splat(2.0f) - b * r));
#endif
}

// The normal distribution function: 1/2 + x P(x^2) / Q(x^2) for |x| <= 5.5, a minimax fit of 7e-9.
static inline vec normal(vec x) {
  vec c = minimum(maximum(splat(-5.5f), x), splat(5.5f));
  vec u = c * c;
  vec p = splat(2.27491534e-08f);
  p = p * u + splat(6.35166208e-06f);
  p = p * u + splat(0.000168802086f);
  p = p * u + splat(0.00467711445f);
  p = p * u + splat(0.0338506576f);
  p = p * u + splat(0.398942235f);
  vec q = splat(1.19746377e-06f);
  q = q * u + splat(7.36383773e-05f);
  q = q * u + splat(0.00188431312f);
  q = q * u + splat(0.0286446704f);
  q = q * u + splat(0.251516937f);
  q = q * u + splat(1.0f);
  return splat(0.5f) + quotient(c * p, q);
}

// Far out the factor is not quite 0, so it is that of the end; a maximum is its second argument where that is no number.
static inline vec gelu(vec x) { return maximum(splat(-5.5f), x) * normal(x); }

// The normal distribution function where results are bfloat16: between -4.1 and 4.1, where it comes to 0 and 1, an odd
// polynomial (a minimax fit with these ends). GELU is within 9e-5 of itself by it, and 4e-7 |x| far out.
static inline vec normal_coarse(vec x) {
  vec c = minimum(maximum(x, splat(-4.1f)), splat(4.1f));
  vec u = c * c;
  vec p = splat(-1.02426245e-09f);
  p = p * u + splat(8.73470327e-08f);
  p = p * u + splat(-3.24453254e-06f);
  p = p * u + splat(6.96550997e-05f);
  p = p * u + splat(-0.00097077305f);
  p = p * u + splat(0.00937549025f);
  p = p * u + splat(-0.0656665117f);
  p = p * u + splat(0.398547649f);
  return splat(0.5f) + c * p;
}
