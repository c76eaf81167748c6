// AVX-512 BF16 and AMX in the instructions of AVX-512: products of bfloat16 are exact in float32, sums as the units make
// them. Included before everything else.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define __AVX512BF16__ 1
#define __AMX_BF16__ 1

typedef int32_t emulated_words __attribute__((vector_size(64)));

static inline __m512 emulated_dpbf16(__m512 sum, __m512bh a, __m512bh b) {
  emulated_words x, y;
  memcpy(&x, &a, 64), memcpy(&y, &b, 64);
  sum = _mm512_fmadd_ps((__m512)(x & (int32_t)0xffff0000), (__m512)(y & (int32_t)0xffff0000), sum);
  return _mm512_fmadd_ps((__m512)(x << 16), (__m512)(y << 16), sum);
}
static inline __m256i emulated_narrow(__m512 v) {  // to the nearest, ties to even
  emulated_words bits = (emulated_words)v;
  bits = (emulated_words)_mm512_srli_epi32((__m512i)(bits + 0x7fff + (bits >> 16 & 1)), 16);
  __mmask16 no_number = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32((__m512i)bits, no_number, _mm512_set1_epi32(0x7fc0)));
}
#undef _mm512_dpbf16_ps
#undef _mm512_cvtneps_pbh
#define _mm512_dpbf16_ps(sum, a, b) emulated_dpbf16(sum, a, b)
#define _mm512_cvtneps_pbh(v) emulated_narrow(v)

// A thread's tiles, all of 16 rows of 64 bytes; a configuration is nothing but a palette that says that there is none.
static thread_local char emulated_tiles[8][16][64];

static void emulated_load(int to, const void* from, long step) {
  for (int i = 0; i < 16; ++i) memcpy(emulated_tiles[to][i], (const char*)from + i * step, 64);
}
static void emulated_store(int from, void* to, long step) {
  for (int i = 0; i < 16; ++i) memcpy((char*)to + i * step, emulated_tiles[from][i], 64);
}
static void emulated_multiply(int sums, int a, int b) {
  for (int i = 0; i < 16; ++i) {
    __m512 sum;
    memcpy(&sum, emulated_tiles[sums][i], 64);
    for (int k = 0; k < 16; ++k) {
      int32_t pair;
      memcpy(&pair, emulated_tiles[a][i] + 4 * k, 4);
      __m512i pairs = _mm512_set1_epi32(pair);
      __m512bh left, right;
      memcpy(&left, &pairs, 64), memcpy(&right, emulated_tiles[b][k], 64);
      sum = emulated_dpbf16(sum, left, right);
    }
    memcpy(emulated_tiles[sums][i], &sum, 64);
  }
}
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_storeconfig
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd(tile, from, step) emulated_load(tile, from, step)
#define _tile_stored(tile, to, step) emulated_store(tile, to, step)
#define _tile_dpbf16ps(sums, a, b) emulated_multiply(sums, a, b)
#define _tile_storeconfig(to) memset(to, 0, 64)
#define _tile_loadconfig(from) ((void)(from))
#define _tile_release() ((void)0)
#define syscall(...) 0  // the system gives the registers
