// What the matrix products read: float32, or bfloat16 (sums are float32 in either case). The sources are compiled once
// for each; with float32 nothing here costs anything.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "simd.h"

#if defined(SRATTN_BF16)
#if !defined(__AVX512BF16__)
#error "bfloat16 operands need AVX-512 BF16"
#endif
struct Operand {
  uint16_t bits;
};
constexpr long PAIR = 2;  // products take two rows of B, and two numbers of a row of A, at a time
static inline void store(Operand* p, vec v) {
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof half);
}
static inline void store_part(Operand* p, vec v, long count) {
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, 2 * count);
}
static inline Operand operand(float x) {
  Operand to;
  store_part(&to, splat(x), 1);
  return to;
}
#else
using Operand = float;
constexpr long PAIR = 1;
static inline Operand operand(float x) { return x; }
#endif
constexpr bool NARROW = !std::is_same<Operand, float>::value;

static inline long paired(long n) { return (n + PAIR - 1) / PAIR * PAIR; }

// `count` numbers as operands: in `room`, or where they are.
#if defined(SRATTN_BF16)
static inline const Operand* narrowed(const float* x, long count, Operand* room) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) store(room + i, load(x + i));
  if (i < count) store_part(room + i, load_part(x + i, count - i), count - i);
  return room;
}
#else
static inline const Operand* narrowed(const float* x, long, Operand*) { return x; }
#endif

// Memory for operands behind a function that writes them over the numbers it reads, where they are of one size.
#if defined(SRATTN_BF16)
static inline Operand* in_place(float*, Operand* room) { return room; }
#else
static inline Operand* in_place(float* x, Operand*) { return x; }
#endif

// Pieces of a worker's memory, each at a cache line.
class Pieces {
 public:
  explicit Pieces(float* memory) : at_(reinterpret_cast<char*>(memory)) {}
  template <typename T>
  T* take(long count) {
    T* here = reinterpret_cast<T*>(at_);
    at_ += (count * sizeof(T) + 63) / 64 * 64;
    return here;
  }

 private:
  char* at_;
};
// Numbers of float32 that pieces of these sizes need at most.
static inline long room(std::initializer_list<long> counts) {
  long total = 0;
  for (long count : counts) total += (count + 15) / 16 * 16;
  return total;
}
