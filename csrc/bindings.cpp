// diml.matching._kernel: the kernel for Python, on arrays given by DLPack or the buffer protocol. No torch headers.
//
// Python calls it through diml.matching.native only. Arguments that belong together come as small structures; every
// shape and index is checked here, and nothing is checked again further down.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "constants.hpp"
#include "dispatch.hpp"
#include "nearest_search.hpp"
#include "pool.hpp"
#include "tasks.hpp"

namespace nb = nanobind;

namespace diml {
namespace {

template <typename T, typename... Shape>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Shape...>;
template <typename T, typename... Shape>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;
using Stored = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu, nb::ndim<3>>;
using Float1 = In<float, nb::ndim<1>>;
using Float2 = In<float, nb::ndim<2>>;
using Float3 = In<float, nb::ndim<3>>;
using Byte3 = In<int8_t, nb::ndim<3>>;
using Double2 = In<double, nb::ndim<2>>;
using Double3 = In<double, nb::ndim<3>>;
using Long1 = In<int64_t, nb::ndim<1>>;
using OutFloat1 = Out<float, nb::ndim<1>>;
using OutFloat2 = Out<float, nb::ndim<2>>;
using OutFloat3 = Out<float, nb::ndim<3>>;
using OutDouble2 = Out<double, nb::ndim<2>>;
using OutDouble3 = Out<double, nb::ndim<3>>;
using OutInt1 = Out<int32_t, nb::ndim<1>>;

// Arguments of Python, see the data classes of native.py.
struct RegionArrays {
  Stored values;                    // (N, R, D), or (N, R, S) codes
  Float2 pooled;                    // (N, D)
  std::optional<Float2> scale;      // (N, R)
  std::optional<Byte3> centroids;   // (S, kCentroids, w) of codes
};

struct IndexArrays {
  Long1 query_rows, gallery_rows;  // (B,)
};

struct SlopeArrays {
  Float3 slope;                  // (B, Rq, Rg)
  Float1 weight, pooled_weight;  // (B,)
};

struct ResultArrays {
  std::optional<OutFloat1> structural, pooled;  // (B,), not for given costs
  OutFloat1 error;                              // (B,)
  OutInt1 iterations;                           // (B,)
  std::optional<OutFloat3> plan, cosine;        // (B, Rq, Rg)
};

struct WeightArrays {
  Float2 upper, inward;         // (E, D) and (h, D)
  Float1 inward_bias, outward;  // (h,)
  double outward_bias, height, spread;
};

struct VoteArrays {
  WeightArrays weights;
  Float2 over_length, dustbin;  // (N, R + 1) and (N, R)
};

struct ExactArrays {
  OutDouble3 plan;                      // (B, Rq, Rg)
  OutDouble2 potential_q, potential_g;  // (B, Rq) and (B, Rg)
  OutInt1 iterations;                   // (B,)
};

void need(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

bool within(int64_t row, size_t count) { return row >= 0 && row < static_cast<int64_t>(count); }

struct Freed {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<void, Freed> aligned(int64_t bytes) {
  void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
  if (!memory) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return std::unique_ptr<void, Freed>(memory);
}

// Whether Ctrl-C was pressed: the calling thread asks the interpreter every 100 ms, the others read what it found.
struct Interruption {
  const std::thread::id caller = std::this_thread::get_id();
  std::chrono::steady_clock::time_point looked = std::chrono::steady_clock::now();
  std::atomic<bool> found{false};

  static bool look(void* owner) {
    Interruption& self = *static_cast<Interruption*>(owner);
    if (std::this_thread::get_id() == self.caller && !self.found) {
      const auto now = std::chrono::steady_clock::now();
      if (now - self.looked > std::chrono::milliseconds(100)) {
        self.looked = now;
        const nb::gil_scoped_acquire held;
        if (PyErr_CheckSignals() != 0) self.found = true;
      }
    }
    return self.found;
  }

  // The settings with this interruption as what cancels the work.
  SolverSettings cancelling(SolverSettings settings) {
    settings.cancelled = &Interruption::look, settings.owner = this;
    return settings;
  }
};

// Runs `job(first, last, memory)` over 0..count in pieces, without the interpreter's lock; Ctrl-C ends it.
template <typename Job>
void in_pieces(int64_t count, int64_t piece, int threads, int64_t bytes, Interruption& interruption, const Job& job) {
  if (count == 0) return;
  {
    const nb::gil_scoped_release released;
    const int64_t pieces = (count + piece - 1) / piece;
    const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, pieces)));
    std::vector<std::unique_ptr<void, Freed>> memory;
    for (int worker = 0; worker < workers; ++worker) memory.push_back(aligned(bytes));
    Pool::instance().run(
        pieces, workers,
        [&](int64_t number, int worker) {
          job(number * piece, std::min(count, (number + 1) * piece), memory[worker].get());
        },
        [&] { return Interruption::look(&interruption); });
  }
  if (interruption.found) throw nb::python_error();
}

// Pieces of whole groups of lanes, small enough that threads share the work evenly and Ctrl-C is noticed soon; `each` of
// them for a thread, which is 1 where the work is even and every piece costs something.
int64_t piece_of(int64_t count, int threads, int64_t work_of_one, int64_t each = 4) {
  constexpr int64_t kGroup = 16, kMostWork = 100'000'000;  // about 30 ms of multiplications
  const int64_t pieces = each * std::max(1, threads), most = kMostWork / std::max<int64_t>(1, work_of_one);
  const int64_t even = (count + pieces - 1) / pieces;
  return std::max<int64_t>(1, std::min((even + kGroup - 1) / kGroup, most / kGroup)) * kGroup;
}

Storage storage_of(const Stored& values) {
  if (values.dtype() == nb::dtype<float>()) return Storage::float32;
  if (values.dtype() == nb::dtype<int8_t>()) return Storage::int8;
  if (values.dtype() == nb::dtype<int16_t>()) return Storage::int16;
  if (values.dtype() == nb::dtype<uint8_t>()) return Storage::product;
  const bool is_float = values.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
  need(is_float && values.dtype().bits == 16, "gallery.values: need float32, float16, int16, int8 or uint8");
  return Storage::float16;
}

PairResults results_of(const ResultArrays& arrays, size_t pairs, size_t cells) {
  need(arrays.error.size() == pairs && arrays.iterations.size() == pairs, "results: need one number for each pair");
  PairResults results{nullptr, nullptr, arrays.error.data(), arrays.iterations.data(), nullptr, nullptr};
  if (arrays.structural) {
    need(arrays.structural->size() == pairs, "structural: need one number for each pair");
    results.structural = arrays.structural->data();
  }
  if (arrays.pooled) {
    need(arrays.pooled->size() == pairs, "pooled: need one number for each pair");
    results.pooled = arrays.pooled->data();
  }
  if (arrays.plan) {
    need(arrays.plan->size() == pairs * cells, "plan: need (B, Rq, Rg)");
    results.plan = arrays.plan->data();
  }
  if (arrays.cosine) {
    need(arrays.cosine->size() == pairs * cells, "cosine: need (B, Rq, Rg)");
    results.cosine = arrays.cosine->data();
  }
  return results;
}

bool fits(const Float2& array, size_t rows, size_t columns) {
  return array.shape(0) == rows && array.shape(1) == columns;
}

ScorerWeights weights_of(const WeightArrays& arrays, size_t dim) {
  const size_t rows = arrays.upper.shape(0), hidden = arrays.inward.shape(0);
  need(rows >= 1 && rows <= dim && arrays.upper.shape(1) == dim, "upper: need (E, D), E at most D");
  need(hidden >= 1 && arrays.inward.shape(1) == dim, "inward: need (h, D)");
  need(arrays.inward_bias.size() == hidden && arrays.outward.size() == hidden, "inward_bias, outward: need (h,)");
  ScorerWeights weights{};
  weights.upper = arrays.upper.data(), weights.rows = static_cast<int64_t>(rows);
  weights.inward = arrays.inward.data(), weights.hidden = static_cast<int64_t>(hidden);
  weights.inward_bias = arrays.inward_bias.data(), weights.outward = arrays.outward.data();
  weights.outward_bias = static_cast<float>(arrays.outward_bias);
  weights.height = static_cast<float>(arrays.height), weights.spread = static_cast<float>(arrays.spread);
  return weights;
}

// The centroids of the codes of a gallery, checked.
Centroids centroids_of(const RegionArrays& gallery, size_t dim) {
  need(gallery.centroids.has_value(), "gallery.centroids: need them for uint8, and only there");
  const size_t groups = gallery.values.shape(2), width = gallery.centroids->shape(2);
  need(gallery.centroids->shape(0) == groups && gallery.centroids->shape(1) == kCentroids && groups >= 1 && width >= 1,
       "gallery.centroids: need (S, 256, w) for values (N, R, S)");
  need((groups - 1) * width < dim && dim <= groups * width, "gallery.centroids: need S groups of w channels to be D");
  need(dim <= kMostChannels, "gallery.centroids: need 130,000 channels at most");
  return Centroids{gallery.centroids->data(), static_cast<int64_t>(groups), static_cast<int64_t>(width)};
}

// The regions of a gallery, checked.
StoredRegions stored_of(const RegionArrays& gallery) {
  const size_t images = gallery.values.shape(0), regions = gallery.values.shape(1), dim = gallery.pooled.shape(1);
  const Storage storage = storage_of(gallery.values);
  need(regions >= 1, "regions: need at least 1");
  need(gallery.pooled.shape(0) == images, "gallery: counts of values and pooled differ");
  need(storage == Storage::product || gallery.values.shape(2) == dim, "dim: sides differ");
  const bool integers = storage == Storage::int8 || storage == Storage::int16;
  need(integers == gallery.scale.has_value(), "gallery.scale: need it for int8 and int16, and only there");
  need(!gallery.scale || fits(*gallery.scale, images, regions), "gallery.scale: need (N, R)");
  StoredRegions stored{};
  stored.dense = gallery.values.data(), stored.pooled = gallery.pooled.data();
  stored.scale = gallery.scale ? gallery.scale->data() : nullptr;
  stored.storage = storage, stored.regions = regions;
  stored.stride = stored.regions * gallery.values.shape(2), stored.pooled_stride = dim;
  need(storage == Storage::product || !gallery.centroids, "gallery.centroids: need them for uint8, and only there");
  if (storage == Storage::product) stored.centroids = centroids_of(gallery, dim);
  return stored;
}

// Reads lengths and dustbins of some images of a gallery.
void read_images(const RegionArrays& images, const Long1& rows, const WeightArrays& weights, int threads,
                 const OutFloat2& over_length, const OutFloat2& dustbin) {
  const size_t count = images.values.shape(0), regions = images.values.shape(1), dim = images.pooled.shape(1);
  ReadTask task{};
  task.images = stored_of(images), task.dim = dim, task.rows = rows.data();
  task.weights = weights_of(weights, dim);
  for (size_t place = 0; place < rows.size(); ++place) need(within(rows.data()[place], count), "rows: no such row");
  need(over_length.shape(0) == count && over_length.shape(1) == regions + 1, "over_length: need (N, R + 1)");
  need(dustbin.shape(0) == count && dustbin.shape(1) == regions, "dustbin: need (N, R)");
  task.over_length = over_length.data(), task.dustbin = dustbin.data();
  Interruption interruption;
  const Kernels& kernels = kernels_in_use();
  const int64_t number = static_cast<int64_t>(rows.size()), work = task.images.regions * task.dim * task.weights.rows;
  in_pieces(number, piece_of(number, threads, work), threads, kernels.read_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.read(task, first, last, memory); });
}

// Completes a task of `queries` queries and `images` gallery images, whose regions are set, and runs it.
void run_score(ScoreTask& task, size_t queries, size_t images, const IndexArrays& pairs, const SolverSettings& settings,
               int threads, const ResultArrays& results) {
  const size_t count = pairs.query_rows.size();
  need(pairs.gallery_rows.size() == count, "query_rows, gallery_rows: need one number for each pair");
  need(results.structural && results.pooled, "results: need structural and pooled");
  task.pairs = PairIndices{pairs.query_rows.data(), pairs.gallery_rows.data()};
  task.results = results_of(results, count, task.query.regions * task.gallery.regions);
  for (size_t pair = 0; pair < count; ++pair) {
    need(within(task.pairs.query_rows[pair], queries), "query_rows: no such row");
    need(within(task.pairs.gallery_rows[pair], images), "gallery_rows: no such row");
  }
  Interruption interruption;
  task.solver = interruption.cancelling(settings);
  const Kernels& kernels = kernels_in_use();
  const int64_t work = task.query.regions * task.gallery.regions * (task.dim + 32);
  const int64_t each = settings.plan == PlanKind::votes ? 1 : 4;  // a piece maps its first query anew
  in_pieces(count, piece_of(count, threads, work, each), threads, kernels.score_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.score(task, first, last, memory); });
}

void score(const RegionArrays& query, const RegionArrays& gallery, const IndexArrays& pairs, bool uniform,
           const SolverSettings& settings, int threads, const ResultArrays& results,
           const std::optional<VoteArrays>& votes) {
  const size_t queries = query.values.shape(0), images = gallery.values.shape(0), dim = query.values.shape(2);
  need(query.values.shape(1) >= 1, "regions: need at least 1");
  need(storage_of(query.values) == Storage::float32 && !query.scale, "query: need float32");
  need(gallery.pooled.shape(1) == dim && query.pooled.shape(1) == dim, "dim: sides differ");
  need(query.pooled.shape(0) == queries, "query: counts of values and pooled differ");
  ScoreTask task{};
  task.dim = dim, task.uniform = uniform;
  task.query.dense = static_cast<const float*>(query.values.data()), task.query.pooled = query.pooled.data();
  task.query.regions = query.values.shape(1);
  task.query.stride = task.query.regions * task.dim, task.query.pooled_stride = task.dim;
  task.gallery = stored_of(gallery);
  need(votes.has_value() == (settings.plan == PlanKind::votes), "votes: need them for that plan, and only there");
  if (votes) {
    const size_t regions = gallery.values.shape(1);
    need(fits(votes->over_length, images, regions + 1), "votes.over_length: need (N, R + 1)");
    need(fits(votes->dustbin, images, regions), "votes.dustbin: need (N, R)");
    task.votes = VoteInputs{weights_of(votes->weights, dim), votes->over_length.data(), votes->dustbin.data()};
  }
  run_score(task, queries, images, pairs, settings, threads, results);
}

// Pairs of images packed as R + 1 vectors, the pooled one last.
void compare(const Float3& query, const Float3& gallery, const IndexArrays& pairs, bool uniform,
             const SolverSettings& settings, int threads, const ResultArrays& results) {
  need(query.shape(1) >= 2 && gallery.shape(1) >= 2, "query, gallery: need regions and a pooled vector");
  need(query.shape(2) == gallery.shape(2), "dim: sides differ");
  need(settings.plan != PlanKind::votes, "settings.plan: need another one than votes for packed images");
  ScoreTask task{};
  task.dim = query.shape(2), task.uniform = uniform;
  task.query.regions = query.shape(1) - 1, task.gallery.regions = gallery.shape(1) - 1;
  task.query.dense = query.data(), task.query.pooled = query.data() + task.query.regions * task.dim;
  task.query.stride = task.query.pooled_stride = (task.query.regions + 1) * task.dim;
  task.gallery.dense = gallery.data(), task.gallery.pooled = gallery.data() + task.gallery.regions * task.dim;
  task.gallery.stride = task.gallery.pooled_stride = (task.gallery.regions + 1) * task.dim;
  task.gallery.storage = Storage::float32;
  run_score(task, query.shape(0), gallery.shape(0), pairs, settings, threads, results);
}

void solve(const Float3& cost, const Float2& mass_q, const Float2& mass_g, const SolverSettings& settings, int threads,
           const ResultArrays& results) {
  const size_t pairs = cost.shape(0), rows = cost.shape(1), cols = cost.shape(2);
  need(settings.plan == PlanKind::entropic, "settings.plan: need entropic for given costs; solve_exact is for exact");
  need(rows >= 1 && cols >= 1, "regions: need at least 1");
  need(mass_q.shape(0) == pairs && mass_q.shape(1) == rows, "mass_q: need (B, Rq) as cost");
  need(mass_g.shape(0) == pairs && mass_g.shape(1) == cols, "mass_g: need (B, Rg) as cost");
  SolveTask task{};
  task.cost = cost.data(), task.mass_q = mass_q.data(), task.mass_g = mass_g.data();
  task.regions_q = rows, task.regions_g = cols;
  task.results = results_of(results, pairs, rows * cols);
  Interruption interruption;
  task.solver = interruption.cancelling(settings);
  const Kernels& kernels = kernels_in_use();
  const int64_t count = static_cast<int64_t>(pairs), work = task.regions_q * task.regions_g * 64;
  in_pieces(count, piece_of(count, threads, work), threads, kernels.solve_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.solve(task, first, last, memory); });
}

void solve_exact(const Double3& cost, const Double2& mass_q, const Double2& mass_g, int threads,
                 const ExactArrays& results) {
  const size_t pairs = cost.shape(0), rows = cost.shape(1), cols = cost.shape(2);
  need(rows >= 1 && cols >= 1, "regions: need at least 1");
  need(mass_q.shape(0) == pairs && mass_q.shape(1) == rows, "mass_q: need (B, Rq) as cost");
  need(mass_g.shape(0) == pairs && mass_g.shape(1) == cols, "mass_g: need (B, Rg) as cost");
  need(results.plan.size() == pairs * rows * cols, "plan: need (B, Rq, Rg)");
  need(results.potential_q.size() == pairs * rows && results.potential_g.size() == pairs * cols,
       "potential_q, potential_g: need (B, Rq) and (B, Rg)");
  need(results.iterations.size() == pairs, "iterations: need one number for each pair");
  ExactTask task{};
  task.cost = cost.data(), task.mass_q = mass_q.data(), task.mass_g = mass_g.data();
  task.regions_q = rows, task.regions_g = cols;
  task.plan = results.plan.data(), task.iterations = results.iterations.data();
  task.potential_q = results.potential_q.data(), task.potential_g = results.potential_g.data();
  Interruption interruption;
  task.solver = interruption.cancelling(SolverSettings{PlanKind::exact, 0, 0, 0, 0, false, nullptr, nullptr});
  const Kernels& kernels = kernels_in_use();
  const int64_t count = static_cast<int64_t>(pairs), work = task.regions_q * task.regions_g * 64;
  in_pieces(count, piece_of(count, threads, work), threads, kernels.solve_exact_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.solve_exact(task, first, last, memory); });
}

// The contributions to the gradient of each image, those of image n at begin[n]..begin[n + 1] of `list`.
struct Contributions {
  std::vector<Contribution> list;
  std::vector<int64_t> begin;
};

Contributions contributions_of(const IndexArrays& pairs, bool as_query, bool as_gallery, size_t images,
                               size_t partners) {
  const int64_t *query_rows = pairs.query_rows.data(), *gallery_rows = pairs.gallery_rows.data();
  const int64_t count = static_cast<int64_t>(pairs.query_rows.size());
  Contributions found;
  found.begin.assign(images + 1, 0);
  for (int64_t pair = 0; pair < count; ++pair) {
    const int64_t query = query_rows[pair], image = gallery_rows[pair];
    need(within(query, as_query ? images : partners) && within(query, as_gallery ? partners : images),
         "query_rows: no such row");
    need(within(image, as_gallery ? images : partners) && within(image, as_query ? partners : images),
         "gallery_rows: no such row");
    if (as_query) ++found.begin[query + 1];
    if (as_gallery) ++found.begin[image + 1];
  }
  std::partial_sum(found.begin.begin(), found.begin.end(), found.begin.begin());
  found.list.resize(found.begin.back());
  std::vector<int64_t> next(found.begin.begin(), found.begin.end() - 1);
  for (int64_t pair = 0; pair < count; ++pair) {
    const int64_t query = query_rows[pair], image = gallery_rows[pair];
    if (as_query) found.list[next[query]++] = Contribution{pair, image, false};
    if (as_gallery) found.list[next[image]++] = Contribution{pair, query, true};
  }
  return found;
}

// Gradients of images that are the queries of the pairs (`as_query`), the gallery images (`as_gallery`), or both where
// a batch is compared with itself. The partners are packed like the images, as R + 1 vectors with the pooled one last.
void accumulate_gradients(const SlopeArrays& slopes, const IndexArrays& pairs, const Float3& partners, bool as_query,
                          bool as_gallery, int threads, const OutFloat3& gradient) {
  const Float3& slope = slopes.slope;
  const size_t count = slope.shape(0), images = gradient.shape(0);
  const size_t rows = as_query ? 1 : 2, cols = 3 - rows;
  need(as_query || as_gallery, "as_query, as_gallery: need at least one");
  need(gradient.shape(1) == slope.shape(rows) + 1 && partners.shape(1) == slope.shape(cols) + 1,
       "regions: sides differ");
  need(!(as_query && as_gallery) || slope.shape(1) == slope.shape(2),
       "slope: need Rq = Rg where a batch is compared with itself");
  need(gradient.shape(2) == partners.shape(2), "dim: sides differ");
  for (size_t size : {slopes.weight.size(), slopes.pooled_weight.size(), pairs.query_rows.size(),
                      pairs.gallery_rows.size()}) {
    need(size == count, "weight, pooled_weight, query_rows, gallery_rows: need one number for each pair");
  }
  const Contributions found = contributions_of(pairs, as_query, as_gallery, images, partners.shape(0));
  GradientTask task{};
  task.slope = slope.data(), task.weight = slopes.weight.data(), task.pooled_weight = slopes.pooled_weight.data();
  task.contributions = found.list.data(), task.begin = found.begin.data(), task.partners = partners.data();
  task.regions = gradient.shape(1) - 1, task.regions_partner = partners.shape(1) - 1, task.dim = gradient.shape(2);
  task.gradient = gradient.data();
  const Kernels& kernels = kernels_in_use();
  Interruption interruption;
  in_pieces(static_cast<int64_t>(images), 1, threads, kernels.accumulate_gradients_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) {
              kernels.accumulate_gradients(task, first, last, memory);
            });
}

void nearest(const Float2& queries, const Float2& gallery, const Long1& excluded, int threads,
             const Out<int64_t, nb::ndim<2>>& order) {
  need(queries.shape(1) == gallery.shape(1), "dim: sides differ");
  need(excluded.size() == queries.shape(0) && order.shape(0) == queries.shape(0), "queries: counts differ");
  need(order.shape(1) >= 1, "order: need a depth of at least 1");
  need(gallery.shape(0) < size_t{1} << 32, "gallery: need fewer than 2^32 rows");
  const Kernels& kernels = kernels_in_use();
  NearestProblem problem{};
  problem.queries = queries.data(), problem.gallery = gallery.data(), problem.excluded = excluded.data();
  problem.count = queries.shape(0), problem.images = gallery.shape(0), problem.dim = queries.shape(1);
  problem.depth = order.shape(1);
  NearestSearch search(kernels, problem);
  search.encode(threads);
  const int64_t count = problem.count, depth = problem.depth, group = 32 * kernels.lanes;
  const int64_t all_panels = 2 * kernels.lanes * std::max(1, threads);  // whole panels, equally many for each thread
  const int64_t even = (count + all_panels - 1) / all_panels * 2 * kernels.lanes;
  Interruption interruption;
  in_pieces(count, std::min(group, even), threads, kernels.nearest_bytes(search.task()), interruption,
            [&](int64_t first, int64_t last, void* memory) {
              kernels.nearest(search.task(), first, last, memory);
              for (int64_t query = first; query < last; ++query) {
                search.finish(query, order.data() + query * depth, memory);
              }
            });
}

void powers_of_two(const Float1& from, const OutFloat1& to) {
  need(from.size() == to.size(), "to: need the size of from_");
  kernels_in_use().exp2(from.data(), to.data(), static_cast<int64_t>(from.size()));
}

// What Python must agree on, by the names that it has there.
nb::dict constants() {
  nb::dict named;
  named["SHORTS_PER_UNIT"] = kShortsPerUnit, named["LONGEST_CODE"] = kLongestCode;
  named["PLAIN_RANGE"] = kPlainRange;
  named["MIXING"] = kMixing, named["MIX_EVERY"] = kMixEvery, named["MIXED"] = kMixed;
  named["GROWN"] = kGrown, named["RIDGE"] = kRidge, named["LEAST"] = kLeast, named["MOST"] = kMost;
  named["FURTHEST"] = kFurthest;
  named["FIRST_ESTIMATE"] = kFirstEstimate, named["ESTIMATE_EVERY"] = kEstimateEvery;
  named["STEP"] = kStep, named["DAMPING"] = kDamping, named["SLOWEST"] = kSlowest;
  named["TIE_BREAK"] = kTieBreak, named["NO_MASS"] = kNoMass;
  named["CLOSED_LEVEL"] = kClosedLevel, named["LEAST_WEIGHT"] = kLeastWeight;
  named["SAMPLE_EVERY"] = kSampleEvery, named["SAMPLE_MOST"] = kSampleMost;
  named["TOO_WIDE"] = kTooWide;
  named["STORED"] = nb::make_tuple("float32", "float16", "int16", "int8", "uint8");
  named["CENTROIDS"] = kCentroids;
  return named;
}

void bind_arguments(nb::module_& m) {
  nb::enum_<PlanKind>(m, "PlanKind")
      .value("entropic", PlanKind::entropic)
      .value("exact", PlanKind::exact)
      .value("maxsim", PlanKind::maxsim)
      .value("maxsim_query", PlanKind::maxsim_query)
      .value("votes", PlanKind::votes);
  nb::class_<SolverSettings>(m, "SolverSettings")
      .def("__init__",
           [](SolverSettings* self, PlanKind plan, double epsilon, double tolerance, int32_t max_iterations,
              double dustbin, bool open) {
             new (self) SolverSettings{plan, static_cast<float>(epsilon), static_cast<float>(tolerance), max_iterations,
                                       static_cast<float>(dustbin), open, nullptr, nullptr};
           },
           nb::kw_only(), nb::arg("plan"), nb::arg("epsilon"), nb::arg("tolerance"), nb::arg("max_iterations"),
           nb::arg("dustbin") = 0.0, nb::arg("open") = false);
  nb::class_<RegionArrays>(m, "StoredRegions")
      .def("__init__",
           [](RegionArrays* self, Stored values, Float2 pooled, std::optional<Float2> scale,
              std::optional<Byte3> centroids) { new (self) RegionArrays{values, pooled, scale, centroids}; },
           nb::kw_only(), nb::arg("values"), nb::arg("pooled"), nb::arg("scale").none() = nb::none(),
           nb::arg("centroids").none() = nb::none());
  nb::class_<IndexArrays>(m, "PairIndices")
      .def("__init__",
           [](IndexArrays* self, Long1 query_rows, Long1 gallery_rows) {
             new (self) IndexArrays{query_rows, gallery_rows};
           },
           nb::kw_only(), nb::arg("query_rows"), nb::arg("gallery_rows"));
  nb::class_<SlopeArrays>(m, "PairSlopes")
      .def("__init__",
           [](SlopeArrays* self, Float3 slope, Float1 weight, Float1 pooled_weight) {
             new (self) SlopeArrays{slope, weight, pooled_weight};
           },
           nb::kw_only(), nb::arg("slope"), nb::arg("weight"), nb::arg("pooled_weight"));
  nb::class_<ResultArrays>(m, "PairResults")
      .def("__init__",
           [](ResultArrays* self, OutFloat1 error, OutInt1 iterations, std::optional<OutFloat1> structural,
              std::optional<OutFloat1> pooled, std::optional<OutFloat3> plan, std::optional<OutFloat3> cosine) {
             new (self) ResultArrays{structural, pooled, error, iterations, plan, cosine};
           },
           nb::kw_only(), nb::arg("error"), nb::arg("iterations"), nb::arg("structural").none() = nb::none(),
           nb::arg("pooled").none() = nb::none(), nb::arg("plan").none() = nb::none(),
           nb::arg("cosine").none() = nb::none());
  nb::class_<WeightArrays>(m, "ScorerWeights")
      .def("__init__",
           [](WeightArrays* self, Float2 upper, Float2 inward, Float1 inward_bias, Float1 outward, double outward_bias,
              double height, double spread) {
             new (self) WeightArrays{upper, inward, inward_bias, outward, outward_bias, height, spread};
           },
           nb::kw_only(), nb::arg("upper"), nb::arg("inward"), nb::arg("inward_bias"), nb::arg("outward"),
           nb::arg("outward_bias"), nb::arg("height"), nb::arg("spread"));
  nb::class_<VoteArrays>(m, "VoteInputs")
      .def("__init__",
           [](VoteArrays* self, const WeightArrays& weights, Float2 over_length, Float2 dustbin) {
             new (self) VoteArrays{weights, over_length, dustbin};
           },
           nb::kw_only(), nb::arg("weights"), nb::arg("over_length"), nb::arg("dustbin"));
  nb::class_<ExactArrays>(m, "ExactResults")
      .def("__init__",
           [](ExactArrays* self, OutDouble3 plan, OutDouble2 potential_q, OutDouble2 potential_g, OutInt1 iterations) {
             new (self) ExactArrays{plan, potential_q, potential_g, iterations};
           },
           nb::kw_only(), nb::arg("plan"), nb::arg("potential_q"), nb::arg("potential_g"), nb::arg("iterations"));
}

}  // namespace
}  // namespace diml

NB_MODULE(_kernel, m) {
  using namespace diml;
  m.doc() = "Compiled kernel of diml.matching for the CPU; diml.matching.native calls it.";
  m.attr("CONSTANTS") = constants();
  bind_arguments(m);
  m.def("usable", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
    return names;
  }, "Instruction sets that were compiled and run on this processor, the fastest first.");
  m.def("dispatch", [] { return std::string(kernels_in_use().name); }, "The instruction set in use.");
  m.def("choose", &choose_kernels, nb::arg("name"), "Use another instruction set, for tests and benchmarks.");
  m.def("score", &score, nb::kw_only(), nb::arg("query"), nb::arg("gallery"), nb::arg("pairs"), nb::arg("uniform"),
        nb::arg("settings"), nb::arg("threads"), nb::arg("results"), nb::arg("votes").none() = nb::none());
  m.def("read", &read_images, nb::kw_only(), nb::arg("images"), nb::arg("rows"), nb::arg("weights"), nb::arg("threads"),
        nb::arg("over_length"), nb::arg("dustbin"));
  m.def("compare", &compare, nb::kw_only(), nb::arg("query"), nb::arg("gallery"), nb::arg("pairs"), nb::arg("uniform"),
        nb::arg("settings"), nb::arg("threads"), nb::arg("results"));
  m.def("solve", &solve, nb::kw_only(), nb::arg("cost"), nb::arg("mass_q"), nb::arg("mass_g"), nb::arg("settings"),
        nb::arg("threads"), nb::arg("results"));
  m.def("solve_exact", &solve_exact, nb::kw_only(), nb::arg("cost"), nb::arg("mass_q"), nb::arg("mass_g"),
        nb::arg("threads"), nb::arg("results"));
  m.def("accumulate_gradients", &accumulate_gradients, nb::kw_only(), nb::arg("slopes"), nb::arg("pairs"),
        nb::arg("partners"), nb::arg("as_query"), nb::arg("as_gallery"), nb::arg("threads"), nb::arg("gradient"));
  m.def("nearest", &nearest, nb::kw_only(), nb::arg("queries"), nb::arg("gallery"), nb::arg("excluded"),
        nb::arg("threads"), nb::arg("order"));
  m.def("exp2", &powers_of_two, nb::arg("from_"), nb::arg("to"));
}
