// One head: softmax(q k') v, of a tile of queries and of all keys, or of one block of them after the other. Scores never
// leave the cache.
#pragma once
#include "gemm.h"
#include "rows.h"

// Columns of scores: whole panels, and whole tiles of the product with values.
static inline long scored(long keys) { return matrix_units ? (keys + PANEL - 1) / PANEL * PANEL : packed_columns(keys); }
// Depth of the product with values: matrix units take whole tiles, with zeros where there is no key.
static inline long weighed(long keys) { return matrix_units ? scored(keys) : keys; }

// From as many keys on, the cache would hold all scores of a few queries only, for which all keys and values would be
// read: more queries then meet one block of keys after the other, by a running softmax.
constexpr long MANY_KEYS = 1024, MANY_ROWS = 192;

// Scores of a query that are computed at a time: all, or whole panels, for which the tile has a quarter of the cache.
static long keys_at_once(long keys, long cache) {
  if (keys < MANY_KEYS) return scored(keys);
  return std::clamp<long>(cache / (4 * 4 * MANY_ROWS) / PANEL * PANEL, 4 * PANEL, 512);
}
// Queries that are in the cache at a time.
static long queries_at_once(long keys) {
  return keys < MANY_KEYS ? std::max<long>(2 * TILE_ROWS, std::min<long>(96, 49152 / scored(keys))) : MANY_ROWS;
}

// What one head keeps of one image: keys and values as panels, and a bias of each key.
struct Kept {
  long keys, wide, depth, columns;  // keys, keys padded to whole panels, depth of scores, columns of values
  long keys_size() const { return wide * paired(depth); }
  long values_size() const { return packed_columns(columns) * paired(weighed(keys)); }
  long size() const { return room({keys_size(), values_size(), wide}); }  // numbers of float32
};
struct Head {
  Operand *keys, *values;
  float* bias;
};
static inline Head head_at(const Kept& kept, float* memory) {
  Pieces pieces(memory);
  Operand *keys = pieces.take<Operand>(kept.keys_size()), *values = pieces.take<Operand>(kept.values_size());
  return {keys, values, pieces.take<float>(kept.wide)};
}

// `rows` queries, and room for what they find of one head's values after the other.
struct Seekers {
  long rows, block, step;  // scores of a query that are computed at a time, and numbers between those of two queries
  float *found, *factors;  // (rows, columns), each row to be multiplied by its factor
  float *tops, *scores;
  Operand* weights;

  // A panel more than a block: at a power of two apart, rows would fall on the same lines of the cache.
  static long step_of(const Kept& kept, long block) { return block < kept.wide ? block + PANEL : kept.wide; }
  static long size(const Kept& kept, long rows, long block) {
    long wide = rows * step_of(kept, block);
    return room({rows * kept.columns, rows, rows, wide, wide});
  }
  Seekers(const Kept& kept, long rows, long block, Pieces& pieces) : rows(rows), block(block), step(step_of(kept, block)) {
    found = pieces.take<float>(rows * kept.columns);
    factors = pieces.take<float>(rows), tops = pieces.take<float>(rows);
    scores = pieces.take<float>(rows * step);
    weights = in_place(scores, pieces.take<Operand>(rows * step));
  }

  void seek(const Kept& kept, const Head& head, const Operand* queries, long queries_step) const {
    bool many = block < kept.wide;
    const Running running{tops, factors, found, kept.columns};
    if (many) running.begin(rows);
    for (long at = 0, now; at < kept.wide; at += now) {
      now = std::min(block, kept.wide - at);
      Tail tail, more;
      tail.bias = head.bias + at, more.accumulate = many;
      gemm(rows, now, kept.depth, queries, queries_step, head.keys + at * paired(kept.depth), kept.depth, 0, scores, step,
           tail);
      many ? weigh_block(scores, rows, now, step, weights, running) : weigh_rows(scores, rows, now, weights, factors);
      gemm(rows, kept.columns, std::min(now, weighed(kept.keys) - at), weights, step, head.values, weighed(kept.keys), at,
           found, kept.columns, more);
    }
    for (long i = 0; many && i < rows; ++i) factors[i] = 1.0f / factors[i];
  }
};
