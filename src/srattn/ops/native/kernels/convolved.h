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
  const Operand* columns;  // panels (`distances` between columns, depth of a head)
  const int* between;      // (columns of queries, columns of keys): which of the distances is theirs
  long distances;
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

// Columns from..to of row `y` of a convolution of stride 1: every token is read once.
template <typename Out>
static void convolve_row(const Branch& b, const float* x, long all, const Grid& in, long y, long from, long to, long first,
                         long channels, const float* zero, Out* out, long out_step) {
  auto row = [&](long r) { return r >= 0 && r < in.height ? x + r * in.width * all : nullptr; };
  const float *up = row(y - 1), *mid = row(y), *low = row(y + 1);
  lanes_of(channels, [&](long c, auto lanes) {
    vec w[9], bias = b.taps_bias ? take(b.taps_bias + first + c, lanes) : vec{};
#pragma GCC unroll 9
    for (long k = 0; k < 9; ++k) w[k] = take(b.taps + k * all + first + c, lanes);
    vec before = bias, here = bias;  // sums of the outputs before and at the column that is read
    for (long col = std::max<long>(from - 1, 0), end = std::min(to + 1, in.width); col < end; ++col) {
      auto read = [&](const float* r) { return take(r ? r + col * all + c : zero, lanes); };
      vec u = read(up), m = read(mid), l = read(low);
      before += u * w[2] + m * w[5] + l * w[8];
      here += u * w[1] + m * w[4] + l * w[7];
      if (col > from) put(out + (col - 1 - from) * out_step + c, before, lanes);
      before = here, here = bias + u * w[0] + m * w[3] + l * w[6];
    }
    if (to == in.width) put(out + (to - 1 - from) * out_step + c, before, lanes);
  });
}

// `count` tokens from `t` on, the convolution of channels first..first+channels of a map whose tokens have `all`.
template <typename Out>
static void convolve(const Branch& b, const float* map, long all, const Grid& in, const Grid& out, long t, long count,
                     long first, long channels, const float* zero, Out* to, long to_step) {
  const float* x = map + first;
  long now;
  for (long end = t + count; t < end; t += now, to += now * to_step) {
    if (b.stride_h == 1 && b.stride_w == 1) {
      long y = t / in.width, from = t % in.width;
      now = std::min(end - t, in.width - from);
      convolve_row(b, x, all, in, y, from, from + now, first, channels, zero, to, to_step);
      continue;
    }
    now = 1;
    const float* seen[9];
    window(b, x, all, in, out, t, zero, seen);
    lanes_of(channels, [&](long c, auto lanes) {
      vec sum = b.taps_bias ? take(b.taps_bias + first + c, lanes) : vec{};
#pragma GCC unroll 9
      for (long k = 0; k < 9; ++k) sum += take(seen[k] + c, lanes) * take(b.taps + k * all + first + c, lanes);
      put(to + c, sum, lanes);
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
  long rows, block;               // queries, and scores of each, that are in the cache at a time
  float* normed;                  // `first`: norm(x)
  Operand* reduced[2];            // and its convolved keys and values
  float *maps[3], *shortcut;      // else: projected queries, keys and values, and what stands in x's place
  float *heads, *zero;

  ConvolvedImage(const Convolved& a, const Place& p, const Number* x, Number* y, long cache)
      : a(a), p(p), x(x), y(y), d(a.out / a.heads), tokens(p.in.count() + a.token),
        queries(p.queries.count() + a.token), keys(p.keys.count() + a.token) {
    long depth = p.rows ? whole_steps(d + p.keys.height + p.keys.width) : d;
    kept = {keys, scored(keys), depth, d};
    rows = queries_at_once(keys), block = keys_at_once(keys, cache);
  }

  void run(int threads) {
    long map = tokens * a.out, z = keys * a.dim, widest = std::max(a.dim, a.out);
    long held = a.first ? room({tokens * a.dim, z, z}) : room({map, map, map, a.shortcut ? map : 0});
    Pieces pieces(common.take(held + room({a.heads * kept.size(), widest})));
    if (a.first) {
      normed = pieces.take<float>(tokens * a.dim);
      for (Operand*& to : reduced) to = pieces.take<Operand>(z);
    } else {
      for (float*& to : maps) to = pieces.take<float>(map);
      shortcut = pieces.take<float>(a.shortcut ? map : 0);
    }
    heads = pieces.take<float>(a.heads * kept.size());
    zero = pieces.take<float>(widest);
    std::memset(zero, 0, 4 * widest);
    each(tokens, 96, threads, [&](long from, long count) { a.first ? norm(from, count) : project(from, count); });
    if (a.first)
      each(keys, 96, threads, [&](long from, long count) {
        reduce(a.key, from, count, reduced[0]);
        reduce(a.value, from, count, reduced[1]);
      });
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long half = 0; half < 2 * a.heads; ++half) half % 2 ? keep_values(half / 2) : keep_keys(half / 2);
    each(queries, rows, threads, [&](long from, long count) { attend(from, count); });
    common.trim();
  }

  // The work on `count` rows, at most `most` at a time.
  template <typename Work>
  static void each(long count, long most, int threads, Work work) {
    long parts = parts_of(count, most, 1, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long part = 0; part < parts; ++part) {
      long from = part_at(count, part, parts), to = part_at(count, part + 1, parts);
      if (from < to) work(from, to - from);
    }
  }

  void norm(long from, long count) {
    norm_rows(x + from * a.dim, count, a.dim, a.norm, normed + from * a.dim);
  }

  // Tokens from..from+count of the projected maps, and of the shortcut.
  void project(long from, long count) {
    MatrixUnits units;
    Operand* xn = Pieces(worker.take(count * a.dim)).take<Operand>(count * a.dim);
    norm_rows(x + from * a.dim, count, a.dim, a.norm, xn);
    const Branch* branches[] = {&a.query, &a.key, &a.value};
    for (int i = 0; i < 3; ++i) {
      Tail tail;
      tail.bias = branches[i]->bias;
      gemm(count, a.out, a.dim, xn, a.dim, branches[i]->weight, a.dim, 0, maps[i] + from * a.out, a.out, tail);
    }
    if (!a.shortcut) return;
    Tail tail;
    tail.bias = a.shortcut_bias;
    gemm(count, a.out, a.dim, xn, a.dim, a.shortcut, a.dim, 0, shortcut + from * a.out, a.out, tail);
  }

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
    pack(k, keys, kept.depth, kept.depth, 1, h.keys, kept.depth, kept.wide);
  }

  void keep_values(long head) {
    MatrixUnits units;
    float* v = worker.take(keys * d);
    head_of(a.value, 1, head, v, d);
    pack(v, d, keys, 1, d, head_at(kept, heads + head * kept.size()).values, weighed(keys));
  }

  // The queries' products with the positions, behind their `d` channels in `wide` (count, heads, depth).
  void add_positions(long from, long count, const Operand* q, float* wide, float* room) {
    long by_row = packed_columns(p.keys.height) * paired(d), step = kept.depth, h = a.heads;
    gemm(count * h, p.distances, d, q, d, p.columns, d, 0, room, p.distances, Tail());
    for (long i = 0, now; i < count; i += now) {
      long row = (from + i) / p.queries.width, column = (from + i) % p.queries.width;
      now = std::min(count - i, p.queries.width - column);
      float* to = wide + i * h * step + d;
      gemm(now * h, p.keys.height, d, q + i * a.out, d, p.rows + row * by_row, d, 0, to, step, Tail());
      for (long t = 0; t < now * h; ++t) {
        const int* between = p.between + (column + t / h) * p.keys.width;
        for (long k = 0; k < p.keys.width; ++k)
          to[t * step + p.keys.height + k] = room[(i * h + t) * p.distances + between[k]];
      }
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
    long all = count * a.out, spread = p.rows ? count * a.heads * kept.depth : 0;
    long narrow_size = std::max(all, count * a.dim), aside = ASIDE ? all : 0;
    long between = p.rows ? count * a.heads * p.distances : 0;
    Pieces pieces(worker.take(room({narrow_size, all, all, all, aside, spread, spread, between}) +
                              Seekers::size(kept, count, block)));
    Operand *narrow = pieces.take<Operand>(narrow_size), *found = pieces.take<Operand>(all);
    float *q = pieces.take<float>(all), *add = pieces.take<float>(all);
    float* sums = ASIDE ? pieces.take<float>(aside) : reinterpret_cast<float*>(y + from * a.out);
    float* further = pieces.take<float>(spread);
    Operand* further_narrow = pieces.take<Operand>(spread);
    float* distances = pieces.take<float>(between);
    const Seekers seekers(kept, count, block, pieces);
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
      add_positions(from, count, left, further, distances);
      left = narrowed(further, spread, further_narrow);
    }
    for (long head = 0; head < a.heads; ++head) {
      seekers.seek(kept, head_at(kept, heads + head * kept.size()), left + head * kept.depth, a.heads * kept.depth);
      for (long i = 0; i < count; ++i) {
        long at = i * a.out + head * d;
        lanes_of(d, [&](long c, auto lanes) {
          vec v = take(seekers.found + i * d + c, lanes) * splat(seekers.factors[i]);
          put(found + at + c, a.first ? v : v + take(q + at + c, lanes), lanes);
        });
      }
    }
    Tail tail;
    tail.bias = a.bias, tail.add = beside(from, count, add), tail.add_step = a.out;
    gemm(count, a.out, a.out, found, a.out, a.weight, a.out, 0, sums, a.out, tail);
    if (ASIDE) copy(sums, all, y + from * a.out);
  }
};

// Images of tokens, class token and all, to others of `out` channels; y may be x where queries are as many as tokens and x
// itself is added to what the heads found. Each thread has an image of its own, as long as there is one for every thread.
template <typename Number>
static void convolved(const Convolved& a, const Place& p, const Number* x, Number* y, long batch, long cache,
                      int threads) {
  long read = (p.in.count() + a.token) * a.dim, made = (p.queries.count() + a.token) * a.out;
  auto image = [&](long b, int team) { ConvolvedImage<Number>(a, p, x + b * read, y + b * made, cache).run(team); };
  long apart = threads > 1 ? batch - batch % threads : batch;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (long b = 0; b < apart; ++b) image(b, 1);
  for (long b = apart; b < batch; ++b) image(b, threads);
}
