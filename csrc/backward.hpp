// Gradients of the loss: sums, over the pairs of an image, of slopes times the vectors of its partners.
#pragma once

#include <cstdint>

#include "gemm.hpp"
#include "lanes.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

// What one pair adds: weighted slopes, with the strides of their rows and columns, and the partner's regions.
struct GradientTerm {
  const float* slope;
  int64_t row_stride, column_stride;
  const float* regions;
};

constexpr int kTerms = 4;  // summed before a tile is written back to memory

// to (NR, NV * W) += slopes (NR, depth) times regions (depth, NV * W) of each term, from row `row` and channel `d` on.
template <int NR, int NV>
static void add_tile(const GradientTerm* terms, int count, int64_t row, int64_t depth, int64_t d, int64_t dim,
                     float* to) {
  Lanes sum[NR * NV];
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) sum[x] = load(to + (row + x / NV) * dim + d + x % NV * W);
  for (const GradientTerm* term = terms; term < terms + count; ++term) {
    const float *slope = term->slope + row * term->row_stride, *from = term->regions + d;
    const int64_t row_stride = term->row_stride, column_stride = term->column_stride;
    for (int64_t k = 0; k < depth; ++k) {
      Lanes g[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) g[v] = load(from + k * dim + v * W);
      __builtin_prefetch(from + k * dim + NV * W);
#pragma GCC unroll 24
      for (int i = 0; i < NR; ++i) {
        const Lanes factor = all(slope[i * row_stride + k * column_stride]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i * NV + v] += factor * g[v];
      }
    }
  }
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) store(to + (row + x / NV) * dim + d + x % NV * W, sum[x]);
}

// `add_tile` of `height` rows, at most NR.
template <int NV, int NR = kTile / NV>
static void add_tile_of(int64_t height, const GradientTerm* terms, int count, int64_t row, int64_t depth, int64_t d,
                        int64_t dim, float* to) {
  if constexpr (NR > 0) {
    if (height == NR) return add_tile<NR, NV>(terms, count, row, depth, d, dim, to);
    add_tile_of<NV, NR - 1>(height, terms, count, row, depth, d, dim, to);
  }
}

// NV * W channels of `rows` rows, in tiles of about equal height.
template <int NV>
static void add_columns(const GradientTerm* terms, int count, int64_t rows, int64_t depth, int64_t d, int64_t dim,
                        float* to) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t tiles = (rows + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
    const int64_t height = (rows - done + tiles - 1) / tiles;
    add_tile_of<NV>(height, terms, count, done, depth, d, dim, to);
    done += height;
  }
}

// to (rows, D) += the terms; channels that do not fill a vector one by one.
static void add_terms(const GradientTerm* terms, int count, int64_t rows, int64_t depth, int64_t dim, float* to) {
  int64_t d = 0;
  for (; d + 2 * W <= dim; d += 2 * W) add_columns<2>(terms, count, rows, depth, d, dim, to);
  for (; d + W <= dim; d += W) add_columns<1>(terms, count, rows, depth, d, dim, to);
  for (; d < dim; ++d) {
    for (int64_t i = 0; i < rows; ++i) {
      for (const GradientTerm* term = terms; term < terms + count; ++term) {
        const float* slope = term->slope + i * term->row_stride;
        for (int64_t k = 0; k < depth; ++k) {
          to[i * dim + d] += slope[k * term->column_stride] * term->regions[k * dim + d];
        }
      }
    }
  }
}

static int64_t accumulate_gradients_bytes(const GradientTask& task) {
  return kTerms * task.regions * task.regions_partner * (int64_t)sizeof(float);
}

static void accumulate_gradients(const GradientTask& task, int64_t first, int64_t last, void* memory) {
  const int64_t cells = task.regions * task.regions_partner, dim = task.dim, depth = task.regions_partner;
  GradientTerm terms[kTerms];
  for (int64_t image = first; image < last; ++image) {
    float *to = task.gradient + image * (task.regions + 1) * dim, *pooled = to + task.regions * dim;
    for (int64_t x = 0; x < (task.regions + 1) * dim; ++x) to[x] = 0;
    int count = 0;
    for (int64_t number = task.begin[image]; number < task.begin[image + 1]; ++number) {
      const Contribution& part = task.contributions[number];
      const float* partner = task.partners + part.partner * (depth + 1) * dim;
      if (number + 2 < task.begin[image + 1]) {
        const float* next = task.slope + task.contributions[number + 2].pair * cells;
        for (int64_t x = 0; x < cells; x += kLine / 4) __builtin_prefetch(next + x);
      }
      if (const float weight = task.weight[part.pair]; weight != 0) {
        const float* slope = task.slope + part.pair * cells;
        float* weighted = static_cast<float*>(memory) + count * cells;
        for (int64_t x = 0; x < cells; ++x) weighted[x] = weight * slope[x];
        terms[count++] = {weighted, part.transposed ? 1 : depth, part.transposed ? task.regions : 1, partner};
        if (count == kTerms) add_terms(terms, count, task.regions, depth, dim, to), count = 0;
      }
      if (const float weight = task.pooled_weight[part.pair]; weight != 0) {
        for (int64_t d = 0; d < dim; ++d) pooled[d] += weight * partner[depth * dim + d];
      }
    }
    add_terms(terms, count, task.regions, depth, dim, to);
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
