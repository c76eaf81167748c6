// shortcut + attention whose queries, keys and values each pass a depthwise 3x3 convolution on their grid.
//
// Two orders, one kernel. `first`: convolved, then projected (CvT), and a class token may stand before the map, which
// skips the convolutions. Else projected, then convolved and normalised within each head (MViTv2); relative positions
// ride in the products as further channels, and the queries are added to what the heads found. Scores, queries and heads
// never leave the cache; projected maps are those of one image a thread, or of one image for all.
#pragma once
#include "attention.h"

struct Grid {
  long height, width;
  long count() const { return height * width; }
};

// The way of the queries, of the keys or of the values.
struct Branch {
  long stride_h, stride_w;
  const float *taps, *taps_bias;  // (9, channels), (channels) or none
  Norm norm;                      // of a head, behind its convolution
  const Operand* weight;          // panels; where convolutions are first, of keys and values a head after the other
  const float* bias;
};

struct Convolved {
  long dim, out, heads;           // channels of x, channels of y and of all heads
  long first, token;              // convolutions before the projections; a class token before the map
  Norm norm;
  float scale;
  Branch query, key, value;
  const Operand *weight, *shortcut;  // W^O; the projection of norm(x) that takes the place of x
  const float *bias, *shortcut_bias;
};

// Of one size: the grids of x, of the queries and of the keys, and the positions, if there are any.
struct Place {
  Grid in, queries, keys;
  const Operand* rows;     // for each row of queries, panels (rows of keys, depth of a head)
  const Operand* columns;  // for each column of queries, panels (columns of keys, depth of a head)
};

// What the window of token `t` sees of a map, tokens `step` numbers apart; `outside` beyond its edges.
template <typename Number>
static inline void window(const Branch& b, const Number* x, long step, const Grid& in, const Grid& out, long t,
                          const Number* outside, const Number* seen[9]) {
  long top = t / out.width * b.stride_h - 1, left = t % out.width * b.stride_w - 1;
  for (long k = 0; k < 9; ++k) {
    long y = top + k / 3, w = left + k % 3;
    seen[k] = y >= 0 && y < in.height && w >= 0 && w < in.width ? x + (y * in.width + w) * step : outside;
  }
}

// `count` tokens from `t` on, the convolution of channels from..from+channels of a map whose tokens have `all`.
template <typename Out>
static void convolve(const Branch& b, const Operand* x, long all, const Grid& in, const Grid& out, long t, long count,
                     long from, long channels, const Operand* zero, Out* to, long to_step) {
  const float *taps = b.taps + from, *bias = b.taps_bias ? b.taps_bias + from : nullptr;
  for (long end = t + count; t < end; ++t, to += to_step) {
    const Operand* seen[9];
    window(b, x + from, all, in, out, t, zero, seen);
    lanes_of(channels, [&](long c, auto left) {
      vec sum = bias ? take(bias + c, left) : vec{};
#pragma GCC unroll 9
      for (long k = 0; k < 9; ++k) sum += take(seen[k] + c, left) * take(taps + k * all + c, left);
      put(to + c, sum, left);
    });
  }
}

// The largest numbers of each window.
template <typename Number>
static void pool_largest(const Branch& b, const Number* x, long channels, const Grid& in, const Grid& out, long t,
                         long count, float* to) {
  for (long end = t + count; t < end; ++t, to += channels) {
    const Number* seen[9];
    window<Number>(b, x, channels, in, out, t, nullptr, seen);
    lanes_of(channels, [&](long c, auto left) {
      vec most = take(seen[4] + c, left);  // the middle is always within
      for (long k = 0; k < 9; ++k)
        if (k != 4 && seen[k]) most = maximum(most, take(seen[k] + c, left));
      put(to + c, most, left);
    });
  }
}

// One call on one image.
template <typename Number>
struct ConvolvedImage {
  const Convolved& a;
  const Place& p;
  const Number* x;
  Number* y;
  long d, tokens, queries, keys;  // channels of a head, and numbers with the class token
  Kept kept;
  Operand *normed, *reduced[2];   // `first`: norm(x), convolved keys and values
  Operand* maps[3];               // else: projected queries, keys and values
  float *shortcut, *heads;
  Operand* zero;

  ConvolvedImage(const Convolved& a, const Place& p, const Number* x, Number* y)
      : a(a), p(p), x(x), y(y), d(a.out / a.heads), tokens(p.in.count() + a.token),
        queries(p.queries.count() + a.token), keys(p.keys.count() + a.token) {
    long depth = p.rows ? whole_steps(d + p.keys.height + p.keys.width) : d;
    kept = {keys, packed_columns(keys), depth, d};
  }

  void run(int threads) {
    long map = tokens * a.out, z = keys * a.dim, widest = std::max(a.dim, a.out);
    long held = a.first ? room({tokens * a.dim, z, z}) : room({map, map, map, a.shortcut ? map : 0});
    Pieces pieces(common.take(held + room({a.heads * kept.size(), widest})));
    if (a.first) {
      normed = pieces.take<Operand>(tokens * a.dim);
      for (Operand*& to : reduced) to = pieces.take<Operand>(z);
    } else {
      for (Operand*& to : maps) to = pieces.take<Operand>(map);
      shortcut = pieces.take<float>(a.shortcut ? map : 0);
    }
    heads = pieces.take<float>(a.heads * kept.size());
    zero = pieces.take<Operand>(widest);
    std::memset(zero, 0, widest * sizeof(Operand));
    each(tokens, 96, threads, [&](long from, long count) { a.first ? norm(from, count) : project(from, count); });
    if (a.first)
      each(keys, 96, threads, [&](long from, long count) {
        reduce(a.key, from, count, reduced[0]);
        reduce(a.value, from, count, reduced[1]);
      });
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long half = 0; half < 2 * a.heads; ++half) half % 2 ? keep_values(half / 2) : keep_keys(half / 2);
    long most = std::max<long>(2 * TILE_ROWS, std::min<long>(96, 49152 / kept.wide));
    each(queries, most, threads, [&](long from, long count) { attend(from, count); });
    common.trim();
  }

  // The work on `count` rows, at most `most` at a time.
  template <typename Work>
  static void each(long count, long most, int threads, Work work) {
    long parts = parts_of(count, most, 1, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long part = 0; part < parts; ++part) {
      long from = count * part / parts, to = count * (part + 1) / parts;
      if (from < to) work(from, to - from);
    }
  }

  void norm(long from, long count) {
    norm_rows(x + from * a.dim, count, a.dim, a.norm, normed + from * a.dim);
  }

  // Tokens from..from+count of the projected maps, and of the shortcut.
  void project(long from, long count) {
    MatrixUnits units;
    Pieces pieces(worker.take(room({count * a.dim, count * a.out})));
    Operand* xn = pieces.take<Operand>(count * a.dim);
    float* wide = pieces.take<float>(count * a.out);
    norm_rows(x + from * a.dim, count, a.dim, a.norm, xn);
    const Branch* branches[] = {&a.query, &a.key, &a.value};
    for (int i = 0; i < 3; ++i) {
      Operand* to = maps[i] + from * a.out;
      float* made = in_place_of(to, wide);
      Tail tail;
      tail.bias = branches[i]->bias;
      gemm(count, a.out, a.dim, xn, a.dim, branches[i]->weight, a.dim, 0, made, a.out, tail);
      if (NARROW) copy(made, count * a.out, to);
    }
    if (!a.shortcut) return;
    Tail tail;
    tail.bias = a.shortcut_bias;
    gemm(count, a.out, a.dim, xn, a.dim, a.shortcut, a.dim, 0, shortcut + from * a.out, a.out, tail);
  }

  // Memory for the float32 numbers of operands: theirs, where they are of one size.
  static float* in_place_of(Operand* to, float* room) { return NARROW ? room : reinterpret_cast<float*>(to); }

  // Rows from..from+count of what a branch projects: convolved tokens, and the class token as it is.
  void gather(const Branch& b, const Grid& out, long from, long count, Operand* to) {
    long alone = a.token && from == 0;
    if (alone) copy(normed, a.dim, to);
    convolve(b, normed + a.token * a.dim, a.dim, p.in, out, from + alone - a.token, count - alone, 0, a.dim, zero,
             to + alone * a.dim, a.dim);
  }
  void reduce(const Branch& b, long from, long count, Operand* z) { gather(b, p.keys, from, count, z + from * a.dim); }

  // Keys or values of a head, (keys, step).
  void head_of(const Branch& b, int which, long head, float* to, long step) {
    if (a.first) {
      Tail tail;
      tail.bias = b.bias ? b.bias + head * packed_columns(d) : nullptr;
      gemm(keys, d, a.dim, reduced[which], a.dim, b.weight + head * packed_columns(d) * paired(a.dim), a.dim, 0, to, step,
           tail);
      return;
    }
    convolve(b, maps[which + 1], a.out, p.in, p.keys, 0, keys, head * d, d, zero, to, step);
    for (long i = 0; i < keys; ++i) norm_row(to + i * step, d, b.norm, to + i * step);
  }

  void keep_keys(long head) {
    MatrixUnits units;
    float* k = worker.take(keys * kept.depth);
    head_of(a.key, 0, head, k, kept.depth);
    for (long i = 0; i < keys; ++i) {
      float* row = k + i * kept.depth;
      for (long j = 0; j < d; ++j) row[j] *= a.scale;
      std::fill(row + d, row + kept.depth, 0.0f);
      if (p.rows) row[d + i / p.keys.width] = row[d + p.keys.height + i % p.keys.width] = 1.0f;
    }
    Head h = head_at(kept, heads + head * kept.size());
    std::fill(h.bias, h.bias + keys, 0.0f);
    std::fill(h.bias + keys, h.bias + kept.wide, -1e30f);  // what fills the last panel is no key
    pack(k, keys, kept.depth, kept.depth, 1, h.keys);
  }

  void keep_values(long head) {
    MatrixUnits units;
    float* v = worker.take(keys * d);
    head_of(a.value, 1, head, v, d);
    pack(v, d, keys, 1, d, head_at(kept, heads + head * kept.size()).values, weighed(keys));
  }

  // The queries' products with the positions, behind their `d` channels in `wide` (count, heads, depth).
  void add_positions(long from, long count, const Operand* q, float* wide) {
    long by_row = packed_columns(p.keys.height) * paired(d), by_column = packed_columns(p.keys.width) * paired(d);
    for (long i = 0, now; i < count; i += now) {
      long row = (from + i) / p.queries.width, column = (from + i) % p.queries.width;
      now = std::min(count - i, p.queries.width - column);
      float* to = wide + i * a.heads * kept.depth + d;
      gemm(now * a.heads, p.keys.height, d, q + i * a.out, d, p.rows + row * by_row, d, 0, to, kept.depth, Tail());
      to += p.keys.height;
      for (long t = 0; t < now; ++t)
        gemm(a.heads, p.keys.width, d, q + (i + t) * a.out, d, p.columns + (column + t) * by_column, d, 0,
             to + t * a.heads * kept.depth, kept.depth, Tail());
    }
  }

  // Rows from..from+count of what the heads' output is added to.
  const float* beside(long from, long count, float* room) {
    bool pooled = a.query.stride_h != 1 || a.query.stride_w != 1;
    auto found = [&](const auto* source) -> const float* {
      if (pooled)
        pool_largest(a.query, source, a.out, p.in, p.queries, from, count, room);
      else if (std::is_same<decltype(source), const float*>::value)
        return reinterpret_cast<const float*>(source) + from * a.out;
      else
        copy(source + from * a.out, count * a.out, room);
      return room;
    };
    return a.shortcut ? found(static_cast<const float*>(shortcut)) : found(x);
  }

  void attend(long from, long count) {
    MatrixUnits units;
    constexpr bool ASIDE = !std::is_same<Number, float>::value;  // sums are float32
    long all = count * a.out, spread = p.rows ? count * a.heads * kept.depth : 0, wide = count * kept.wide;
    long narrow_size = std::max(all, count * a.dim);
    Pieces pieces(worker.take(room({narrow_size, all, all, all, ASIDE ? all : 0, spread, spread, wide, wide})));
    Operand* narrow = pieces.take<Operand>(narrow_size);
    float *q = pieces.take<float>(all), *o = pieces.take<float>(all), *add = pieces.take<float>(all);
    float* sums = ASIDE ? pieces.take<float>(all) : reinterpret_cast<float*>(y + from * a.out);
    float* further = pieces.take<float>(spread);
    Operand* further_narrow = pieces.take<Operand>(spread);
    float* scores = pieces.take<float>(wide);
    Operand* weights = in_place(scores, pieces.take<Operand>(wide));
    if (a.first) {
      gather(a.query, p.queries, from, count, narrow);
      Tail tail;
      tail.bias = a.query.bias;
      gemm(count, a.out, a.dim, narrow, a.dim, a.query.weight, a.dim, 0, q, a.out, tail);
    } else {
      convolve(a.query, maps[0], a.out, p.in, p.queries, from, count, 0, a.out, zero, q, a.out);
      norm_rows(q, count * a.heads, d, a.query.norm, q);
    }
    const Operand* left = narrowed(q, all, narrow);
    if (p.rows) {
      for (long i = 0; i < count * a.heads; ++i) {
        std::memcpy(further + i * kept.depth, q + i * d, 4 * d);
        std::fill(further + i * kept.depth + d, further + (i + 1) * kept.depth, 0.0f);
      }
      add_positions(from, count, left, further);
      left = narrowed(further, spread, further_narrow);
    }
    for (long head = 0; head < a.heads; ++head) {
      const auto [keys_of, values, bias] = head_at(kept, heads + head * kept.size());
      Tail tail, into;
      tail.bias = bias;
      gemm(count, kept.wide, kept.depth, left + head * kept.depth, a.heads * kept.depth, keys_of, kept.depth, 0, scores,
           kept.wide, tail);
      softmax_rows(scores, count, kept.wide, weights);
      if (!a.first) into.add = q + head * d, into.add_step = a.out;
      gemm(count, d, weighed(keys), weights, kept.wide, values, weighed(keys), 0, o + head * d, a.out, into);
    }
    Tail tail;
    tail.bias = a.bias, tail.add = beside(from, count, add), tail.add_step = a.out;
    gemm(count, a.out, a.out, narrowed(o, all, narrow), a.out, a.weight, a.out, 0, sums, a.out, tail);
    if (ASIDE) copy(sums, all, y + from * a.out);
  }
};

// Images of tokens, class token and all, to others of `out` channels. Each thread has an image of its own, as long as
// there is one for every thread.
template <typename Number>
static void convolved(const Convolved& a, const Place& p, const Number* x, Number* y, long batch, int threads) {
  long read = (p.in.count() + a.token) * a.dim, made = (p.queries.count() + a.token) * a.out;
  auto image = [&](long b, int team) { ConvolvedImage<Number>(a, p, x + b * read, y + b * made).run(team); };
  long apart = threads > 1 ? batch - batch % threads : batch;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (long b = 0; b < apart; ++b) image(b, 1);
  for (long b = apart; b < batch; ++b) image(b, threads);
}
