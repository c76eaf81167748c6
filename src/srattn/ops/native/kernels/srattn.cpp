// The C interface, called through ctypes. Every pointer is to float32, but panels are of operands; sizes are in numbers,
// not bytes.
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num() { return 0; }
static inline int omp_get_num_threads() { return 1; }
#endif

#include <unistd.h>

#include "attention.h"
#include "feed_forward.h"
#include "patch.h"
#if !defined(SRATTN_BF16)
#include "batch_norm.h"
#include "depthwise.h"
#include "training.h"
#endif

// Without memory a call returns 1 and has written nothing that is whole.
#define GUARDED(call) \
  try {               \
    call;             \
    return 0;         \
  } catch (...) {     \
    return 1;         \
  }

extern "C" {
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
long srattn_packed(long columns) { return packed_columns(columns); }
void srattn_pack(const float* w, long n, long k, long column_step, long row_step, Operand* out) {
  pack(w, n, k, column_step, row_step, out);
}
long srattn_sizes(int which) {
  return which == 0 ? sizeof(Patch) : which == 1 ? sizeof(FeedForward) : sizeof(Attention);
}
void srattn_cut(const FeedForward* f, long height, long width, long cache, long* rows, long* chunk) {
  Cut c = cut(*f, height, width, cache);
  *rows = c.rows, *chunk = c.chunk;
}
int srattn_patches(const Patch* p, const float* x, const long* steps, long batch, long height, long width, float* out,
                   long out_height, long out_width, int threads) {
  fetches_ahead = batch == 1;
  GUARDED(patches(*p, x, steps, batch, height, width, out, out_height, out_width, threads))
}
int srattn_feed_forward(const FeedForward* f, float* x, long batch, long height, long width, long cache, int threads) {
  fetches_ahead = batch == 1;
  GUARDED(feed_forward(*f, x, batch, height, width, cache, threads))
}
int srattn_attend(const Attention* a, const float* x, float* y, long batch, long height, long width, long keys_h,
                  long keys_w, int absorbed, int threads) {
  fetches_ahead = batch == 1;
  GUARDED(attend(*a, x, y, batch, height, width, keys_h, keys_w, absorbed, threads))
}
}
