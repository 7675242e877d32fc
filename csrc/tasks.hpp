// What the kernel is asked to do: plain structures, filled by module.cpp and read by the code of each instruction set.
//
// Legend: Q queries, N images of the gallery, B pairs, R regions, D channels, W pairs side by side.
// Arrays are C-contiguous unless a stride is given; strides count elements.
#pragma once

#include <cstdint>

namespace diml {

enum class Storage : int { float32 = 0, float16 = 1, int8 = 2, int16 = 3 };

// Of the 16-bit integers that stand for a query whose gallery is stored as int16: SHORTS_PER_UNIT of regions.py.
constexpr float kShortsPerUnit = 32000.0f, kShortStep = 1.0f / kShortsPerUnit;

// When the transport problem of a pair is done, see sinkhorn.py, whose constants these are.
struct Solver {
  float epsilon;
  float tolerance;
  int32_t max_iterations;
  bool (*stop)(void* owner);  // asked now and then: whether to leave off, with results that nobody will look at
  void* owner;
};

// A pair whose costs span more than the plain kernel can hold is left to the caller, with this many iterations.
constexpr int32_t kTooWide = -1;

// Pairs of embedded images: pair p is query query_of[p] against gallery image image_of[p].
struct ScoreTask {
  const float* dense_q;   // (Q, Rq, D), queries `apart_q` numbers apart
  const float* pooled_q;  // (Q, D), `pooled_apart_q` numbers apart
  int64_t regions_q, apart_q, pooled_apart_q;
  const void* dense_g;    // (N, Rg, D) as stored, images `apart_g` apart
  const float* scale_g;   // (N, Rg), int8 and int16 only
  const float* pooled_g;  // (N, D), `pooled_apart_g` apart
  Storage storage;
  int64_t regions_g, apart_g, pooled_apart_g;
  int64_t dim;
  const int64_t* query_of;  // (B,), those of one query side by side
  const int64_t* image_of;  // (B,)
  bool uniform;             // weights 1 / R in place of cross-correlation
  Solver solver;
  float* structural;    // (B,)
  float* pooled;        // (B,)
  float* error;         // (B,) marginal error
  int32_t* iterations;  // (B,)
  float* plan;          // (B, Rq, Rg); may be null
  float* cosine;        // (B, Rq, Rg); may be null
};

// Pairs whose costs are known, which stand for cosines with the sign turned.
struct SolveTask {
  const float* cost;    // (B, Rq, Rg)
  const float* mass_q;  // (B, Rq), non-negative
  const float* mass_g;  // (B, Rg)
  int64_t regions_q;
  int64_t regions_g;
  Solver solver;
  float* error;         // (B,)
  int32_t* iterations;  // (B,)
  float* plan;          // (B, Rq, Rg); may be null
};

// One image's part in a pair: whose slopes, read by columns where the image is the second of its pair; and its partner.
struct Part {
  int64_t pair;
  int64_t other;
  bool turned;
};

// Gradients of images of one side, packed as R + 1 vectors with the pooled one last: for each of its parts, slopes
// times the partner's regions, and the partner's pooled vector.
struct PullTask {
  const float* slope;          // (B, Rq, Rg), what a cosine moves the value of its pair by
  const float* weight;         // (B,) of the slopes of each pair
  const float* pooled_weight;  // (B,) of the pooled cosine
  const Part* parts;
  const int64_t* begin;        // (N + 1,), parts of image n are begin[n]..begin[n + 1]
  const float* vectors;        // (M, R' + 1, D), the partners
  int64_t regions;             // R of the images
  int64_t regions_other;       // R'
  int64_t dim;
  float* gradient;             // (N, R + 1, D)
};

// The best gallery rows of queries by dot product: everything that may be among the `depth` best.
struct Shortlist {
  float* scores;
  int64_t* rows;
  int64_t count;
  int64_t capacity;
  float guess;  // the first threshold if it was guessed, else -infinity
};

struct NearestTask {
  const float* pooled_q;  // (Q, D)
  const float* pooled_g;  // (N, D)
  int64_t images;         // N
  int64_t dim;
  const int16_t* brief_g;  // (N, up to even D) gallery as 16-bit integers of step `step_g`, or null: float32 is used
  float step_q, step_g;
  Shortlist* lists;   // (Q,)
  float* thresholds;  // (Q,): only scores at or above are kept
  int64_t depth;      // wanted of each query
  bool guess;         // begin with thresholds that a sample of the gallery suggests: lists that end below lack rows
  void (*make_room)(void* owner, int64_t query);  // called when a list is full
  void* owner;
};

// One instruction set.
struct Kernels {
  const char* name;
  int lanes;
  int64_t (*score_bytes)(const ScoreTask&);  // working memory of one thread
  void (*score)(const ScoreTask&, int64_t first, int64_t last, void* memory);  // pairs first..last
  int64_t (*solve_bytes)(const SolveTask&);
  void (*solve)(const SolveTask&, int64_t first, int64_t last, void* memory);
  int64_t (*pull_bytes)(const PullTask&);
  void (*pull)(const PullTask&, int64_t first, int64_t last, void* memory);  // images first..last
  int64_t (*nearest_bytes)(const NearestTask&);
  void (*nearest)(const NearestTask&, int64_t first, int64_t last, void* memory);  // queries first..last
  // dot products of a vector with `count` of the rows, summed in float64 and rounded to float32
  void (*exact_dots)(const double* vector, const float* vectors, int64_t dim, const int64_t* rows, int64_t count,
                     float* to);
  // numbers * per_unit to the nearest integer, `dim` of them and a 0 behind an odd one; null: 16 bits are no gain
  void (*shorten)(const float* from, int64_t dim, float per_unit, int16_t* to);
  void (*exp2)(const float* from, float* to, int64_t count);  // for tests of its accuracy
};

const Kernels* kernels_portable();
const Kernels* kernels_avx2();    // null where it was not compiled
const Kernels* kernels_avx512();  // null where it was not compiled

}  // namespace diml
