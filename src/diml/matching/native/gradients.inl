// Gradients of the loss: sums, over the pairs of an image, of slopes times the vectors of its partners.

// to (NR, NV * W) += a (NR, depth) times rows (depth, NV * W); a stands in memory with its rows `apart` numbers apart
// and its columns `step`.
template <int NR, int NV>
static void pull_tile(const float* a, int64_t apart, int64_t step, const float* rows, int64_t depth, int64_t dim, float* to,
                      Ahead& shared) {
  Lanes sum[NR * NV];
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) sum[x] = load(to + x / NV * dim + x % NV * W);
  Ahead ahead = shared;
  for (int64_t k = 0; k < depth; ++k) {
    ahead.step();
    Lanes g[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) g[v] = load(rows + k * dim + v * W);
#pragma GCC unroll 24
    for (int i = 0; i < NR; ++i) {
      const Lanes factor = all(a[i * apart + k * step]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) sum[i * NV + v] += factor * g[v];
    }
  }
  shared = ahead;
#pragma GCC unroll 24
  for (int x = 0; x < NR * NV; ++x) store(to + x / NV * dim + x % NV * W, sum[x]);
}

template <int NV, int NR = kTile / NV>
static void pull_tile_of(int64_t count, const float* a, int64_t apart, int64_t step, const float* rows, int64_t depth,
                         int64_t dim, float* to, Ahead& ahead) {
  if constexpr (NR > 0) {
    if (count == NR) return pull_tile<NR, NV>(a, apart, step, rows, depth, dim, to, ahead);
    pull_tile_of<NV, NR - 1>(count, a, apart, step, rows, depth, dim, to, ahead);
  }
}

// to (count, D) += a times rows, in tiles of about equal height; the last few channels one by one.
static void pull_product(const float* a, int64_t apart, int64_t step, const float* rows, int64_t count, int64_t depth,
                         int64_t dim, float* to, Ahead& ahead) {
  int64_t d = 0;
  const auto columns = [&](auto width) __attribute__((always_inline)) {
    constexpr int NV = decltype(width)::value;
    constexpr int64_t highest = kTile / NV;
    for (int64_t tiles = (count + highest - 1) / highest, done = 0; tiles > 0; --tiles) {
      const int64_t height = (count - done + tiles - 1) / tiles;
      pull_tile_of<NV>(height, a + done * apart, apart, step, rows + d, depth, dim, to + done * dim + d, ahead);
      done += height;
    }
    d += NV * W;
  };
  while (d + 2 * W <= dim) columns(std::integral_constant<int, 2>{});
  if (d + W <= dim) columns(std::integral_constant<int, 1>{});
  for (; d < dim; ++d) {
    for (int64_t i = 0; i < count; ++i) {
      float sum = to[i * dim + d];
      for (int64_t k = 0; k < depth; ++k) sum += a[i * apart + k * step] * rows[k * dim + d];
      to[i * dim + d] = sum;
    }
  }
}

static int64_t pull_bytes(const PullTask& task) { return task.regions * task.regions_other * (int64_t)sizeof(float); }

static void pull(const PullTask& task, int64_t first, int64_t last, void* memory) {
  const int64_t cells = task.regions * task.regions_other, dim = task.dim;
  float* weighed = static_cast<float*>(memory);
  for (int64_t image = first; image < last; ++image) {
    float *to = task.gradient + image * (task.regions + 1) * dim, *pooled = to + task.regions * dim;
    for (int64_t x = 0; x < (task.regions + 1) * dim; ++x) to[x] = 0;
    const Part* const end = task.parts + task.begin[image + 1];
    for (const Part* part = task.parts + task.begin[image]; part < end; ++part) {
      const float* partner = task.vectors + part->other * (task.regions_other + 1) * dim;
      const float weight = task.weight[part->pair], of_pooled = task.pooled_weight[part->pair];
      if (weight != 0) {
        const float* slope = task.slope + part->pair * cells;
        for (int64_t x = 0; x < cells; ++x) weighed[x] = weight * slope[x];
        const char* soon = reinterpret_cast<const char*>(task.slope + (part + 1 < end ? part[1].pair : part->pair) * cells);
        Ahead ahead{soon, soon + cells * 4};
        const int64_t apart = part->turned ? 1 : task.regions_other, step = part->turned ? task.regions : 1;
        pull_product(weighed, apart, step, partner, task.regions, task.regions_other, dim, to, ahead);
      }
      if (of_pooled != 0) {
        const float* vector = partner + task.regions_other * dim;
        for (int64_t d = 0; d < dim; ++d) pooled[d] += of_pooled * vector[d];
      }
    }
  }
}
