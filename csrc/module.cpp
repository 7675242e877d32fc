// diml.matching.native._kernel: the kernels for Python, on arrays given as DLPack or buffers. No torch headers.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
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

#include "pool.hpp"
#include "tasks.hpp"

namespace nb = nanobind;

namespace diml {
namespace {

template <typename T, typename... Shape>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Shape...>;
template <typename T, typename... Shape>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu, nb::ndim<3>>;
using Float1 = In<float, nb::ndim<1>>;
using Float2 = In<float, nb::ndim<2>>;
using Float3 = In<float, nb::ndim<3>>;
using Long1 = In<int64_t, nb::ndim<1>>;

bool runs_here(const Kernels* kernels) {
  if (!kernels) return false;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const std::string name = kernels->name;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (name == "avx2") return avx2;
  if (name == "avx512") {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return std::string(kernels->name) == "portable";
}

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : {kernels_avx512(), kernels_avx2(), kernels_portable()}) {
    if (runs_here(kernels)) found.push_back(kernels);
  }
  return found;  // the fastest first
}

const Kernels*& chosen() {
  static const Kernels* kernels = usable().front();
  return kernels;
}

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

// Whether Ctrl-C was pressed: the calling thread asks the interpreter every 100 ms, the others look at what it found.
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
};

Solver solver_of(double epsilon, double tolerance, int32_t max_iterations, Interruption& interruption) {
  return {static_cast<float>(epsilon), static_cast<float>(tolerance), max_iterations, &Interruption::look,
          &interruption};
}

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

// Pieces small enough that threads share the work evenly and Ctrl-C is noticed, whole groups of lanes each.
int64_t piece_of(int64_t count, int threads, int64_t work_of_one) {
  constexpr int64_t kGroup = 16, kMost = 100'000'000;  // about 30 ms of multiplications
  const int64_t even = count / (4 * std::max(1, threads)), most = kMost / std::max<int64_t>(1, work_of_one);
  return std::max<int64_t>(1, std::min(even, most) / kGroup) * kGroup;
}

Storage storage_of(const Any& dense) {
  if (dense.dtype() == nb::dtype<float>()) return Storage::float32;
  if (dense.dtype() == nb::dtype<int8_t>()) return Storage::int8;
  if (dense.dtype() == nb::dtype<int16_t>()) return Storage::int16;
  const bool half = dense.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float);
  need(half && dense.dtype().bits == 16, "dense_g: need float32, float16, int16 or int8");
  return Storage::float16;
}

using Numbers = Out<float, nb::ndim<1>>;

// The pairs of a task and where their numbers go.
void set_pairs(ScoreTask& task, const Long1& query_of, const Long1& image_of, const Numbers& structural,
               const Numbers& pooled, const Numbers& error, const Out<int32_t, nb::ndim<1>>& iterations) {
  for (size_t size : {query_of.size(), structural.size(), pooled.size(), error.size(), iterations.size()}) {
    need(size == image_of.size(), "query_of, image_of, outputs: need one number a pair");
  }
  task.query_of = query_of.data(), task.image_of = image_of.data();
  task.structural = structural.data(), task.pooled = pooled.data();
  task.error = error.data(), task.iterations = iterations.data();
}

void run_score(const ScoreTask& task, size_t count, size_t queries, size_t images, int threads,
               Interruption& interruption) {
  const int64_t pairs = static_cast<int64_t>(count);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    need(within(task.query_of[pair], queries), "query_of: no such row");
    need(within(task.image_of[pair], images), "image_of: no such row");
  }
  const Kernels& kernels = *chosen();
  const int64_t work = task.regions_q * task.regions_g * (task.dim + 32);
  in_pieces(pairs, piece_of(pairs, threads, work), threads, kernels.score_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.score(task, first, last, memory); });
}

void score(const Float3& dense_q, const Float2& pooled_q, const Any& dense_g, const std::optional<Float2>& scale_g,
           const Float2& pooled_g, const Long1& query_of, const Long1& image_of, bool uniform, double epsilon,
           double tolerance, int32_t max_iterations, int threads, const Numbers& structural, const Numbers& pooled,
           const Numbers& error, const Out<int32_t, nb::ndim<1>>& iterations) {
  ScoreTask task{};
  task.dense_q = dense_q.data(), task.pooled_q = pooled_q.data(), task.regions_q = dense_q.shape(1);
  task.dense_g = dense_g.data(), task.pooled_g = pooled_g.data(), task.regions_g = dense_g.shape(1);
  task.storage = storage_of(dense_g), task.dim = dense_q.shape(2);
  task.apart_q = task.regions_q * task.dim, task.apart_g = task.regions_g * task.dim;
  task.pooled_apart_q = task.pooled_apart_g = task.dim;
  task.scale_g = scale_g ? scale_g->data() : nullptr;
  task.uniform = uniform;
  set_pairs(task, query_of, image_of, structural, pooled, error, iterations);
  Interruption interruption;
  task.solver = solver_of(epsilon, tolerance, max_iterations, interruption);
  const size_t queries = dense_q.shape(0), images = dense_g.shape(0), dim = dense_q.shape(2);
  need(dense_g.shape(2) == dim && pooled_q.shape(1) == dim && pooled_g.shape(1) == dim, "dim: sides differ");
  need(pooled_q.shape(0) == queries, "queries: counts of dense_q and pooled_q differ");
  need(pooled_g.shape(0) == images, "gallery: counts of dense_g and pooled_g differ");
  const bool coded = task.storage == Storage::int8 || task.storage == Storage::int16;
  need(coded == scale_g.has_value(), "scale_g: need it for int8 and int16, and only there");
  if (scale_g) need(scale_g->shape(0) == images && scale_g->shape(1) == dense_g.shape(1), "scale_g: need (N, R)");
  run_score(task, image_of.size(), queries, images, threads, interruption);
}

// Pairs of images packed as R + 1 vectors, the pooled one last; with the plan of each, and its cosines if wanted.
void compare(const Float3& query, const Float3& gallery, const Long1& query_of, const Long1& image_of, bool uniform,
             double epsilon, double tolerance, int32_t max_iterations, int threads, const Numbers& structural,
             const Numbers& pooled, const Numbers& error, const Out<int32_t, nb::ndim<1>>& iterations,
             const Out<float, nb::ndim<3>>& plan, const std::optional<Out<float, nb::ndim<3>>>& cosine) {
  need(query.shape(1) >= 2 && gallery.shape(1) >= 2, "query, gallery: need regions and a pooled vector");
  need(query.shape(2) == gallery.shape(2), "dim: sides differ");
  ScoreTask task{};
  task.dim = query.shape(2), task.regions_q = query.shape(1) - 1, task.regions_g = gallery.shape(1) - 1;
  task.apart_q = task.pooled_apart_q = (task.regions_q + 1) * task.dim;
  task.apart_g = task.pooled_apart_g = (task.regions_g + 1) * task.dim;
  task.dense_q = query.data(), task.pooled_q = query.data() + task.regions_q * task.dim;
  task.dense_g = gallery.data(), task.pooled_g = gallery.data() + task.regions_g * task.dim;
  task.storage = Storage::float32, task.uniform = uniform;
  set_pairs(task, query_of, image_of, structural, pooled, error, iterations);
  Interruption interruption;
  task.solver = solver_of(epsilon, tolerance, max_iterations, interruption);
  task.plan = plan.data(), task.cosine = cosine ? cosine->data() : nullptr;
  const size_t cells = task.regions_q * task.regions_g;
  need(plan.size() == image_of.size() * cells, "plan: need (B, Rq, Rg)");
  if (cosine) need(cosine->size() == image_of.size() * cells, "cosine: need (B, Rq, Rg)");
  run_score(task, image_of.size(), query.shape(0), gallery.shape(0), threads, interruption);
}

// Gradients of images that are the first of their pairs where `first` names them, the second where `second` does; both
// where a batch is compared with itself. The partners' vectors are packed like the images'.
void pull(const Float3& slope, const Float1& weight, const Float1& pooled_weight, const Long1& query_of,
          const Long1& image_of, bool as_query, bool as_image, const Float3& partners, int threads,
          const Out<float, nb::ndim<3>>& gradient) {
  const size_t pairs = slope.shape(0), images = gradient.shape(0), others = partners.shape(0);
  const size_t rows = as_query ? 1 : 2, cols = 3 - rows;
  need(as_query || as_image, "as_query, as_image: need at least one");
  need(gradient.shape(1) == slope.shape(rows) + 1 && partners.shape(1) == slope.shape(cols) + 1, "regions: sides differ");
  need(!(as_query && as_image) || slope.shape(1) == slope.shape(2), "slope: a batch and itself have as many regions");
  need(gradient.shape(2) == partners.shape(2), "dim: sides differ");
  for (size_t size : {weight.size(), pooled_weight.size(), query_of.size(), image_of.size()}) {
    need(size == pairs, "weight, pooled_weight, query_of, image_of: need one number a pair");
  }
  std::vector<int64_t> begin(images + 1, 0);
  for (size_t pair = 0; pair < pairs; ++pair) {
    const int64_t query = query_of.data()[pair], image = image_of.data()[pair];
    need(within(query, as_query ? images : others) && within(query, as_image ? others : images), "query_of: no such row");
    need(within(image, as_image ? images : others) && within(image, as_query ? others : images), "image_of: no such row");
    if (as_query) ++begin[query + 1];
    if (as_image) ++begin[image + 1];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<Part> parts(begin.back());
  std::vector<int64_t> next(begin.begin(), begin.end() - 1);
  for (size_t pair = 0; pair < pairs; ++pair) {
    const int64_t query = query_of.data()[pair], image = image_of.data()[pair], number = static_cast<int64_t>(pair);
    if (as_query) parts[next[query]++] = Part{number, image, false};
    if (as_image) parts[next[image]++] = Part{number, query, true};
  }
  PullTask task{slope.data(), weight.data(), pooled_weight.data(), parts.data(), begin.data(), partners.data(), 0, 0, 0,
                gradient.data()};
  task.regions = gradient.shape(1) - 1, task.regions_other = partners.shape(1) - 1, task.dim = gradient.shape(2);
  const Kernels& kernels = *chosen();
  Interruption interruption;
  in_pieces(static_cast<int64_t>(images), 1, threads, kernels.pull_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.pull(task, first, last, memory); });
}

void solve(const Float3& cost, const Float2& mass_q, const Float2& mass_g, double epsilon, double tolerance,
           int32_t max_iterations, int threads, const std::optional<Out<float, nb::ndim<3>>>& plan,
           const Numbers& error, const Out<int32_t, nb::ndim<1>>& iterations) {
  SolveTask task{};
  task.cost = cost.data(), task.mass_q = mass_q.data(), task.mass_g = mass_g.data();
  task.regions_q = cost.shape(1), task.regions_g = cost.shape(2);
  const size_t pairs = cost.shape(0), rows = cost.shape(1), cols = cost.shape(2);
  need(rows >= 1 && cols >= 1, "regions: need at least 1");
  need(mass_q.shape(0) == pairs && mass_q.shape(1) == rows, "mass_q: need (B, Rq) as cost");
  need(mass_g.shape(0) == pairs && mass_g.shape(1) == cols, "mass_g: need (B, Rg) as cost");
  if (plan) need(plan->size() == cost.size(), "plan: need the size of cost");
  for (size_t size : {error.size(), iterations.size()}) {
    need(size == pairs, "outputs: need one number a pair");
  }
  Interruption interruption;
  task.solver = solver_of(epsilon, tolerance, max_iterations, interruption);
  task.plan = plan ? plan->data() : nullptr;
  task.error = error.data(), task.iterations = iterations.data();
  const Kernels& kernels = *chosen();
  const int64_t count = static_cast<int64_t>(pairs), work = task.regions_q * task.regions_g * 64;
  in_pieces(count, piece_of(count, threads, work), threads, kernels.solve_bytes(task), interruption,
            [&](int64_t first, int64_t last, void* memory) { kernels.solve(task, first, last, memory); });
}

// Shortlists of all queries of one call, and how they make room.
class Search {
 public:
  Search(const Kernels& kernels, const Float2& queries, const Float2& gallery, const Long1& excluded, int64_t depth)
      : kernels_(kernels), queries_(queries.data()), gallery_(gallery.data()), excluded_(excluded.data()), dim_(queries.shape(1)) {
    images_ = gallery.shape(0), depth_ = depth;
    // a float32 sum of D products of unit vectors is wrong by less than (D + 1) * 2^-24; two scores by twice as much
    margin_ = 4.0f * static_cast<float>(dim_ + 1) * 5.97e-8f;
    lists_.assign(queries.shape(0), Shortlist{nullptr, nullptr, 0, 0, -INFINITY});
    room_.resize(queries.shape(0));
    for (size_t query = 0; query < lists_.size(); ++query) resize(query, 2 * depth + 64);
    thresholds_.assign(lists_.size(), -INFINITY);
    task_ = NearestTask{queries_, gallery_, images_, dim_, nullptr, 0, 0, lists_.data(), thresholds_.data(),
                        depth,    true,     &Search::make_room, this};
  }

  // Screens by products of 16-bit integers: what they get wrong widens the margin, and the ranking is exact as before.
  void shorten(int threads) {
    if (!kernels_.shorten) return;
    const float longest_q = longest(queries_, static_cast<int64_t>(lists_.size())), longest_g = longest(gallery_, images_);
    if (!(longest_q > 0 && longest_g > 0 && longest_q * longest_g < 1e30f)) return;
    task_.step_q = longest_q / kLongest, task_.step_g = longest_g / kLongest;
    const int64_t width = dim_ + dim_ % 2, piece = 1024;
    brief_.reset(new int16_t[images_ * width]);
    Pool::instance().run(
        (images_ + piece - 1) / piece, threads,
        [&](int64_t number, int) {
          for (int64_t row = number * piece; row < std::min(images_, (number + 1) * piece); ++row) {
            kernels_.shorten(gallery_ + row * dim_, dim_, 1.0f / task_.step_g, brief_.get() + row * width);
          }
        },
        [] { return false; });
    task_.brief_g = brief_.get();
    // a vector is wrong by at most half a step in each channel: |<q, g> - <q', g'>| <= |q - q'| |g| + |q'| |g - g'|
    const float wrong = 0.5f * std::sqrt(static_cast<float>(dim_));
    const float error_q = wrong * task_.step_q, error_g = wrong * task_.step_g;
    margin_ += 2.02f * (error_q * longest_g + (longest_q + error_q) * error_g);
  }

  const NearestTask& task() const { return task_; }

  // Rows by falling score, summed in float64 and rounded to float32; equal scores by rising row; -1 at the end.
  void finish(int64_t query, int64_t* order, void* memory) {
    Shortlist& list = lists_[query];
    make_room(this, query);
    if (list.guess != -INFINITY && !(list.count >= depth_ && thresholds_[query] >= list.guess)) {  // guessed wrong
      NearestTask again = task_;
      again.guess = false;
      list.count = 0, list.guess = thresholds_[query] = -INFINITY;
      kernels_.nearest(again, query, query + 1, memory);
      make_room(this, query);
    }
    const std::vector<double> wide(queries_ + query * dim_, queries_ + (query + 1) * dim_);
    kernels_.exact_dots(wide.data(), gallery_, dim_, list.rows, list.count, list.scores);
    std::vector<uint64_t> found(list.count);  // the smaller the better
    for (int64_t x = 0; x < list.count; ++x) {
      found[x] = falling(list.scores[x]) << 32 | static_cast<uint64_t>(list.rows[x]);
    }
    std::sort(found.begin(), found.end());  // hardly more than depth
    const int64_t depth = std::min(depth_, list.count);
    for (int64_t x = 0; x < depth_; ++x) order[x] = x < depth ? static_cast<int64_t>(found[x] & 0xffffffffu) : -1;
    room_[query] = Room{};
  }

 private:
  struct Room {
    std::vector<float> scores;
    std::vector<int64_t> rows;
  };

  // 32 bits that fall where scores rise; 0 and -0 are the same.
  static uint64_t falling(float score) {
    uint32_t bits;
    score += 0.0f;
    std::memcpy(&bits, &score, 4);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
  }

  void resize(int64_t query, int64_t capacity) {
    Room& room = room_[query];
    room.scores.resize(capacity), room.rows.resize(capacity);
    Shortlist& list = lists_[query];
    list.scores = room.scores.data(), list.rows = room.rows.data(), list.capacity = capacity;
  }

  // Drops what cannot be among the best any more; where nearly all ties, the list grows instead.
  static void make_room(void* owner, int64_t query) {
    Search& search = *static_cast<Search*>(owner);
    Shortlist& list = search.lists_[query];
    search.drop_excluded(query);
    if (list.count >= search.depth_) {
      const float threshold = search.thresholds_[query] = search.reached_by(list) - search.margin_;
      int64_t kept = 0;
      for (int64_t x = 0; x < list.count; ++x) {  // without a branch, which could not be foreseen
        list.scores[kept] = list.scores[x], list.rows[kept] = list.rows[x];
        kept += list.scores[x] >= threshold;
      }
      list.count = kept;
    }
    if (4 * list.count > 3 * list.capacity) search.resize(query, 2 * list.capacity);
  }

  // A score that at least depth_ of the list reach, and hardly more: halving an interval is faster than to sort.
  float reached_by(const Shortlist& list) const {
    float low = list.scores[0], high = low;
    for (int64_t x = 1; x < list.count; ++x) low = std::min(low, list.scores[x]), high = std::max(high, list.scores[x]);
    const int64_t enough = depth_ + depth_ / 16;
    for (int step = 0; step < 24; ++step) {
      const float middle = low + 0.5f * (high - low);
      int32_t count = 0;
      for (int64_t x = 0; x < list.count; ++x) count += list.scores[x] >= middle;
      (count >= depth_ ? low : high) = middle;
      if (count >= depth_ && count <= enough) break;
    }
    return low;
  }

  void drop_excluded(int64_t query) {
    Shortlist& list = lists_[query];
    for (int64_t x = 0; x < list.count; ++x) {
      if (list.rows[x] != excluded_[query]) continue;
      std::copy(list.rows + x + 1, list.rows + list.count, list.rows + x);
      std::copy(list.scores + x + 1, list.scores + list.count, list.scores + x);
      --list.count;
      return;
    }
  }

  float longest(const float* vectors, int64_t count) const {
    float most = 0;
    for (int64_t row = 0; row < count; ++row) {
      float part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
      const float* at = vectors + row * dim_;
      int64_t d = 0;
      for (; d + 8 <= dim_; d += 8) {
        for (int x = 0; x < 8; ++x) part[x] += at[d + x] * at[d + x];
      }
      for (; d < dim_; ++d) part[0] += at[d] * at[d];
      const float sum = std::accumulate(part, part + 8, 0.0f);
      if (most == most && !(sum <= most)) most = sum;  // a NaN stays
    }
    return std::sqrt(most) * 1.001f;
  }

  static constexpr float kLongest = 32767;  // steps: a single channel may be as long as its vector

  const Kernels& kernels_;
  const float *queries_, *gallery_;
  const int64_t* excluded_;
  int64_t dim_, images_ = 0, depth_ = 0;
  float margin_ = 0;
  std::vector<Shortlist> lists_;
  std::vector<float> thresholds_;
  std::vector<Room> room_;
  std::unique_ptr<int16_t[]> brief_;
  NearestTask task_{};
};

void nearest(const Float2& queries, const Float2& gallery, const Long1& excluded, int threads,
             const Out<int64_t, nb::ndim<2>>& order) {
  need(queries.shape(1) == gallery.shape(1), "dim: sides differ");
  need(excluded.size() == queries.shape(0) && order.shape(0) == queries.shape(0), "queries: counts differ");
  need(order.shape(1) >= 1, "order: need a depth of at least 1");
  need(gallery.shape(0) < size_t{1} << 32, "gallery: need fewer than 2^32 rows");
  const Kernels& kernels = *chosen();
  const int64_t depth = order.shape(1), count = queries.shape(0), group = 32 * kernels.lanes;
  Search search(kernels, queries, gallery, excluded, depth);
  const int64_t all_panels = 2 * kernels.lanes * std::max(1, threads);  // whole panels of queries, as many for each thread
  const int64_t even = (count + all_panels - 1) / all_panels * 2 * kernels.lanes;
  search.shorten(threads);
  Interruption interruption;
  in_pieces(count, std::min(group, even), threads, kernels.nearest_bytes(search.task()), interruption,
            [&](int64_t first, int64_t last, void* memory) {
              kernels.nearest(search.task(), first, last, memory);
              for (int64_t query = first; query < last; ++query) {
                search.finish(query, order.data() + query * depth, memory);
              }
            });
}

void powers_of_two(const Float1& from, const Numbers& to) {
  need(from.size() == to.size(), "to: need the size of from");
  chosen()->exp2(from.data(), to.data(), static_cast<int64_t>(from.size()));
}

}  // namespace
}  // namespace diml

NB_MODULE(_kernel, m) {
  using namespace diml;
  m.doc() = "Compiled kernels of diml.matching for the CPU; diml.matching.native calls them.";
  m.attr("TOO_WIDE") = static_cast<int>(kTooWide);
  m.def("usable", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable()) names.emplace_back(kernels->name);
    return names;
  }, "Instruction sets that were compiled and run on this processor, the fastest first.");
  m.def("dispatch", [] { return std::string(chosen()->name); }, "The instruction set in use.");
  m.def("choose", [](const std::string& name) {
    for (const Kernels* kernels : usable()) {
      if (name == kernels->name) {
        chosen() = kernels;
        return;
      }
    }
    throw std::invalid_argument("name: not an instruction set of usable()");
  }, nb::arg("name"), "Use another instruction set, for tests and benchmarks.");
  m.def("score", &score, nb::arg("dense_q"), nb::arg("pooled_q"), nb::arg("dense_g"), nb::arg("scale_g").none(),
        nb::arg("pooled_g"), nb::arg("query_of"), nb::arg("image_of"), nb::arg("uniform"), nb::arg("epsilon"),
        nb::arg("tolerance"), nb::arg("max_iterations"), nb::arg("threads"), nb::arg("structural"), nb::arg("pooled"), nb::arg("error"),
        nb::arg("iterations"));
  m.def("compare", &compare, nb::arg("query"), nb::arg("gallery"), nb::arg("query_of"), nb::arg("image_of"),
        nb::arg("uniform"), nb::arg("epsilon"), nb::arg("tolerance"), nb::arg("max_iterations"), nb::arg("threads"),
        nb::arg("structural"), nb::arg("pooled"), nb::arg("error"), nb::arg("iterations"), nb::arg("plan"),
        nb::arg("cosine").none());
  m.def("pull", &pull, nb::arg("slope"), nb::arg("weight"), nb::arg("pooled_weight"), nb::arg("query_of"),
        nb::arg("image_of"), nb::arg("as_query"), nb::arg("as_image"), nb::arg("partners"), nb::arg("threads"),
        nb::arg("gradient"));
  m.def("solve", &solve, nb::arg("cost"), nb::arg("mass_q"), nb::arg("mass_g"), nb::arg("epsilon"),
        nb::arg("tolerance"), nb::arg("max_iterations"), nb::arg("threads"), nb::arg("plan").none(),
        nb::arg("error"), nb::arg("iterations"));
  m.def("nearest", &nearest, nb::arg("queries"), nb::arg("gallery"), nb::arg("excluded"), nb::arg("threads"),
        nb::arg("order"));
  m.def("exp2", &powers_of_two, nb::arg("from_"), nb::arg("to"));
}
