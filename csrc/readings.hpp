// What a learned scorer reads off images: lengths under its map, and dustbins; and the mapping of queries. See readings.py.
#pragma once

#include <math.h>

#include <cstdint>

#include "gemm.hpp"
#include "lanes.hpp"
#include "storage.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

// Memory for the vectors of one image: its regions packed, and the pooled vector apart where no lane is spare for it.
struct ScorerMemory {
  float* under;         // (E, lanes) vectors under U, in panels like those of `pack`
  float* hidden;        // (h, lanes)
  float* square;        // (lanes,) squared lengths under U
  float* pooled_under;  // (E,)
  float* pooled;        // (D,) the pooled vector of a query, mapped
  float* over_length;   // (R + 1,) of a query
  float* dustbin;       // (R,) of a query
};

static ScorerMemory scorer_memory_in(Arena& arena, const ScorerWeights& weights, int64_t regions, int64_t dim) {
  const int64_t lanes = round_up(regions);
  ScorerMemory memory;
  memory.under = arena.take<float>(weights.rows * lanes);
  memory.hidden = arena.take<float>(weights.hidden * lanes);
  memory.square = arena.take<float>(lanes);
  memory.pooled_under = arena.take<float>(round_up(weights.rows));
  memory.pooled = arena.take<float>(round_up(dim));
  memory.over_length = arena.take<float>(lanes + W);
  memory.dustbin = arena.take<float>(lanes);
  return memory;
}

// Brings the factor closer: it is read in many streams at once, which the processor does not foresee.
static void prefetch_upper(const ScorerWeights& weights, int64_t dim) {
  for (int64_t row = 0; row < weights.rows; ++row) {
    for (int64_t d = row; d < dim; d += kLine / 4) __builtin_prefetch(weights.upper + row * dim + d, 0, 2);
  }
}

// A panel of vectors under U: `under` (E, NV * W), and their squared lengths.
template <int NV>
static void map_panel(const ScorerWeights& weights, const float* panel, int64_t dim, float* under, float* square) {
  constexpr int64_t highest = kTile / NV;
  Prefetcher nothing{nullptr, nullptr};
  Lanes sum[NV];
  for (int v = 0; v < NV; ++v) sum[v] = Lanes{};
  for (int64_t row = 0; row < weights.rows; row += highest) {
    const int64_t height = row + highest < weights.rows ? highest : weights.rows - row;
    float* to = under + row * NV * W;
    for (int64_t d = row; d < dim; d += kChannels) {
      const int64_t depth = d + kChannels < dim ? kChannels : dim - d;
      const float* rows = weights.upper + row * dim + d;
      tile_of<NV>(height, panel + d * NV * W, rows, dim, rows + (height - 1) * dim, depth, to, NV * W, d > row, nothing);
    }
    for (int64_t j = 0; j < height; ++j) {
      for (int v = 0; v < NV; ++v) {
        const Lanes product = load(to + (j * NV + v) * W);
        sum[v] += product * product;
      }
    }
  }
  for (int v = 0; v < NV; ++v) store(square + v * W, sum[v]);
}

// Adds to `panel` (D, NV * W), from channel `row` on, the products of ROWS rows of U with `under`.
template <int NV, int ROWS>
static void map_rows_back(const ScorerWeights& weights, int64_t row, int64_t dim, const float* under, float* panel) {
  Lanes from[ROWS * NV];
#pragma GCC unroll 16
  for (int x = 0; x < ROWS * NV; ++x) from[x] = load(under + row * NV * W + x * W);
  const float* upper = weights.upper + row * dim;
  for (int64_t d = row; d < dim; ++d) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      Lanes sum = load(panel + (d * NV + v) * W);
#pragma GCC unroll 8
      for (int k = 0; k < ROWS; ++k) sum += from[k * NV + v] * upper[k * dim + d];
      store(panel + (d * NV + v) * W, sum);
    }
  }
}

// Writes U' times `under`, each lane times its `scale`, to a panel.
template <int NV>
static void map_panel_back(const ScorerWeights& weights, int64_t dim, float* under, const float* scale, float* panel) {
  constexpr int kRows = W == 16 ? 8 : 4;
  for (int64_t x = 0; x < weights.rows * NV; ++x) {
    store(under + x * W, load(under + x * W) * load(scale + x % NV * W));
  }
  for (int64_t x = 0; x < dim * NV; ++x) store(panel + x * W, Lanes{});
  int64_t row = 0;
  for (; row + kRows <= weights.rows; row += kRows) map_rows_back<NV, kRows>(weights, row, dim, under, panel);
  for (; row < weights.rows; ++row) map_rows_back<NV, 1>(weights, row, dim, under, panel);
}

// A vector under U; returns its squared length.
static float map_vector(const ScorerWeights& weights, const float* vector, int64_t dim, float* under) {
  float square = 0;
  for (int64_t row = 0; row < weights.rows; row += W) {
    const int64_t height = row + W < weights.rows ? W : weights.rows - row;
    dots(vector + row, weights.upper + row * dim + row, height, dim - row, dim, under + row);
    for (int64_t j = row; j < row + height; ++j) square += under[j] * under[j];
  }
  return square;
}

// Writes U' times `under`, times `scale`, to a vector.
static void map_vector_back(const ScorerWeights& weights, const float* under, float scale, int64_t dim, float* to) {
  for (int64_t d = 0; d < dim; ++d) to[d] = 0;
  for (int64_t row = 0; row < weights.rows; ++row) {
    const float factor = under[row] * scale, *upper = weights.upper + row * dim;
    int64_t d = row;
    for (; d + W <= dim; d += W) store(to + d, load(to + d) + factor * load(upper + d));
    for (; d < dim; ++d) to[d] += factor * upper[d];
  }
}

DIML_INLINE float over(float square) {
  const float length = sqrtf(square);
  return 1.0f / (length > 1e-12f ? length : 1e-12f);  // a zero vector stays one
}

// Maps packed regions and the pooled vector; writes 1 / length (R + 1,) of them, and the dustbins (R,).
static void read_packed(const ScorerWeights& weights, const PackedQuery& packed, const ScorerMemory& memory,
                        float* over_length, float* dustbin) {
  const int64_t dim = packed.dim, lanes = packed.vectors * W, regions = packed.regions;
  for (int64_t start = 0; start < lanes; start += 2 * W) {
    const float* panel = packed.panels + start * dim;
    float* under = memory.under + start * weights.rows;
    if (start + 2 * W <= lanes) {
      map_panel<2>(weights, panel, dim, under, memory.square + start);
    } else {
      map_panel<1>(weights, panel, dim, under, memory.square + start);
    }
  }
  for (int64_t x = 0; x < regions; ++x) over_length[x] = over(memory.square[x]);
  const bool apart = regions % W == 0;
  over_length[regions] =
      over(apart ? map_vector(weights, packed.pooled, dim, memory.pooled_under) : memory.square[regions]);
  Prefetcher nothing{nullptr, nullptr};
  const float* last = weights.inward + (weights.hidden - 1) * dim;
  products(packed, weights.inward, weights.hidden, last, memory.hidden, nothing);
  for (int64_t x = 0; x < regions; ++x) {
    float read = weights.outward_bias;
    for (int64_t k = 0; k < weights.hidden; ++k) {
      const float in = memory.hidden[k * lanes + x] * over_length[x] + weights.inward_bias[k];
      read += weights.outward[k] * 0.5f * in * (1.0f + erff(in * 0.70710678f));  // GELU
    }
    dustbin[x] = weights.height + weights.spread * tanhf(read);
  }
}

// Maps a packed query by U'U and divides it by its lengths under U: its panels, and the pooled vector, to which
// `query.pooled` then points; the dustbins are in `memory`.
static void map_query(const ScorerWeights& weights, const ScorerMemory& memory, PackedQuery& query) {
  const int64_t dim = query.dim, lanes = query.vectors * W, regions = query.regions;
  prefetch_upper(weights, dim);
  read_packed(weights, query, memory, memory.over_length, memory.dustbin);
  const float own = memory.over_length[regions];
  if (regions % W == 0) {
    map_vector_back(weights, memory.pooled_under, own, dim, memory.pooled);
    query.pooled = memory.pooled;
  }
  for (int64_t x = regions + 1; x < lanes; ++x) memory.over_length[x] = 0;
  for (int64_t start = 0; start < lanes; start += 2 * W) {
    float *panel = query.panels + start * dim, *under = memory.under + start * weights.rows;
    if (start + 2 * W <= lanes) {
      map_panel_back<2>(weights, dim, under, memory.over_length + start, panel);
    } else {
      map_panel_back<1>(weights, dim, under, memory.over_length + start, panel);
    }
  }
}

struct ReadSpace {
  PackedQuery packed;
  ScorerMemory memory;
  float* image;  // decoded regions
  int64_t bytes;
};

static ReadSpace read_space_in(const ReadTask& task, void* memory) {
  Arena arena{static_cast<char*>(memory), 0};
  ReadSpace space{};
  const int64_t regions = task.images.regions, lanes = round_up(regions);
  space.packed.regions = regions, space.packed.dim = task.dim, space.packed.vectors = lanes / W;
  space.packed.panels = arena.take<float>(lanes * task.dim);
  space.image = arena.take<float>(task.images.storage == Storage::float32 ? 0 : regions * task.dim);
  space.memory = scorer_memory_in(arena, task.weights, regions, task.dim);
  space.bytes = arena.used;
  return space;
}

static int64_t read_bytes(const ReadTask& task) { return read_space_in(task, nullptr).bytes; }

static void read(const ReadTask& task, int64_t first, int64_t last, void* memory) {
  ReadSpace space = read_space_in(task, memory);
  const int64_t regions = task.images.regions;
  for (int64_t place = first; place < last; ++place) {
    const int64_t image = task.rows[place];
    space.packed.pooled = task.images.pooled + image * task.images.pooled_stride;
    pack(space.packed, read_image(task.images, task.dim, image, space.image));
    read_packed(task.weights, space.packed, space.memory, task.over_length + image * (regions + 1),
                task.dustbin + image * regions);
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
