// What the kernel can be asked to do: plain structures that bindings.cpp fills and the code of each instruction set
// reads.
//
// Legend: Q queries, N gallery images, B pairs, R regions, D channels, W SIMD lanes (one pair each).
// Arrays are C-contiguous unless a stride is given; strides count elements.
#pragma once

#include <cstdint>

namespace diml {

// Element types of stored regions.
enum class Storage : int { float32 = 0, float16 = 1, int8 = 2, int16 = 3, product = 4 };

// What codes of one byte stand for: `width` neighbouring channels of a region each, the last code maybe fewer, as integers
// that are brought to unit length.
struct Centroids {
  const int8_t* values;  // (S, kCentroids, width); null for other types of storage
  int64_t groups, width;
};

// How the plan of a pair is made. Further kinds get a value here and a branch where score.hpp calls `solve_entropic`.
enum class PlanKind : int { entropic = 0, exact = 1, maxsim = 2, maxsim_query = 3, votes = 4 };

struct SolverSettings {
  PlanKind plan;    // only the entropic plan needs the three numbers
  float epsilon;    // of votes: the temperature
  float tolerance;  // marginal error at which a pair is done
  int32_t max_iterations;
  float dustbin;    // mass of a dustbin on either side, which takes what is not transported; 0: all mass is
  bool open;        // dustbins may send to each other, and cost what the threshold of a pair says (share "auto")
  bool (*cancelled)(void* owner);  // asked now and then: whether to stop, with results that the caller discards
  void* owner;
};

struct QueryRegions {
  const float* dense;   // (Q, R, D), queries `stride` apart
  const float* pooled;  // (Q, D), `pooled_stride` apart
  int64_t regions, stride, pooled_stride;
};

struct StoredRegions {
  const void* dense;    // (N, R, D) of type `storage`, or (N, R, S) codes; images `stride` apart
  const float* scale;   // (N, R), int8 and int16 only
  const float* pooled;  // (N, D), `pooled_stride` apart
  Storage storage;
  int64_t regions, stride, pooled_stride;
  Centroids centroids;  // of codes
};

// Pair p is query query_rows[p] against gallery image gallery_rows[p]; pairs of one query should be adjacent.
struct PairIndices {
  const int64_t* query_rows;    // (B,)
  const int64_t* gallery_rows;  // (B,)
};

struct PairResults {
  float* structural;    // (B,); null for given costs
  float* pooled;        // (B,); null for given costs
  float* error;         // (B,) marginal error
  int32_t* iterations;  // (B,)
  float* plan;          // (B, Rq, Rg); may be null
  float* cosine;        // (B, Rq, Rg); may be null
};

// The weights of a learned scorer: its map by the triangular factor U of that, under which lengths and cosines are the
// same; and the network that reads the height of a dustbin off a mapped region.
struct ScorerWeights {
  const float* upper;        // (E, D), zero left of the diagonal
  const float* inward;       // (h, D) first layer of the network, after the map
  const float* inward_bias;  // (h,)
  const float* outward;      // (h,) second layer
  int64_t rows, hidden;      // E, h
  float outward_bias;
  float height, spread;      // a dustbin is height + spread * tanh(what was read)
};

// What votes need. Queries are mapped by U'U and divided by their lengths under U, so that a product with a region of the
// gallery as it is stored, over the length of that, is the cosine under the map.
struct VoteInputs {
  ScorerWeights weights;
  const float* over_length;  // (N, R + 1) of the gallery: 1 / length under U, the pooled vector last
  const float* dustbin;      // (N, R) heights, in units of cosine
};

// Score pairs of embedded images.
struct ScoreTask {
  QueryRegions query;
  StoredRegions gallery;
  int64_t dim;
  PairIndices pairs;
  bool uniform;  // weights 1 / R instead of cross-correlation
  SolverSettings solver;
  PairResults results;
  VoteInputs votes;
};

// Read off images what `VoteInputs` has of the gallery.
struct ReadTask {
  StoredRegions images;
  int64_t dim;
  const int64_t* rows;  // images to read
  ScorerWeights weights;
  float* over_length;   // (N, R + 1), written at `rows`
  float* dustbin;       // (N, R)
};

// Solve pairs whose costs are given. The solver works on cosines, so costs are read with the opposite sign.
struct SolveTask {
  const float* cost;    // (B, Rq, Rg)
  const float* mass_q;  // (B, Rq), non-negative
  const float* mass_g;  // (B, Rg)
  int64_t regions_q;
  int64_t regions_g;
  SolverSettings solver;
  PairResults results;
};

// Solve pairs whose costs are given exactly, in double.
struct ExactTask {
  const double* cost;    // (B, Rq, Rg)
  const double* mass_q;  // (B, Rq), non-negative
  const double* mass_g;  // (B, Rg)
  int64_t regions_q;
  int64_t regions_g;
  SolverSettings solver;
  double* plan;                       // (B, Rq, Rg)
  double *potential_q, *potential_g;  // (B, Rq) and (B, Rg) dual prices
  int32_t* iterations;                // (B,) shortest paths
};

// One pair's contribution to the gradient of an image: the pair, the image's partner in it, and whether the image is
// the second of the pair, so that the slopes are read by columns.
struct Contribution {
  int64_t pair;
  int64_t partner;
  bool transposed;
};

// Gradients of images of one side, packed as R + 1 vectors, the pooled one last: the sum over an image's pairs of
// weighted slopes times the partner's regions, and of pooled weights times the partner's pooled vector.
struct GradientTask {
  const float* slope;          // (B, Rq, Rg), derivative of a pair's value by each cosine
  const float* weight;         // (B,) factor of the slopes of each pair
  const float* pooled_weight;  // (B,) factor of the pooled cosine
  const Contribution* contributions;
  const int64_t* begin;        // (N + 1,), contributions to image n are begin[n]..begin[n + 1]
  const float* partners;       // (M, R' + 1, D)
  int64_t regions;             // R of the images
  int64_t regions_partner;     // R'
  int64_t dim;
  float* gradient;             // (N, R + 1, D)
};

// Candidates of one query: every gallery row that may be among its `depth` best.
struct Shortlist {
  float* scores;
  int64_t* rows;
  int64_t count;
  int64_t capacity;
  float guess;  // the first threshold where it was guessed, else -infinity
};

// Find the gallery rows with the largest dot products.
struct NearestTask {
  const float* pooled_q;   // (Q, D)
  const float* pooled_g;   // (N, D)
  int64_t images;          // N
  int64_t dim;
  const int16_t* codes_g;  // (N, D rounded up to even) gallery as 16-bit integers of step `step_g`; null: use float32
  float step_q, step_g;
  Shortlist* lists;        // (Q,)
  float* thresholds;       // (Q,), only scores at or above are kept
  int64_t depth;           // rows wanted for each query
  bool guess;              // start from thresholds guessed from a sample; lists that end below theirs lack rows
  void (*compact)(void* owner, int64_t query);  // called when a list is full
  void* owner;
};

// Whether instructions of VNNI are in use, for sums of products of 16-bit integers; `choose_kernels` sets it.
extern bool vnni_in_use;

// The functions of one instruction set. `..._bytes` is the working memory that one thread needs for a task.
struct Kernels {
  const char* name;
  bool vnni;  // to be used with `vnni_in_use`
  int lanes;
  int64_t (*score_bytes)(const ScoreTask&);
  void (*score)(const ScoreTask&, int64_t first, int64_t last, void* memory);  // pairs first..last
  int64_t (*read_bytes)(const ReadTask&);
  void (*read)(const ReadTask&, int64_t first, int64_t last, void* memory);  // of `rows`, first..last
  int64_t (*solve_bytes)(const SolveTask&);
  void (*solve)(const SolveTask&, int64_t first, int64_t last, void* memory);  // pairs first..last
  int64_t (*solve_exact_bytes)(const ExactTask&);
  void (*solve_exact)(const ExactTask&, int64_t first, int64_t last, void* memory);  // pairs first..last
  int64_t (*accumulate_gradients_bytes)(const GradientTask&);
  void (*accumulate_gradients)(const GradientTask&, int64_t first, int64_t last, void* memory);  // images first..last
  int64_t (*nearest_bytes)(const NearestTask&);
  void (*nearest)(const NearestTask&, int64_t first, int64_t last, void* memory);  // queries first..last
  // dot products of a vector with `count` of the rows, summed in float64 and rounded to float32
  void (*exact_dots)(const double* vector, const float* vectors, int64_t dim, const int64_t* rows, int64_t count,
                     float* to);
  // values * per_unit to the nearest integer, D of them and a 0 after an odd D; null: 16-bit products are not faster
  void (*encode)(const float* from, int64_t dim, float per_unit, int16_t* to);
  void (*exp2)(const float* from, float* to, int64_t count);  // for tests of its accuracy
};

const Kernels* kernels_portable();
const Kernels* kernels_avx2();         // null where it was not compiled, as the following
const Kernels* kernels_avx2_vnni();    // the same functions, with `vnni_in_use`
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_vnni();

}  // namespace diml
