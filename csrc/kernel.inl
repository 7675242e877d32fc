// The jobs of one instruction set: score embedded pairs, solve given problems, sum up gradients, find the nearest by dot
// product.

#include <cstdint>
#include <utility>
#if defined(__x86_64__) && (defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#endif

#include "tasks.hpp"

namespace diml {
namespace {

#include "lanes.inl"
#include "products.inl"
#include "transport.inl"
#include "gradients.inl"

// Hands out pieces of one block of memory; with none, it only counts.
struct Carver {
  char* base;
  int64_t used;
  template <typename T>
  T* take(int64_t count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * (int64_t)sizeof(T) + kLine - 1) / kLine * kLine;
    return piece;
  }
};

struct ScoreRoom {
  Query query;
  Block fresh, rest;
  bool shorts;     // cosines by products of 16-bit integers
  int16_t* brief;  // memory for one vector
  float* scale;    // of the rows of `cells`
  float* rounded;  // regions of the query, its pooled vector and the image's as those integers hold them, without `shorts`
  const float* whole;  // the query's pooled vector
  float *image, *cells, *mass;  // cells: (W, Rg + 1, lanes), the image's pooled vector last; mass: (W, up(Rg))
  int64_t bytes;
};

static ScoreRoom score_room(const ScoreTask& task, void* memory) {
  Carver carver{static_cast<char*>(memory), 0};
  ScoreRoom room{};
  room.query.regions = task.regions_q, room.query.dim = task.dim;
  room.query.vectors = up(task.regions_q) / W;
  const int64_t lanes = room.query.vectors * W;
  for (Block* block : {&room.fresh, &room.rest}) {
    Lanes* problem = carver.take<Lanes>(problem_lanes(task.regions_q, task.regions_g));
    block->problem = lay_out(problem, task.regions_q, task.regions_g);
  }
#ifdef DIML_SHORTS
  room.shorts = task.storage == Storage::int16 && task.dim % 2 == 0;
#endif
  room.query.spare = task.regions_q % W != 0 && !room.shorts;
  room.query.panels = carver.take<float>(room.shorts ? 0 : lanes * task.dim);
  room.query.shorts = carver.take<Mask>(room.shorts ? room.query.vectors * task.dim / 2 : 0);
  room.query.pooled_short = carver.take<int16_t>(room.shorts ? task.dim : 0);
  room.brief = carver.take<int16_t>(room.shorts ? task.dim : 0);
  room.scale = carver.take<float>(room.shorts ? task.regions_g + 1 : 0);
  room.rounded = carver.take<float>(task.storage == Storage::int16 && !room.shorts ? (task.regions_q + 2) * task.dim : 0);
  room.image = carver.take<float>(task.storage == Storage::float32 ? 0 : task.regions_g * task.dim);
  room.cells = carver.take<float>(W * (task.regions_g + 1) * lanes);
  room.mass = carver.take<float>(W * up(task.regions_g));
  room.bytes = carver.used;
  return room;
}

static int64_t score_bytes(const ScoreTask& task) { return score_room(task, nullptr).bytes; }

#ifdef DIML_SHORTS
// What `describe` finds, from 16-bit integers.
static void describe_shorts(const ScoreTask& task, ScoreRoom& room, int64_t image, int64_t rows, float* cells,
                            float* mass, Ahead& ahead) {
  const int64_t regions = task.regions_g;
  const int16_t *codes = static_cast<const int16_t*>(task.dense_g) + image * regions * task.dim, *last = room.brief;
  for (int64_t j = 0; j < regions; ++j) room.scale[j] = task.scale_g[image * regions + j];
  room.scale[regions] = kShortStep;
  shorten(task.pooled_g + image * task.pooled_apart_g, task.dim, kShortsPerUnit, room.brief);
  if (rows == regions) last = codes + (regions - 1) * task.dim;
  products_shorts(room.query, codes, room.scale, rows, last, cells, ahead);
  if (mass) dots_shorts(room.query, codes, room.scale, regions, mass);
}
#endif

// Numbers of pair `lane`: cosines of regions, and of each region with the other image as a whole.
static float describe(const ScoreTask& task, ScoreRoom& room, int lane, int64_t pair, int64_t next) {
  const int64_t lanes = room.query.vectors * W, image = task.image_of[pair], regions = task.regions_g;
  const int64_t rows = task.uniform ? regions : regions + 1;
  const float* pooled = task.pooled_g + image * task.pooled_apart_g;
  float* cells = room.cells + lane * (regions + 1) * lanes;
  float* mass = task.uniform || room.query.spare ? nullptr : room.mass + lane * up(regions);
  Ahead ahead = image_ahead(task, task.image_of[next]);
  const float* soon = task.pooled_g + task.image_of[next] * task.pooled_apart_g;
  for (int64_t d = 0; d < task.dim; d += 16) __builtin_prefetch(soon + d);
  if (task.scale_g) __builtin_prefetch(task.scale_g + task.image_of[next] * regions);
#ifdef DIML_SHORTS
  if (room.shorts) {
    describe_shorts(task, room, image, rows, cells, mass, ahead);
    return dot(room.whole, pooled, task.dim);
  }
#endif
  const float *dense = read_image(task, image, room.image), *last = pooled;
  const bool integers = task.storage == Storage::int16;
  if (integers) last = rounded(pooled, task.dim, room.rounded + (task.regions_q + 1) * task.dim);
  if (task.uniform) last = dense + (regions - 1) * task.dim;
  products(room.query, dense, rows, last, cells, ahead);
  if (mass) dots(room.query.pooled, dense, regions, task.dim, mass);
  const bool known = !task.uniform && room.query.spare && !integers;
  return known ? cells[regions * lanes + task.regions_q] : dot(room.whole, pooled, task.dim);
}

// Packs a query to be compared with.
static void take_query(const ScoreTask& task, ScoreRoom& room, int64_t query) {
  const float* dense = task.dense_q + query * task.apart_q;
  room.whole = room.query.pooled = task.pooled_q + query * task.pooled_apart_q;
#ifdef DIML_SHORTS
  if (room.shorts) return pack_shorts(room.query, dense, room.brief);
#endif
  if (task.storage == Storage::int16) {
    dense = rounded(dense, task.regions_q * task.dim, room.rounded);
    room.query.pooled = rounded(room.whole, task.dim, room.rounded + task.regions_q * task.dim);
  }
  pack(room.query, dense);
}

// Sorts the numbers of W pairs so that the pairs stand side by side.
static void arrange(const ScoreTask& task, ScoreRoom& room) {
  const Problem& problem = room.fresh.problem;
  const int64_t lanes = room.query.vectors * W, rows = task.regions_q, cols = task.regions_g;
  Lanes block[W];
  for (int64_t first = 0; first < lanes; first += W) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int lane = 0; lane < W; ++lane) block[lane] = load(room.cells + (lane * (cols + 1) + j) * lanes + first);
      transpose(block);
      for (int x = 0; x < W && first + x < rows; ++x) problem.cosine[(first + x) * cols + j] = block[x];
      if (rows >= first && rows < first + W) problem.weight_g[j] = block[rows - first];
    }
    for (int lane = 0; lane < W; ++lane) block[lane] = load(room.cells + (lane * (cols + 1) + cols) * lanes + first);
    transpose(block);
    for (int x = 0; x < W && first + x < rows; ++x) problem.weight_q[first + x] = block[x];
  }
  if (task.uniform) {
    for (int64_t i = 0; i < rows; ++i) problem.weight_q[i] = all(1.0f);
    for (int64_t j = 0; j < cols; ++j) problem.weight_g[j] = all(1.0f);
  } else if (!room.query.spare) {
    for (int64_t first = 0; first < cols; first += W) {
      for (int lane = 0; lane < W; ++lane) block[lane] = load(room.mass + lane * up(cols) + first);
      transpose(block);
      for (int x = 0; x < W && first + x < cols; ++x) problem.weight_g[first + x] = block[x];
    }
  }
}

// Writes how the pairs that are done came to their end.
template <typename Task>
static void write_end(const Task& task, const Block& block, Mask done) {
  for (int lane = 0; lane < W; ++lane) {
    if (!done[lane]) continue;
    task.error[block.pair[lane]] = block.error[lane];
    task.iterations[block.pair[lane]] = block.iterations[lane];
  }
}

// `count` numbers of each of W pairs, put side by side.
static void gather(const float* const (&from)[W], int64_t count, Lanes* to) {
  Lanes block[W];
  int64_t x = 0;
  for (; x + W <= count; x += W) {
    for (int lane = 0; lane < W; ++lane) block[lane] = load(from[lane] + x);
    transpose(block);
    for (int row = 0; row < W; ++row) to[x + row] = block[row];
  }
  for (; x < count; ++x) {
    for (int lane = 0; lane < W; ++lane) to[x][lane] = from[lane][x];
  }
}

// Writes the matrix (rows, cols) of each pair that is done to its place in `to` (B, rows, cols).
static void write_matrices(const Lanes* from, const Block& block, Mask done, float* to) {
  const int64_t cells = block.problem.rows * block.problem.cols;
  float* place[W];
  for (int lane = 0; lane < W; ++lane) place[lane] = done[lane] ? to + block.pair[lane] * cells : nullptr;
  Lanes turned[W];
  int64_t x = 0;
  for (; x + W <= cells; x += W) {
    for (int row = 0; row < W; ++row) turned[row] = from[x + row];
    transpose(turned);
    for (int lane = 0; lane < W; ++lane) {
      if (place[lane]) store(place[lane] + x, turned[lane]);
    }
  }
  for (; x < cells; ++x) {
    for (int lane = 0; lane < W; ++lane) {
      if (place[lane]) place[lane][x] = from[x][lane];
    }
  }
}

// Writes the plans of the pairs that are done, whose lanes of the kernel are lost by it.
static void write_plans(const Block& block, Mask done, float* to) {
  const Problem& p = block.problem;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.cols; ++j) {
      Lanes& cell = p.kernel[i * p.cols + j];
      cell = select(done, cell * p.u[i] * p.v[j], cell);
    }
  }
  write_matrices(p.kernel, block, done, to);
}

static void score(const ScoreTask& task, int64_t first, int64_t last, void* memory) {
  ScoreRoom room = score_room(task, memory);
  int64_t packed = -1;
  const auto fill = [&](Block& block, int64_t start) {
    for (int lane = 0; lane < W; ++lane) {
      const int64_t pair = start + lane < last ? start + lane : last - 1, query = task.query_of[pair];
      if (query != packed) take_query(task, room, packed = query);
      task.pooled[pair] = describe(task, room, lane, pair, pair + 1 < last ? pair + 1 : pair);
    }
    arrange(task, room);
    normalize(block.problem.weight_q, task.regions_q);
    normalize(block.problem.weight_g, task.regions_g);
  };
  const auto end = [&](const Block& block, Mask done) {
    write_end(task, block, done);
    const Lanes found = structural(block.problem);
    for (int lane = 0; lane < W; ++lane) {
      if (done[lane]) task.structural[block.pair[lane]] = found[lane];
    }
    if (task.cosine) write_matrices(block.problem.cosine, block, done, task.cosine);
    if (task.plan) write_plans(block, done, task.plan);
  };
  transport(room.fresh, room.rest, task.solver, first, last, fill, end);
}


static int64_t solve_bytes(const SolveTask& task) {
  return 2 * problem_lanes(task.regions_q, task.regions_g) * (int64_t)sizeof(Lanes);
}

// Puts the problems of a block side by side.
static void read_problems(const SolveTask& task, const Problem& problem, int64_t start, int64_t last) {
  const int64_t rows = task.regions_q, cols = task.regions_g;
  const float *cost[W], *mass_q[W], *mass_g[W];
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = start + lane < last ? start + lane : last - 1;
    cost[lane] = task.cost + pair * rows * cols;
    mass_q[lane] = task.mass_q + pair * rows, mass_g[lane] = task.mass_g + pair * cols;
  }
  gather(cost, rows * cols, problem.cosine);
  for (int64_t x = 0; x < rows * cols; ++x) problem.cosine[x] = -problem.cosine[x];
  gather(mass_q, rows, problem.weight_q), gather(mass_g, cols, problem.weight_g);
  normalize(problem.weight_q, rows), normalize(problem.weight_g, cols);
}

static void solve(const SolveTask& task, int64_t first, int64_t last, void* memory) {
  const int64_t rows = task.regions_q, cols = task.regions_g;
  Block fresh, rest;
  fresh.problem = lay_out(static_cast<Lanes*>(memory), rows, cols);
  rest.problem = lay_out(static_cast<Lanes*>(memory) + problem_lanes(rows, cols), rows, cols);
  const auto fill = [&](Block& block, int64_t start) { read_problems(task, block.problem, start, last); };
  const auto end = [&](const Block& block, Mask done) {
    write_end(task, block, done);
    if (task.plan) write_plans(block, done, task.plan);
  };
  transport(fresh, rest, task.solver, first, last, fill, end);
}

constexpr int64_t kQueries = 2 * W;      // side by side in one panel
constexpr int64_t kGalleryRows = 240;    // stay in the cache while all panels pass

constexpr int64_t kPanels = 16;          // of one group of queries

constexpr int64_t kSampleEvery = 16, kSampleMost = 2048;  // rows that thresholds are guessed from

static int64_t sample_step(const NearestTask& task) {
  const int64_t least = (task.images + kSampleMost - 1) / kSampleMost;
  return least > kSampleEvery ? least : kSampleEvery;
}

static int64_t sample_rows(const NearestTask& task) { return task.guess ? task.images / sample_step(task) : 0; }

static int64_t panel_floats(const NearestTask& task) { return kQueries * (task.dim + task.dim % 2); }

static int64_t nearest_bytes(const NearestTask& task) {
  return (kPanels * panel_floats(task) + kQueries * (kTile / 2 + sample_rows(task)) + task.dim) * 4 + 8 * kLine;
}

static void keep(const NearestTask& task, int64_t query, float value, int64_t row) {
  Shortlist& list = task.lists[query];
  if (list.count == list.capacity) {
    task.make_room(task.owner, query);
    if (!(value >= task.thresholds[query])) return;
  }
  list.scores[list.count] = value;
  list.rows[list.count++] = row;
}

// Puts on the lists of the panel's queries what reaches their threshold, of scores (height, kQueries).
static void keep_best(const NearestTask& task, int64_t first, int64_t count, int64_t row, int64_t height,
                      const float* scores) {
  float limit[kQueries];
  const float* limits = task.thresholds + first;
  if (count < kQueries) {  // those behind belong to others
    for (int64_t x = 0; x < kQueries; ++x) limit[x] = x < count ? limits[x] : __builtin_inff();
    limits = limit;
  }
  const Lanes low[2] = {load(limits), load(limits + W)};
  for (int64_t j = 0; j < height; ++j) {
    const float* at = scores + j * kQueries;
    uint32_t high = bits(load(at) >= low[0]) | bits(load(at + W) >= low[1]) << W;
    for (; high; high &= high - 1) {
      const int x = __builtin_ctz(high);
      keep(task, first + x, at[x], row + j);
    }
  }
}

// Queries side by side, to be multiplied with rows of the gallery: as float32 or as 16-bit integers.
struct Screen {
  const NearestTask& task;
  float *panels, *scores;
  int16_t* row;

  float* panel(int64_t number) const { return panels + number * panel_floats(task); }

  void pack_queries(int64_t number, int64_t first, int64_t count) const {
    const float* from = task.pooled_q + first * task.dim;
#ifdef DIML_SHORTS
    if (task.brief_g) {
      Mask* to = reinterpret_cast<Mask*>(panel(number));
      return pack_shorts(from, count, kQueries, task.dim, 1.0f / task.step_q, row, to);
    }
#endif
    Query packed{count, task.dim, 2, count < kQueries, panel(number), task.pooled_q, nullptr, nullptr};  // what fills it up is not read
    pack(packed, from);
  }

  void multiply(int64_t number, int64_t first, int64_t height) const {
    Ahead nothing{reinterpret_cast<const char*>(scores), reinterpret_cast<const char*>(scores)};
#ifdef DIML_SHORTS
    const int64_t pairs = (task.dim + 1) / 2;
    if (task.brief_g) {
      const int16_t* rows = task.brief_g + first * 2 * pairs;
      return tile_shorts_of<2>(height, reinterpret_cast<const Mask*>(panel(number)), rows,
                               rows + (height - 1) * 2 * pairs, pairs, task.step_q * task.step_g, nullptr, scores,
                               kQueries, nothing);
    }
#endif
    const float* rows = task.pooled_g + first * task.dim;
    tile_of<2>(height, panel(number), rows, task.dim, rows + (height - 1) * task.dim, task.dim, scores, kQueries, false,
               nothing);
  }
};

// Thresholds that hardly more than `depth` rows of the gallery will reach, judging by one of every so many: as many of
// the sample as are to be expected, and four standard deviations more.
static void guess(const Screen& screen, int64_t number, int64_t first, int64_t count, float* scores) {
  const NearestTask& task = screen.task;
  const int64_t step = sample_step(task), rows = sample_rows(task);
  const float expected = (float)(task.depth + 1) / (float)step;
  const float wanted = expected + 4.0f * __builtin_sqrtf(expected) + 2.0f;
  if (2.0f * wanted > (float)rows) return;
  Lanes low[2], high[2];
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t chance = (int64_t)((uint32_t)j * 2654435769u >> 16) % step;  // rows may be in a pattern
    screen.multiply(number, j * step + chance, 1);
    for (int v = 0; v < 2; ++v) {
      const Lanes score = load(screen.scores + v * W);
      store(scores + j * kQueries + v * W, score);
      low[v] = j ? smallest(low[v], score) : score, high[v] = j ? largest(high[v], score) : score;
    }
  }
  for (int halving = 0; halving < 12; ++halving) {
    const Lanes middle[2] = {0.5f * (low[0] + high[0]), 0.5f * (low[1] + high[1])};
    Mask reached[2] = {Mask{}, Mask{}};
    for (int64_t j = 0; j < rows; ++j) {
      for (int v = 0; v < 2; ++v) reached[v] -= load(scores + j * kQueries + v * W) >= middle[v];
    }
    for (int v = 0; v < 2; ++v) {
      const Mask enough = __builtin_convertvector(reached[v], Lanes) >= wanted;
      low[v] = select(enough, middle[v], low[v]), high[v] = select(enough, high[v], middle[v]);
    }
  }
  for (int64_t x = 0; x < count; ++x) {
    task.thresholds[first + x] = task.lists[first + x].guess = low[x / W][x % W];
  }
}

static void nearest(const NearestTask& task, int64_t first, int64_t last, void* memory) {
  constexpr int64_t highest = kTile / 2, group = kPanels * kQueries;
  Carver carver{static_cast<char*>(memory), 0};
  float* panels = carver.take<float>(kPanels * panel_floats(task));
  float* scores = carver.take<float>(kQueries * highest);
  const Screen screen{task, panels, scores, carver.take<int16_t>(task.dim + 1)};
  float* sample = carver.take<float>(kQueries * sample_rows(task));
  for (int64_t from = first; from < last; from += group) {
    const int64_t to = from + group < last ? from + group : last, panels_used = (to - from + kQueries - 1) / kQueries;
    const auto filled = [&](int64_t number) {
      const int64_t left = to - from - number * kQueries;
      return left < kQueries ? left : kQueries;
    };
    for (int64_t x = 0; x < panels_used; ++x) {
      screen.pack_queries(x, from + x * kQueries, filled(x));
      if (task.guess) guess(screen, x, from + x * kQueries, filled(x), sample);
    }
    for (int64_t chunk = 0; chunk < task.images; chunk += kGalleryRows) {
      const int64_t end = chunk + kGalleryRows < task.images ? chunk + kGalleryRows : task.images;
      for (int64_t x = 0; x < panels_used; ++x) {
        for (int64_t row = chunk; row < end; row += highest) {
          const int64_t height = row + highest < end ? highest : end - row;
          screen.multiply(x, row, height);
          keep_best(task, from + x * kQueries, filled(x), row, height, scores);
        }
      }
    }
  }
}

static void exact_dots(const double* vector, const float* vectors, int64_t dim, const int64_t* rows, int64_t count,
                       float* to) {
  typedef double Wide __attribute__((vector_size(4 * DIML_LANES)));
  typedef double LooseWide __attribute__((vector_size(4 * DIML_LANES), aligned(8), may_alias));
  typedef float Half __attribute__((vector_size(2 * DIML_LANES), aligned(4), may_alias));
  constexpr int width = W / 2, parts = 4;
  for (int64_t x = 0; x < count; ++x) {
    const float *row = vectors + rows[x] * dim, *soon = vectors + rows[x + 4 < count ? x + 4 : count - 1] * dim;
    for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(soon + d);  // rows lie far apart
    Wide sum[parts] = {};
    int64_t d = 0;
    for (; d + parts * width <= dim; d += parts * width) {
#pragma GCC unroll 4
      for (int part = 0; part < parts; ++part) {
        const Wide other = __builtin_convertvector(*reinterpret_cast<const Half*>(row + d + part * width), Wide);
        sum[part] += *reinterpret_cast<const LooseWide*>(vector + d + part * width) * other;
      }
    }
    const Wide whole = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (; d < dim; ++d) total += vector[d] * row[d];
    for (int lane = 0; lane < width; ++lane) total += whole[lane];
    to[x] = (float)total;
  }
}

#ifndef DIML_SHORTS
constexpr auto shorten = nullptr;
#endif

static void powers_of_two(const float* from, float* to, int64_t count) {
  int64_t x = 0;
  for (; x + W <= count; x += W) store(to + x, power_of_two(load(from + x)));
  for (; x < count; ++x) to[x] = power_of_two(all(from[x]))[0];
}

constexpr Kernels table{DIML_NAME, W, score_bytes, score, solve_bytes, solve, pull_bytes, pull, nearest_bytes, nearest,
                        exact_dots, shorten, powers_of_two};

}  // namespace
}  // namespace diml
