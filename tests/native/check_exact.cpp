// Exact plans of the portable kernel: sums, number of entries, and optimality by their dual prices; and the repair of
// plans with cycles, which the solver is not known to make. Prints the largest errors; exits with status 1 where one is
// too large or a plan has too many entries.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "exact.hpp"

namespace {

using namespace diml::portable;
using Doubles = std::vector<double>;

bool not_cancelled(void*) { return false; }

Doubles drawn(int64_t count, int32_t values, uint32_t& seed) {
  Doubles made(count);
  for (double& number : made) {
    seed = seed * 1664525u + 1013904223u;
    number = (double)((seed >> 8) % values) / values;
  }
  return made;
}

Doubles masses(int64_t count, int32_t values, uint32_t& seed) {
  Doubles made = drawn(count, values, seed);
  double total = 0;
  for (double& mass : made) total += mass;
  for (double& mass : made) mass = total > 0 ? mass / total : 1.0 / count;
  return made;
}

// The largest error of the sums of a plan; more than 1 where it has too many entries.
double error_of_sums(const Doubles& plan, const Doubles& a, const Doubles& b) {
  const int64_t rows = a.size(), columns = b.size();
  double worst = 0;
  int64_t entries = 0;
  for (double mass : plan) entries += mass > 0, worst = std::max(worst, -mass);
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += plan[i * columns + j];
    worst = std::max(worst, std::fabs(sum - a[i]));
  }
  for (int64_t j = 0; j < columns; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += plan[i * columns + j];
    worst = std::max(worst, std::fabs(sum - b[j]));
  }
  return worst + (entries > rows + columns - 1 ? 2 : 0);
}

double solved(int64_t rows, int64_t columns, int32_t values, uint32_t& seed) {
  const Doubles cost = drawn(rows * columns, values, seed), a = masses(rows, values, seed);
  const Doubles b = masses(columns, values, seed);
  Doubles plan(rows * columns), u(rows), v(columns);
  int32_t paths = 0;
  diml::ExactTask task{};
  task.cost = cost.data(), task.mass_q = a.data(), task.mass_g = b.data();
  task.regions_q = rows, task.regions_g = columns;
  task.solver = {diml::PlanKind::exact, 0, 0, 0, 0, false, not_cancelled, nullptr};
  task.plan = plan.data(), task.potential_q = u.data(), task.potential_g = v.data(), task.iterations = &paths;
  void* memory = std::aligned_alloc(64, solve_exact_bytes(task));
  solve_exact(task, 0, 1, memory);
  std::free(memory);
  double worst = error_of_sums(plan, a, b);
  for (int64_t x = 0; x < rows * columns; ++x) {
    const double reduced = cost[x] - u[x / columns] - v[x % columns];
    worst = std::max(worst, plan[x] > 0 ? std::fabs(reduced) : -reduced);
  }
  return worst;
}

// The product of the masses has every entry; of costs that are all equal any plan is optimal.
double repaired(int64_t rows, int64_t columns, uint32_t& seed) {
  const Doubles a = masses(rows, 1000, seed), b = masses(columns, 1000, seed);
  Arena size{nullptr, 0};
  exact_in(size, rows, columns);
  void* memory = std::aligned_alloc(64, size.used);
  Arena arena{static_cast<char*>(memory), 0};
  ExactProblem p = exact_in(arena, rows, columns);
  read_exact(p, rows, columns, [](int32_t, int32_t) { return 0.0; }, [&](int32_t i) { return a[i]; },
             [&](int32_t j) { return b[j]; });
  start_exact(p);
  for (int32_t i = 0; i < p.rows; ++i) {
    for (int32_t j = 0; j < p.columns; ++j) {
      take_flow(p, i, j, p.flow[(int64_t)i * p.stride + j]);
      if (p.mass_r[i] * p.mass_c[j] > 0) add_flow(p, i, j, p.mass_r[i] * p.mass_c[j]);
    }
  }
  settle(p);
  Doubles plan(rows * columns);
  for (int64_t x = 0; x < rows * columns; ++x) plan[x] = flow_of(p, (int32_t)(x / columns), (int32_t)(x % columns));
  std::free(memory);
  return error_of_sums(plan, a, b);
}

}  // namespace

int main() {
  double worst = 0;
  uint32_t seed = 1;
  for (const auto& [rows, columns] : {std::array<int64_t, 2>{1, 1}, {1, 5}, {9, 4}, {16, 16}, {49, 49}, {13, 196}}) {
    double error = 0, of_repair = 0;
    for (int32_t values : {1, 2, 5, 1 << 24}) error = std::max(error, solved(rows, columns, values, seed));
    for (int time = 0; time < 3; ++time) of_repair = std::max(of_repair, repaired(rows, columns, seed));
    std::printf("%2d x %2d regions: largest error %.1e, of a repaired plan %.1e\n", (int)rows, (int)columns, error,
                of_repair);
    worst = std::max({worst, error, of_repair});
  }
  return worst <= 1e-9 ? 0 : 1;
}
