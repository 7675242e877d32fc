// Dot products of the vectors of a query with those of one gallery image, in float32 and in 16-bit integers.
//
// The query is packed once into panels of up to two SIMD vectors of regions, channel by channel. A tile of NV SIMD
// vectors of query regions times NJ gallery rows then stays in registers; gallery rows are read where they are stored.
// Few regions in the last SIMD vector, most of which would be padding, are not packed: their products have the channels
// across the lanes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "constants.hpp"
#include "lanes.hpp"
#include "storage.hpp"

namespace diml::DIML_INSTRUCTION_SET {

constexpr int kTile = W == 16 ? 24 : 12;  // accumulators of one tile; the other registers hold operands

constexpr int64_t kChannels = 256;  // channels at a time, so that their part of a panel stays in the first-level cache

constexpr int kFew = W / 4;  // the most vectors that are not packed

struct PackedQuery {
  int64_t regions, dim, vectors;  // SIMD vectors of W regions, the last one padded
  bool spare;                     // the lane after the last region is free and holds the pooled vector
  float* panels;
  const float* pooled;
  Mask* code_panels;   // panels of 16-bit codes, two channels in each number, where the gallery is stored so
  int16_t* few_codes;  // (few or 1, D) as codes: the vectors that are not packed, or the pooled one alone
  int few = 0;         // vectors that are not packed, the pooled one last
  const float* not_packed[kFew] = {};
};

DIML_INLINE int64_t packed_lanes(const PackedQuery& query) { return (query.vectors - (query.few > 0 ? 1 : 0)) * W; }

// How many vectors of a query are not packed: the regions of the last SIMD vector and the pooled one, if they are few.
DIML_INLINE int few_of(int64_t regions) {
  const int rest = (int)(regions % W);
  return rest > 0 && rest < kFew ? rest + 1 : 0;
}

static void keep_few(PackedQuery& query, const float* dense) {
  const int64_t packed = packed_lanes(query);
  for (int x = 0; x < query.few; ++x) {
    query.not_packed[x] = packed + x < query.regions ? dense + (packed + x) * query.dim : query.pooled;
  }
}

// Copies regions (R, D) and the pooled vector into panels of two SIMD vectors of regions, the last one possibly of one.
static void pack(PackedQuery& query, const float* dense) {
  const int64_t lanes = packed_lanes(query);
  keep_few(query, dense);
  for (int64_t first = 0; first < lanes; first += 2 * W) {
    const int64_t width = first + 2 * W <= lanes ? 2 * W : W;
    float* panel = query.panels + first * query.dim;
    for (int64_t x = 0; x < width; ++x) {
      const int64_t region = first + x;
      const float* from = region < query.regions ? dense + region * query.dim
                          : region == query.regions ? query.pooled
                                                    : nullptr;
      for (int64_t d = 0; d < query.dim; ++d) panel[d * width + x] = from ? from[d] : 0.0f;
    }
  }
}

// Products over `dim` channels, added to the values in `to` where `accumulate` is set. The last row may be elsewhere.
template <int NV, int NJ>
static void tile(const float* panel, const float* rows, int64_t row_stride, const float* last, int64_t dim, float* to,
                 int64_t to_stride, bool accumulate, Prefetcher& shared) {
  Lanes sum[NV * NJ];
#pragma GCC unroll 24
  for (int x = 0; x < NV * NJ; ++x) sum[x] = accumulate ? load(to + x / NV * to_stride + x % NV * W) : Lanes{};
  Prefetcher prefetcher = shared;
  const auto channel = [&](int64_t d) __attribute__((always_inline)) {
    Lanes q[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) q[v] = load(panel + d * NV * W + v * W);
#pragma GCC unroll 24
    for (int j = 0; j < NJ; ++j) {
      const Lanes g = all(j < NJ - 1 ? rows[j * row_stride + d] : last[d]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[j * NV + v] += q[v] * g;
    }
  };
  int64_t d = 0;
  for (; d + 2 <= dim; d += 2) {
    prefetcher.step();
    channel(d);
    channel(d + 1);
  }
  if (d < dim) channel(d);
  shared = prefetcher;
#pragma GCC unroll 24
  for (int j = 0; j < NJ; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(to + j * to_stride + v * W, sum[j * NV + v]);
  }
}

// `tile` of `count` rows, at most NJ.
template <int NV, int NJ = kTile / NV>
static void tile_of(int64_t count, const float* panel, const float* rows, int64_t row_stride, const float* last,
                    int64_t dim, float* to, int64_t to_stride, bool accumulate, Prefetcher& prefetcher) {
  if constexpr (NJ > 0) {
    if (count == NJ) return tile<NV, NJ>(panel, rows, row_stride, last, dim, to, to_stride, accumulate, prefetcher);
    tile_of<NV, NJ - 1>(count, panel, rows, row_stride, last, dim, to, to_stride, accumulate, prefetcher);
  }
}

// to[j][lane] = <region `lane` of the query, row j>, for `count` rows, in tiles of about equal height; the last row is
// at `last`.
template <int NV>
static void panel_products(const float* panel, const float* rows, int64_t count, const float* last, int64_t dim,
                           float* to, int64_t to_stride, Prefetcher& prefetcher) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t d = 0; d < dim; d += kChannels) {
    const int64_t depth = d + kChannels < dim ? kChannels : dim - d;
    for (int64_t tiles = (count + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
      const int64_t height = (count - done + tiles - 1) / tiles;
      const float* end = tiles > 1 ? rows + (done + height - 1) * dim : last;
      tile_of<NV>(height, panel + d * NV * W, rows + done * dim + d, dim, end + d, depth, to + done * to_stride,
                  to_stride, d > 0, prefetcher);
      done += height;
    }
  }
}

// to[j * to_stride + x] = unit * scale[j] * <vector x of L, row j> for `count` rows, `row_stride` apart but for the
// last; `scale` may be null. `add(sum, a, b)` adds the products of SIMD vectors of channels. A single vector has a
// `to_stride` of 1.
template <int L, typename Sum, typename Number, typename Add>
static void few_products(const Number* const* vectors, const Number* rows, int64_t row_stride, int64_t count,
                         const Number* last, int64_t dim, float unit, const float* scale, float* to, int64_t to_stride,
                         Add add) {
  constexpr int NJ = W / L;
  constexpr int64_t step = sizeof(Sum) / sizeof(Number);
  const auto read = [](const Number* at) __attribute__((always_inline)) {
    Sum numbers;
    __builtin_memcpy(&numbers, at, sizeof numbers);
    return numbers;
  };
  for (int64_t first = 0; first < count; first += NJ) {
    Sum sum[W];
#pragma GCC unroll 16
    for (int x = 0; x < W; ++x) sum[x] = Sum{};
    const Number* at[NJ];
    for (int j = 0; j < NJ; ++j) at[j] = first + j + 1 < count ? rows + (first + j) * row_stride : last;
    int64_t d = 0;
    for (; d + step <= dim; d += step) {
      Sum q[L];
#pragma GCC unroll 4
      for (int x = 0; x < L; ++x) q[x] = read(vectors[x] + d);
#pragma GCC unroll 16
      for (int j = 0; j < NJ; ++j) {
        const Sum g = read(at[j] + d);
#pragma GCC unroll 4
        for (int x = 0; x < L; ++x) add(sum[j * L + x], q[x], g);
      }
    }
    sum_rows(sum);
    for (; d < dim; ++d) {
      for (int x = 0; x < NJ * L; ++x) sum[0][x] += vectors[x % L][d] * at[x / L][d];
    }
    const Lanes found = __builtin_convertvector(sum[0], Lanes) * unit;
    if (L == 1 && first + W <= count) {
      store(to + first, scale ? found * load(scale + first) : found);
      continue;
    }
    for (int x = 0; x < NJ * L && first + x / L < count; ++x) {
      to[(first + x / L) * to_stride + x % L] = scale ? found[x] * scale[first + x / L] : found[x];
    }
  }
}

// `few_products` of floats.
template <int L>
static void few_products_of_floats(const float* const* vectors, const float* rows, int64_t row_stride, int64_t count,
                                   const float* last, int64_t dim, float* to, int64_t to_stride) {
  const auto add = [](Lanes& sum, Lanes a, Lanes b) __attribute__((always_inline)) { sum += a * b; };
  few_products<L, Lanes>(vectors, rows, row_stride, count, last, dim, 1.0f, nullptr, to, to_stride, add);
}

// to[j] = <vector, row j> for rows `stride` apart.
static void dots(const float* vector, const float* rows, int64_t count, int64_t dim, int64_t stride, float* to) {
  few_products_of_floats<1>(&vector, rows, stride, count, rows + (count - 1) * stride, dim, to, 1);
}

// Calls `of(L)` with the number of vectors that are not packed, known to the compiler; not where there are none.
template <int L = kFew, typename Of>
DIML_INLINE void with_few(const PackedQuery& query, Of of) {
  if constexpr (L > 1) {
    if (query.few == L) return of(std::integral_constant<int, L>{});
    with_few<L - 1>(query, of);
  }
}

static void products(const PackedQuery& query, const float* rows, int64_t count, const float* last, float* to,
                     Prefetcher& prefetcher) {
  const int64_t lanes = query.vectors * W, packed = packed_lanes(query);
  for (int64_t first = 0; first < packed; first += 2 * W) {
    const float* panel = query.panels + first * query.dim;
    if (first + 2 * W <= packed) {
      panel_products<2>(panel, rows, count, last, query.dim, to + first, lanes, prefetcher);
    } else {
      panel_products<1>(panel, rows, count, last, query.dim, to + first, lanes, prefetcher);
    }
  }
  with_few(query, [&](auto few) {
    constexpr int L = decltype(few)::value;
    few_products_of_floats<L>(query.not_packed, rows, query.dim, count, last, query.dim, to + packed, lanes);
  });
}

#ifdef DIML_INT16_PRODUCTS
// Products of 16-bit codes, two channels at a time into 32 bits: twice as many per instruction as in float32.
// |sum| <= |a| |b| < 2^31 where the lengths are at most kLongestCode.

DIML_INLINE Mask multiply_pairs(Mask a, Mask b) {
#if DIML_LANES == 16
  return (Mask)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
  return (Mask)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}

// Adds multiply_pairs(a, b) to `sum`, by one instruction of VNNI where `fused`: the same numbers, as neither saturates.
// Written in assembler, so that a file compiled for processors without it can hold both.
template <bool fused>
DIML_INLINE void add_products(Mask& sum, Mask a, Mask b) {
#ifdef DIML_VNNI
  if constexpr (fused) {
#if DIML_LANES == 16
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#endif
    return;
  }
#else
  static_assert(!fused, "compiled without VNNI");
#endif
  sum += multiply_pairs(a, b);
}

// Calls `of(std::true_type)` where instructions of VNNI are in use, else `of(std::false_type)`.
template <typename Of>
DIML_INLINE void with_or_without_vnni(Of of) {
#ifdef DIML_VNNI
  if (vnni_in_use) return of(std::true_type{});
#endif
  of(std::false_type{});
}

// A panel of `width` vectors, `count` of them from `from` on and then zeros, two channels side by side. `row` is memory
// for one vector.
static void pack_codes(const float* from, int64_t count, int64_t width, int64_t dim, float per_unit, int16_t* row,
                       Mask* panel) {
  int32_t* lanes = reinterpret_cast<int32_t*>(panel);
  const int64_t pairs = (dim + 1) / 2;
  for (int64_t x = 0; x < width; ++x) {
    if (x < count) encode(from + x * dim, dim, per_unit, row);
    for (int64_t d = 0; d < pairs; ++d) {
      if (x < count) __builtin_memcpy(lanes + d * width + x, row + 2 * d, 4);
      if (x >= count) lanes[d * width + x] = 0;
    }
  }
}

// Regions (R, D) of a query, in panels like those of `pack`, and its pooled vector.
static void pack_query_codes(PackedQuery& query, const float* dense, int16_t* row) {
  const int64_t lanes = packed_lanes(query);
  keep_few(query, dense);
  for (int x = 0; x < query.few; ++x) {
    encode(query.not_packed[x], query.dim, kShortsPerUnit, query.few_codes + x * query.dim);
  }
  for (int64_t first = 0; first < lanes; first += 2 * W) {
    const int64_t width = first + 2 * W <= lanes ? 2 * W : W, left = query.regions - first;
    pack_codes(dense + first * query.dim, left < width ? left : width, width, query.dim, kShortsPerUnit, row,
               query.code_panels + first / W * (query.dim / 2));
  }
  if (query.few == 0) encode(query.pooled, query.dim, kShortsPerUnit, query.few_codes);
}

// to[j][lane] = unit * scale[j] * <vector `lane` of the panel, row j>, for NJ rows of `pairs` pairs of channels; just
// `unit` where `scale` is null. The last row may be elsewhere.
template <int NV, int NJ, bool fused>
static void tile_codes(const Mask* panel, const int16_t* rows, const int16_t* last, int64_t pairs, float unit,
                       const float* scale, float* to, int64_t to_stride, Prefetcher& shared) {
  Mask sum[NV * NJ];
#pragma GCC unroll 24
  for (int x = 0; x < NV * NJ; ++x) sum[x] = Mask{};
  Prefetcher prefetcher = shared;
  for (int64_t d = 0; d < pairs; ++d) {
    prefetcher.step();
    Mask q[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) q[v] = panel[d * NV + v];
#pragma GCC unroll 24
    for (int j = 0; j < NJ; ++j) {
      int32_t both;
      __builtin_memcpy(&both, j < NJ - 1 ? rows + 2 * (j * pairs + d) : last + 2 * d, 4);
      const Mask g = both - Mask{};
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) add_products<fused>(sum[j * NV + v], q[v], g);
    }
  }
  shared = prefetcher;
#pragma GCC unroll 24
  for (int j = 0; j < NJ; ++j) {
    const float factor = scale ? unit * scale[j] : unit;
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      store(to + j * to_stride + v * W, __builtin_convertvector(sum[j * NV + v], Lanes) * factor);
    }
  }
}

// `tile_codes` of `count` rows, at most NJ.
template <int NV, bool fused, int NJ = kTile / NV>
static void tile_codes_of(int64_t count, const Mask* panel, const int16_t* rows, const int16_t* last, int64_t pairs,
                          float unit, const float* scale, float* to, int64_t to_stride, Prefetcher& prefetcher) {
  if constexpr (NJ > 0) {
    if (count == NJ) return tile_codes<NV, NJ, fused>(panel, rows, last, pairs, unit, scale, to, to_stride, prefetcher);
    tile_codes_of<NV, fused, NJ - 1>(count, panel, rows, last, pairs, unit, scale, to, to_stride, prefetcher);
  }
}

template <int NV, bool fused>
static void panel_products_of_codes(const Mask* panel, const int16_t* rows, int64_t count, const int16_t* last,
                                    int64_t pairs, const float* scale, float* to, int64_t to_stride,
                                    Prefetcher& prefetcher) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t tiles = (count + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
    const int64_t height = (count - done + tiles - 1) / tiles;
    const int16_t* end = tiles > 1 ? rows + (done + height - 1) * 2 * pairs : last;
    tile_codes_of<NV, fused>(height, panel, rows + done * 2 * pairs, end, pairs, kCodeStep, scale + done,
                             to + done * to_stride, to_stride, prefetcher);
    done += height;
  }
}

// `few_products` of L vectors of 16-bit codes and rows, all `dim` apart.
template <int L, bool fused>
static void few_products_of_codes(const int16_t* codes, const int16_t* rows, const float* scale, int64_t count,
                                  const int16_t* last, int64_t dim, float* to, int64_t to_stride) {
  const int16_t* vectors[L];
  for (int x = 0; x < L; ++x) vectors[x] = codes + x * dim;
  const auto add = [](Mask& sum, Mask a, Mask b) __attribute__((always_inline)) { add_products<fused>(sum, a, b); };
  few_products<L, Mask>(vectors, rows, dim, count, last, dim, kCodeStep, scale, to, to_stride, add);
}

// to[j][lane] = <region `lane` of the query, row j>, for `count` rows of 16-bit codes times `scale` (count,), the last
// of which is at `last`. Unless it is null, mass[j] = <pooled vector of the query, row j> for `regions` rows.
static void products_of_codes(const PackedQuery& query, const int16_t* rows, const float* scale, int64_t count,
                              const int16_t* last, float* to, int64_t regions, float* mass, Prefetcher& prefetcher) {
  const int64_t pairs = query.dim / 2, lanes = query.vectors * W, packed = packed_lanes(query);
  with_or_without_vnni([&](auto vnni) {
    constexpr bool fused = decltype(vnni)::value;
    for (int64_t first = 0; first < packed; first += 2 * W) {
      const Mask* panel = query.code_panels + first / W * pairs;
      if (first + 2 * W <= packed) {
        panel_products_of_codes<2, fused>(panel, rows, count, last, pairs, scale, to + first, lanes, prefetcher);
      } else {
        panel_products_of_codes<1, fused>(panel, rows, count, last, pairs, scale, to + first, lanes, prefetcher);
      }
    }
    with_few(query, [&](auto few) {
      constexpr int L = decltype(few)::value;
      few_products_of_codes<L, fused>(query.few_codes, rows, scale, count, last, query.dim, to + packed, lanes);
    });
    if (!mass) return;
    const int16_t* end = rows + (regions - 1) * query.dim;
    few_products_of_codes<1, fused>(query.few_codes, rows, scale, regions, end, query.dim, mass, 1);
  });
}
#endif

static float dot(const float* a, const float* b, int64_t dim) {
  Lanes sum[4] = {Lanes{}, Lanes{}, Lanes{}, Lanes{}};
  int64_t d = 0;
  for (; d + 4 * W <= dim; d += 4 * W) {
    for (int x = 0; x < 4; ++x) sum[x] += load(a + d + x * W) * load(b + d + x * W);
  }
  const Lanes part = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0;
  for (int lane = 0; lane < W; ++lane) total += part[lane];
  for (; d < dim; ++d) total += a[d] * b[d];
  return total;
}

}  // namespace diml::DIML_INSTRUCTION_SET
