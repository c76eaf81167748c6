// The processor's units for products of matrices in bfloat16 (Intel AMX): blocks of C of 32 x 32 in eight tiles.
//
// A tile is 16 rows of 64 bytes: 16 x 16 sums, 16 rows of 32 numbers of A, or 32 rows in pairs of 16 columns of B,
// which is how panels lie. A block's last tile of rows begins early enough to be whole, and writes what is new.
#pragma once
#include "tail.h"

#if defined(SRATTN_BF16) && defined(__AMX_BF16__) && defined(__linux__)
#define SRATTN_MATRIX_UNITS
#include <sys/syscall.h>
#include <unistd.h>

constexpr long TILE = 16;            // rows, and columns of sums
constexpr long TILE_DEPTH = 2 * 16;  // rows of B in one tile

static bool matrix_units = false;  // whether they are used

// Asks Linux for the registers; it may refuse them.
static bool matrix_units_on(bool wanted) {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return matrix_units = wanted && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Held by a thread while it multiplies. Afterwards the tiles have the shapes from before, whoever set them.
class MatrixUnits {
 public:
  MatrixUnits() {
    static const TileShapes whole;
    if (!matrix_units) return;
    _tile_storeconfig(&before_);
    _tile_loadconfig(&whole);
  }
  ~MatrixUnits() {
    if (!matrix_units) return;
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }
  MatrixUnits(const MatrixUnits&) = delete;
  MatrixUnits& operator=(const MatrixUnits&) = delete;

 private:
  TileShapes before_;
};

// Rows of sums in memory, `step` bytes apart.
struct Sums {
  float* at;
  long step;
};

// sums[i][j] = from[i][j] + A[i] B[j], for one or two tiles of rows and of columns each; with every step a part of what is
// ahead is fetched.
template <int ROWS, int VECS>
static inline const char* multiply(long depth, const Operand* const a[2], long a_step, const Operand* b,
                                   const Sums from[2][2], const Sums to[2][2], const char* ahead, const char* end,
                                   long bytes) {
  long a_bytes = a_step * sizeof(Operand), b_bytes = VECS * 64;
  asm volatile("" ::: "memory");  // what the tiles read is written by now
  _tile_loadd(0, from[0][0].at, from[0][0].step);
  if (VECS > 1) _tile_loadd(1, from[0][1].at, from[0][1].step);
  if (ROWS > 1) _tile_loadd(2, from[1][0].at, from[1][0].step);
  if (ROWS > 1 && VECS > 1) _tile_loadd(3, from[1][1].at, from[1][1].step);
  for (long k = 0; k < depth; k += TILE_DEPTH, b += VECS * TILE * TILE_DEPTH) {
    _tile_loadd(6, b, b_bytes);
    _tile_loadd(4, a[0] + k, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (VECS > 1) _tile_loadd(7, b + 32, b_bytes);
    if (VECS > 1) _tile_dpbf16ps(1, 4, 7);
    if (ROWS > 1) _tile_loadd(5, a[1] + k, a_bytes);
    if (ROWS > 1) _tile_dpbf16ps(2, 5, 6);
    if (ROWS > 1 && VECS > 1) _tile_dpbf16ps(3, 5, 7);
    ahead = Ahead::fetch_part(ahead, end, bytes);
  }
  _tile_stored(0, to[0][0].at, to[0][0].step);
  if (VECS > 1) _tile_stored(1, to[0][1].at, to[0][1].step);
  if (ROWS > 1) _tile_stored(2, to[1][0].at, to[1][0].step);
  if (ROWS > 1 && VECS > 1) _tile_stored(3, to[1][1].at, to[1][1].step);
  asm volatile("" ::: "memory");
  return ahead;
}

// As `tiles` in gemm.h, of at least TILE rows and a depth of whole tiles.
template <int VECS>
static void matrix_tiles(long rows, long depth, const Operand* a, long a_step, const Operand* b, const Operand* next,
                         float* c, long c_step, long columns, const Tail& tail) {
  static float zeros[TILE] = {};
  alignas(64) float aside[2][2][TILE * TILE];
  long count = (rows + TILE - 1) / TILE;
  Ahead::Parts parts = Ahead(next, depth * VECS * LANES * sizeof(Operand)).in_parts((count + 1) / 2 * depth / TILE_DEPTH);
  // Sums begin and end in C where nothing but one term is added to them; else aside, and vectors add the tail.
  int terms = (tail.bias != nullptr) + (tail.add != nullptr) + tail.accumulate;
  for (long t = 0; t < count; t += 2) {
    long tiles = std::min<long>(count - t, 2);
    const Operand* left[2];
    Sums from[2][2], to[2][2];
    for (long i = 0; i < tiles; ++i) {
      long first = (t + i) * TILE, row = std::min(first, rows - TILE);
      left[i] = a + row * a_step;
      for (long j = 0; j < VECS; ++j) {
        float* here = c + row * c_step + j * TILE;
        bool again = row < first && (tail.add || tail.accumulate);  // rows that are done already
        if (terms > 1 || tail.relu || again || columns - j * TILE < TILE) {
          from[i][j] = {zeros, 0}, to[i][j] = {aside[i][j], 4 * TILE};
          continue;
        }
        to[i][j] = {here, 4 * c_step};
        const float* add = tail.add ? tail.add + row * tail.add_step + j * TILE : nullptr;
        from[i][j] = tail.bias         ? Sums{const_cast<float*>(tail.bias) + j * TILE, 0}
                     : tail.add        ? Sums{const_cast<float*>(add), 4 * tail.add_step}
                     : tail.accumulate ? to[i][j]
                                       : Sums{zeros, 0};
      }
    }
    parts.at = (tiles > 1 ? multiply<2, VECS> : multiply<1, VECS>)(depth, left, a_step, b, from, to, parts.at, parts.end,
                                                                   parts.bytes);
    for (long i = 0; i < tiles; ++i)
      for (long j = 0; j < VECS; ++j) {
        if (to[i][j].at != aside[i][j]) continue;
        long first = (t + i) * TILE, row = std::min(first, rows - TILE), valid = std::min(columns - j * TILE, TILE);
        if (valid <= 0) continue;
        vec bias = tail.bias ? load(tail.bias + j * TILE) : vec{};
        for (long r = first - row; r < TILE; ++r)
          finish(load(aside[i][j] + r * TILE) + bias, c + (row + r) * c_step + j * TILE,
                 tail.add ? tail.add + (row + r) * tail.add_step + j * TILE : nullptr, valid, tail);
      }
  }
}
#else
constexpr bool matrix_units = false;
constexpr long TILE_DEPTH = PAIR, TILE = 1;
static bool matrix_units_on(bool) { return false; }
struct MatrixUnits {
  MatrixUnits() {}
};
#endif

// Where part `part` of `parts` begins, of `rows` that products take: at whole tiles, since the rest of one costs a tile.
static inline long part_at(long rows, long part, long parts) {
  long at = rows * part / parts;
  return !matrix_units || part == parts ? at : (at + TILE / 2) / TILE * TILE;
}

// Depths that the products take in whole steps, where the operands may be laid out for it.
static inline long whole_steps(long depth) {
  long step = matrix_units ? TILE_DEPTH : PAIR;
  return (depth + step - 1) / step * step;
}
