// The gallery rows with the largest dot products: products of panels of queries with all rows, kept where they reach a
// query's threshold. `NearestSearch` (nearest_search.hpp) prepares the task, raises the thresholds and ranks the rows
// that are kept.
#pragma once

#include <cstdint>

#include "constants.hpp"
#include "gemm.hpp"
#include "lanes.hpp"
#include "storage.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

constexpr int64_t kQueries = 2 * W;    // side by side in one panel
constexpr int64_t kPanels = 16;        // of one group of queries
constexpr int64_t kGalleryRows = 240;  // stay in the cache while they are multiplied with all panels

// One row in how many is in the sample that thresholds are guessed from.
static int64_t sample_step(const NearestTask& task) {
  const int64_t least = (task.images + kSampleMost - 1) / kSampleMost;
  return least > kSampleEvery ? least : kSampleEvery;
}

static int64_t sample_rows(const NearestTask& task) { return task.guess ? task.images / sample_step(task) : 0; }

static int64_t panel_floats(const NearestTask& task) { return kQueries * (task.dim + task.dim % 2); }

static int64_t nearest_bytes(const NearestTask& task) {
  return (kPanels * panel_floats(task) + kQueries * (kTile / 2 + sample_rows(task)) + task.dim) * 4 + 8 * kLine;
}

static void keep(const NearestTask& task, int64_t query, float value, int64_t row) {
  Shortlist& list = task.lists[query];
  if (list.count == list.capacity) {
    task.compact(task.owner, query);
    if (!(value >= task.thresholds[query])) return;
  }
  list.scores[list.count] = value;
  list.rows[list.count++] = row;
}

// Adds to the lists of the panel's queries the rows that reach their thresholds, of scores (height, kQueries).
static void keep_best(const NearestTask& task, int64_t first, int64_t count, int64_t row, int64_t height,
                      const float* scores) {
  float limit[kQueries];
  const float* limits = task.thresholds + first;
  if (count < kQueries) {  // the thresholds beyond belong to queries of other threads
    for (int64_t x = 0; x < kQueries; ++x) limit[x] = x < count ? limits[x] : __builtin_inff();
    limits = limit;
  }
  const Lanes low[2] = {load(limits), load(limits + W)};
  for (int64_t j = 0; j < height; ++j) {
    const float* at = scores + j * kQueries;
    uint32_t high = bits(load(at) >= low[0]) | bits(load(at + W) >= low[1]) << W;
    for (; high; high &= high - 1) {
      const int x = __builtin_ctz(high);
      keep(task, first + x, at[x], row + j);
    }
  }
}

// Panels of queries that are multiplied with rows of the gallery, as float32 or as 16-bit codes.
struct Screen {
  const NearestTask& task;
  float *panels, *scores;
  int16_t* row;  // memory for the codes of one query

  float* panel(int64_t number) const { return panels + number * panel_floats(task); }

  void pack_queries(int64_t number, int64_t first, int64_t count) const {
    const float* from = task.pooled_q + first * task.dim;
#ifdef DIML_INT16_PRODUCTS
    if (task.codes_g) {
      Mask* to = reinterpret_cast<Mask*>(panel(number));
      return pack_codes(from, count, kQueries, task.dim, 1.0f / task.step_q, row, to);
    }
#endif
    // lanes beyond `count` hold anything: their scores are not read
    PackedQuery packed{count, task.dim, 2, count < kQueries, panel(number), task.pooled_q, nullptr, nullptr};
    pack(packed, from);
  }

  void multiply(int64_t number, int64_t first, int64_t height) const {
    Prefetcher nothing{reinterpret_cast<const char*>(scores), reinterpret_cast<const char*>(scores)};
#ifdef DIML_INT16_PRODUCTS
    const int64_t pairs = (task.dim + 1) / 2;
    if (task.codes_g) {
      const int16_t* rows = task.codes_g + first * 2 * pairs;
      return with_or_without_vnni([&](auto fused) {
        tile_codes_of<2, decltype(fused)::value>(height, reinterpret_cast<const Mask*>(panel(number)), rows,
                                                 rows + (height - 1) * 2 * pairs, pairs, task.step_q * task.step_g,
                                                 nullptr, scores, kQueries, nothing);
      });
    }
#endif
    const float* rows = task.pooled_g + first * task.dim;
    tile_of<2>(height, panel(number), rows, task.dim, rows + (height - 1) * task.dim, task.dim, scores, kQueries, false,
               nothing);
  }
};

// Guesses thresholds that slightly more than `depth` gallery rows will reach, from a sample of the rows: as many of the
// sample reach them as `depth` rows lead to expect, plus four standard deviations.
static void guess(const Screen& screen, int64_t number, int64_t first, int64_t count, float* scores) {
  const NearestTask& task = screen.task;
  const int64_t step = sample_step(task), rows = sample_rows(task);
  const float expected = (float)(task.depth + 1) / (float)step;
  const float wanted = expected + 4.0f * __builtin_sqrtf(expected) + 2.0f;
  if (2.0f * wanted > (float)rows) return;
  Lanes low[2] = {}, high[2] = {};
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t chance = (int64_t)((uint32_t)j * 2654435769u >> 16) % step;  // rows may follow a pattern
    screen.multiply(number, j * step + chance, 1);
    for (int v = 0; v < 2; ++v) {
      const Lanes score = load(screen.scores + v * W);
      store(scores + j * kQueries + v * W, score);
      low[v] = j ? smallest(low[v], score) : score, high[v] = j ? largest(high[v], score) : score;
    }
  }
  for (int halving = 0; halving < 12; ++halving) {
    const Lanes middle[2] = {0.5f * (low[0] + high[0]), 0.5f * (low[1] + high[1])};
    Mask reached[2] = {Mask{}, Mask{}};
    for (int64_t j = 0; j < rows; ++j) {
      for (int v = 0; v < 2; ++v) reached[v] -= load(scores + j * kQueries + v * W) >= middle[v];
    }
    for (int v = 0; v < 2; ++v) {
      const Mask enough = __builtin_convertvector(reached[v], Lanes) >= wanted;
      low[v] = select(enough, middle[v], low[v]), high[v] = select(enough, high[v], middle[v]);
    }
  }
  for (int64_t x = 0; x < count; ++x) {
    task.thresholds[first + x] = task.lists[first + x].guess = low[x / W][x % W];
  }
}

static void nearest(const NearestTask& task, int64_t first, int64_t last, void* memory) {
  constexpr int64_t highest = kTile / 2, group = kPanels * kQueries;
  Arena arena{static_cast<char*>(memory), 0};
  float* panels = arena.take<float>(kPanels * panel_floats(task));
  float* scores = arena.take<float>(kQueries * highest);
  const Screen screen{task, panels, scores, arena.take<int16_t>(task.dim + 1)};
  float* sample = arena.take<float>(kQueries * sample_rows(task));
  for (int64_t from = first; from < last; from += group) {
    const int64_t to = from + group < last ? from + group : last, panels_used = (to - from + kQueries - 1) / kQueries;
    const auto filled = [&](int64_t number) {
      const int64_t left = to - from - number * kQueries;
      return left < kQueries ? left : kQueries;
    };
    for (int64_t x = 0; x < panels_used; ++x) {
      screen.pack_queries(x, from + x * kQueries, filled(x));
      if (task.guess) guess(screen, x, from + x * kQueries, filled(x), sample);
    }
    for (int64_t chunk = 0; chunk < task.images; chunk += kGalleryRows) {
      const int64_t end = chunk + kGalleryRows < task.images ? chunk + kGalleryRows : task.images;
      for (int64_t x = 0; x < panels_used; ++x) {
        for (int64_t row = chunk; row < end; row += highest) {
          const int64_t height = row + highest < end ? highest : end - row;
          screen.multiply(x, row, height);
          keep_best(task, from + x * kQueries, filled(x), row, height, scores);
        }
      }
    }
  }
}

// Dot products of a vector with `count` of the rows, summed in float64.
static void exact_dots(const double* vector, const float* vectors, int64_t dim, const int64_t* rows, int64_t count,
                       float* to) {
  typedef double Doubles __attribute__((vector_size(4 * DIML_LANES)));
  typedef double UnalignedDoubles __attribute__((vector_size(4 * DIML_LANES), aligned(8), may_alias));
  typedef float HalfLanes __attribute__((vector_size(2 * DIML_LANES), aligned(4), may_alias));
  constexpr int width = W / 2, parts = 4;
  for (int64_t x = 0; x < count; ++x) {
    const float *row = vectors + rows[x] * dim, *next = vectors + rows[x + 4 < count ? x + 4 : count - 1] * dim;
    for (int64_t d = 0; d < dim; d += kLine / 4) __builtin_prefetch(next + d);  // rows are far apart
    Doubles sum[parts] = {};
    int64_t d = 0;
    for (; d + parts * width <= dim; d += parts * width) {
#pragma GCC unroll 4
      for (int part = 0; part < parts; ++part) {
        const HalfLanes floats = *reinterpret_cast<const HalfLanes*>(row + d + part * width);
        const Doubles other = __builtin_convertvector(floats, Doubles);
        sum[part] += *reinterpret_cast<const UnalignedDoubles*>(vector + d + part * width) * other;
      }
    }
    const Doubles whole = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (; d < dim; ++d) total += vector[d] * row[d];
    for (int lane = 0; lane < width; ++lane) total += whole[lane];
    to[x] = (float)total;
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
