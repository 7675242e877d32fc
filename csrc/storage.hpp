// Stored vectors: regions in float16, int8, int16 and codes become floats, and floats become 16-bit codes.
#pragma once

#include <cstdint>

#include "constants.hpp"
#include "lanes.hpp"
#include "product_codes.hpp"
#include "tasks.hpp"

#if DIML_LANES >= 8
#define DIML_INT16_PRODUCTS  // products of 16-bit codes are faster than those of floats
#endif

namespace diml::DIML_INSTRUCTION_SET {

DIML_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
  uint32_t bits = (rest << 13) + (112u << 23);  // the exponent is biased by 15 in float16, by 127 in float32
  float value;
  if (rest >= 0x7c00u) bits += 112u << 23;  // infinity and NaN
  __builtin_memcpy(&value, &bits, 4);
  if (rest < 0x0400u) value = (float)rest * 5.9604644775390625e-8f;  // subnormal numbers: units of 2^-24
  __builtin_memcpy(&bits, &value, 4);
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Unrolled: the speed of so short a loop depends on its place relative to cache lines, by 6 % of the time of a score.
static void read_half(const uint16_t* from, float* to, int64_t count) {
  int64_t x = 0;
#if DIML_LANES == 16
#pragma GCC unroll 4
  for (; x + 16 <= count; x += 16) {
    store(to + x, (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + x))));
  }
#elif DIML_LANES == 8
#pragma GCC unroll 4
  for (; x + 8 <= count; x += 8) {
    store(to + x, (Lanes)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + x))));
  }
#endif
  for (; x < count; ++x) to[x] = half_to_float(from[x]);
}

template <typename Code>
static void read_codes(const StoredRegions& stored, int64_t dim, int64_t image, float* to) {
  const Code* from = static_cast<const Code*>(stored.dense) + image * stored.regions * dim;
  for (int64_t j = 0; j < stored.regions; ++j, from += dim, to += dim) {
    const float scale = stored.scale[image * stored.regions + j];
    for (int64_t d = 0; d < dim; ++d) to[d] = (float)from[d] * scale;
  }
}

// The regions (R, D) of one stored image as floats: where they are stored, or decoded into `memory`.
static const float* read_image(const StoredRegions& stored, int64_t dim, int64_t image, float* memory) {
  const int64_t size = stored.regions * dim;
  if (stored.storage == Storage::float32) return static_cast<const float*>(stored.dense) + image * stored.stride;
  if (stored.storage == Storage::float16) {
    read_half(static_cast<const uint16_t*>(stored.dense) + image * size, memory, size);
    return memory;
  }
  if (stored.storage == Storage::int8) read_codes<int8_t>(stored, dim, image, memory);
  if (stored.storage == Storage::int16) read_codes<int16_t>(stored, dim, image, memory);
  if (stored.storage == Storage::product) {
    const uint8_t* from = static_cast<const uint8_t*>(stored.dense) + image * stored.stride;
    decode_regions(stored.centroids, from, stored.regions, dim, memory);
  }
  return memory;
}

#ifdef DIML_INT16_PRODUCTS
// The regions (R, D) of one stored image as integers, where they are stored, or decoded into `memory`, and their scale.
static const int16_t* read_integers(const StoredRegions& stored, int64_t dim, int64_t image, int16_t* memory,
                                    float* scale) {
  if (stored.storage == Storage::product) {
    const uint8_t* from = static_cast<const uint8_t*>(stored.dense) + image * stored.stride;
    decode_integers(stored.centroids, from, stored.regions, dim, memory, scale);
    return memory;
  }
  for (int64_t j = 0; j < stored.regions; ++j) scale[j] = stored.scale[image * stored.regions + j];
  return static_cast<const int16_t*>(stored.dense) + image * stored.stride;
}
#endif

static Prefetcher prefetch_image(const StoredRegions& stored, int64_t dim, int64_t image) {
  const bool bytes = stored.storage == Storage::int8 || stored.storage == Storage::product;
  const int64_t width = stored.storage == Storage::float32 ? 4 : bytes ? 1 : 2;
  const int64_t count = stored.regions * (stored.storage == Storage::product ? stored.centroids.groups : dim);
  const char* start = static_cast<const char*>(stored.dense) + image * stored.stride * width;
  return Prefetcher{start, start + count * width};
}

// The integer nearest to the exact product, which float64 holds, as in the torch path: rounding the product first would
// send some halves the other way.
DIML_INLINE float nearest_integer(float x, float per_unit) { return (float)__builtin_rint((double)x * per_unit); }

// Numbers rounded to the steps of 16-bit codes, in `to`.
static const float* rounded_to_codes(const float* from, int64_t count, float* to) {
  for (int64_t x = 0; x < count; ++x) to[x] = nearest_integer(from[x], kShortsPerUnit) * kCodeStep;
  return to;
}

#ifdef DIML_INT16_PRODUCTS
// from * per_unit as 1.5 * 2^23 plus the nearest integer, in one rounding like `nearest_integer`; the low bits hold it.
DIML_INLINE Lanes shifted_integer(Lanes from, float per_unit) {
#if DIML_LANES == 16
  return (Lanes)_mm512_fmadd_ps((__m512)from, (__m512)all(per_unit), (__m512)all(12582912.0f));
#else
  return (Lanes)_mm256_fmadd_ps((__m256)from, (__m256)all(per_unit), (__m256)all(12582912.0f));
#endif
}

// `dim` codes of step 1 / per_unit, and a 0 after an odd number of them.
static void encode(const float* from, int64_t dim, float per_unit, int16_t* to) {
  typedef int16_t Codes __attribute__((vector_size(2 * DIML_LANES), aligned(2), may_alias));
  int64_t d = 0;
  for (; d + W <= dim; d += W) {
    const Mask rounded = (Mask)shifted_integer(load(from + d), per_unit) - (Mask)all(12582912.0f);
    *reinterpret_cast<Codes*>(to + d) = __builtin_convertvector(rounded, Codes);
  }
  for (; d < dim; ++d) to[d] = (int16_t)nearest_integer(from[d], per_unit);
  if (dim % 2) to[dim] = 0;
}
#endif

}  // namespace diml::DIML_INSTRUCTION_SET
