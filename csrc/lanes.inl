// W floats side by side, in the vector types of GCC and Clang. Included once by each instruction set, inside its own
// namespace: nothing here may be shared between them, and no template of the standard library may be used, since the
// linker would keep one copy of it, compiled for any of them.

typedef float Lanes __attribute__((vector_size(4 * DIML_LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * DIML_LANES)));
typedef float LooseLanes __attribute__((vector_size(4 * DIML_LANES), aligned(4), may_alias));

constexpr int W = DIML_LANES;
constexpr int64_t kLine = 64;  // bytes that memory is fetched in

#define DIML_INLINE static inline __attribute__((always_inline))

DIML_INLINE Lanes load(const float* at) { return *reinterpret_cast<const LooseLanes*>(at); }
DIML_INLINE void store(float* at, Lanes value) { *reinterpret_cast<LooseLanes*>(at) = value; }
DIML_INLINE Lanes all(float value) { return value - Lanes{}; }
DIML_INLINE Mask all_true() { return Mask{} == Mask{}; }

DIML_INLINE Lanes select(Mask where, Lanes yes, Lanes no) { return where ? yes : no; }
DIML_INLINE Mask select_mask(Mask where, Mask yes, Mask no) { return where ? yes : no; }
// One instruction each, which compilers do not make of the comparison where one side is a constant.
#if defined(__AVX512F__)
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return (Lanes)_mm512_max_ps((__m512)a, (__m512)b); }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return (Lanes)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return (Lanes)_mm256_max_ps((__m256)a, (__m256)b); }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return (Lanes)_mm256_min_ps((__m256)a, (__m256)b); }
#else
DIML_INLINE Lanes largest(Lanes a, Lanes b) { return a > b ? a : b; }
DIML_INLINE Lanes smallest(Lanes a, Lanes b) { return a < b ? a : b; }
#endif

DIML_INLINE Lanes magnitude(Lanes value) { return (Lanes)((Mask)value & 0x7fffffff); }

DIML_INLINE uint32_t bits(Mask mask) {  // bit x is lane x
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
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
#if defined(__AVX512F__)
  return (Lanes)_mm512_permutexvar_ps((__m512i)source, (__m512)value);
#elif defined(__AVX2__)
  return (Lanes)_mm256_permutevar8x32_ps((__m256)value, (__m256i)source);
#else
  Lanes result = Lanes{};
  for (int lane = 0; lane < W; ++lane) result[lane] = value[source[lane]];
  return result;
#endif
}

DIML_INLINE Lanes root(Lanes value) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_sqrt_ps((__m512)value);
#elif defined(__AVX2__)
  return (Lanes)_mm256_sqrt_ps((__m256)value);
#else
  for (int lane = 0; lane < W; ++lane) value[lane] = __builtin_sqrtf(value[lane]);
  return value;
#endif
}

// 2^x for -125 <= x <= 0, relative error below 2e-7 (tests/unit/matching/test_native.py); below that range 2^-125.
// 2^n * 2^r with |r| <= 1/2; n is rounded by adding 1.5 * 2^23, whose low bits then move into the exponent. Polynomial of
// the least largest relative error among those that are 1 at 0.
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

// Trades the off-diagonal blocks of `half` x `half` numbers of two rows.
template <int half, int... lane>
DIML_INLINE void trade(Lanes& first, Lanes& second, std::integer_sequence<int, lane...>) {
  const Lanes a = first, b = second;
  first = __builtin_shufflevector(a, b, ((lane & half) ? lane - half + W : lane)...);
  second = __builtin_shufflevector(a, b, ((lane & half) ? lane + W : lane + half)...);
}

template <int half>
DIML_INLINE void trade_all(Lanes (&rows)[W]) {
#pragma GCC unroll 16
  for (int row = 0; row < W; ++row) {
    if (!(row & half)) trade<half>(rows[row], rows[row + half], std::make_integer_sequence<int, W>{});
  }
}

// W rows of W numbers become W columns.
DIML_INLINE void transpose(Lanes (&rows)[W]) {
  trade_all<1>(rows);
  trade_all<2>(rows);
  if constexpr (W > 4) trade_all<4>(rows);
  if constexpr (W > 8) trade_all<8>(rows);
}

template <int half>
DIML_INLINE void add_all(Lanes (&rows)[W]) {
#pragma GCC unroll 16
  for (int row = 0; row < W; row += 2 * half) {
    trade<half>(rows[row], rows[row + half], std::make_integer_sequence<int, W>{});
    rows[row] += rows[row + half];
  }
}

// Lane x of the first row becomes the sum of row x; the others are lost.
DIML_INLINE void sums(Lanes (&rows)[W]) {
  add_all<1>(rows);
  add_all<2>(rows);
  if constexpr (W > 4) add_all<4>(rows);
  if constexpr (W > 8) add_all<8>(rows);
}
