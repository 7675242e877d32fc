// The exact transport problem of one pair, in double: the algorithm of exact.py, step for step.
//
// Successive shortest paths with dual prices on the dense bipartite graph. Source: Jonker and Volgenant, "A shortest
// augmenting path algorithm for dense and sparse linear assignment problems", Computing 1987, for masses in place of
// assignments. Ties: the pair is solved in an orientation that its numbers decide, with a perturbation of the costs that
// is far below their resolution. The entries of the plan form a forest, so that there are at most Rq + Rg - 1 of them,
// and their masses follow from its leaves, so that row and column sums hold to rounding.
//
// Legend: R rows and C columns, of the side with fewer regions and of the other one; `stride` is C in whole groups.
#pragma once

#include <cstdint>
#include <cstring>

#include "constants.hpp"
#include "lanes.hpp"
#include "single.hpp"
#include "tasks.hpp"
#include "transport.hpp"

namespace diml::DIML_INSTRUCTION_SET {

constexpr int kGroup = 8;             // columns that are searched side by side
constexpr int32_t kAskEvery = 64;     // paths between two questions whether the caller has cancelled
constexpr double kInfinity = __builtin_inf();

struct ExactProblem {  // memory for one pair; of columns all `stride` numbers are initialised
  int32_t rows, columns, stride;
  bool transposed;           // whether rows are the regions of the gallery image
  double low, range;         // of the given costs; `cost` is scaled to 0..1
  double *cost, *flow;       // (R, stride)
  double *mass_r, *mass_c;   // what rows send and columns receive
  double *price_r, *price_c; // dual prices of the scaled costs
  double *supply, *demand;   // mass that is left
  double *distance, *open;   // of columns from the source, -infinity or infinity once a column is scanned
  double *scanned_at, *row_at;  // distance of scanned columns, in their order, and of rows
  int64_t* from_row;         // (stride) row from which a column was reached
  int32_t* from_column;      // (R) column from which a row was reached, -1 for the source
  int32_t *scanned_rows, *scanned_columns;
  int32_t *senders, *sender_count;  // (C, R) and (C): rows that send to each column
  int32_t *degree, *links;   // (R + C) of the forest: entries of a node, and the exclusive or of their other ends
  int32_t *walk, *place;     // (R + C + 1) and (R + C)
  int32_t rows_scanned, columns_scanned;
  int32_t paths;             // shortest paths that were needed
};

// Takes the memory for pairs of `regions_q` and `regions_g` regions.
static ExactProblem exact_in(Arena& arena, int64_t regions_q, int64_t regions_g) {
  ExactProblem p{};
  const int64_t rows = regions_q < regions_g ? regions_q : regions_g, columns = regions_q + regions_g - rows;
  const int64_t stride = (columns + kGroup - 1) / kGroup * kGroup, nodes = rows + columns;
  p.rows = (int32_t)rows, p.columns = (int32_t)columns, p.stride = (int32_t)stride;
  p.cost = arena.take<double>(rows * stride), p.flow = arena.take<double>(rows * stride);
  for (double** of_rows : {&p.mass_r, &p.price_r, &p.supply, &p.row_at}) *of_rows = arena.take<double>(rows);
  for (double** of_columns : {&p.mass_c, &p.price_c, &p.demand, &p.distance, &p.open, &p.scanned_at}) {
    *of_columns = arena.take<double>(stride);
  }
  p.from_row = arena.take<int64_t>(stride);
  for (int32_t** of_rows : {&p.from_column, &p.scanned_rows}) *of_rows = arena.take<int32_t>(rows);
  for (int32_t** of_columns : {&p.scanned_columns, &p.sender_count}) *of_columns = arena.take<int32_t>(stride);
  p.senders = arena.take<int32_t>(columns * rows);
  for (int32_t** of_nodes : {&p.degree, &p.links, &p.walk, &p.place}) *of_nodes = arena.take<int32_t>(nodes + 1);
  return p;
}

// In [0, 1), without order; 0 on the diagonal: of equal regions each goes to its counterpart.
DIML_INLINE double tie_break(uint32_t i, uint32_t j) {
  uint32_t x = i * 0x9E3779B1u ^ (j * 0x85EBCA77u + 0x165667B1u);
  x = (x ^ x >> 15) * 0x2C1B3C6Du;
  x = (x ^ x >> 12) * 0x297A2D39u;
  return i == j ? 0.0 : (x ^ x >> 15) * (1.0 / 4294967296.0);
}

DIML_INLINE double less_of(double a, double b) { return a < b ? a : b; }

// Whether the pair is solved with its sides exchanged: the side with fewer regions comes first, else the one with the
// smaller first mass that differs, else the orientation with the smaller first cost that differs.
template <typename Cost, typename MassQ, typename MassG>
static bool exchanged(int32_t regions_q, int32_t regions_g, Cost cost, MassQ mass_q, MassG mass_g) {
  if (regions_q != regions_g) return regions_q > regions_g;
  for (int32_t i = 0; i < regions_q; ++i) {
    if (mass_q(i) != mass_g(i)) return mass_q(i) > mass_g(i);
  }
  for (int32_t i = 0; i < regions_q; ++i) {
    for (int32_t j = i + 1; j < regions_q; ++j) {
      if (cost(i, j) != cost(j, i)) return cost(i, j) > cost(j, i);
    }
  }
  return false;
}

// Scales masses to sum to 1; without any mass they are uniform.
DIML_INLINE void share_out(double* mass, int32_t count) {
  double total = 0;
  for (int32_t i = 0; i < count; ++i) total += mass[i];
  for (int32_t i = 0; i < count; ++i) mass[i] = total > 0 ? mass[i] / total : 1.0 / count;
}

// Reads a pair; `cost(i, j)`, `mass_q(i)` and `mass_g(j)` give its numbers, i of the query and j of the gallery image.
template <typename Cost, typename MassQ, typename MassG>
static void read_exact(ExactProblem& p, int32_t regions_q, int32_t regions_g, Cost cost, MassQ mass_q, MassG mass_g) {
  p.transposed = exchanged(regions_q, regions_g, cost, mass_q, mass_g);
  double low = cost(0, 0), high = low;
  for (int32_t i = 0; i < p.rows; ++i) {
    double* row = p.cost + (int64_t)i * p.stride;
    for (int32_t j = 0; j < p.columns; ++j) row[j] = p.transposed ? cost(j, i) : cost(i, j);
    for (int32_t j = 0; j < p.columns; ++j) low = less_of(row[j], low), high = row[j] > high ? row[j] : high;
  }
  p.low = low, p.range = high > low ? high - low : 1.0;
  const double scale = 1.0 / p.range;
  for (int32_t i = 0; i < p.rows; ++i) {
    double* row = p.cost + (int64_t)i * p.stride;
    for (int32_t j = 0; j < p.columns; ++j) row[j] = (row[j] - low) * scale + kTieBreak * tie_break(i, j);
    for (int32_t j = p.columns; j < p.stride; ++j) row[j] = 0;
    p.mass_r[i] = p.transposed ? mass_g(i) : mass_q(i);
  }
  for (int32_t j = 0; j < p.stride; ++j) {
    p.mass_c[j] = j >= p.columns ? 0.0 : p.transposed ? mass_q(j) : mass_g(j);
  }
  share_out(p.mass_r, p.rows), share_out(p.mass_c, p.columns);
}

// The plan's entry of region i of the query and j of the gallery image.
DIML_INLINE double flow_of(const ExactProblem& p, int32_t i, int32_t j) {
  return p.transposed ? p.flow[(int64_t)j * p.stride + i] : p.flow[(int64_t)i * p.stride + j];
}

DIML_INLINE void add_flow(ExactProblem& p, int32_t i, int32_t j, double mass) {
  double& flow = p.flow[(int64_t)i * p.stride + j];
  if (flow == 0) p.senders[(int64_t)j * p.rows + p.sender_count[j]++] = i;
  flow += mass;
}

DIML_INLINE void take_flow(ExactProblem& p, int32_t i, int32_t j, double mass) {
  double& flow = p.flow[(int64_t)i * p.stride + j];
  flow -= mass;
  if (flow > kNoMass) return;
  flow = 0;
  int32_t* list = p.senders + (int64_t)j * p.rows;
  int32_t& count = p.sender_count[j];
  for (int32_t k = 0; k < count; ++k) {
    if (list[k] != i) continue;
    list[k] = list[--count];
    return;
  }
}

// Prices: the least cost of each row, then what is left of each column; mass along entries whose reduced cost is zero.
static void start_exact(ExactProblem& p) {
  std::memset(p.flow, 0, sizeof(double) * p.rows * p.stride);
  std::memset(p.sender_count, 0, sizeof(int32_t) * p.stride);
  for (int32_t j = 0; j < p.stride; ++j) {
    p.demand[j] = p.mass_c[j], p.price_c[j] = j < p.columns ? kInfinity : 0.0;
  }
  for (int32_t i = 0; i < p.rows; ++i) {
    const double* cost = p.cost + (int64_t)i * p.stride;
    double least = cost[0];
    for (int32_t j = 1; j < p.columns; ++j) least = less_of(cost[j], least);
    p.price_r[i] = least, p.supply[i] = p.mass_r[i];
    for (int32_t j = 0; j < p.columns; ++j) p.price_c[j] = less_of(cost[j] - least, p.price_c[j]);
  }
  for (int32_t i = 0; i < p.rows; ++i) {
    const double* cost = p.cost + (int64_t)i * p.stride;
    for (int32_t j = 0; j < p.columns && p.supply[i] > kNoMass; ++j) {
      if (cost[j] - p.price_r[i] - p.price_c[j] > 0 || p.demand[j] <= kNoMass) continue;
      const double mass = less_of(p.supply[i], p.demand[j]);
      p.supply[i] -= mass, p.demand[j] -= mass;
      add_flow(p, i, j, mass);
    }
  }
}

// Columns that are nearer through row `i`, which is `far` from the source and was reached from column `via`.
DIML_INLINE void scan_row(ExactProblem& p, int32_t i, double far, int32_t via) {
  p.row_at[i] = far, p.from_column[i] = via, p.scanned_rows[p.rows_scanned++] = i;
  const double *cost = p.cost + (int64_t)i * p.stride, *price = p.price_c;
  double *distance = p.distance, *open = p.open;
  int64_t* from = p.from_row;
  const double shift = far - p.price_r[i];
  for (int32_t j = 0; j < p.stride; ++j) {
    const double reached = cost[j] - price[j] + shift;
    const bool better = reached < distance[j];
    distance[j] = better ? reached : distance[j];
    open[j] = better ? reached : open[j];
    from[j] = better ? (int64_t)i : from[j];
  }
}

// The nearest column that is not scanned yet, or -1.
DIML_INLINE int32_t nearest_column(const ExactProblem& p) {
  double best[kGroup], least = kInfinity;
  for (int l = 0; l < kGroup; ++l) best[l] = p.open[l];
  for (int32_t j = kGroup; j < p.stride; j += kGroup) {
    for (int l = 0; l < kGroup; ++l) best[l] = less_of(p.open[j + l], best[l]);
  }
  for (int l = 0; l < kGroup; ++l) least = less_of(best[l], least);
  if (!(least < kInfinity)) return -1;
  int32_t at = 0;
  while (p.open[at] != least) ++at;
  return at;
}

// Finds a shortest path from row `source` to a column with demand and sends as much mass along it as possible.
static bool augment(ExactProblem& p, int32_t source) {
  p.rows_scanned = p.columns_scanned = 0;
  for (int32_t j = 0; j < p.stride; ++j) {
    p.distance[j] = j < p.columns ? kInfinity : -kInfinity, p.open[j] = kInfinity, p.from_row[j] = source;
  }
  for (int32_t i = 0; i < p.rows; ++i) p.row_at[i] = -1;
  scan_row(p, source, 0.0, -1);
  int32_t sink = -1;
  double far = 0;
  while (sink < 0) {
    const int32_t j = nearest_column(p);
    if (j < 0) return false;
    far = p.open[j];
    p.open[j] = kInfinity, p.distance[j] = -kInfinity;
    p.scanned_at[p.columns_scanned] = far, p.scanned_columns[p.columns_scanned++] = j;
    if (p.demand[j] > kNoMass) {
      sink = j;
      break;
    }
    const int32_t* list = p.senders + (int64_t)j * p.rows;
    for (int32_t k = 0; k < p.sender_count[j]; ++k) {
      if (p.row_at[list[k]] < 0) scan_row(p, list[k], far > 0 ? far : 0.0, j);
    }
  }
  for (int32_t k = 0; k < p.rows_scanned; ++k) p.price_r[p.scanned_rows[k]] += far - p.row_at[p.scanned_rows[k]];
  for (int32_t k = 0; k < p.columns_scanned; ++k) p.price_c[p.scanned_columns[k]] -= far - p.scanned_at[k];
  double mass = less_of(p.supply[source], p.demand[sink]);
  for (int32_t j = sink, i = (int32_t)p.from_row[j]; p.from_column[i] >= 0; i = (int32_t)p.from_row[j]) {
    j = p.from_column[i];
    mass = less_of(p.flow[(int64_t)i * p.stride + j], mass);
  }
  for (int32_t j = sink; j >= 0;) {
    const int32_t i = (int32_t)p.from_row[j], before = p.from_column[i];
    add_flow(p, i, j, mass);
    if (before >= 0) take_flow(p, i, before, mass);
    j = before;
  }
  p.supply[source] -= mass, p.demand[sink] -= mass;
  ++p.paths;
  return true;
}

// Removes leaf after leaf from the graph of entries, rows being nodes 0..R and columns R..R + C. Leaves are listed in
// `walk`, and `links` holds the node that each hangs on. Returns how many there are.
static int32_t peel(ExactProblem& p, int32_t& entries) {
  const int32_t nodes = p.rows + p.columns;
  entries = 0;
  for (int32_t n = 0; n < nodes; ++n) p.degree[n] = p.links[n] = 0;
  for (int32_t j = 0; j < p.columns; ++j) {
    for (int32_t k = 0; k < p.sender_count[j]; ++k, ++entries) {
      const int32_t i = p.senders[(int64_t)j * p.rows + k];
      ++p.degree[i], ++p.degree[p.rows + j];
      p.links[i] ^= p.rows + j, p.links[p.rows + j] ^= i;
    }
  }
  int32_t leaves = 0;
  for (int32_t n = 0; n < nodes; ++n) {
    for (int32_t leaf = n; p.degree[leaf] == 1;) {
      const int32_t other = p.links[leaf];
      p.walk[leaves++] = leaf;
      p.degree[leaf] = 0, --p.degree[other], p.links[other] ^= leaf;
      if (other > n) break;
      leaf = other;
    }
  }
  return leaves;
}

// Sends mass around a cycle of entries that `peel` left until one of them vanishes; the cost stays as it is, since all
// their reduced costs are zero. Only ties that rounding hides from the perturbation lead to cycles.
static void break_cycle(ExactProblem& p) {
  const int32_t nodes = p.rows + p.columns;
  for (int32_t n = 0; n < nodes; ++n) p.place[n] = -1;
  int32_t at = 0, before = -1, steps = 0;
  while (p.degree[at] == 0) ++at;
  while (p.place[at] < 0) {
    p.place[at] = steps, p.walk[steps++] = at;
    int32_t next = -1;
    for (int32_t n = at < p.rows ? p.rows : 0, end = at < p.rows ? nodes : p.rows; n < end && next < 0; ++n) {
      const int32_t i = at < p.rows ? at : n, j = (at < p.rows ? n : at) - p.rows;
      if (n != before && p.degree[n] > 0 && p.flow[(int64_t)i * p.stride + j] > 0) next = n;
    }
    before = at, at = next;
  }
  const int32_t first = p.place[at];
  p.walk[steps] = at;
  double mass = kInfinity;
  for (int pass = 0; pass < 2; ++pass) {
    for (int32_t k = first; k < steps; ++k) {
      const int32_t a = p.walk[k], b = p.walk[k + 1], i = a < b ? a : b, j = (a < b ? b : a) - p.rows;
      const bool less = (k - first) % 2 == 0;
      if (pass == 0 && less) mass = less_of(p.flow[(int64_t)i * p.stride + j], mass);
      if (pass == 1 && less) take_flow(p, i, j, mass);
      if (pass == 1 && !less) add_flow(p, i, j, mass);
    }
  }
}

// Makes the entries a forest and computes their masses from its leaves.
static void settle(ExactProblem& p) {
  int32_t entries, leaves;
  while ((leaves = peel(p, entries)) < entries) break_cycle(p);
  double *const left_r = p.supply, *const left_c = p.demand;
  for (int32_t i = 0; i < p.rows; ++i) left_r[i] = p.mass_r[i];
  for (int32_t j = 0; j < p.columns; ++j) left_c[j] = p.mass_c[j];
  for (int32_t k = 0; k < leaves; ++k) {
    const int32_t leaf = p.walk[k], other = p.links[leaf];
    const int32_t i = leaf < other ? leaf : other, j = (leaf < other ? other : leaf) - p.rows;
    const double mass = leaf < p.rows ? left_r[i] : left_c[j], sent = mass > 0 ? mass : 0.0;
    p.flow[(int64_t)i * p.stride + j] = sent;
    left_r[i] -= sent, left_c[j] -= sent;
  }
}

// Raises the prices of rows and columns without mass, which no path has to reach, as far as they go.
static void price_idle(ExactProblem& p) {
  for (int32_t i = 0; i < p.rows; ++i) {
    if (p.mass_r[i] > kNoMass) continue;
    p.price_r[i] = kInfinity;
    const double* cost = p.cost + (int64_t)i * p.stride;
    for (int32_t j = 0; j < p.columns; ++j) p.price_r[i] = less_of(cost[j] - p.price_c[j], p.price_r[i]);
  }
  for (int32_t j = 0; j < p.columns; ++j) {
    if (p.mass_c[j] > kNoMass) continue;
    p.price_c[j] = kInfinity;
    for (int32_t i = 0; i < p.rows; ++i) {
      p.price_c[j] = less_of(p.cost[(int64_t)i * p.stride + j] - p.price_r[i], p.price_c[j]);
    }
  }
}

// Solves the problem that was read; false where the caller cancelled.
static bool solve_one(ExactProblem& p, const SolverSettings& solver) {
  p.paths = 0;
  start_exact(p);
  for (int32_t i = 0; i < p.rows; ++i) {
    while (p.supply[i] > kNoMass && augment(p, i)) {
      if (p.paths % kAskEvery == 0 && solver.cancelled(solver.owner)) return false;
    }
  }
  settle(p);
  return true;
}

// The costs of a problem whose last row and column are dustbins, as of Dustbins.exact_costs in partial.py: in open ones
// mass costs a little more, so that regions at their threshold are matched; between closed ones it costs too much.
template <typename Cost>
static auto with_dustbins(int32_t rows, int32_t columns, Cost cost, const SolverSettings& solver) {
  double low = cost(0, 0), high = low;
  for (int32_t i = 0; i < rows; ++i) {
    for (int32_t j = 0; j < columns; ++j) {
      const double of_pair = cost(i, j);
      low = less_of(of_pair, low), high = of_pair > high ? of_pair : high;
    }
  }
  const double span = high > low ? high - low : 1.0, mean = cost(rows, columns);
  const double beside = solver.open ? mean + kTieBreak * span : low + kClosedLevel * (mean - low);
  const double corner = solver.open ? mean : 2 * beside - low + span / 2;
  return [=](int32_t i, int32_t j) {
    return i < rows && j < columns ? cost(i, j) : i == rows && j == columns ? corner : beside;
  };
}

// Solves the pairs of a block, one after the other, and leaves their plans in its kernel, with scaling vectors of 1.
static void solve_lanes(Block& block, ExactProblem& exact, const SolverSettings& solver) {
  const Problem& p = block.problem;
  const int32_t rows = (int32_t)p.rows, columns = (int32_t)p.cols;
  for (int32_t i = 0; i < rows; ++i) p.u[i] = all(1.0f);
  for (int32_t j = 0; j < columns; ++j) p.v[j] = all(1.0f);
  block.error = Lanes{}, block.iterations = Mask{};
  for (int lane = 0; lane < W; ++lane) {
    if (block.pair[lane] < 0) continue;
    const auto number = [lane](const Lanes* at) { return (double)reinterpret_cast<const float*>(at)[lane]; };
    const auto cost = [&](int32_t i, int32_t j) { return -number(p.cosine + (int64_t)i * columns + j); };
    const auto mass_q = [&](int32_t i) { return number(p.weight_q + i); };
    const auto mass_g = [&](int32_t j) { return number(p.weight_g + j); };
    if (dustbins_of(solver) == 0) {
      read_exact(exact, rows, columns, cost, mass_q, mass_g);
    } else {
      read_exact(exact, rows, columns, with_dustbins(rows - 1, columns - 1, cost, solver), mass_q, mass_g);
    }
    if (!solve_one(exact, solver)) return;
    double error = 0;
    for (int32_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (int32_t i = 0; i < rows; ++i) {
        const float mass = (float)flow_of(exact, i, j);
        reinterpret_cast<float*>(p.kernel + (int64_t)i * columns + j)[lane] = mass;
        sum += mass;
      }
      error += __builtin_fabs(sum - number(p.weight_g + j));
    }
    block.error[lane] = (float)error, block.iterations[lane] = exact.paths;
  }
}

// Solves a single problem that is complete, with dustbins of the given level. Returns the structural similarity.
static float solve_single_exactly(Block& block, ExactProblem& exact, const SolverSettings& solver, float level) {
  const Problem& p = block.problem;
  const int32_t regions_q = (int32_t)p.regions_q, regions_g = (int32_t)p.regions_g;
  const int64_t stride = vectors_of_row(p) * W;
  const float* cosine = reinterpret_cast<const float*>(p.cosine);
  const float* weight_q = reinterpret_cast<const float*>(p.weight_q);
  const float* weight_g = reinterpret_cast<const float*>(p.weight_g);
  const auto cost = [=](int32_t i, int32_t j) {
    return -(double)(i < regions_q && j < regions_g ? cosine[j * stride + i] : level);
  };
  const auto mass_q = [=](int32_t i) { return (double)weight_q[i]; };
  const auto mass_g = [=](int32_t j) { return (double)weight_g[j]; };
  if (dustbins_of(solver) == 0) {
    read_exact(exact, regions_q, regions_g, cost, mass_q, mass_g);
  } else {
    const auto extended = with_dustbins(regions_q, regions_g, cost, solver);
    read_exact(exact, (int32_t)p.rows, (int32_t)p.cols, extended, mass_q, mass_g);
  }
  if (!solve_one(exact, solver)) return 0;
  double error = 0, structural = 0;
  for (int32_t j = 0; j < p.cols; ++j) {
    double sum = 0;
    for (int32_t i = 0; i < p.rows; ++i) {
      const float mass = (float)flow_of(exact, i, j);
      sum += mass;
      if (i < regions_q && j < regions_g) structural += (double)mass * cosine[j * stride + i];
    }
    error += __builtin_fabs(sum - mass_g(j));
  }
  block.error = all((float)error), block.iterations = Mask{} + exact.paths;
  return (float)structural * p.total;
}

// Writes the plan of a single problem to (Rq, Rg).
static void write_exact_plan_of_single(const Problem& p, const ExactProblem& exact, float* to) {
  for (int32_t i = 0; i < p.regions_q; ++i) {
    for (int32_t j = 0; j < p.regions_g; ++j) to[i * p.regions_g + j] = (float)flow_of(exact, i, j) * p.total;
  }
}

// Makes the plans of pairs first..last; `fill` and `end` as in `solve_entropic`.
template <typename Fill, typename End>
static void solve_exact_pairs(Block& block, ExactProblem& exact, const SolverSettings& solver, int64_t first,
                              int64_t last, Fill fill, End end) {
  for (int64_t start = first; start < last && !solver.cancelled(solver.owner); start += W) {
    for (int lane = 0; lane < W; ++lane) block.pair[lane] = start + lane < last ? start + lane : -1;
    fill(block, start);
    solve_lanes(block, exact, solver);
    end(block, occupied(block));
  }
}

static int64_t solve_exact_bytes(const ExactTask& task) {
  Arena arena{nullptr, 0};
  exact_in(arena, task.regions_q, task.regions_g);
  return arena.used;
}

// Solves the given problems first..last in double, with their dual prices.
static void solve_exact(const ExactTask& task, int64_t first, int64_t last, void* memory) {
  Arena arena{static_cast<char*>(memory), 0};
  ExactProblem p = exact_in(arena, task.regions_q, task.regions_g);
  const int32_t rows = (int32_t)task.regions_q, columns = (int32_t)task.regions_g;
  for (int64_t pair = first; pair < last; ++pair) {
    const double* cost = task.cost + pair * rows * columns;
    const double *mass_q = task.mass_q + pair * rows, *mass_g = task.mass_g + pair * columns;
    read_exact(p, rows, columns, [=](int32_t i, int32_t j) { return cost[(int64_t)i * columns + j]; },
               [=](int32_t i) { return mass_q[i]; }, [=](int32_t j) { return mass_g[j]; });
    if (!solve_one(p, task.solver)) return;
    price_idle(p);
    double* plan = task.plan + pair * rows * columns;
    for (int32_t i = 0; i < rows; ++i) {
      for (int32_t j = 0; j < columns; ++j) plan[(int64_t)i * columns + j] = flow_of(p, i, j);
    }
    double of_rows = 0, of_columns = 0;
    for (int32_t i = 0; i < p.rows; ++i) of_rows += p.mass_r[i] * p.price_r[i];
    for (int32_t j = 0; j < p.columns; ++j) of_columns += p.mass_c[j] * p.price_c[j];
    const double shift = (of_columns - of_rows) / 2;  // both sides account for half of the cost
    double* potential_r = (p.transposed ? task.potential_g + pair * columns : task.potential_q + pair * rows);
    double* potential_c = (p.transposed ? task.potential_q + pair * rows : task.potential_g + pair * columns);
    for (int32_t i = 0; i < p.rows; ++i) potential_r[i] = (p.price_r[i] + shift) * p.range + p.low / 2;
    for (int32_t j = 0; j < p.columns; ++j) potential_c[j] = (p.price_c[j] - shift) * p.range + p.low / 2;
    task.iterations[pair] = p.paths;
  }
}

}  // namespace diml::DIML_INSTRUCTION_SET
