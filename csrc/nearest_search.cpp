#include "nearest_search.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "pool.hpp"
#include "tasks.hpp"

namespace diml {

namespace {

constexpr float kLongest = 32767;  // code of the longest vector's length, since one channel may hold all of it

// 32 bits that fall where scores rise; 0 and -0 are equal.
uint64_t falling(float score) {
  uint32_t bits;
  score += 0.0f;
  std::memcpy(&bits, &score, 4);
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

}  // namespace

NearestSearch::NearestSearch(const Kernels& kernels, const NearestProblem& problem)
    : kernels_(kernels), problem_(problem) {
  // a float32 sum of D products of unit vectors is wrong by less than (D + 1) * 2^-24; two scores by twice as much
  margin_ = 4.0f * static_cast<float>(problem.dim + 1) * 5.97e-8f;
  lists_.assign(problem.count, Shortlist{nullptr, nullptr, 0, 0, -INFINITY});
  memory_.resize(problem.count);
  for (int64_t query = 0; query < problem.count; ++query) resize(query, 2 * problem.depth + 64);
  thresholds_.assign(problem.count, -INFINITY);
  task_.pooled_q = problem.queries, task_.pooled_g = problem.gallery;
  task_.images = problem.images, task_.dim = problem.dim;
  task_.lists = lists_.data(), task_.thresholds = thresholds_.data();
  task_.depth = problem.depth, task_.guess = true;
  task_.compact = &NearestSearch::compact, task_.owner = this;
}

void NearestSearch::encode(int threads) {
  if (!kernels_.encode) return;
  const float longest_q = longest(problem_.queries, problem_.count);
  const float longest_g = longest(problem_.gallery, problem_.images);
  if (!(longest_q > 0 && longest_g > 0 && longest_q * longest_g < 1e30f)) return;
  task_.step_q = longest_q / kLongest, task_.step_g = longest_g / kLongest;
  const int64_t images = problem_.images, dim = problem_.dim, width = dim + dim % 2, piece = 1024;
  codes_.reset(new int16_t[images * width]);
  Pool::instance().run(
      (images + piece - 1) / piece, threads,
      [&](int64_t number, int) {
        for (int64_t row = number * piece; row < std::min(images, (number + 1) * piece); ++row) {
          kernels_.encode(problem_.gallery + row * dim, dim, 1.0f / task_.step_g, codes_.get() + row * width);
        }
      },
      [] { return false; });
  task_.codes_g = codes_.get();
  // a vector is wrong by at most half a step in each channel: |<q, g> - <q', g'>| <= |q - q'| |g| + |q'| |g - g'|
  const float wrong = 0.5f * std::sqrt(static_cast<float>(dim));
  const float error_q = wrong * task_.step_q, error_g = wrong * task_.step_g;
  margin_ += 2.02f * (error_q * longest_g + (longest_q + error_q) * error_g);
}

void NearestSearch::finish(int64_t query, int64_t* order, void* memory) {
  Shortlist& list = lists_[query];
  const int64_t dim = problem_.dim, wanted = problem_.depth;
  compact(this, query);
  if (list.guess != -INFINITY && !(list.count >= wanted && thresholds_[query] >= list.guess)) {  // guessed too high
    NearestTask again = task_;
    again.guess = false;
    list.count = 0, list.guess = thresholds_[query] = -INFINITY;
    kernels_.nearest(again, query, query + 1, memory);
    compact(this, query);
  }
  const std::vector<double> wide(problem_.queries + query * dim, problem_.queries + (query + 1) * dim);
  kernels_.exact_dots(wide.data(), problem_.gallery, dim, list.rows, list.count, list.scores);
  std::vector<uint64_t> found(list.count);  // the smaller the better
  for (int64_t x = 0; x < list.count; ++x) {
    found[x] = falling(list.scores[x]) << 32 | static_cast<uint64_t>(list.rows[x]);
  }
  std::sort(found.begin(), found.end());  // little more than `wanted`
  const int64_t depth = std::min(wanted, list.count);
  for (int64_t x = 0; x < wanted; ++x) order[x] = x < depth ? static_cast<int64_t>(found[x] & 0xffffffffu) : -1;
  memory_[query] = ListMemory{};
}

// Raises the threshold and drops what cannot be among the best any more; where nearly all scores tie, the list grows.
void NearestSearch::compact(void* owner, int64_t query) {
  NearestSearch& search = *static_cast<NearestSearch*>(owner);
  Shortlist& list = search.lists_[query];
  search.drop_excluded(query);
  if (list.count >= search.problem_.depth) {
    const float threshold = search.thresholds_[query] = search.reached_by(list) - search.margin_;
    int64_t kept = 0;
    for (int64_t x = 0; x < list.count; ++x) {  // without a branch, which could not be predicted
      list.scores[kept] = list.scores[x], list.rows[kept] = list.rows[x];
      kept += list.scores[x] >= threshold;
    }
    list.count = kept;
  }
  if (4 * list.count > 3 * list.capacity) search.resize(query, 2 * list.capacity);
}

void NearestSearch::resize(int64_t query, int64_t capacity) {
  ListMemory& memory = memory_[query];
  memory.scores.resize(capacity), memory.rows.resize(capacity);
  Shortlist& list = lists_[query];
  list.scores = memory.scores.data(), list.rows = memory.rows.data(), list.capacity = capacity;
}

void NearestSearch::drop_excluded(int64_t query) {
  Shortlist& list = lists_[query];
  for (int64_t x = 0; x < list.count; ++x) {
    if (list.rows[x] != problem_.excluded[query]) continue;
    std::copy(list.rows + x + 1, list.rows + list.count, list.rows + x);
    std::copy(list.scores + x + 1, list.scores + list.count, list.scores + x);
    --list.count;
    return;
  }
}

// A score that at least `depth` of the list reach, and few more: halving an interval is faster than sorting.
float NearestSearch::reached_by(const Shortlist& list) const {
  float low = list.scores[0], high = low;
  for (int64_t x = 1; x < list.count; ++x) low = std::min(low, list.scores[x]), high = std::max(high, list.scores[x]);
  const int64_t depth = problem_.depth, enough = depth + depth / 16;
  for (int step = 0; step < 24; ++step) {
    const float middle = low + 0.5f * (high - low);
    int32_t count = 0;
    for (int64_t x = 0; x < list.count; ++x) count += list.scores[x] >= middle;
    (count >= depth ? low : high) = middle;
    if (count >= depth && count <= enough) break;
  }
  return low;
}

// An upper bound of the lengths of the vectors; NaN if one holds a NaN.
float NearestSearch::longest(const float* vectors, int64_t count) const {
  const int64_t dim = problem_.dim;
  float most = 0;
  for (int64_t row = 0; row < count; ++row) {
    float part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    const float* at = vectors + row * dim;
    int64_t d = 0;
    for (; d + 8 <= dim; d += 8) {
      for (int x = 0; x < 8; ++x) part[x] += at[d + x] * at[d + x];
    }
    for (; d < dim; ++d) part[0] += at[d] * at[d];
    const float sum = std::accumulate(part, part + 8, 0.0f);
    if (most == most && !(sum <= most)) most = sum;  // a NaN stays
  }
  return std::sqrt(most) * 1.001f;
}

}  // namespace diml
