// Scores, plans and gradients of the portable kernel, with and without dustbins, against plain loops in double: for
// compilers and processors for which there is no Python to test with. Prints the largest errors; exits with status 1
// where one is too large.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "tasks.hpp"

namespace {

using diml::Kernels;
using Floats = std::vector<float>;

struct Images {  // packed: R regions and the pooled vector
  int64_t count, regions, dim;
  Floats numbers;
  const float* vector(int64_t image, int64_t place) const { return &numbers[(image * (regions + 1) + place) * dim]; }
};

Images drawn(int64_t count, int64_t regions, int64_t dim, uint32_t seed) {
  Images made{count, regions, dim, Floats(count * (regions + 1) * dim)};
  for (int64_t start = 0; start < (int64_t)made.numbers.size(); start += dim) {
    double length = 0;
    for (int64_t d = 0; d < dim; ++d) {
      seed = seed * 1664525u + 1013904223u;
      made.numbers[start + d] = (float)(seed >> 8) / (1 << 24) - 0.3f;
      length += made.numbers[start + d] * made.numbers[start + d];
    }
    for (int64_t d = 0; d < dim; ++d) made.numbers[start + d] /= (float)std::sqrt(length);
  }
  return made;
}

double dot(const float* a, const float* b, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += (double)a[d] * b[d];
  return sum;
}

struct Bins {
  double mass;  // 0 for none
  bool open;
};

// The converged plan of a pair, and its structural similarity. Dustbins are one more row and column, at the mean cosine.
double solved(const Images& q, int64_t i, const Images& g, int64_t j, double epsilon, Bins bins,
              std::vector<double>& plan) {
  const int64_t rows = q.regions, cols = g.regions, wide = cols + 1;
  std::vector<double> cosine(rows * cols), a(rows + 1), b(wide), u(rows + 1, 1), v(wide, 1);
  double total_a = 0, total_b = 0;
  for (int64_t r = 0; r < rows; ++r) total_a += a[r] = std::max(0.0, dot(q.vector(i, r), g.vector(j, cols), q.dim));
  for (int64_t c = 0; c < cols; ++c) total_b += b[c] = std::max(0.0, dot(g.vector(j, c), q.vector(i, rows), q.dim));
  for (double& mass : a) mass /= total_a;
  for (double& mass : b) mass /= total_b;
  double level = 0;
  for (int64_t x = 0; x < rows * cols; ++x) {
    cosine[x] = dot(q.vector(i, x / cols), g.vector(j, x % cols), q.dim);
    level += a[x / cols] * b[x % cols] * cosine[x];
  }
  a[rows] = b[cols] = bins.mass;
  std::vector<double> kernel((rows + 1) * wide, bins.mass > 0 ? 1 : 0);
  for (int64_t x = 0; x < rows * cols; ++x) {
    kernel[x / cols * wide + x % cols] = std::exp((cosine[x] - level) / epsilon);
  }
  if (!bins.open) kernel.back() = 0;
  for (int sweep = 0; sweep < 500; ++sweep) {
    for (int64_t r = 0; r <= rows; ++r) {
      double sum = 1e-300;
      for (int64_t c = 0; c <= cols; ++c) sum += kernel[r * wide + c] * v[c];
      u[r] = a[r] / sum;
    }
    for (int64_t c = 0; c <= cols; ++c) {
      double sum = 1e-300;
      for (int64_t r = 0; r <= rows; ++r) sum += kernel[r * wide + c] * u[r];
      v[c] = b[c] / sum;
    }
  }
  double structural = 0;
  for (int64_t x = 0; x < rows * cols; ++x) {
    plan[x] = u[x / cols] * kernel[x / cols * wide + x % cols] * v[x % cols];
    structural += plan[x] * cosine[x];
  }
  return structural;
}

struct Memory {
  explicit Memory(int64_t bytes) : at(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
  ~Memory() { std::free(at); }
  void* at;
};

double worst_error(const Kernels& kernels, int64_t rows, int64_t cols, int64_t dim, Bins bins) {
  const Images q = drawn(3, rows, dim, 1), g = drawn(7, cols, dim, 2);
  const int64_t pairs = q.count * g.count, cells = rows * cols;
  std::vector<int64_t> query_rows(pairs), gallery_rows(pairs);
  for (int64_t pair = 0; pair < pairs; ++pair) query_rows[pair] = pair / g.count, gallery_rows[pair] = pair % g.count;
  Floats structural(pairs), pooled(pairs), error(pairs), plan(pairs * cells);
  std::vector<int32_t> iterations(pairs);
  diml::ScoreTask task{};
  const int64_t stride = (rows + 1) * dim, stride_g = (cols + 1) * dim;
  task.dim = dim;
  task.query = {q.vector(0, 0), q.vector(0, rows), rows, stride, stride};
  task.gallery = {g.vector(0, 0), nullptr, g.vector(0, cols), diml::Storage::float32, cols, stride_g, stride_g};
  task.pairs = {query_rows.data(), gallery_rows.data()};
  task.solver = {diml::PlanKind::entropic, 0.1f, 1e-6f, 1000, (float)bins.mass, bins.open,
                 [](void*) { return false; }, nullptr};
  task.results = {structural.data(), pooled.data(), error.data(), iterations.data(), plan.data(), nullptr};
  const Memory memory(kernels.score_bytes(task));
  kernels.score(task, 0, pairs, memory.at);
  double worst = 0;
  std::vector<double> exact(cells), gradient(q.count * (rows + 1) * dim);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t i = query_rows[pair], j = gallery_rows[pair];
    worst = std::max(worst, std::fabs(solved(q, i, g, j, 0.1, bins, exact) - structural[pair]));
    worst = std::max(worst, std::fabs(dot(q.vector(i, rows), g.vector(j, cols), dim) - pooled[pair]));
    for (int64_t x = 0; x < cells; ++x) {
      worst = std::max(worst, std::fabs(exact[x] - plan[pair * cells + x]));
      double* to = &gradient[(i * (rows + 1) + x / cols) * dim];
      for (int64_t d = 0; d < dim; ++d) to[d] += (double)plan[pair * cells + x] * g.vector(j, x % cols)[d];
    }
  }
  std::vector<diml::Contribution> contributions(pairs);
  std::vector<int64_t> begin(q.count + 1);
  for (int64_t pair = 0; pair < pairs; ++pair) contributions[pair] = {pair, gallery_rows[pair], false};
  for (int64_t image = 0; image <= q.count; ++image) begin[image] = image * g.count;
  Floats ones(pairs, 1.0f), nothing(pairs), found(gradient.size());
  const diml::GradientTask backward{plan.data(),     ones.data(), nothing.data(), contributions.data(), begin.data(),
                                    g.vector(0, 0), rows,        cols,           dim,                  found.data()};
  const Memory more(kernels.accumulate_gradients_bytes(backward));
  kernels.accumulate_gradients(backward, 0, q.count, more.at);
  for (size_t x = 0; x < found.size(); ++x) worst = std::max(worst, std::fabs(gradient[x] - found[x]));
  return worst;
}

}  // namespace

int main() {
  double worst = 0;
  for (const auto& [rows, cols, dim] : {std::array<int64_t, 3>{16, 16, 24}, {5, 9, 7}, {1, 3, 2}, {49, 49, 16}}) {
    double error = 0;
    for (Bins bins : {Bins{0, false}, Bins{0.3, false}, Bins{1, true}}) {
      error = std::max(error, worst_error(*diml::kernels_portable(), rows, cols, dim, bins));
    }
    std::printf("%2d x %2d regions, %2d channels: largest error %.1e\n", (int)rows, (int)cols, (int)dim, error);
    worst = std::max(worst, error);
  }
  return worst <= 1e-5 ? 0 : 1;
}
