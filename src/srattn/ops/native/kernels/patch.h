// Convolutions that make tokens: patch embeddings and spatial reductions, as GEMMs over gathered rows.
#pragma once
#include "gemm.h"
#include "rows.h"

struct Patch {
  long in, out;                  // channels
  long kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  const Operand* weight;         // panels over depth (row of the kernel, column, channel; rows paired, whole steps)
  const float* bias;
  Norm before, after;            // of each token that is read, of each token that is made
};

// Tokens of image `x` (height, width, in), rows `row_step` apart, under rows first..first+count of the kernel.
template <typename In>
static void gather(const Patch& p, const In* x, long row_step, long height, long width, long out_width, long token,
                   long tokens, long first, long count, Operand* to, long to_step) {
  long row = p.kernel_w * p.in, rest = to_step - count * paired(row);
  auto zero = [](Operand* at, long numbers) {
    if (numbers > 0) std::memset(at, 0, sizeof(Operand) * numbers);
  };
  for (long t = token; t < token + tokens; ++t, zero(to, rest), to += rest) {
    long top = t / out_width * p.stride_h - p.pad_h, left = t % out_width * p.stride_w - p.pad_w;
    for (long ky = first; ky < first + count; ++ky, to += paired(row)) {
      long y = top + ky;
      long begin = std::max<long>(0, -left), end = std::min(p.kernel_w, width - left);
      if (y < 0 || y >= height || end <= begin) {
        zero(to, paired(row));
        continue;
      }
      const In* from = x + y * row_step + (left + begin) * p.in;
      long read = (end - begin) * p.in;
      zero(to, begin * p.in);
      if (p.before.weight)
        norm_rows(from, end - begin, p.in, p.before, to + begin * p.in);
      else
        copy(from, read, to + begin * p.in);
      zero(to + end * p.in, paired(row) - end * p.in);
    }
  }
}

// Planes (in, height, width) to tokens (height, width, in).
template <typename Number>
static void interleave(const Number* x, long channel_step, long row_step, long column_step, long in, long height,
                       long width, Number* to) {
  for (long y = 0; y < height; ++y)
    for (long w = 0; w < width; ++w)
      for (long c = 0; c < in; ++c) *to++ = x[c * channel_step + y * row_step + w * column_step];
}

// x: images of strides (batch, channel, row, column) in numbers; out: (batch, out_height, out_width, out).
template <typename In, typename Out>
static void patches(const Patch& p, const In* x, const long* steps, long batch, long height, long width, Out* out,
                    long out_height, long out_width, int threads) {
  long tokens = out_height * out_width, row = paired(p.kernel_w * p.in);
  long depth = whole_steps(p.kernel_h * row);                       // of the panels
  long lines = std::min(p.kernel_h, std::max<long>(1, 640 / row));  // of the kernel in one GEMM
  long step = lines == p.kernel_h ? depth : lines * row;
  long most = std::max<long>(TILE_ROWS, 49152 / step);              // gathered rows stay in the second cache
  long parts = parts_of(tokens, most, batch, threads);
  bool lie = steps[1] == 1 && steps[3] == p.in;
  long image_size = height * width * p.in;
  const In* images = x;
  long image_step = steps[0], row_step = steps[2];
  if (!lie) {
    In* whole = Pieces(common.take(batch * image_size)).take<In>(batch * image_size);
    images = whole, image_step = image_size, row_step = width * p.in;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long b = 0; b < batch; ++b)
      for (long y = 0; y < height; ++y)
        interleave(x + b * steps[0] + y * steps[2], steps[1], steps[2], steps[3], p.in, 1, width,
                   whole + b * image_size + y * row_step);
  }
#pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(threads)
  for (long b = 0; b < batch; ++b)
    for (long part = 0; part < parts; ++part) {
      long token = part_at(tokens, part, parts), count = part_at(tokens, part + 1, parts) - token;
      if (count <= 0) continue;
      long gathered = std::max<long>(count, 1) * step;
      constexpr bool ASIDE = !std::is_same<Out, float>::value;  // sums are float32
      long made = count * p.out;
      Pieces pieces(worker.take(room({gathered, ASIDE ? made : 0})));
      Operand* rows = pieces.take<Operand>(gathered);
      Out* end = out + (b * tokens + token) * p.out;
      float* to = ASIDE ? pieces.take<float>(made) : reinterpret_cast<float*>(end);
      MatrixUnits units;
      for (long ky = 0; ky < p.kernel_h; ky += lines) {
        long now = std::min(lines, p.kernel_h - ky);
        long taken = lines == p.kernel_h ? depth : now * row;
        gather(p, images + b * image_step, row_step, height, width, out_width, token, count, ky, now, rows, taken);
        Tail tail;
        if (ky == 0) tail.bias = p.bias;
        tail.accumulate = ky > 0;
        gemm(count, p.out, taken, rows, taken, p.weight, depth, ky * row, to, p.out, tail);
      }
      if (p.after.weight)
        norm_rows(to, count, p.out, p.after, end);
      else if (ASIDE)
        copy(to, made, end);
    }
  if (!lie) common.trim();
}
