// What follows a product in the same pass, and what is fetched meanwhile.
#pragma once
#include <algorithm>
#include <atomic>

#include "operand.h"

// The tail of a product. `bias` has packed_columns(n) entries; `add` has the layout of C.
struct Tail {
  const float* bias = nullptr;
  const float* add = nullptr;
  long add_step = 0;
  bool accumulate = false;
  bool relu = false;
};

// A vector of sums, its bias in it, to where it belongs: `valid` lanes of it.
static inline void finish(vec v, float* to, const float* add, long valid, const Tail& tail) {
  if (valid >= LANES) {
    if (tail.accumulate) v += load(to);
    if (add) v += load(add);
    store(to, tail.relu ? relu(v) : v);
  } else {
    if (tail.accumulate) v += load_part(to, valid);
    if (add) v += load_part(add, valid);
    store_part(to, tail.relu ? relu(v) : v, valid);
  }
}

// Whether the next panel is fetched while the tiles of one are computed: of one image, weights are read from memory once,
// and the first tile of a panel would wait for them. Set by every call for its own batch.
static std::atomic<bool> fetches_ahead{false};

// The next panel, line by line: of many lines asked for at once, most would wait.
class Ahead {
 public:
  Ahead(const void* next, long bytes)
      : next_(static_cast<const char*>(next)),
        lines_(next && fetches_ahead.load(std::memory_order_relaxed) ? (bytes + LINE - 1) / LINE : 0) {}
  // The share of tiles first..first+tiles of `count`.
  void fetch(long first, long count, long tiles = 1) const {
    for (long line = lines_ * first / count; line < lines_ * (first + tiles) / count; ++line)
      __builtin_prefetch(next_ + line * LINE, 0, 2);
  }
  // All of it in `parts` of equal size, of which each call of `fetch_part` fetches the one that begins at `at`.
  struct Parts {
    const char *at, *end;
    long bytes;
  };
  Parts in_parts(long parts) const {
    return {next_, next_ + lines_ * LINE, (lines_ + parts - 1) / parts * LINE};
  }
  static inline const char* fetch_part(const char* at, const char* end, long bytes) {
    for (const char* stop = std::min(at + bytes, end); at < stop; at += LINE) __builtin_prefetch(at, 0, 2);
    return at;
  }

 private:
  static constexpr long LINE = 64;
  const char* next_;
  long lines_;
};
