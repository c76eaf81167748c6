// Blocks: x + attention(norm(x)), then + feed_forward(norm(.)), on maps of float32 or bfloat16, float32 in between.
#pragma once
#include "attention.h"
#include "convolved.h"
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

// Maps as they go through blocks.
struct Maps {
  long batch, height, width, dim;
  long count() const { return batch * height * width * dim; }
};

// One block; either half may be absent.
struct Step {
  const Attention* attention;
  const FeedForward* feed_forward;
  long keys_h, keys_w, absorbed;
  const Convolved* convolved;  // in the place of `attention`, of queries as many as tokens and beside x itself
  const Place* place;
};

// One block after the other; y may be x.
static void blocks(const Step* steps, long count, const float* x, float* y, const Maps& m, long cache, int threads) {
  for (long i = 0; i < count; ++i, x = y) {
    const Step& s = steps[i];
    if (s.attention)
      attend(*s.attention, x, y, m.batch, m.height, m.width, s.keys_h, s.keys_w, s.absorbed, cache,
             threads);
    else if (s.convolved)
      convolved(*s.convolved, *s.place, x, y, m.batch, cache, threads);
    else if (x != y)
      copy_shared(x, m.count(), y, threads);
    if (s.feed_forward) feed_forward(*s.feed_forward, y, m.batch, m.height, m.width, cache, threads);
  }
}

static void blocks(const Step* steps, long count, const Half* x, Half* y, const Maps& m, long cache, int threads) {
  float* wide = whole_map.take(m.count());
  copy_shared(x, m.count(), wide, threads);
  blocks(steps, count, wide, wide, m, cache, threads);
  copy_shared(wide, m.count(), y, threads);
  whole_map.trim();
}
