// Product-quantised regions: codes of one byte for each group of channels become the integers of the gallery's centroids.
// A region is these integers over their length, so that the step of the integers does not matter here.
#pragma once

#include <math.h>

#include <cstdint>

#include "constants.hpp"
#include "lanes.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

DIML_INLINE float over_length_of(float squared) { return squared > 0 ? 1 / sqrtf(squared) : 0.0f; }

// Decodes one region (S,) to its integers (D,). The last group may have fewer channels than the others.
template <typename Number>
static void decode_region(const Centroids& centroids, const uint8_t* codes, int64_t dim, Number* to) {
  const int64_t width = centroids.width;
  const int8_t* known = centroids.values;
  for (int64_t d = 0; d < dim; d += width, known += kCentroids * width, ++codes) {
    const int8_t* from = known + *codes * width;
    const int64_t count = d + width <= dim ? width : dim - d;
    for (int64_t x = 0; x < count; ++x) to[d + x] = (Number)from[x];
  }
}

// Decodes `count` regions (count, S) to unit vectors (count, D).
static void decode_regions(const Centroids& centroids, const uint8_t* codes, int64_t count, int64_t dim, float* to) {
  for (int64_t j = 0; j < count; ++j, codes += centroids.groups, to += dim) {
    decode_region(centroids, codes, dim, to);
    Lanes sum = Lanes{};
    int64_t d = 0;
    for (; d + W <= dim; d += W) sum += load(to + d) * load(to + d);
    float squared = sum_of_lanes(sum)[0];
    for (; d < dim; ++d) squared += to[d] * to[d];
    const float scale = over_length_of(squared);
    for (d = 0; d < dim; ++d) to[d] *= scale;
  }
}

#if DIML_LANES >= 8
// The sum of 8 numbers.
DIML_INLINE int32_t sum_of_integers(__m256i of) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(of), _mm256_extracti128_si256(of, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// The centroid of 4 channels that a code of a group stands for.
DIML_INLINE int32_t four_of(const int8_t* known, int64_t group, uint8_t code) {
  int32_t four;
  __builtin_memcpy(&four, known + (group * kCentroids + code) * 4, 4);
  return four;
}

// Decodes `count` regions (count, S) of groups of 4 channels, a multiple of 4 of them, to integers (count, 4 S) and their
// scale, 1 / length. Four groups are put together in a register: numbers that were stored one by one would be waited for
// when they are read together.
static void decode_fours(const Centroids& centroids, const uint8_t* codes, int64_t count, int16_t* to, float* scale) {
  for (int64_t j = 0; j < count; ++j) {
    const int8_t* known = centroids.values;
    __m256i sum = _mm256_setzero_si256();
    for (int64_t group = 0; group < centroids.groups; group += 4, codes += 4, to += 16, known += 16 * kCentroids) {
      __m128i four = _mm_cvtsi32_si128(four_of(known, 0, codes[0]));
      four = _mm_insert_epi32(four, four_of(known, 1, codes[1]), 1);
      four = _mm_insert_epi32(four, four_of(known, 2, codes[2]), 2);
      four = _mm_insert_epi32(four, four_of(known, 3, codes[3]), 3);
      const __m256i wide = _mm256_cvtepi8_epi16(four);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(wide, wide));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), wide);
    }
    scale[j] = (float)sum_of_integers(sum);
  }
  for (int64_t j = 0; j < count; ++j) scale[j] = over_length_of(scale[j]);
}

// Decodes `count` regions (count, S) to integers (count, D) and their scale, 1 / length.
static void decode_integers(const Centroids& centroids, const uint8_t* codes, int64_t count, int64_t dim, int16_t* to,
                            float* scale) {
  if (centroids.width == 4 && dim % 16 == 0) return decode_fours(centroids, codes, count, to, scale);
  for (int64_t j = 0; j < count; ++j, codes += centroids.groups, to += dim) {
    decode_region(centroids, codes, dim, to);
    int32_t squared = 0;
    for (int64_t d = 0; d < dim; ++d) squared += (int32_t)to[d] * to[d];
    scale[j] = over_length_of((float)squared);
  }
}
#endif

}  // namespace diml::DIML_INSTRUCTION_SET
