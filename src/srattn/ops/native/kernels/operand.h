// What the matrix products read: float32, or bfloat16 (sums are float32 in either case). The sources are compiled once
// for each; with float32 nothing here costs anything.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "halves.h"

#if defined(SRATTN_BF16)
#if !defined(__AVX512BF16__)
#error "bfloat16 operands need AVX-512 BF16"
#endif
using Operand = Half;
constexpr long PAIR = 2;  // products take two rows of B, and two numbers of a row of A, at a time
// Numbers of two rows, those of a column side by side.
static inline void store_pairs(Operand* p, vec upper, vec lower) {
  ivec both = __builtin_convertvector(halved(upper), ivec) | __builtin_convertvector(halved(lower), ivec) << 16;
  std::memcpy(p, &both, sizeof both);
}
#else
using Operand = float;
constexpr long PAIR = 1;
#endif
constexpr bool NARROW = !std::is_same<Operand, float>::value;

static inline long paired(long n) { return (n + PAIR - 1) / PAIR * PAIR; }

// `count` numbers as operands: in `room`, or where they are.
#if defined(SRATTN_BF16)
static inline const Operand* narrowed(const float* x, long count, Operand* room) {
  copy(x, count, room);
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
