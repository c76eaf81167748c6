// What is done to rows of tokens: layer norm, softmax, GELU. And the memory that threads work in.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>

#include "operand.h"

struct Norm {
  const float *weight, *bias;  // null where there is no norm
  float eps;
};

template <typename In, typename Out>
static inline void norm_row(const In* x, long channels, const Norm& norm, Out* out) {
  long whole = channels - channels % LANES, rest = channels - whole;
  vec total = {};
  for (long i = 0; i < whole; i += LANES) total += load(x + i);
  if (rest) total += load_part(x + whole, rest);
  float mean = sum_of(total) / channels;
  vec square = {};
  for (long i = 0; i < whole; i += LANES) {
    vec d = load(x + i) - splat(mean);
    square += d * d;
  }
  if (rest) {
    vec d = load_part(x + whole, rest, mean) - splat(mean);
    square += d * d;
  }
  float factor = 1.0f / std::sqrt(sum_of(square) / channels + norm.eps);
  for (long i = 0; i < whole; i += LANES)
    store(out + i, (load(x + i) - splat(mean)) * splat(factor) * load(norm.weight + i) + load(norm.bias + i));
  if (rest) {
    vec v = (load_part(x + whole, rest) - splat(mean)) * splat(factor) * load_part(norm.weight + whole, rest);
    store_part(out + whole, v + load_part(norm.bias + whole, rest), rest);
  }
}

template <typename In, typename Out>
static void norm_rows(const In* x, long rows, long channels, const Norm& norm, Out* out) {
  for (long i = 0; i < rows; ++i) norm_row(x + i * channels, channels, norm, out + i * channels);
}

// exp(x - max) over each row of `keys` numbers, whole vectors of them, x overwritten: a softmax whose division is left to
// what comes of it, each row's to be multiplied by its factor.
static void weigh_rows(float* x, long rows, long keys, Operand* out, float* factors) {
  for (long row = 0; row < rows; ++row, x += keys, out += keys) {
    vec most = load(x);
    for (long i = LANES; i < keys; i += LANES) most = maximum(most, load(x + i));
    vec top = splat(largest_of(most)), total = {};
    for (long i = 0; i < keys; i += LANES) {
      vec e = exponential_for(out, load(x + i) - top);
      total += e;
      store(out + i, e);
    }
    factors[row] = 1.0f / sum_of(total);
  }
}

// As weigh_rows, of keys that come one block after the other: of each row the largest score so far, the sum of weights by
// it, and what these found, `columns` numbers, which a new largest score makes smaller. `totals` are no factors yet.
struct Running {
  float *tops, *totals, *found;
  long columns;

  void begin(long rows) const {
    std::fill(tops, tops + rows, -1e30f);
    std::memset(totals, 0, 4 * rows);
    std::memset(found, 0, 4 * rows * columns);
  }
};
static void weigh_block(float* x, long rows, long keys, long step, Operand* out, const Running& r) {
  for (long row = 0; row < rows; ++row, x += step, out += step) {
    vec most[2] = {load(x), splat(r.tops[row])};  // two chains of comparisons
    for (long i = LANES; i < keys; i += LANES) most[i / LANES % 2] = maximum(most[i / LANES % 2], load(x + i));
    float before = r.tops[row], now = largest_of(maximum(most[0], most[1]));
    vec total = {};
    for (long i = 0; i < keys; i += LANES) {
      vec e = exponential_for(out, load(x + i) - splat(now));
      total += e;
      store(out + i, e);
    }
    float less = exponential(splat(before - now))[0];
    r.tops[row] = now, r.totals[row] = r.totals[row] * less + sum_of(total);
    if (now == before) continue;
    lanes_of(r.columns, [&](long c, auto lanes) {
      float* to = r.found + row * r.columns + c;
      put(to, take(to, lanes) * splat(less), lanes);
    });
  }
}

template <typename Out>
static void gelu_all(const float* x, long count, Out* out) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) store(out + i, gelu_for(out, load(x + i)));
  if (i < count) store_part(out + i, gelu_for(out, load_part(x + i, count - i)), count - i);
}

// In how many parts each of `batch` maps of `tokens` is cut: at most `most` tokens a part, and as many for every thread.
static inline long parts_of(long tokens, long most, long batch, int threads) {
  long parts = std::max<long>(1, (tokens + most - 1) / most);
  while (batch * parts < 4L * threads && batch * parts % threads) ++parts;
  return std::max<long>(1, std::min(parts, tokens));
}

// Without memory a call returns 1 and has written nothing that is whole; but a thread of a team that finds none ends the
// process, since no exception leaves a team.
#define GUARDED(call) \
  try {               \
    call;             \
    return 0;         \
  } catch (...) {     \
    return 1;         \
  }

// Memory that is kept from call to call, since fresh pages cost more than what is done in them; large pieces are not.
class Scratch {
 public:
  float* take(long count) {
    if (count > size_) {
      release();
      size_ = count;
      if (posix_memalign(reinterpret_cast<void**>(&memory_), 64, 4 * size_ + 64)) {
        memory_ = nullptr, size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }
  void trim() {
    if (size_ > KEPT) release();
  }
  ~Scratch() { release(); }

 private:
  static constexpr long KEPT = 4 << 20;  // numbers: 16 MB a thread
  void release() {
    std::free(memory_);
    memory_ = nullptr, size_ = 0;
  }
  float* memory_ = nullptr;
  long size_ = 0;
};

static thread_local Scratch worker;  // of one task
static thread_local Scratch common;  // of a whole call, held by the thread that calls
