// The C interface, called through ctypes. Pointers are to float32, but that panels are of operands and maps of what
// `half` says; sizes are in numbers, not bytes.
#include <omp.h>
#include <string.h>
#include <unistd.h>

#include "block.h"
#if !defined(SRATTN_BF16)
#include "batch_norm.h"
#include "depthwise.h"
#include "training.h"
#endif

extern "C" {
// Once, before weights are laid out: whether matrix units are wanted. Answers whether they are used.
int srattn_start(int wanted) { return matrix_units_on(wanted); }
int srattn_lanes() { return LANES; }
// Bytes of the second cache, which one core has to itself; 0 where the system does not say.
long srattn_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  return sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  return 0;
#endif
}
int srattn_pair() { return PAIR; }
// A sum of three words of each tensor, the first, one of the middle and the last: other weights, another sum.
unsigned long srattn_sample(const void* const* tensors, const long* bytes, long count) {
  unsigned long sum = 0;
  for (long i = 0; i < count; ++i) {
    long step = bytes[i] < 8 ? bytes[i] : 8;
    for (long place : {0L, bytes[i] / 2, bytes[i] - step}) {
      unsigned long word = 0;
      if (place + step <= bytes[i]) memcpy(&word, static_cast<const char*>(tensors[i]) + place, step);
      sum = (sum ^ word) * 0x9E3779B97F4A7C15UL;
    }
  }
  return sum;
}
long srattn_whole(long depth) { return whole_steps(depth); }
long srattn_packed(long columns) { return packed_columns(columns); }
long srattn_weighed(long keys) { return weighed(keys); }
long srattn_keys_at_once(long keys, long cache) { return std::min(keys, keys_at_once(keys, cache)); }
// What it takes to lay out a number of keys or values, in multiply-adds.
long srattn_layout_cost() { return matrix_units ? 200 : 0; }
void srattn_pack(const float* w, long n, long k, long column_step, long row_step, Operand* out) {
  pack(w, n, k, column_step, row_step, out);
}
long srattn_sizes(int which) {
  constexpr long sizes[] = {sizeof(Patch), sizeof(FeedForward), sizeof(Attention), sizeof(Step), sizeof(Convolved),
                            sizeof(Place)};
  return sizes[which];
}
void srattn_cut(const FeedForward* f, long height, long width, long cache, long* rows, long* chunk) {
  Cut c = cut(*f, height, width, cache);
  *rows = c.rows, *chunk = c.chunk;
}
// `half`: maps that go in and out are bfloat16, else float32.
int srattn_patches(const Patch* p, const void* x, const long* steps, long batch, long height, long width, void* out,
                   long out_height, long out_width, int half, int threads) {
  fetches_ahead = batch == 1;
  auto run = [&](auto* from, auto* to) {
    patches(*p, from, steps, batch, height, width, to, out_height, out_width, threads);
  };
  GUARDED(half ? run((const Half*)x, (Half*)out) : run((const float*)x, (float*)out))
}
int srattn_blocks(const Step* steps, long count, const void* x, void* y, long batch, long height, long width, long dim,
                  int half, long cache, int threads) {
  fetches_ahead = batch == 1;
  Maps maps{batch, height, width, dim};
  auto run = [&](auto* from, auto* to) { blocks(steps, count, from, to, maps, cache, threads); };
  GUARDED(half ? run((const Half*)x, (Half*)y) : run((const float*)x, (float*)y))
}
int srattn_convolved(const Convolved* a, const Place* p, const void* x, void* y, long batch, int half, long cache,
                     int threads) {
  fetches_ahead = batch == 1;
  auto run = [&](auto* from, auto* to) { convolved(*a, *p, from, to, batch, cache, threads); };
  GUARDED(half ? run((const Half*)x, (Half*)y) : run((const float*)x, (float*)y))
}
}
