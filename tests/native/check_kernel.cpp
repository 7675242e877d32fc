// Scores, plans and gradients of the portable kernel, with and without dustbins, and by votes, against plain loops in
// double: for compilers and processors for which there is no Python to test with. Prints the largest errors; exits with
// status 1 where one is too large.

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

constexpr double kTemperature = 0.1;

// A scorer whose map is upper triangular, as the kernel takes it.
struct Scorer {
  int64_t dim, rows, hidden = 3;
  Floats upper, inward, inward_bias{0.1f, -0.2f, 0.0f}, outward{0.5f, -1.0f, 0.7f};

  Scorer(int64_t dim, int64_t rows) : dim(dim), rows(rows), upper(rows * dim), inward(hidden * dim) {
    const Images numbers = drawn(1, rows + hidden, dim, 3);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t d = r; d < dim; ++d) upper[r * dim + d] = numbers.vector(0, r)[d] + (d == r ? 1.0f : 0.0f);
    }
    for (int64_t x = 0; x < hidden * dim; ++x) inward[x] = numbers.vector(0, rows)[x];
  }
  diml::ScorerWeights weights() const {
    return {upper.data(), inward.data(), inward_bias.data(), outward.data(), rows, hidden, 0.05f, 0.3f, 0.2f};
  }
  std::vector<double> mapped(const float* vector) const {
    std::vector<double> found(rows);
    double square = 0;
    for (int64_t r = 0; r < rows; ++r) square += std::pow(found[r] = dot(&upper[r * dim], vector, dim), 2);
    for (double& number : found) number /= std::sqrt(square);
    return found;
  }
  double length(const float* vector) const {
    double square = 0;
    for (int64_t r = 0; r < rows; ++r) square += std::pow(dot(&upper[r * dim], vector, dim), 2);
    return std::sqrt(square);
  }
  double dustbin(const float* region) const {
    double read = 0.05;
    for (int64_t k = 0; k < hidden; ++k) {
      const double in = dot(&inward[k * dim], region, dim) / length(region) + inward_bias[k];
      read += outward[k] * 0.5 * in * (1 + std::erf(in / std::sqrt(2.0)));
    }
    return 0.3f + 0.2f * std::tanh(read);
  }
};

double likeness(double cosine) { return std::exp((cosine - 1) / kTemperature); }

// The votes of a pair, and their structural similarity.
double voted(const Scorer& scorer, const Images& q, int64_t i, const Images& g, int64_t j, std::vector<double>& plan) {
  const auto cosine = [&](const float* a, const float* b) {
    const std::vector<double> first = scorer.mapped(a), second = scorer.mapped(b);
    double sum = 0;
    for (size_t r = 0; r < first.size(); ++r) sum += first[r] * second[r];
    return sum;
  };
  const int64_t rows = q.regions, cols = g.regions;
  std::vector<double> cosines(rows * cols), a(rows), b(cols), of_rows(rows), of_cols(cols);
  double total_a = 0, total_b = 0, structural = 0;
  for (int64_t r = 0; r < rows; ++r) {
    total_a += a[r] = std::max(0.0, cosine(q.vector(i, r), g.vector(j, cols))) + 1e-6;
    of_rows[r] = likeness(scorer.dustbin(q.vector(i, r)));
  }
  for (int64_t c = 0; c < cols; ++c) {
    total_b += b[c] = std::max(0.0, cosine(g.vector(j, c), q.vector(i, rows))) + 1e-6;
    of_cols[c] = likeness(scorer.dustbin(g.vector(j, c)));
  }
  for (int64_t x = 0; x < rows * cols; ++x) {
    cosines[x] = cosine(q.vector(i, x / cols), g.vector(j, x % cols));
    of_rows[x / cols] += likeness(cosines[x]), of_cols[x % cols] += likeness(cosines[x]);
  }
  for (int64_t x = 0; x < rows * cols; ++x) {
    const double units = a[x / cols] / total_a / of_rows[x / cols] + b[x % cols] / total_b / of_cols[x % cols];
    plan[x] = 0.5 * likeness(cosines[x]) * units;
    structural += plan[x] * cosines[x];
  }
  return structural;
}

double worst_error_of_votes(const Kernels& kernels, int64_t rows, int64_t cols, int64_t dim) {
  const Images q = drawn(3, rows, dim, 1), g = drawn(7, cols, dim, 2);
  const Scorer scorer(dim, std::max<int64_t>(1, dim - 1));
  const int64_t pairs = q.count * g.count, cells = rows * cols;
  std::vector<int64_t> query_rows(pairs), gallery_rows(pairs), every(g.count);
  for (int64_t pair = 0; pair < pairs; ++pair) query_rows[pair] = pair / g.count, gallery_rows[pair] = pair % g.count;
  for (int64_t image = 0; image < g.count; ++image) every[image] = image;
  const int64_t stride = (rows + 1) * dim, stride_g = (cols + 1) * dim;
  const diml::StoredRegions gallery{g.vector(0, 0), nullptr, g.vector(0, cols), diml::Storage::float32, cols, stride_g,
                                    stride_g};
  Floats over_length(g.count * (cols + 1)), dustbin(g.count * cols);
  const diml::ReadTask read{gallery, dim, every.data(), scorer.weights(), over_length.data(), dustbin.data()};
  const Memory space(kernels.read_bytes(read));
  kernels.read(read, 0, g.count, space.at);
  double worst = 0;
  for (int64_t image = 0; image < g.count; ++image) {
    for (int64_t c = 0; c <= cols; ++c) {
      const double length = scorer.length(g.vector(image, c));
      worst = std::max(worst, std::fabs(length - 1 / over_length[image * (cols + 1) + c]));
      if (c == cols) continue;
      worst = std::max(worst, std::fabs(scorer.dustbin(g.vector(image, c)) - dustbin[image * cols + c]));
    }
  }
  Floats structural(pairs), pooled(pairs), error(pairs), plan(pairs * cells);
  std::vector<int32_t> iterations(pairs);
  diml::ScoreTask task{};
  task.dim = dim;
  task.query = {q.vector(0, 0), q.vector(0, rows), rows, stride, stride};
  task.gallery = gallery;
  task.pairs = {query_rows.data(), gallery_rows.data()};
  task.solver = {diml::PlanKind::votes, (float)kTemperature, 1, 1, 0, false, [](void*) { return false; }, nullptr};
  task.results = {structural.data(), pooled.data(), error.data(), iterations.data(), plan.data(), nullptr};
  task.votes = {scorer.weights(), over_length.data(), dustbin.data()};
  const Memory memory(kernels.score_bytes(task));
  kernels.score(task, 0, pairs, memory.at);
  std::vector<double> exact(cells);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t i = query_rows[pair], j = gallery_rows[pair];
    worst = std::max(worst, std::fabs(voted(scorer, q, i, g, j, exact) - structural[pair]));
    worst = std::max(worst, std::fabs(dot(q.vector(i, rows), g.vector(j, cols), dim) - pooled[pair]));
    for (int64_t x = 0; x < cells; ++x) worst = std::max(worst, std::fabs(exact[x] - plan[pair * cells + x]));
  }
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
    error = std::max(error, worst_error_of_votes(*diml::kernels_portable(), rows, cols, dim));
    std::printf("%2d x %2d regions, %2d channels: largest error %.1e\n", (int)rows, (int)cols, (int)dim, error);
    worst = std::max(worst, error);
  }
  return worst <= 1e-5 ? 0 : 1;
}
