// Tensors of float32 or bfloat16 as vectors of float32, and the loop over all channels of tokens.
#pragma once
#include <type_traits>

#include "simd.h"

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
static inline vec load(const Half* p) {
  hvec h;
  std::memcpy(&h, p, sizeof h);
  return widened(h);
}
static inline vec load_part(const Half* p, long count, float fill = 0.0f) {
  hvec h = {};
  std::memcpy(&h, p, 2 * count);
  vec v = widened(h);
  for (long i = count; fill != 0.0f && i < LANES; ++i) v[i] = fill;
  return v;
}
static inline void store(Half* p, vec v) {
  hvec h = halved(v);
  std::memcpy(p, &h, sizeof h);
}
static inline void store_part(Half* p, vec v, long count) {
  hvec h = halved(v);
  std::memcpy(p, &h, 2 * count);
}
// `count` numbers, or all lanes; a size that the compiler knows is one instruction.
template <typename Number>
static inline vec take(const Number* p, long count) {
  return count >= LANES ? load(p) : load_part(p, count);
}
template <typename Number>
static inline void put(Number* p, vec v, long count) {
  count >= LANES ? store(p, v) : store_part(p, v, count);
}

// each(c, left) for every vector of one token's channels; the compiler knows `left`, the lanes, but for a last, narrow one.
template <typename Each>
static inline void lanes_of(long channels, Each each) {
  long c = 0;
  for (; c + LANES <= channels; c += LANES) each(c, std::integral_constant<long, LANES>());
  if (c < channels) each(c, channels - c);
}

// each(at, c, left) for every vector of tokens first..last in the order of memory, `at` of channels c.. of one.
template <typename Each>
static inline void vectors(long first, long last, long channels, Each each) {
  for (long row = first, at = row * channels; row < last; ++row, at += channels)
    lanes_of(channels, [&](long c, auto left) { each(at + c, c, left); });
}

static inline void copy(const float* from, long count, float* to) { std::memcpy(to, from, 4 * count); }
static inline void copy(const Half* from, long count, Half* to) { std::memcpy(to, from, 2 * count); }
template <typename In, typename Out>
static inline void copy(const In* from, long count, Out* to) {
  lanes_of(count, [&](long i, auto left) { put(to + i, take(from + i, left), left); });
}

// Functions as exact as what their results are stored as.
static inline vec exponential_for(const float*, vec x) { return exponential(x); }
static inline vec exponential_for(const Half*, vec x) { return exponential_coarse(x); }
static inline vec gelu_for(const float*, vec x) { return gelu(x); }
static inline vec gelu_for(const Half*, vec x) { return x * normal_coarse(x); }
