// The transport problem of a single pair, whose kernel stays in the cache, where those of W pairs side by side would not
// fit. Iterations, mixing and stopping are those of transport.hpp.
//
// The matrices have the query's regions across the lanes, as products are computed (gemm.hpp): row j of memory is column
// j of the plan. The kernel is stored in panels of a few vectors of query regions, all rows j of one panel and then the
// next, and a sweep reads a panel twice while it is in the first-level cache: for sums over j, which give u, and for sums
// over the lanes, which give the columns. Vectors of columns have the columns across the lanes. Lanes that pad a row of
// memory repeat a number of the row, so that they change no extreme value, and have weight 0; padding columns have v = 0.
#pragma once

#include <cstdint>

#include "lanes.hpp"
#include "tasks.hpp"
#include "transport.hpp"

namespace diml::DIML_INSTRUCTION_SET {

constexpr int64_t kSingleCells = 2000;      // from this size of a matrix on, pairs are solved one at a time
constexpr int kPanel = 8;                   // most vectors of a panel
constexpr int64_t kPanelBytes = 20 * 1024;  // most of a panel of more than two vectors

// Whether pairs of so many regions are solved one at a time. Votes, which need no iterations, never are.
DIML_INLINE bool is_single(int64_t regions_q, int64_t regions_g, PlanKind plan) {
  return regions_q * regions_g >= kSingleCells && plan != PlanKind::votes;
}

// Vectors of a row of `cosine`, which has no dustbins.
DIML_INLINE int64_t vectors_of_row(const Problem& p) { return round_up(p.regions_q) / W; }

// Memory of a single problem, in vectors.
DIML_INLINE int64_t single_lanes(const Problem& p) {
  return (p.regions_g + 1) * vectors_of_row(p) + p.across * W * (p.down + 1) + 2 * p.down + (5 + 2 * kMixed) * p.across;
}

// A single problem, without memory.
static Problem single_problem_of(int64_t regions_q, int64_t regions_g, const SolverSettings& solver) {
  Problem p = problem_of(regions_q, regions_g, solver);
  p.down = round_up(p.rows) / W, p.across = round_up(p.cols) / W;
  const int64_t fitting = kPanelBytes / (p.cols * (int64_t)sizeof(Lanes));
  const int64_t widest = fitting > kPanel ? kPanel : fitting > 2 ? fitting : 2;
  const int64_t panels = (p.down + widest - 1) / widest;
  p.panel = (p.down + panels - 1) / panels;
  return p;
}

// Gives a single problem its `single_lanes` vectors of memory. `cosine` has a row more, for products with the pooled
// vector.
static void place_single(Problem& p, Lanes* memory) {
  p.cosine = memory, p.kernel = p.cosine + (p.regions_g + 1) * vectors_of_row(p);
  p.sums = p.kernel + p.across * W * p.down;
  p.weight_q = p.sums + p.across * W, p.u = p.weight_q + p.down;
  place_columns(p, p.u + p.down);
}

// One row of memory of a panel times u, then the rows after it: see `sum_lanes`.
template <int P, bool begin, bool end, int row = 0>
DIML_INLINE void sum_row(const Lanes* kernel, const Lanes (&u)[P], Lanes* sums, Lanes (&sum)[W]) {
  sum[row] = begin ? kernel[row * P] * u[0] : sums[row] + kernel[row * P] * u[0];
#pragma GCC unroll 8
  for (int y = 1; y < P; ++y) sum[row] += kernel[row * P + y] * u[y];
  if constexpr (end) {
    sum_rows_up_to<row>(sum);
  } else {
    sums[row] = sum[row];
  }
  if constexpr (row + 1 < W) sum_row<P, begin, end, row + 1>(kernel, u, sums, sum);
}

// The column sums: of each row of memory the sum, over panels and lanes, of kernel times u. `begin` and `end` say whether
// this panel is the first one and the last one; before the last one, the lanes are kept apart in `sums`.
template <int P, bool begin, bool end>
DIML_INLINE void sum_lanes(const Problem& p, const Lanes* kernel, const Lanes (&u)[P]) {
  const int64_t groups = (p.cols + W / 2 - 1) / W;  // of W rows; up to half a group is left
  for (int64_t j = 0; j < groups; ++j) {
    Lanes sum[W];
    sum_row<P, begin, end>(kernel + j * W * P, u, p.sums + j * W, sum);
    if (end) p.columns[j] = sum[0];
  }
  for (int64_t j = groups * W; j < p.cols; ++j) {
    Lanes sum = begin ? kernel[j * P] * u[0] : p.sums[j] + kernel[j * P] * u[0];
#pragma GCC unroll 8
    for (int y = 1; y < P; ++y) sum += kernel[j * P + y] * u[y];
    if (end) reinterpret_cast<float*>(p.columns)[j] = sum_of_lanes(sum)[0];
    if (!end) p.sums[j] = sum;
  }
}

// One sweep over the panel of P vectors from vector `first` of the rows: their sums, their new u, and their part of the
// column sums.
template <int P>
static void sweep_panel(const Problem& p, int64_t first, Lanes over, bool relaxed) {
  const Lanes* kernel = p.kernel + first * p.across * W;
  const float* v = reinterpret_cast<const float*>(p.v);
  Lanes sum[P], other[P];
#pragma GCC unroll 8
  for (int y = 0; y < P; ++y) sum[y] = other[y] = Lanes{};
  int64_t j = 0;
  for (; j + 2 <= p.cols; j += 2) {
    const Lanes even = all(v[j]), odd = all(v[j + 1]);
#pragma GCC unroll 8
    for (int y = 0; y < P; ++y) sum[y] += kernel[j * P + y] * even;
#pragma GCC unroll 8
    for (int y = 0; y < P; ++y) {
      Lanes& into = P <= 6 ? other[y] : sum[y];  // two chains of additions where one would have to wait
      into += kernel[(j + 1) * P + y] * odd;
    }
  }
  if (j < p.cols) {
#pragma GCC unroll 8
    for (int y = 0; y < P; ++y) sum[y] += kernel[j * P + y] * v[j];
  }
#pragma GCC unroll 8
  for (int y = 0; y < P; ++y) {
    if (P <= 6) sum[y] += other[y];
    const Lanes before = p.u[first + y], target = p.weight_q[first + y];
    Lanes after = target / largest(sum[y], all(1e-37f));
    if (relaxed) after = select(over > 0.0f, over_relaxed(before, before * sum[y], target, over), after);
    sum[y] = p.u[first + y] = after;
  }
  const bool begin = first == 0, end = first + P == p.down;
  if (begin && end) return sum_lanes<P, true, true>(p, kernel, sum);
  if (begin) return sum_lanes<P, true, false>(p, kernel, sum);
  if (end) return sum_lanes<P, false, true>(p, kernel, sum);
  sum_lanes<P, false, false>(p, kernel, sum);
}

// `sweep_panel` of `width` vectors, at most P.
template <int P = kPanel>
static void sweep_panel_of(int64_t width, const Problem& p, int64_t first, Lanes over, bool relaxed) {
  if constexpr (P > 0) {
    if (width == P) return sweep_panel<P>(p, first, over, relaxed);
    sweep_panel_of<P - 1>(width, p, first, over, relaxed);
  }
}

DIML_INLINE int64_t width_of_panel(const Problem& p, int64_t first) {
  return first + p.panel <= p.down ? p.panel : p.down - first;
}

struct Single {
  DIML_INLINE int64_t across(const Problem& p) { return p.across; }

  DIML_INLINE Lanes of_pair(Lanes sum) { return sum_of_lanes(sum); }

  DIML_INLINE void sweep(const Problem& p, Mask, Lanes over) {
    const bool relaxed = any(over > 0.0f);
    for (int64_t first = 0; first < p.down; first += p.panel) {
      sweep_panel_of(width_of_panel(p, first), p, first, over, relaxed);
    }
  }
};

// Scales `count` masses to sum to 1, and pads them with 0 up to `size` vectors; zero mass becomes uniform. The largest
// entry is divided out first.
static void normalize_single(Lanes* mass, int64_t count, int64_t size) {
  Lanes most = Lanes{}, total = Lanes{};
  for (int64_t x = 0; x < size; ++x) {
    mass[x] = select(lanes_below(count - x * W), largest(mass[x], Lanes{}), Lanes{});
    most = largest(most, mass[x]);
  }
  most = largest_of_lanes(most);
  const Mask some = most > 0.0f;
  const Lanes divisor = select(some, most, all(1.0f));
  for (int64_t x = 0; x < size; ++x) {
    mass[x] = select(some, mass[x] / divisor, select(lanes_below(count - x * W), all(1.0f), Lanes{}));
    total += mass[x];
  }
  total = sum_of_lanes(total);
  for (int64_t x = 0; x < size; ++x) mass[x] /= total;
}

// As `level_of`.
static float level_of_single(const Problem& p) {
  const int64_t vectors = vectors_of_row(p);
  Lanes level = Lanes{};
  for (int64_t j = 0; j < p.regions_g; ++j) {
    Lanes row = Lanes{};
    for (int64_t x = 0; x < vectors; ++x) row += p.weight_q[x] * p.cosine[j * vectors + x];
    level += reinterpret_cast<const float*>(p.weight_g)[j] * row;
  }
  return sum_of_lanes(level)[0];
}

// As `complete`, but dustbins are added to the weights only: returns the level that belongs into the cosines. Pads the
// cosines.
static float complete_single(const Problem& p, const SolverSettings& solver) {
  normalize_single(p.weight_q, p.regions_q, p.down), normalize_single(p.weight_g, p.regions_g, p.across);
  const int64_t vectors = vectors_of_row(p), left = p.regions_q - (vectors - 1) * W;
  const bool bins = dustbins_of(solver) > 0;
  const float level = bins ? level_of_single(p) : 0.0f;
  for (int64_t j = 0; j < p.regions_g && left < W; ++j) {
    Lanes& last = p.cosine[j * vectors + vectors - 1];
    last = select(lanes_below(left), last, all(bins ? level : last[0]));
  }
  if (!bins) return level;
  const float bin = solver.dustbin / p.total;
  for (int64_t x = 0; x < p.down; ++x) p.weight_q[x] /= p.total;
  for (int64_t x = 0; x < p.across; ++x) p.weight_g[x] /= p.total;
  reinterpret_cast<float*>(p.weight_q)[p.regions_q] = bin;
  reinterpret_cast<float*>(p.weight_g)[p.regions_g] = bin;
  return level;
}

// Writes a panel of P vectors of the kernel, from vector `first` of the rows: powers of 2 of the scaled cosines and, of
// dustbins, `of_bin`.
template <int P>
static void fill_panel(const Problem& p, int64_t first, Lanes scale, Lanes top, Lanes of_bin) {
  const int64_t vectors = vectors_of_row(p);
  const Lanes* from = p.cosine + first;
  Lanes* to = p.kernel + first * p.across * W;
  const bool given = first + P <= vectors;  // or the last vector is that of a dustbin alone
  for (int64_t j = 0; j < p.regions_g; ++j, from += vectors, to += P) {
#pragma GCC unroll 8
    for (int y = 0; y < P - 1; ++y) to[y] = power_of_two(from[y] * scale - top);
    to[P - 1] = given ? power_of_two(from[P - 1] * scale - top) : of_bin;
  }
  for (int64_t x = p.regions_g * P; x < p.cols * P; ++x, ++to) *to = of_bin;
  for (int64_t x = p.cols * P; x < p.across * W * P; ++x, ++to) *to = Lanes{};
}

// `fill_panel` of `width` vectors, at most P.
template <int P = kPanel>
static void fill_panel_of(int64_t width, const Problem& p, int64_t first, Lanes scale, Lanes top, Lanes of_bin) {
  if constexpr (P > 0) {
    if (width == P) return fill_panel<P>(p, first, scale, top, of_bin);
    fill_panel_of<P - 1>(width, p, first, scale, top, of_bin);
  }
}

// Starts a pair, whose numbers are in all lanes: kernel, and scaling vectors of 1.
static void start_single(Block& block, const SolverSettings& solver, float level) {
  const Problem& p = block.problem;
  const int64_t size = p.regions_g * vectors_of_row(p);
  const bool bins = dustbins_of(solver) > 0;
  Lanes high = bins ? all(level) : p.cosine[0], low = high;
  for (int64_t x = 0; x < size; ++x) high = largest(high, p.cosine[x]), low = smallest(low, p.cosine[x]);
  high = largest_of_lanes(high), low = -largest_of_lanes(-low);
  const Lanes scale = all(kLog2E / solver.epsilon), top = high * scale, of_bin = power_of_two(level * scale - top);
  for (int64_t first = 0; first < p.down; first += p.panel) {
    fill_panel_of(width_of_panel(p, first), p, first, scale, top, of_bin);
  }
  if (bins && !solver.open) {
    const int64_t at = p.regions_q / W, first = at / p.panel * p.panel;
    Lanes& corner = p.kernel[first * p.across * W + p.regions_g * width_of_panel(p, first) + at - first];
    corner = select(lanes_below(p.regions_q % W), corner, Lanes{});
  }
  for (int64_t x = 0; x < p.down; ++x) p.u[x] = all(1.0f);
  for (int64_t j = 0; j < p.across; ++j) p.v[j] = select(lanes_below(p.cols - j * W), all(1.0f), Lanes{});
  for (int64_t& of_lane : block.pair) of_lane = 0;
  start_block(block, high - low > kPlainRange * solver.epsilon);
}

// Solves a problem that is complete, by iterations.
static void solve_single(Block& block, const SolverSettings& solver, float level) {
  start_single(block, solver, level);
  run<Single>(block, solver, 0);
}

// As `structural`. Dustbins lose their u.
static float structural_of_single(const Problem& p) {
  const int64_t vectors = vectors_of_row(p);
  const float* v = reinterpret_cast<const float*>(p.v);
  p.u[vectors - 1] = select(lanes_below(p.regions_q - (vectors - 1) * W), p.u[vectors - 1], Lanes{});
  Lanes sum = Lanes{};
  for (int64_t first = 0; first < vectors; first += p.panel) {
    const int64_t width = width_of_panel(p, first), given = first + width <= vectors ? width : vectors - first;
    const Lanes* kernel = p.kernel + first * p.across * W;
    for (int64_t j = 0; j < p.regions_g; ++j, kernel += width) {
      Lanes row = Lanes{};
      for (int64_t x = 0; x < given; ++x) row += kernel[x] * p.u[first + x] * p.cosine[j * vectors + first + x];
      sum += v[j] * row;
    }
  }
  return (sum_of_lanes(sum) * p.total)[0];
}

// Writes a matrix to (Rq, Rg): `of_vector(x)(j)` is its vector x of row j of memory.
template <typename OfVector>
static void write_single(const Problem& p, OfVector of_vector, float* to) {
  for (int64_t x = 0; x < vectors_of_row(p); ++x) {
    const auto row = of_vector(x);
    const int64_t height = (x + 1) * W <= p.regions_q ? W : p.regions_q - x * W;
    for (int64_t j = 0; j < p.regions_g; j += W) {
      const int64_t width = j + W <= p.regions_g ? W : p.regions_g - j;
      Lanes block[W];
      for (int y = 0; y < W; ++y) block[y] = y < width ? row(j + y) : Lanes{};
      transpose(block);
      float* const at = to + x * W * p.regions_g + j;
      for (int64_t i = 0; i < height; ++i) {
        if (width == W) store(at + i * p.regions_g, block[i]);
        if (width < W) __builtin_memcpy(at + i * p.regions_g, &block[i], width * sizeof(float));
      }
    }
  }
}

static void write_cosine_of_single(const Problem& p, float* to) {
  const Lanes* const cosine = p.cosine;
  const int64_t vectors = vectors_of_row(p);
  write_single(p, [=](int64_t x) { return [=](int64_t j) { return cosine[j * vectors + x]; }; }, to);
}

// Writes the plan that kernel, u and v make.
static void write_plan_of_single(const Problem& p, float* to) {
  const auto of_vector = [&](int64_t x) {
    const int64_t first = x / p.panel * p.panel, width = width_of_panel(p, first);
    const Lanes *kernel = p.kernel + first * p.across * W + x - first, u = p.u[x];
    const float *v = reinterpret_cast<const float*>(p.v), total = p.total;
    return [=](int64_t j) { return kernel[j * width] * u * v[j] * total; };
  };
  write_single(p, of_vector, to);
}

}  // namespace diml::DIML_INSTRUCTION_SET
