// The search for nearest rows that is the same for all instruction sets: thresholds, shortlists and the final ranking.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tasks.hpp"

namespace diml {

struct NearestProblem {
  const float* queries;     // (Q, D)
  const float* gallery;     // (N, D), N < 2^32
  const int64_t* excluded;  // (Q,), a row that a query must not find, or -1
  int64_t count, images;    // Q, N
  int64_t dim;
  int64_t depth;            // rows wanted for each query
};

// Screening keeps every row whose approximate score is within a margin of the `depth`-th best; `finish` ranks these
// by exact scores, so that the result is that of a full sort.
class NearestSearch {
 public:
  NearestSearch(const Kernels& kernels, const NearestProblem& problem);

  // The task holds a pointer to this object.
  NearestSearch(const NearestSearch&) = delete;
  NearestSearch& operator=(const NearestSearch&) = delete;

  // Screen by products of 16-bit integers where they are faster. Their error widens the margin: the ranking is exact.
  void encode(int threads);

  const NearestTask& task() const { return task_; }

  // Writes a query's rows to `order` (depth,) by falling score, summed in float64 and rounded to float32; equal scores
  // by rising row; -1 at the end where no row is left. To be called after `nearest` of this query, with its `memory`.
  void finish(int64_t query, int64_t* order, void* memory);

 private:
  struct ListMemory {
    std::vector<float> scores;
    std::vector<int64_t> rows;
  };

  static void compact(void* owner, int64_t query);
  void resize(int64_t query, int64_t capacity);
  void drop_excluded(int64_t query);
  float reached_by(const Shortlist& list) const;
  float longest(const float* vectors, int64_t count) const;

  const Kernels& kernels_;
  const NearestProblem problem_;
  float margin_;  // by which the difference of two approximate scores can be wrong
  std::vector<Shortlist> lists_;
  std::vector<float> thresholds_;
  std::vector<ListMemory> memory_;
  std::unique_ptr<int16_t[]> codes_;
  NearestTask task_{};
};

}  // namespace diml
