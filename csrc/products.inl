// Dot products of the regions of a query with those of one gallery image, and reading stored vectors.
//
// The query is packed once: panels of up to two vectors of regions, channel by channel. A tile of NV vectors of query
// regions times NJ gallery rows then stays in registers; gallery rows are read as they lie in memory.

constexpr int kTile = W == 16 ? 24 : 12;  // accumulators of one tile; the other registers hold operands

struct Query {
  int64_t regions, dim, vectors;  // vectors of W regions, the last one filled up
  bool spare;                     // the lane behind the last region is free and holds the pooled vector
  float* panels;
  const float* pooled;
  Mask* shorts;           // panels of 16-bit integers, two channels a number, where images are stored so
  int16_t* pooled_short;  // the pooled vector so
};

DIML_INLINE int64_t up(int64_t count) { return (count + W - 1) / W * W; }

// Copies regions (R, D) and the pooled vector into panels: two vectors of regions a panel, the last one maybe one.
static void pack(Query& query, const float* dense) {
  const int64_t lanes = query.vectors * W;
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

// The integer nearest to the product before that is rounded, as scoring.py has it: else halves would not go one way.
DIML_INLINE float nearest_integer(float x, float per_unit) { return (float)__builtin_rint((double)x * per_unit); }

// Numbers rounded to steps of kShortStep, in `to`.
static const float* rounded(const float* from, int64_t count, float* to) {
  for (int64_t x = 0; x < count; ++x) to[x] = nearest_integer(from[x], kShortsPerUnit) * kShortStep;
  return to;
}

// Fetches what will be read next, one line at a time.
struct Ahead {
  const char* at;
  const char* end;
  __attribute__((always_inline)) void step() {
    __builtin_prefetch(at);
    at += at < end ? 64 : 0;
  }
};

constexpr int64_t kChannels = 256;  // at once: what a panel has of them stays in the first cache

// Products of `dim` channels, added to what stands in `to` if there is `more` to add to. The last row may lie elsewhere.
template <int NV, int NJ>
static void tile(const float* panel, const float* rows, int64_t row_stride, const float* last, int64_t dim, float* to,
                 int64_t to_stride, bool more, Ahead& shared) {
  Lanes sum[NV * NJ];
#pragma GCC unroll 24
  for (int x = 0; x < NV * NJ; ++x) sum[x] = more ? load(to + x / NV * to_stride + x % NV * W) : Lanes{};
  Ahead ahead = shared;
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
    ahead.step();
    channel(d);
    channel(d + 1);
  }
  if (d < dim) channel(d);
  shared = ahead;
#pragma GCC unroll 24
  for (int j = 0; j < NJ; ++j) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(to + j * to_stride + v * W, sum[j * NV + v]);
  }
}

template <int NV, int NJ = kTile / NV>
static void tile_of(int64_t count, const float* panel, const float* rows, int64_t row_stride, const float* last,
                    int64_t dim, float* to, int64_t to_stride, bool more, Ahead& ahead) {
  if constexpr (NJ > 0) {
    if (count == NJ) return tile<NV, NJ>(panel, rows, row_stride, last, dim, to, to_stride, more, ahead);
    tile_of<NV, NJ - 1>(count, panel, rows, row_stride, last, dim, to, to_stride, more, ahead);
  }
}

// to[j][lane] = <region `lane` of the query, row j>, for `count` rows, in tiles of about equal height; the last row is
// at `last`.
template <int NV>
static void panel_products(const float* panel, const float* rows, int64_t count, const float* last, int64_t dim,
                           float* to, int64_t to_stride, Ahead& ahead) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t d = 0; d < dim; d += kChannels) {
    const int64_t depth = d + kChannels < dim ? kChannels : dim - d;
    for (int64_t tiles = (count + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
      const int64_t height = (count - done + tiles - 1) / tiles;
      const float* end = tiles > 1 ? rows + (done + height - 1) * dim : last;
      tile_of<NV>(height, panel + d * NV * W, rows + done * dim + d, dim, end + d, depth, to + done * to_stride,
                  to_stride, d > 0, ahead);
      done += height;
    }
  }
}

static void products(const Query& query, const float* rows, int64_t count, const float* last, float* to, Ahead& ahead) {
  const int64_t lanes = query.vectors * W;
  for (int64_t first = 0; first < lanes; first += 2 * W) {
    const float* panel = query.panels + first * query.dim;
    if (first + 2 * W <= lanes) {
      panel_products<2>(panel, rows, count, last, query.dim, to + first, lanes, ahead);
    } else {
      panel_products<1>(panel, rows, count, last, query.dim, to + first, lanes, ahead);
    }
  }
}

#if defined(__AVX512BW__) || defined(__AVX2__)
#define DIML_SHORTS
// Products of 16-bit integers, two channels at a time into 32 bits: twice as many at once as in float32.
// |sum| <= |a| |b| < 2^31 where the lengths stay below kLongest.

DIML_INLINE Mask multiply_pairs(Mask a, Mask b) {
#if defined(__AVX512BW__)
  return (Mask)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
  return (Mask)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}

// from * per_unit as 1.5 * 2^23 and the nearest integer, in one rounding: `nearest_integer`, and the low bits keep it.
DIML_INLINE Lanes shifted_integer(Lanes from, float per_unit) {
#if defined(__AVX512BW__)
  return (Lanes)_mm512_fmadd_ps((__m512)from, (__m512)all(per_unit), (__m512)all(12582912.0f));
#else
  return (Lanes)_mm256_fmadd_ps((__m256)from, (__m256)all(per_unit), (__m256)all(12582912.0f));
#endif
}

static void shorten(const float* from, int64_t dim, float per_unit, int16_t* to) {
  typedef int16_t Shorts __attribute__((vector_size(2 * DIML_LANES), aligned(2), may_alias));
  int64_t d = 0;
  for (; d + W <= dim; d += W) {
    const Mask rounded = (Mask)shifted_integer(load(from + d), per_unit) - (Mask)all(12582912.0f);
    *reinterpret_cast<Shorts*>(to + d) = __builtin_convertvector(rounded, Shorts);
  }
  for (; d < dim; ++d) to[d] = (int16_t)nearest_integer(from[d], per_unit);
  if (dim % 2) to[dim] = 0;
}

// A panel of `width` vectors (count of them, from `from` on), pairs of channels side by side. `row`: memory for one.
static void pack_shorts(const float* from, int64_t count, int64_t width, int64_t dim, float per_unit, int16_t* row,
                        Mask* panel) {
  int32_t* lanes = reinterpret_cast<int32_t*>(panel);
  const int64_t pairs = (dim + 1) / 2;
  for (int64_t x = 0; x < width; ++x) {
    if (x < count) shorten(from + x * dim, dim, per_unit, row);
    for (int64_t d = 0; d < pairs; ++d) {
      if (x < count) __builtin_memcpy(lanes + d * width + x, row + 2 * d, 4);
      if (x >= count) lanes[d * width + x] = 0;
    }
  }
}

// Regions (R, D) of a query, in panels like those of `pack`, and its pooled vector.
static void pack_shorts(Query& query, const float* dense, int16_t* row) {
  const int64_t lanes = query.vectors * W;
  for (int64_t first = 0; first < lanes; first += 2 * W) {
    const int64_t width = first + 2 * W <= lanes ? 2 * W : W, left = query.regions - first;
    pack_shorts(dense + first * query.dim, left < width ? left : width, width, query.dim, kShortsPerUnit, row,
                query.shorts + first / W * (query.dim / 2));
  }
  shorten(query.pooled, query.dim, kShortsPerUnit, query.pooled_short);
}

// to[j][lane] = unit * scale[j] * <vector `lane` of the panel, row j>, for NJ rows of `pairs` pairs of channels. Without
// `scale`, unit alone. The last row may lie elsewhere.
template <int NV, int NJ>
static void tile_shorts(const Mask* panel, const int16_t* rows, const int16_t* last, int64_t pairs, float unit,
                        const float* scale, float* to, int64_t to_stride, Ahead& shared) {
  Mask sum[NV * NJ];
#pragma GCC unroll 24
  for (int x = 0; x < NV * NJ; ++x) sum[x] = Mask{};
  Ahead ahead = shared;
  for (int64_t d = 0; d < pairs; ++d) {
    ahead.step();
    Mask q[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) q[v] = panel[d * NV + v];
#pragma GCC unroll 24
    for (int j = 0; j < NJ; ++j) {
      int32_t both;
      __builtin_memcpy(&both, j < NJ - 1 ? rows + 2 * (j * pairs + d) : last + 2 * d, 4);
      const Mask g = both - Mask{};
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[j * NV + v] += multiply_pairs(q[v], g);
    }
  }
  shared = ahead;
#pragma GCC unroll 24
  for (int j = 0; j < NJ; ++j) {
    const float factor = scale ? unit * scale[j] : unit;
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      store(to + j * to_stride + v * W, __builtin_convertvector(sum[j * NV + v], Lanes) * factor);
    }
  }
}

template <int NV, int NJ = kTile / NV>
static void tile_shorts_of(int64_t count, const Mask* panel, const int16_t* rows, const int16_t* last, int64_t pairs,
                           float unit, const float* scale, float* to, int64_t to_stride, Ahead& ahead) {
  if constexpr (NJ > 0) {
    if (count == NJ) return tile_shorts<NV, NJ>(panel, rows, last, pairs, unit, scale, to, to_stride, ahead);
    tile_shorts_of<NV, NJ - 1>(count, panel, rows, last, pairs, unit, scale, to, to_stride, ahead);
  }
}

template <int NV>
static void panel_shorts(const Mask* panel, const int16_t* rows, int64_t count, const int16_t* last, int64_t pairs,
                         const float* scale, float* to, int64_t to_stride, Ahead& ahead) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t tiles = (count + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
    const int64_t height = (count - done + tiles - 1) / tiles;
    const int16_t* end = tiles > 1 ? rows + (done + height - 1) * 2 * pairs : last;
    tile_shorts_of<NV>(height, panel, rows + done * 2 * pairs, end, pairs, kShortStep, scale + done,
                       to + done * to_stride, to_stride, ahead);
    done += height;
  }
}

// to[j] = <pooled vector of the query, row j> for rows of 16-bit integers times `scale`.
static void dots_shorts(const Query& query, const int16_t* rows, const float* scale, int64_t count, float* to) {
  const int64_t dim = query.dim, whole = dim / (2 * W) * (2 * W);
  const auto read = [](const int16_t* at) __attribute__((always_inline)) {
    Mask both;
    __builtin_memcpy(&both, at, sizeof both);
    return both;
  };
  for (int64_t first = 0; first < count; first += W) {
    const int16_t* at[W];
    for (int j = 0; j < W; ++j) at[j] = rows + (first + j < count ? first + j : count - 1) * dim;
    Mask sum[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) sum[j] = Mask{};
    for (int64_t d = 0; d < whole; d += 2 * W) {
      const Mask q = read(query.pooled_short + d);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) sum[j] += multiply_pairs(q, read(at[j] + d));
    }
    Lanes total[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) total[j] = __builtin_convertvector(sum[j], Lanes);
    sums(total);
    for (int64_t d = whole; d < dim; ++d) {
      for (int j = 0; j < W; ++j) total[0][j] += (float)(query.pooled_short[d] * at[j][d]);
    }
    for (int j = 0; j < W && first + j < count; ++j) to[first + j] = total[0][j] * kShortStep * scale[first + j];
  }
}

// to[j][lane] = <region `lane` of the query, row j>, for `count` rows of 16-bit integers times `scale` (count,), the last
// of which is at `last`.
static void products_shorts(const Query& query, const int16_t* rows, const float* scale, int64_t count,
                            const int16_t* last, float* to, Ahead& ahead) {
  const int64_t pairs = query.dim / 2, lanes = query.vectors * W;
  for (int64_t first = 0; first < lanes; first += 2 * W) {
    const Mask* panel = query.shorts + first / W * pairs;
    if (first + 2 * W <= lanes) {
      panel_shorts<2>(panel, rows, count, last, pairs, scale, to + first, lanes, ahead);
    } else {
      panel_shorts<1>(panel, rows, count, last, pairs, scale, to + first, lanes, ahead);
    }
  }
}
#endif

// to[j] = <vector, row j>; writes up(count) numbers.
static void dots(const float* vector, const float* rows, int64_t count, int64_t dim, float* to) {
  for (int64_t first = 0; first < count; first += W) {
    Lanes sum[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) sum[j] = Lanes{};
    const float* at[W];
    for (int j = 0; j < W; ++j) at[j] = rows + (first + j < count ? first + j : count - 1) * dim;
    int64_t d = 0;
    for (; d + W <= dim; d += W) {
      const Lanes q = load(vector + d);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) sum[j] += q * load(at[j] + d);
    }
    sums(sum);
    for (; d < dim; ++d) {
      for (int j = 0; j < W; ++j) sum[0][j] += vector[d] * at[j][d];
    }
    store(to + first, sum[0]);
  }
}

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

DIML_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
  uint32_t bits = (rest << 13) + (112u << 23);  // the exponent is biased by 15 there, by 127 here
  float value;
  if (rest >= 0x7c00u) bits += 112u << 23;  // infinity and NaN
  __builtin_memcpy(&value, &bits, 4);
  if (rest < 0x0400u) value = (float)rest * 5.9604644775390625e-8f;  // below the normal numbers: units of 2^-24
  __builtin_memcpy(&bits, &value, 4);
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static void read_half(const uint16_t* from, float* to, int64_t count) {
  int64_t x = 0;
#if defined(__AVX512F__)
  for (; x + 16 <= count; x += 16) {
    store(to + x, (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + x))));
  }
#elif defined(__F16C__)
  for (; x + 8 <= count; x += 8) {
    store(to + x, (Lanes)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + x))));
  }
#endif
  for (; x < count; ++x) to[x] = half_to_float(from[x]);
}

template <typename Code>
static void read_codes(const ScoreTask& task, int64_t image, float* to) {
  const Code* from = static_cast<const Code*>(task.dense_g) + image * task.regions_g * task.dim;
  for (int64_t j = 0; j < task.regions_g; ++j, from += task.dim, to += task.dim) {
    const float scale = task.scale_g[image * task.regions_g + j];
    for (int64_t d = 0; d < task.dim; ++d) to[d] = (float)from[d] * scale;
  }
}

// The regions (R, D) of one stored image as floats: in place, or decoded into `room`.
static const float* read_image(const ScoreTask& task, int64_t image, float* room) {
  const int64_t size = task.regions_g * task.dim;
  if (task.storage == Storage::float32) return static_cast<const float*>(task.dense_g) + image * task.apart_g;
  if (task.storage == Storage::float16) {
    read_half(static_cast<const uint16_t*>(task.dense_g) + image * size, room, size);
    return room;
  }
  if (task.storage == Storage::int8) read_codes<int8_t>(task, image, room);
  if (task.storage == Storage::int16) read_codes<int16_t>(task, image, room);
  return room;
}

static Ahead image_ahead(const ScoreTask& task, int64_t image) {
  const int64_t width = task.storage == Storage::float32 ? 4 : task.storage == Storage::int8 ? 1 : 2;
  const char* start = static_cast<const char*>(task.dense_g) + image * task.apart_g * width;
  return Ahead{start, start + task.regions_g * task.dim * width};
}
