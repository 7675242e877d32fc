// W floats side by side, in the vector types of GCC and Clang.
//
// A source file defines DIML_LANES (4, 8 or 16) before it includes this or any header built on it, and is compiled with
// the flags of that instruction set; without the definition it gets the portable one. Each instruction set has a
// namespace of its own, so that the linker never merges functions compiled for different processors. For the same
// reason, function templates of the standard library must not be used in these headers.
#pragma once

#include <cstdint>
#include <utility>

#ifndef DIML_LANES
#define DIML_LANES 4
#endif

#if DIML_LANES == 16
#define DIML_INSTRUCTION_SET avx512
#include <immintrin.h>
#elif DIML_LANES == 8
#define DIML_INSTRUCTION_SET avx2
#include <immintrin.h>
#elif DIML_LANES == 4
#define DIML_INSTRUCTION_SET portable
#else
#error "DIML_LANES: need 4, 8 or 16"
#endif

#define DIML_INLINE static inline __attribute__((always_inline))

namespace diml::DIML_INSTRUCTION_SET {

typedef float Lanes __attribute__((vector_size(4 * DIML_LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * DIML_LANES)));
typedef float UnalignedLanes __attribute__((vector_size(4 * DIML_LANES), aligned(4), may_alias));

constexpr int W = DIML_LANES;
constexpr int64_t kLine = 64;  // bytes of a cache line

DIML_INLINE int64_t round_up(int64_t count) { return (count + W - 1) / W * W; }  // to whole vectors

DIML_INLINE Lanes load(const float* at) { return *reinterpret_cast<const UnalignedLanes*>(at); }
DIML_INLINE void store(float* at, Lanes value) { *reinterpret_cast<UnalignedLanes*>(at) = value; }
DIML_INLINE Lanes all(float value) { return value - Lanes{}; }
DIML_INLINE Mask all_true() { return Mask{} == Mask{}; }

DIML_INLINE Lanes select(Mask where, Lanes yes, Lanes no) { return where ? yes : no; }
DIML_INLINE Mask select_mask(Mask where, Mask yes, Mask no) { return where ? yes : no; }

// One instruction each, which compilers do not generate from the comparison where one side is a constant.
#if DIML_LANES == 16
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return (Lanes)_mm512_max_ps((__m512)a, (__m512)b); }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return (Lanes)_mm512_min_ps((__m512)a, (__m512)b); }
#elif DIML_LANES == 8
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return (Lanes)_mm256_max_ps((__m256)a, (__m256)b); }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return (Lanes)_mm256_min_ps((__m256)a, (__m256)b); }
#else
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return a > b ? a : b; }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return a < b ? a : b; }
#endif

DIML_INLINE Lanes magnitude(Lanes value) { return (Lanes)((Mask)value & 0x7fffffff); }

DIML_INLINE uint32_t bits(Mask mask) {  // bit x is lane x
#if DIML_LANES == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif DIML_LANES == 8
  return (uint32_t)_mm256_movemask_ps((__m256)mask);
#else
  uint32_t found = 0;
  for (int lane = 0; lane < W; ++lane) found |= (mask[lane] != 0 ? 1u : 0u) << lane;
  return found;
#endif
}

DIML_INLINE bool any(Mask mask) { return bits(mask) != 0; }
DIML_INLINE int count(Mask mask) { return __builtin_popcount(bits(mask)); }  // lanes that are set

DIML_INLINE Lanes permuted(Lanes value, Mask source) {  // lane x of the result is lane source[x]
#if DIML_LANES == 16
  return (Lanes)_mm512_permutexvar_ps((__m512i)source, (__m512)value);
#elif DIML_LANES == 8
  return (Lanes)_mm256_permutevar8x32_ps((__m256)value, (__m256i)source);
#else
  Lanes result = Lanes{};
  for (int lane = 0; lane < W; ++lane) result[lane] = value[source[lane]];
  return result;
#endif
}

DIML_INLINE Lanes square_root(Lanes value) {
#if DIML_LANES == 16
  return (Lanes)_mm512_sqrt_ps((__m512)value);
#elif DIML_LANES == 8
  return (Lanes)_mm256_sqrt_ps((__m256)value);
#else
  for (int lane = 0; lane < W; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
  return value;
#endif
}

// 2^x for -125 <= x <= 0, relative error below 2e-7 (tests/unit/matching/test_native.py); 2^-125 below that range.
// x = n + r with |r| <= 1/2: adding 1.5 * 2^23 rounds to n, whose low bits are then shifted into the exponent of 2^r.
// The polynomial for 2^r has the smallest maximal relative error among those that are 1 at 0.
DIML_INLINE Lanes power_of_two(Lanes x) {
  x = largest(x, all(-125.0f));
  const Lanes magic = all(12582912.0f), shifted = x + magic, r = x - (shifted - magic);
  Lanes p = all(1.3264727e-3f);
  p = p * r + all(9.6715130e-3f);
  p = p * r + all(5.5507336e-2f);
  p = p * r + all(2.4022242e-1f);
  p = p * r + all(6.9314700e-1f);
  p = p * r + all(1.0f);
  return (Lanes)((Mask)p + ((Mask)shifted << 23));
}

static void powers_of_two(const float* from, float* to, int64_t count) {
  int64_t x = 0;
  for (; x + W <= count; x += W) store(to + x, power_of_two(load(from + x)));
  for (; x < count; ++x) to[x] = power_of_two(all(from[x]))[0];
}

// Swaps the off-diagonal blocks of `half` x `half` numbers of two rows.
template <int half, typename Vector, int... lane>
DIML_INLINE void swap_blocks(Vector& first, Vector& second, std::integer_sequence<int, lane...>) {
  const Vector a = first, b = second;
  first = __builtin_shufflevector(a, b, ((lane & half) ? lane - half + W : lane)...);
  second = __builtin_shufflevector(a, b, ((lane & half) ? lane + W : lane + half)...);
}

template <int half>
DIML_INLINE void swap_all_blocks(Lanes (&rows)[W]) {
#pragma GCC unroll 16
  for (int row = 0; row < W; ++row) {
    if (!(row & half)) swap_blocks<half>(rows[row], rows[row + half], std::make_integer_sequence<int, W>{});
  }
}

// W rows of W numbers become W columns.
DIML_INLINE void transpose(Lanes (&rows)[W]) {
  swap_all_blocks<1>(rows);
  swap_all_blocks<2>(rows);
  if constexpr (W > 4) swap_all_blocks<4>(rows);
  if constexpr (W > 8) swap_all_blocks<8>(rows);
}

template <int half, typename Vector>
DIML_INLINE void add_all_blocks(Vector (&rows)[W]) {
#pragma GCC unroll 16
  for (int row = 0; row < W; row += 2 * half) {
    swap_blocks<half>(rows[row], rows[row + half], std::make_integer_sequence<int, W>{});
    rows[row] += rows[row + half];
  }
}

// Lane x of the first row becomes the sum of row x; the other rows are overwritten.
template <typename Vector>
DIML_INLINE void sum_rows(Vector (&rows)[W]) {
  add_all_blocks<1>(rows);
  add_all_blocks<2>(rows);
  if constexpr (W > 4) add_all_blocks<4>(rows);
  if constexpr (W > 8) add_all_blocks<8>(rows);
}

template <int... lane>
DIML_INLINE Lanes sum_of_two(Lanes a, Lanes b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 4 / 2 + (lane % 2) * W)...) +
         __builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 4 / 2 + 2 + (lane % 2) * W)...);
}

// `sum_rows` as rows become known: called after each row, in their order, it adds what can be added, so that few have to
// be kept. It adds the lanes of a row in another order, for which there are faster instructions.
template <int row>
DIML_INLINE void sum_rows_up_to(Lanes (&rows)[W]) {
  const auto add = [&](auto half, int first) __attribute__((always_inline)) {
    swap_blocks<decltype(half)::value>(rows[first], rows[row + 1 - decltype(half)::value],
                                       std::make_integer_sequence<int, W>{});
    rows[first] += rows[row + 1 - decltype(half)::value];
  };
  if constexpr (row % 2 == 1) {
    rows[row - 1] = sum_of_two(rows[row - 1], rows[row], std::make_integer_sequence<int, W>{});
  }
  if constexpr (row % 4 == 3) add(std::integral_constant<int, 2>{}, row - 3);
  if constexpr (row % 8 == 7) add(std::integral_constant<int, 4>{}, row - 7);
  if constexpr (row % 16 == 15) add(std::integral_constant<int, 8>{}, row - 15);
}

template <int... lane>
DIML_INLINE Lanes exchanged_halves(Lanes value, int half, std::integer_sequence<int, lane...>) {
  return half == 1   ? __builtin_shufflevector(value, value, (lane ^ 1)...)
         : half == 2 ? __builtin_shufflevector(value, value, (lane ^ 2)...)
         : half == 4 ? __builtin_shufflevector(value, value, (lane ^ (4 % W))...)
                     : __builtin_shufflevector(value, value, (lane ^ (8 % W))...);
}

// The sum of all lanes, in each of them.
DIML_INLINE Lanes sum_of_lanes(Lanes value) {
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2) {
    value += exchanged_halves(value, half, std::make_integer_sequence<int, W>{});
  }
  return value;
}

// The largest of all lanes, in each of them.
DIML_INLINE Lanes largest_of_lanes(Lanes value) {
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2) {
    value = largest(value, exchanged_halves(value, half, std::make_integer_sequence<int, W>{}));
  }
  return value;
}

// The lanes below `count`, which may be negative or more than there are.
DIML_INLINE Mask lanes_below(int64_t count) {
  Mask number = Mask{};
#pragma GCC unroll 16
  for (int lane = 0; lane < W; ++lane) number[lane] = lane;
  return number < (int32_t)(count < 0 ? 0 : count < W ? count : W);
}

// Hands out pieces of one block of memory, each on cache lines of its own; without a block it only counts bytes.
struct Arena {
  char* base;
  int64_t used;
  template <typename T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * (int64_t)sizeof(T) + kLine - 1) / kLine * kLine;
    return piece;
  }
};

// Prefetches memory that will be read next, one cache line at a time.
struct Prefetcher {
  const char* at;
  const char* end;
  __attribute__((always_inline)) void step() {
    __builtin_prefetch(at);
    at += at < end ? kLine : 0;
  }
};

}  // namespace diml::DIML_INSTRUCTION_SET
