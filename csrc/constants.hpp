// Numbers that the kernel and the torch path must agree on. bindings.cpp exports them as CONSTANTS, and
// tests/unit/matching/test_native.py compares each with its twin in regions.py or transport.py.
#pragma once

#include <cstdint>

namespace diml {

// 16-bit codes: the code of length 1, and the longest vector of codes, whose products still sum to less than 2^31.
constexpr float kShortsPerUnit = 32000.0f;
constexpr float kCodeStep = 1.0f / kShortsPerUnit;
constexpr int32_t kLongestCode = 46340;
static_assert(int64_t{kLongestCode} * kLongestCode < int64_t{1} << 31, "dot products of codes must fit in 32 bits");

// Centroids of a group of channels, numbered by one byte.
constexpr int64_t kCentroids = 256;

// The most channels whose products with a query's codes still sum to less than 2^31, with centroids of 8 bits.
constexpr int64_t kMostChannels = 130000;
static_assert(kMostChannels * 127 * 127 <= int64_t{kLongestCode} * kLongestCode, "dot products must fit in 32 bits");

// Largest range of cost / epsilon that exp(-cost / epsilon) and the scaling vectors can hold in float32. A pair whose
// costs span more is left to the caller, with this number of iterations.
constexpr float kPlainRange = 41.0f;
constexpr int32_t kTooWide = -1;

// Anderson's acceleration: iterations that are mixed, one in how many is, over how many changes; error growth at which
// the changes are discarded; share of the trace added to the diagonal; bounds of a residual and of a correction.
constexpr int kMixing = 100, kMixEvery = 2, kMixed = 4;
constexpr float kGrown = 1.5f, kRidge = 1e-6f, kLeast = -0.75f, kMost = 2.0f, kFurthest = 1.0f;

// Over-relaxation: iterations before the first estimate of the rate of convergence and between later ones; bound of a
// step; damping where the error grew; slowest rate that the relaxation is tuned for.
constexpr int kFirstEstimate = 4, kEstimateEvery = 4;
constexpr float kStep = 0.5f, kDamping = 0.7f, kSlowest = 0.9999f;

// Exact plans: perturbation of the costs, as a share of their range, that settles ties; mass that counts as none.
constexpr double kTieBreak = 1e-10, kNoMass = 1e-13;

// Exact plans with closed dustbins: their cost, between the lowest of the regions (0) and the mean (1); a good start.
constexpr double kClosedLevel = 0.7;

// Votes: weight of a region that disagrees with the other image as a whole.
constexpr float kLeastWeight = 1e-6f;

// Nearest rows: one gallery row in this many is sampled to guess thresholds, and at most kSampleMost altogether.
constexpr int64_t kSampleEvery = 16, kSampleMost = 2048;

}  // namespace diml
