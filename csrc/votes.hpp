// Votes of W pairs side by side, as in learned.py: a region gives its mass to the regions of the other image that
// resemble it and to its own dustbin, by a softmax over their cosines and the height of the dustbin. The plan is the mean
// of the votes of both sides. There is nothing to iterate. Queries are mapped by readings.hpp.
#pragma once

#include <cstdint>

#include "constants.hpp"
#include "lanes.hpp"
#include "tasks.hpp"
#include "transport.hpp"

namespace diml::DIML_INSTRUCTION_SET {

// Turns products of the regions of a mapped query, and in the last row of the pooled vector, with a gallery image into
// cosines: `rows` rows of `cells` (Rg + 1, lanes), and unless it is null `mass` (Rg,), the products with the query's
// pooled vector.
static void divide_by_lengths(const VoteInputs& votes, int64_t image, int64_t regions, int64_t rows, int64_t lanes,
                              float* cells, float* mass) {
  const float* over_length = votes.over_length + image * (regions + 1);
  for (int64_t j = 0; j < rows; ++j) {
    for (int64_t x = 0; x < lanes; x += W) {
      store(cells + j * lanes + x, load(cells + j * lanes + x) * over_length[j]);
    }
  }
  for (int64_t j = 0; mass && j < regions; ++j) mass[j] *= over_length[j];
}

// Makes weights of the agreements of regions with the other image as a whole: none is 0.
static void at_least(Lanes* weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) weight[i] = largest(weight[i], Lanes{}) + kLeastWeight;
}

// exp((cosine - 1) / temperature), also of the height of a dustbin; `scale` is log2(e) / temperature.
DIML_INLINE Lanes likeness(Lanes cosine, Lanes scale) {
  return power_of_two(smallest((cosine - 1.0f) * scale, all(100.0f)));
}

// Casts the votes. u and v hold the heights of the dustbins; they become the votes that a region gives to a unit of
// likeness. The kernel becomes the likeness of the regions. Returns the structural similarity, sum of plan * cosine.
static Lanes cast_votes(const Problem& p, float temperature) {
  const Lanes scale = all(kLog2E / temperature);
  Lanes *const totals = p.columns, *const values = p.step;  // of each column: likeness, and likeness * cosine
  for (int64_t j = 0; j < p.cols; ++j) totals[j] = likeness(p.v[j], scale), values[j] = Lanes{};
  Lanes structural = Lanes{};
  for (int64_t i = 0; i < p.rows; ++i) {
    const Lanes* row = p.cosine + i * p.cols;
    Lanes* to = p.kernel + i * p.cols;
    Lanes total = likeness(p.u[i], scale), value = Lanes{};
    for (int64_t j = 0; j < p.cols; ++j) {
      const Lanes like = likeness(row[j], scale), part = like * row[j];
      to[j] = like;
      total += like, value += part;
      totals[j] += like, values[j] += part;
    }
    p.u[i] = 0.5f * p.weight_q[i] / total;
    structural += p.u[i] * value;
  }
  for (int64_t j = 0; j < p.cols; ++j) {
    p.v[j] = 0.5f * p.weight_g[j] / totals[j];
    structural += p.v[j] * values[j];
  }
  return structural;
}

// Makes the plan of the kernel.
static void make_plan_of_votes(const Problem& p) {
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.cols; ++j) p.kernel[i * p.cols + j] *= p.u[i] + p.v[j];
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
