// Whether an instruction set with VNNI gives the same bits as without, on a processor that has it: scores of regions in 16
// and 8 bits. Needs no Python. Prints the instruction sets of this processor; exits with status 1 where a number differs
// or there is nothing to compare.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

// Structural and pooled similarities, errors and plans of 3 queries and 20 images, as bytes.
template <typename Code>
std::vector<float> scored(const Kernels& kernels, diml::Storage storage, int largest, int64_t rows, int64_t cols,
                          int64_t dim, diml::PlanKind plan) {
  constexpr int64_t kQueries = 3, kImages = 20;
  state = (uint32_t)(rows * 1000 + dim);
  std::vector<float> query(kQueries * (rows + 1) * dim), pooled(kImages * dim), scale(kImages * cols);
  std::vector<Code> gallery(kImages * cols * dim);
  for (float& number : query) number = (float)drawn(1000) / 20000;
  for (float& number : pooled) number = (float)drawn(1000) / 10000;
  for (Code& code : gallery) code = (Code)drawn(largest);
  for (float& number : scale) number = 0.15f / (float)largest;
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
  task.gallery = {gallery.data(), scale.data(), pooled.data(), storage, cols, cols * dim, dim, {}};
  task.pairs = {query_rows.data(), gallery_rows.data()};
  task.solver = {plan, 0.05f, 1e-6f, 100, 0.0f, false, [](void*) { return false; }, nullptr};
  task.results = {at, at + pairs, at + 2 * pairs, iterations.data(), at + 3 * pairs, nullptr};
  const Memory memory(kernels.score_bytes(task));
  kernels.score(task, 0, pairs, memory.at);
  return results;
}

// All of it, for one instruction set.
std::vector<float> everything(const Kernels& kernels) {
  diml::choose_kernels(kernels.name);
  std::vector<float> found;
  const auto keep = [&](const std::vector<float>& more) { found.insert(found.end(), more.begin(), more.end()); };
  for (const int64_t rows : {1, 4, 16, 17, 49}) {
    for (const int64_t dim : {2, 30, 128}) {
      for (const diml::PlanKind plan : {diml::PlanKind::entropic, diml::PlanKind::maxsim}) {
        keep(scored<int16_t>(kernels, diml::Storage::int16, 32000, rows, rows + 3, dim, plan));
        keep(scored<int8_t>(kernels, diml::Storage::int8, 127, rows, rows, dim, plan));
      }
    }
  }
  return found;
}

}  // namespace

int main() {
  int compared = 0, different = 0;
  for (const Kernels* kernels : diml::usable_kernels()) std::printf("usable: %s\n", kernels->name);
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
