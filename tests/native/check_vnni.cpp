// Whether every instruction set gives the numbers of the portable one, up to rounding, and one with VNNI the same bits as
// without, on a processor that has it or in an emulated one (emulated_cpu.py): scores and plans of regions stored as
// float32, as int16 and as product codes ("1kb"), and products of stage 1. Needs no Python. Prints the instruction sets
// of this processor; exits with status 1 where a number differs or there is no VNNI to compare.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "tasks.hpp"

namespace {

using diml::Kernels;

uint32_t state = 1;
int drawn(int largest) {  // from -largest to largest
  state = state * 1664525u + 1013904223u;
  return (int)((state >> 8) % (2 * largest + 1)) - largest;
}

struct Memory {
  explicit Memory(int64_t bytes) : at(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
  ~Memory() { std::free(at); }
  void* at;
};

// Structural and pooled similarities, errors and plans of 3 queries and 20 images.
template <typename Code>
std::vector<float> scored(const Kernels& kernels, diml::Storage storage, int64_t rows, int64_t cols, int64_t dim,
                          diml::PlanKind plan, bool uniform = false) {
  constexpr int64_t kQueries = 3, kImages = 20, kWidth = 4;  // channels of a product code
  const int64_t groups = (dim + kWidth - 1) / kWidth, numbers = storage == diml::Storage::product ? groups : dim;
  state = (uint32_t)(rows * 1000 + dim);
  std::vector<float> query(kQueries * (rows + 1) * dim), pooled(kImages * dim), scale(kImages * cols, 0.15f / 32000);
  std::vector<Code> gallery(kImages * cols * numbers);
  std::vector<int8_t> centroids(groups * 256 * kWidth);
  for (float& number : query) number = (float)drawn(1000) / 20000;
  for (float& number : pooled) number = (float)drawn(1000) / 10000;
  const bool floats = storage == diml::Storage::float32;
  for (Code& code : gallery) code = (Code)(floats ? (float)drawn(1000) / 20000 : (float)drawn(32000));
  for (int8_t& number : centroids) number = (int8_t)drawn(127);
  std::vector<int64_t> query_rows, gallery_rows;
  for (int64_t pair = 0; pair < kQueries * kImages; ++pair) {
    query_rows.push_back(pair / kImages), gallery_rows.push_back(pair % kImages);
  }
  const int64_t pairs = (int64_t)query_rows.size();
  std::vector<float> results(pairs * (3 + rows * cols));
  std::vector<int32_t> iterations(pairs);
  float* const at = results.data();
  diml::ScoreTask task{};
  task.dim = dim;
  task.query = {query.data(), query.data() + rows * dim, rows, (rows + 1) * dim, (rows + 1) * dim};
  task.gallery = {gallery.data(), scale.data(), pooled.data(), storage, cols, cols * numbers, dim,
                  {centroids.data(), groups, kWidth}};
  task.pairs = {query_rows.data(), gallery_rows.data()};
  task.uniform = uniform;
  task.solver = {plan, 0.05f, 1e-6f, 100, 0.0f, false, [](void*) { return false; }, nullptr};
  task.results = {at, at + pairs, at + 2 * pairs, iterations.data(), at + 3 * pairs, nullptr};
  const Memory memory(kernels.score_bytes(task));
  kernels.score(task, 0, pairs, memory.at);
  return results;
}

// All products of the pooled vectors of 75 queries with those of 50 images, as stage 1 screens them.
std::vector<float> screened(const Kernels& kernels, int64_t dim) {
  constexpr int64_t kQueries = 75, kImages = 50;
  state = (uint32_t)dim;
  std::vector<float> query(kQueries * dim), found(kQueries * kImages);
  std::vector<float> thresholds(kQueries, -std::numeric_limits<float>::infinity());
  std::vector<int16_t> gallery(kImages * (dim + dim % 2));
  std::vector<int64_t> rows(kQueries * kImages);
  std::vector<diml::Shortlist> lists;
  for (float& number : query) number = (float)drawn(1000) / 10000;
  for (int16_t& code : gallery) code = (int16_t)drawn(10000);
  for (int64_t x = 0; x < kQueries; ++x) {
    lists.push_back({found.data() + x * kImages, rows.data() + x * kImages, 0, kImages, 0});
  }
  diml::NearestTask task{};
  task.pooled_q = query.data(), task.codes_g = gallery.data(), task.images = kImages, task.dim = dim;
  task.step_q = 1e-4f, task.step_g = 1e-5f;
  task.lists = lists.data(), task.thresholds = thresholds.data();
  const Memory memory(kernels.nearest_bytes(task));
  kernels.nearest(task, 0, kQueries, memory.at);
  return found;
}

// All of it, for one instruction set.
std::vector<float> everything(const Kernels& kernels) {
  diml::choose_kernels(kernels.name);
  std::vector<float> found;
  const auto keep = [&](const std::vector<float>& more) { found.insert(found.end(), more.begin(), more.end()); };
  for (const int64_t rows : {1, 4, 16, 17, 19, 49}) {
    for (const int64_t dim : {2, 30, 128}) {
      for (const diml::PlanKind plan : {diml::PlanKind::entropic, diml::PlanKind::maxsim}) {
        keep(scored<int16_t>(kernels, diml::Storage::int16, rows, rows + 3, dim, plan));
        keep(scored<uint8_t>(kernels, diml::Storage::product, rows, rows, dim, plan));
      }
    }
  }
  for (int64_t cols = 1; cols <= 24; ++cols) {  // tiles of every height, of one and of two vectors
    for (const int64_t rows : {5, 20}) {
      for (const bool uniform : {false, true}) {
        keep(scored<int16_t>(kernels, diml::Storage::int16, rows, cols, 6, diml::PlanKind::maxsim, uniform));
      }
    }
  }
  for (const int64_t dim : {2, 31, 128}) keep(screened(kernels, dim));
  return found;
}

// Scores, errors and plans that all instruction sets have to give, up to rounding.
std::vector<float> common(const Kernels& kernels) {
  diml::choose_kernels(kernels.name);
  std::vector<float> found;
  const auto keep = [&](const std::vector<float>& more) { found.insert(found.end(), more.begin(), more.end()); };
  for (const int64_t rows : {1, 4, 9, 16, 17, 18, 19, 49}) {
    for (const int64_t dim : {6, 130}) {
      keep(scored<float>(kernels, diml::Storage::float32, rows, rows + 3, dim, diml::PlanKind::entropic));
      keep(scored<int16_t>(kernels, diml::Storage::int16, rows, rows + 3, dim, diml::PlanKind::entropic));
    }
  }
  return found;
}

float largest_difference(const std::vector<float>& found, const std::vector<float>& expected) {
  float largest = 0;
  for (size_t x = 0; x < expected.size(); ++x) {
    const float here = std::fabs(found[x] - expected[x]);
    largest = here <= largest ? largest : here;  // also where it is not a number
  }
  return largest;
}

}  // namespace

int main() {
  int compared = 0, different = 0;
  for (const Kernels* kernels : diml::usable_kernels()) std::printf("usable: %s\n", kernels->name);
  const std::vector<float> expected = common(*diml::kernels_portable());
  for (const Kernels* kernels : diml::usable_kernels()) {
    if (kernels == diml::kernels_portable()) continue;
    const float found = largest_difference(common(*kernels), expected);
    std::printf("%s and portable: largest difference %.1e\n", kernels->name, found);
    different += found <= 1e-5f ? 0 : 1;
  }
  for (const Kernels* with : diml::usable_kernels()) {
    for (const Kernels* without : diml::usable_kernels()) {
      if (with->name != std::string(without->name) + "_vnni") continue;
      const std::vector<float> first = everything(*with), second = everything(*without);
      const bool same = first.size() == second.size() &&
                        std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0;
      double sum = 0;
      for (const float number : first) sum += number;
      std::printf("%s and %s: %zu numbers, sum %.6f, %s\n", with->name, without->name, first.size(), sum,
                  same ? "the same" : "DIFFERENT");
      compared += 1, different += same ? 0 : 1;
    }
  }
  if (compared == 0) std::printf("no instruction set with VNNI here\n");
  return compared == 0 || different > 0;
}
