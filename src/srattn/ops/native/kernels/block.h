// A block: x + attention(norm(x)), then + feed_forward(norm(.)), on maps of float32 or bfloat16, float32 in between.
#pragma once
#include "attention.h"
#include "feed_forward.h"

static thread_local Scratch whole_map;  // of a call on bfloat16

template <typename In, typename Out>
static void copy_shared(const In* from, long count, Out* to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long part = 0; part < threads; ++part) {
    long begin = count * part / threads / LANES * LANES, end = count * (part + 1) / threads / LANES * LANES;
    if (part == threads - 1) end = count;
    copy(from + begin, end - begin, to + begin);
  }
}

// Maps as they go through a block.
struct Maps {
  long batch, height, width, dim;
  long count() const { return batch * height * width * dim; }
};

// Either half may be absent; y may be x.
static void block(const Attention* a, const FeedForward* f, const float* x, float* y, const Maps& m, long keys_h,
                  long keys_w, bool absorbed, long cache, int threads) {
  if (a)
    attend(*a, x, y, m.batch, m.height, m.width, keys_h, keys_w, absorbed, threads);
  else if (x != y)
    copy_shared(x, m.count(), y, threads);
  if (f) feed_forward(*f, y, m.batch, m.height, m.width, cache, threads);
}

static void block(const Attention* a, const FeedForward* f, const Half* x, Half* y, const Maps& m, long keys_h,
                  long keys_w, bool absorbed, long cache, int threads) {
  float* wide = whole_map.take(m.count());
  copy_shared(x, m.count(), wide, threads);
  block(a, f, wide, wide, m, keys_h, keys_w, absorbed, cache, threads);
  copy_shared(wide, m.count(), y, threads);
  whole_map.trim();
}
