// Gradients of the loss: sums, over the pairs of an image, of slopes times the vectors of its partners.

// What one pair adds: slopes with its weight, whose rows stand `apart` and columns `step`, and the partner's regions.
struct Term {
  const float* slope;
  int64_t apart, step;
  const float* regions;
};

constexpr int kTerms = 4;  // summed up before a tile goes back to memory

// to (NR, NV * W) += slopes (NR, depth) times regions (depth, NV * W) of each term, from row `row` and channel `d` on.
template <int NR, int NV>
static void pull_tile(const Term* terms, int count, int64_t row, int64_t depth, int64_t d, int64_t dim, float* to) {
  Lanes sum[NR * NV];
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) sum[x] = load(to + (row + x / NV) * dim + d + x % NV * W);
  for (const Term* term = terms; term < terms + count; ++term) {
    const float *slope = term->slope + row * term->apart, *from = term->regions + d;
    const int64_t apart = term->apart, step = term->step;
    for (int64_t k = 0; k < depth; ++k) {
      Lanes g[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) g[v] = load(from + k * dim + v * W);
      __builtin_prefetch(from + k * dim + NV * W);
#pragma GCC unroll 24
      for (int i = 0; i < NR; ++i) {
        const Lanes factor = all(slope[i * apart + k * step]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sum[i * NV + v] += factor * g[v];
      }
    }
  }
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) store(to + (row + x / NV) * dim + d + x % NV * W, sum[x]);
}

template <int NV, int NR = kTile / NV>
static void pull_tile_of(int64_t height, const Term* terms, int count, int64_t row, int64_t depth, int64_t d, int64_t dim,
                         float* to) {
  if constexpr (NR > 0) {
    if (height == NR) return pull_tile<NR, NV>(terms, count, row, depth, d, dim, to);
    pull_tile_of<NV, NR - 1>(height, terms, count, row, depth, d, dim, to);
  }
}

// NV * W channels of `rows` rows, in tiles of about equal height.
template <int NV>
static void pull_columns(const Term* terms, int count, int64_t rows, int64_t depth, int64_t d, int64_t dim, float* to) {
  constexpr int64_t highest = kTile / NV;
  for (int64_t tiles = (rows + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
    const int64_t height = (rows - done + tiles - 1) / tiles;
    pull_tile_of<NV>(height, terms, count, done, depth, d, dim, to);
    done += height;
  }
}

// to (rows, D) += the terms; the last few channels one by one.
static void pull_terms(const Term* terms, int count, int64_t rows, int64_t depth, int64_t dim, float* to) {
  int64_t d = 0;
  for (; d + 2 * W <= dim; d += 2 * W) pull_columns<2>(terms, count, rows, depth, d, dim, to);
  for (; d + W <= dim; d += W) pull_columns<1>(terms, count, rows, depth, d, dim, to);
  for (; d < dim; ++d) {
    for (int64_t i = 0; i < rows; ++i) {
      for (const Term* term = terms; term < terms + count; ++term) {
        const float* slope = term->slope + i * term->apart;
        for (int64_t k = 0; k < depth; ++k) to[i * dim + d] += slope[k * term->step] * term->regions[k * dim + d];
      }
    }
  }
}

static int64_t pull_bytes(const PullTask& task) {
  return kTerms * task.regions * task.regions_other * (int64_t)sizeof(float);
}

static void pull(const PullTask& task, int64_t first, int64_t last, void* memory) {
  const int64_t cells = task.regions * task.regions_other, dim = task.dim, depth = task.regions_other;
  Term terms[kTerms];
  for (int64_t image = first; image < last; ++image) {
    float *to = task.gradient + image * (task.regions + 1) * dim, *pooled = to + task.regions * dim;
    for (int64_t x = 0; x < (task.regions + 1) * dim; ++x) to[x] = 0;
    int count = 0;
    for (int64_t number = task.begin[image]; number < task.begin[image + 1]; ++number) {
      const Part& part = task.parts[number];
      const float* partner = task.vectors + part.other * (depth + 1) * dim;
      if (number + 2 < task.begin[image + 1]) {
        const float* soon = task.slope + task.parts[number + 2].pair * cells;
        for (int64_t x = 0; x < cells; x += kLine / 4) __builtin_prefetch(soon + x);
      }
      if (const float weight = task.weight[part.pair]; weight != 0) {
        const float* slope = task.slope + part.pair * cells;
        float* weighed = static_cast<float*>(memory) + count * cells;
        for (int64_t x = 0; x < cells; ++x) weighed[x] = weight * slope[x];
        terms[count++] = {weighed, part.turned ? 1 : depth, part.turned ? task.regions : 1, partner};
        if (count == kTerms) pull_terms(terms, count, task.regions, depth, dim, to), count = 0;
      }
      if (const float weight = task.pooled_weight[part.pair]; weight != 0) {
        for (int64_t d = 0; d < dim; ++d) pooled[d] += weight * partner[depth * dim + d];
      }
    }
    pull_terms(terms, count, task.regions, depth, dim, to);
  }
}
