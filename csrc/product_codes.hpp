// Product-quantised regions: codes of one byte for each group of channels become floats, by the gallery's centroids.
#pragma once

#include <cmath>
#include <cstdint>

#include "constants.hpp"
#include "lanes.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

// The sum of the squares of `dim` numbers.
DIML_INLINE float squared_length(const float* from, int64_t dim) {
  Lanes sum[2] = {Lanes{}, Lanes{}};
  int64_t d = 0;
  for (; d + 2 * W <= dim; d += 2 * W) {
    for (int x = 0; x < 2; ++x) sum[x] += load(from + d + x * W) * load(from + d + x * W);
  }
  const Lanes both = sum[0] + sum[1];
  float total = 0;
  for (int lane = 0; lane < W; ++lane) total += both[lane];
  for (; d < dim; ++d) total += from[d] * from[d];
  return total;
}

// Copies the centroids of `groups` codes side by side, `Width` channels each: 0 stands for any width.
template <int Width>
static void copy_centroids(const Centroids& centroids, const uint8_t* codes, int64_t groups, float* to) {
  const int64_t width = Width ? Width : centroids.width;
  const float* known = centroids.values;
  for (int64_t group = 0; group < groups; ++group, known += kCentroids * width, to += width) {
    const float* from = known + codes[group] * width;
    if constexpr (Width != 0) {
      __builtin_memcpy(to, from, Width * sizeof(float));
    } else {
      for (int64_t d = 0; d < width; ++d) to[d] = from[d];
    }
  }
}

// Decodes `count` regions (count, S) to unit vectors (count, D). The last group may have fewer channels than the others.
// Lengths are read in a second pass: a vector that is read while its halves are still being written has to wait.
static void decode_regions(const Centroids& centroids, const uint8_t* codes, int64_t count, int64_t dim, float* to) {
  const int64_t groups = centroids.groups, whole = groups - 1, width = centroids.width;
  for (int64_t j = 0; j < count; ++j, codes += groups) {
    float* region = to + j * dim;
    if (width == 4) {
      copy_centroids<4>(centroids, codes, whole, region);
    } else {
      copy_centroids<0>(centroids, codes, whole, region);
    }
    const float* last = centroids.values + (whole * kCentroids + codes[whole]) * width;
    for (int64_t d = whole * width; d < dim; ++d) region[d] = last[d - whole * width];
  }
  for (int64_t j = 0; j < count; ++j, to += dim) {
    const float squared = squared_length(to, dim), scale = squared > 0 ? 1 / std::sqrt(squared) : 0.0f;
    int64_t d = 0;
    for (; d + W <= dim; d += W) store(to + d, load(to + d) * scale);
    for (; d < dim; ++d) to[d] *= scale;
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
