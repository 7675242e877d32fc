// The entropic transport problem: the algorithm of `sinkhorn` in transport.py, step for step.
//
// Two layouts share the iterations. Side by side, W pairs are solved together, each in a lane of its own. A single pair
// (single.hpp) has its columns across the lanes, and every number that is one of the pair in all lanes.
//
// u and v scale the rows and columns of kernel = exp((cosine - largest) / epsilon). One sweep over the kernel computes
// row sums, new u, and the column sums that new v needs. Steps of v are mixed (Anderson's acceleration); pairs that
// still take long continue over-relaxed, each by its own rate of convergence. The last update of the rows is plain, so
// that the row sums hold to rounding. Where not all mass is transported, a dustbin is the last region of either side.
#pragma once

#include <cstdint>

#include "constants.hpp"
#include "lanes.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

constexpr float kLog2E = 1.44269504f;
constexpr int32_t kCancelEvery = 64;  // sweeps between two questions whether the caller has cancelled
constexpr int kMoveAfter = 32;        // sweeps before which moving a pair to another block costs more than it saves

struct Problem {  // memory for W pairs side by side, or for a single pair as in single.hpp
  Lanes *cosine, *kernel;    // (rows, cols)
  Lanes *weight_q, *u;       // (down)
  Lanes *weight_g, *v, *columns, *residual, *step;  // (across)
  Lanes *change, *motion;    // (kMixed, across), of residual and of log v, from sweep to sweep
  int64_t rows, cols;        // Rq and Rg, one more each with dustbins
  int64_t down, across;      // vectors of a column and of a row of the problem: side by side rows and cols
  int64_t regions_q, regions_g;
  float total;               // mass of a side with its dustbin, where regions have 1; the weights here sum to 1
  Lanes* sums;               // of a single pair only: (across * W), and how many vectors a panel of its kernel has
  int64_t panel;
};

// Memory of a problem, in vectors.
DIML_INLINE int64_t problem_lanes(const Problem& p) {
  return 2 * p.rows * p.cols + 2 * p.rows + (5 + 2 * kMixed) * p.cols;
}

// Of how many places a dustbin takes on either side: 0 or 1.
DIML_INLINE int64_t dustbins_of(const SolverSettings& solver) { return solver.dustbin > 0 ? 1 : 0; }

// A problem of W pairs side by side, without memory.
static Problem problem_of(int64_t regions_q, int64_t regions_g, const SolverSettings& solver) {
  Problem p{};
  p.regions_q = regions_q, p.regions_g = regions_g, p.total = 1.0f + solver.dustbin;
  p.rows = p.down = regions_q + dustbins_of(solver), p.cols = p.across = regions_g + dustbins_of(solver);
  return p;
}

// Gives the vectors of the columns of a problem their memory.
static void place_columns(Problem& p, Lanes* memory) {
  p.weight_g = memory, p.v = p.weight_g + p.across, p.columns = p.v + p.across;
  p.residual = p.columns + p.across, p.step = p.residual + p.across;
  p.change = p.step + p.across, p.motion = p.change + kMixed * p.across;
}

// Gives a problem its `problem_lanes` vectors of memory.
static void place(Problem& p, Lanes* memory) {
  p.cosine = memory, p.kernel = p.cosine + p.rows * p.cols;
  p.weight_q = p.kernel + p.rows * p.cols, p.u = p.weight_q + p.rows;
  place_columns(p, p.u + p.rows);
}

// Scales mass to sum to 1; zero mass becomes uniform. The largest entry is divided out first.
static void normalize(Lanes* mass, int64_t count) {
  Lanes most = Lanes{}, total = Lanes{};
  for (int64_t i = 0; i < count; ++i) {
    mass[i] = largest(mass[i], Lanes{});
    most = largest(most, mass[i]);
  }
  const Mask some = most > 0.0f;
  const Lanes divisor = select(some, most, all(1.0f));
  for (int64_t i = 0; i < count; ++i) {
    mass[i] = select(some, mass[i] / divisor, all(1.0f));
    total += mass[i];
  }
  for (int64_t i = 0; i < count; ++i) mass[i] /= total;
}

// The level of the dustbins: the mean cosine of all pairs of regions, by the product of their weights. With open
// dustbins it is the threshold of partial.py; with closed ones it is arbitrary, and a good start.
static Lanes level_of(const Problem& p) {
  Lanes level = Lanes{};
  for (int64_t i = 0; i < p.regions_q; ++i) {
    Lanes row = Lanes{};
    for (int64_t j = 0; j < p.regions_g; ++j) row += p.weight_g[j] * p.cosine[i * p.cols + j];
    level += p.weight_q[i] * row;
  }
  return level;
}

// Scales the weights of the regions to sum to 1 and adds the dustbins, if there are any, to cosines and weights.
static void complete(const Problem& p, const SolverSettings& solver) {
  normalize(p.weight_q, p.regions_q), normalize(p.weight_g, p.regions_g);
  if (dustbins_of(solver) == 0) return;
  const Lanes level = level_of(p);
  for (int64_t i = 0; i < p.rows; ++i) p.cosine[i * p.cols + p.regions_g] = level;
  for (int64_t j = 0; j < p.cols; ++j) p.cosine[p.regions_q * p.cols + j] = level;
  for (int64_t i = 0; i < p.regions_q; ++i) p.weight_q[i] /= p.total;
  for (int64_t j = 0; j < p.regions_g; ++j) p.weight_g[j] /= p.total;
  p.weight_q[p.regions_q] = p.weight_g[p.regions_g] = all(solver.dustbin / p.total);
}

// scale * (target / (scale * sum))^relaxation to first order, positive for any ratio; 0 where nothing is reached.
DIML_INLINE Lanes over_relaxed(Lanes scale, Lanes reached, Lanes target, Lanes over) {
  const Lanes ratio = target / largest(reached, all(1e-37f));
  const Lanes step = smallest(largest(ratio - 1.0f, all(-kStep)), all(kStep));
  return scale * (ratio + ratio * over * step);
}

// One sweep over ROWS rows from row `i`: their sums, their new u, and their part of the column sums.
template <int ROWS>
DIML_INLINE void sweep_rows(const Problem& p, int64_t i, int64_t cols, Mask active, Lanes over, bool relaxed) {
  Lanes sum[ROWS];
#pragma GCC unroll 8
  for (int x = 0; x < ROWS; ++x) sum[x] = Lanes{};
  const Lanes* row = p.kernel + i * cols;
  for (int64_t j = 0; j < cols; ++j) {
    const Lanes v = p.v[j];
#pragma GCC unroll 8
    for (int x = 0; x < ROWS; ++x) sum[x] += row[x * cols + j] * v;
  }
#pragma GCC unroll 8
  for (int x = 0; x < ROWS; ++x) {
    const Lanes before = p.u[i + x], target = p.weight_q[i + x];
    Lanes after = target / largest(sum[x], all(1e-37f));
    if (relaxed) after = select(over > 0.0f, over_relaxed(before, before * sum[x], target, over), after);
    sum[x] = p.u[i + x] = select(active, after, before);
  }
  for (int64_t j = 0; j < cols; ++j) {
    Lanes column = p.columns[j];
#pragma GCC unroll 8
    for (int x = 0; x < ROWS; ++x) column += row[x * cols + j] * sum[x];
    p.columns[j] = column;
  }
}

// What is known of each pair from earlier sweeps.
struct PairState {
  Lanes before;                // the error of the last sweep
  Lanes gram[kMixed][kMixed];  // products of the changes of the residual
  Lanes drift[kMixed];         // mean of each motion, which only trades scale between u and v
  Lanes relaxation, over;      // tuned relaxation; what the next update exceeds 1 by, 0 for a plain one
  Lanes last;                  // the error when the relaxation was last tuned
};

// The mixture of the last changes that best cancels the residual: solves (gram + ridge) mixture = wanted by an L D L'
// factorisation.
DIML_INLINE void solve_mixture(const PairState& state, const Lanes (&wanted)[kMixed], Lanes (&mixture)[kMixed]) {
  Lanes ridge = all(1e-30f), lower[kMixed][kMixed], inverse[kMixed];
#pragma GCC unroll 4
  for (int s = 0; s < kMixed; ++s) ridge += state.gram[s][s] * kRidge;
#pragma GCC unroll 4
  for (int j = 0; j < kMixed; ++j) {
    Lanes scaled[kMixed], pivot = state.gram[j][j] + ridge;
#pragma GCC unroll 4
    for (int k = 0; k < j; ++k) {
      scaled[k] = lower[j][k];
      lower[j][k] *= inverse[k];
      pivot -= scaled[k] * lower[j][k];
    }
    inverse[j] = 1.0f / largest(pivot, ridge);
#pragma GCC unroll 4
    for (int i = j + 1; i < kMixed; ++i) {
      Lanes entry = state.gram[i][j];
      for (int k = 0; k < j; ++k) entry -= lower[i][k] * lower[j][k];
      lower[i][j] = entry;
    }
    mixture[j] = wanted[j];
#pragma GCC unroll 4
    for (int k = 0; k < j; ++k) mixture[j] -= lower[j][k] * mixture[k];
  }
#pragma GCC unroll 4
  for (int j = kMixed - 1; j >= 0; --j) {
    mixture[j] *= inverse[j];
#pragma GCC unroll 4
    for (int k = j + 1; k < kMixed; ++k) mixture[j] -= lower[k][j] * mixture[k];
  }
}

// Discards the earlier changes of some pairs.
static void reset_history(const Problem& p, PairState& state, Mask which) {
  for (int64_t x = 0; x < kMixed * p.across; ++x) {
    p.change[x] = select(which, Lanes{}, p.change[x]), p.motion[x] = select(which, Lanes{}, p.motion[x]);
  }
  for (int s = 0; s < kMixed; ++s) {
    for (Lanes& entry : state.gram[s]) entry = select(which, Lanes{}, entry);
    state.drift[s] = select(which, Lanes{}, state.drift[s]);
  }
}

// The factor that column `j` has to grow by; and such a factor minus 1, within bounds.
DIML_INLINE Lanes growth(const Problem& p, int64_t j) { return p.weight_g[j] / largest(p.columns[j], all(1e-37f)); }
DIML_INLINE Lanes bounded(Lanes ratio) { return smallest(largest(ratio - 1.0f, all(kLeast)), all(kMost)); }

// Records how residual and log v of column `j` changed since the last sweep; returns what that adds to the drift.
DIML_INLINE Lanes record_change(const Problem& p, int64_t j, Lanes residual, Lanes* change, Lanes* motion) {
  change[j] = residual - p.residual[j], motion[j] = p.step[j] + change[j];
  return p.weight_g[j] * motion[j];
}

// A plain step of the pairs that mix; its changes are recorded from the second sweep on.
template <typename Layout>
DIML_INLINE void step(const Problem& p, int64_t cols, Mask mixing, int32_t sweep, Lanes error, PairState& state) {
  const int slot = sweep % kMixed;
  Lanes *const change = p.change + slot * cols, *const motion = p.motion + slot * cols, drift = Lanes{};
  for (int64_t j = 0; j < cols; ++j) {
    const Lanes ratio = growth(p, j), residual = bounded(ratio);
    if (sweep > 0) drift += record_change(p, j, residual, change, motion);
    p.residual[j] = p.step[j] = residual;
    p.v[j] = select(mixing, p.v[j] * ratio, p.v[j]);
  }
  if (sweep > 0) state.drift[slot] = Layout::of_pair(drift);
  state.before = error;
}

// A mixed step: new v of the pairs that mix, from the column sums in p.columns.
static_assert(kMixEvery == 2, "`mix` adds the products of two changes, its own and that of the plain step before it");
template <typename Layout>
DIML_INLINE void mix(const Problem& p, int64_t cols, Mask mixing, int32_t sweep, Lanes error, PairState& state) {
  const int slot = sweep % kMixed, former = (sweep - 1) % kMixed;
  Lanes *const change = p.change + slot * cols, *const motion = p.motion + slot * cols, drift = Lanes{};
  Lanes products[kMixed], earlier[kMixed], wanted[kMixed], mixture[kMixed];
#pragma GCC unroll 4
  for (int s = 0; s < kMixed; ++s) products[s] = earlier[s] = wanted[s] = Lanes{};
  for (int64_t j = 0; j < cols; ++j) {
    const Lanes weight = p.weight_g[j], ratio = growth(p, j), residual = bounded(ratio);
    drift += record_change(p, j, residual, change, motion);
    p.residual[j] = residual, p.columns[j] = ratio;
    const Lanes last = weight * change[j], before = weight * p.change[former * cols + j], aim = weight * residual;
#pragma GCC unroll 4
    for (int s = 0; s < kMixed; ++s) {
      const Lanes known = p.change[s * cols + j];
      products[s] += known * last, earlier[s] += known * before, wanted[s] += known * aim;
    }
  }
  state.drift[slot] = Layout::of_pair(drift);
#pragma GCC unroll 4
  for (int s = 0; s < kMixed; ++s) {
    state.gram[s][former] = state.gram[former][s] = Layout::of_pair(earlier[s]);
    state.gram[s][slot] = state.gram[slot][s] = Layout::of_pair(products[s]);
    wanted[s] = Layout::of_pair(wanted[s]);
  }
  const Mask grown = error > state.before * kGrown;
  state.before = error;
  if (any(grown & mixing)) {
    reset_history(p, state, grown);
    for (Lanes& entry : wanted) entry = select(grown, Lanes{}, entry);
  }
  solve_mixture(state, wanted, mixture);
  drift = Lanes{};
#pragma GCC unroll 4
  for (int s = 0; s < kMixed; ++s) drift += mixture[s] * state.drift[s];
  for (int64_t j = 0; j < cols; ++j) {
    Lanes back = -drift;
#pragma GCC unroll 4
    for (int s = 0; s < kMixed; ++s) back += mixture[s] * p.motion[s * cols + j];
    back = smallest(largest(back, all(-kFurthest)), all(kFurthest));
    p.step[j] = p.residual[j] - back;
    const Lanes factor = 1.0f - back * (1.0f - back * (0.5f - back * (1.0f / 6)));  // e^-back
    p.v[j] = select(mixing, p.v[j] * p.columns[j] * factor, p.v[j]);
  }
}

// The best relaxation for an observed rate of convergence, by the theory of successive over-relaxation.
DIML_INLINE Lanes tuned(Lanes w, Lanes rate) {
  const Lanes excess = rate + w - 1.0f;
  const Lanes theta = smallest(excess * excess / (w * w * rate), all(kSlowest));
  const Lanes best = 2.0f / (1.0f + square_root(1.0f - theta));
  const Lanes grown = select(rate > w - 1.0f, largest(w, best), w);
  return select(rate >= 1.0f, 1.0f + (w - 1.0f) * kDamping, grown);
}

// Tunes the relaxation of each pair, which has been over-relaxed for `since` sweeps; `since` and `sweep` are equal
// modulo kEstimateEvery.
static_assert(kEstimateEvery == 4, "`tune` takes the fourth root of the rate");
static void tune(PairState& state, Lanes error, Mask since, int32_t sweep) {
  const Lanes rate = largest(error / state.last, all(1e-6f));
  if (sweep % kEstimateEvery == kFirstEstimate % kEstimateEvery) {
    state.relaxation = select(since == kFirstEstimate, tuned(state.relaxation, rate), state.relaxation);
  }
  if ((sweep + 1) % kEstimateEvery == 0) {
    const Lanes rate_of_one = square_root(square_root(rate));  // of kEstimateEvery iterations
    state.relaxation = select(since > kFirstEstimate, tuned(state.relaxation, rate_of_one), state.relaxation);
    state.last = error;
  }
}

// The pairs of a problem and their progress; a lane may hold a pair that started earlier than its neighbours.
struct Block {
  Problem problem;
  PairState state;
  Lanes error;
  Mask active, iterations;  // pairs still running; iterations of those that have ended
  Mask ahead;               // a pair has done `sweep + ahead` iterations; a multiple of kEstimateEvery and kMixed
  int32_t sweep;
  int64_t pair[W];          // negative: the lane holds no pair
};

// The lanes that hold a pair.
static Mask occupied(const Block& block) {
  Mask lanes = Mask{};
  for (int lane = 0; lane < W; ++lane) lanes[lane] = block.pair[lane] >= 0 ? -1 : 0;
  return lanes;
}

// The state of pairs that start; `wide` ones do not.
static void start_block(Block& block, Mask wide) {
  const Lanes one = all(1.0f);
  block.state = PairState{all(1e30f), {}, {}, one, Lanes{}, one};
  reset_history(block.problem, block.state, all_true());
  block.error = Lanes{}, block.iterations = select_mask(wide, Mask{} + kTooWide, Mask{});
  block.active = occupied(block) & ~wide, block.ahead = Mask{}, block.sweep = 0;
}

// Starts the pairs of a block: kernel, and scaling vectors of 1.
static void start_pairs(Block& block, const SolverSettings& solver) {
  const Problem& p = block.problem;
  const int64_t cells = p.rows * p.cols;
  Lanes high = p.cosine[0], low = high;
  for (int64_t x = 1; x < cells; ++x) high = largest(high, p.cosine[x]), low = smallest(low, p.cosine[x]);
  const Lanes scale = all(kLog2E / solver.epsilon), top = high * scale, one = all(1.0f);
  for (int64_t x = 0; x < cells; ++x) p.kernel[x] = power_of_two(p.cosine[x] * scale - top);
  if (dustbins_of(solver) > 0 && !solver.open) p.kernel[cells - 1] = Lanes{};
  const Mask wide = high - low > kPlainRange * solver.epsilon;
  for (int64_t i = 0; i < p.rows; ++i) p.u[i] = one;
  for (int64_t j = 0; j < p.cols; ++j) p.v[j] = one;
  start_block(block, wide);
}

// W pairs side by side; fixed sizes, or 0 for any.
template <int ROWS, int COLS>
struct SideBySide {
  DIML_INLINE int64_t across(const Problem& p) { return COLS ? COLS : p.cols; }

  // What the sum over the vectors of a row says of each pair.
  DIML_INLINE Lanes of_pair(Lanes sum) { return sum; }

  // A sweep over all rows: their new u, and the sums of the columns.
  DIML_INLINE void sweep(const Problem& p, Mask active, Lanes over) {
    const int64_t rows = ROWS ? ROWS : p.rows, cols = across(p);
    const bool relaxed = any(over > 0.0f);
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) sweep_rows<8>(p, i, cols, active, over, relaxed);
    for (; i + 4 <= rows; i += 4) sweep_rows<4>(p, i, cols, active, over, relaxed);
    for (; i < rows; ++i) sweep_rows<1>(p, i, cols, active, over, relaxed);
  }
};

// Sweeps until at most `remaining` pairs are active, at a point where they can be moved to another block.
template <typename Layout>
static void run(Block& block, const SolverSettings& solver, int remaining) {
  const Problem& p = block.problem;
  const int64_t cols = Layout::across(p);
  Mask active = block.active;
  PairState state = block.state;
  int32_t sweep = block.sweep;  // iterations done when a sweep starts
  for (; any(active); ++sweep) {
    if (sweep >= kMoveAfter && sweep % kEstimateEvery == 0 && count(active) <= remaining) break;
    if (sweep % kCancelEvery == kCancelEvery - 1 && solver.cancelled(solver.owner)) {
      active = Mask{};
      break;
    }
    for (int64_t j = 0; j < cols; ++j) p.columns[j] = Lanes{};
    Layout::sweep(p, active, state.over);
    Lanes error = Lanes{};
    for (int64_t j = 0; j < cols; ++j) {
      p.columns[j] *= p.v[j];
      error += magnitude(p.columns[j] - p.weight_g[j]);
    }
    error = Layout::of_pair(error);
    const Mask iterations = block.ahead + sweep, mixing = iterations < kMixing;
    Mask good = Mask{};
    if (sweep > 0) {
      good = error <= solver.tolerance;
      const Mask done = active & ((iterations >= solver.max_iterations) | (good & (state.over == 0.0f)));
      if (any(done)) {
        block.error = select(done, error, block.error);
        block.iterations = select_mask(done, iterations, block.iterations);
        active &= ~done;
        if (!any(active)) break;
      }
    }
    if (any(active & ~mixing)) {
      tune(state, error, iterations - kMixing, sweep);
      const Mask plain = good | (iterations + 1 == solver.max_iterations);
      state.over = select(plain, Lanes{}, state.relaxation - 1.0f);
      for (int64_t j = 0; j < cols; ++j) {
        p.v[j] = select(active & ~mixing, over_relaxed(p.v[j], p.columns[j], p.weight_g[j], state.over), p.v[j]);
      }
    }
    if (!any(active & mixing)) continue;
    if (sweep % kMixEvery == 1 || sweep == 0) {
      step<Layout>(p, cols, active & mixing, sweep, error, state);
    } else {
      mix<Layout>(p, cols, active & mixing, sweep, error, state);
    }
  }
  block.active = active, block.state = state, block.sweep = sweep;
}

static void run_side_by_side(Block& block, const SolverSettings& solver, int remaining) {
  const int64_t rows = block.problem.rows;
  if (rows == block.problem.cols) {
    if (rows == 16) return run<SideBySide<16, 16>>(block, solver, remaining);
    if (rows == 4) return run<SideBySide<4, 4>>(block, solver, remaining);
    if (rows == 9) return run<SideBySide<9, 9>>(block, solver, remaining);
    if (rows == 17) return run<SideBySide<17, 17>>(block, solver, remaining);
  }
  run<SideBySide<0, 0>>(block, solver, remaining);
}

// The structural similarity, sum of plan * cosine over the regions.
static Lanes structural(const Problem& p) {
  Lanes sum = Lanes{};
  for (int64_t i = 0; i < p.regions_q; ++i) {
    Lanes row = Lanes{};
    for (int64_t j = 0; j < p.regions_g; ++j) row += p.kernel[i * p.cols + j] * p.v[j] * p.cosine[i * p.cols + j];
    sum += p.u[i] * row;
  }
  return sum * p.total;
}

// Moves the active pairs of `from` into free lanes of `to`, which must have enough of them.
static void move(Block& from, Block& to) {
  if (!any(to.active)) to.sweep = from.sweep;
  Mask source = Mask{}, moved = Mask{};
  for (int lane = 0, place = 0; lane < W; ++lane) {
    if (!from.active[lane]) continue;
    while (to.active[place]) ++place;
    source[place] = lane, moved[place] = -1;
    to.pair[place] = from.pair[lane], from.pair[lane] = -1;
    to.active[place] = -1;
  }
  const auto merge = [&](Lanes& into, Lanes values) { into = select(moved, permuted(values, source), into); };
  const int64_t size = problem_lanes(to.problem);
  for (int64_t x = 0; x < size; ++x) merge(to.problem.cosine[x], from.problem.cosine[x]);
  for (int s = 0; s < kMixed; ++s) {
    for (int x = 0; x < kMixed; ++x) merge(to.state.gram[s][x], from.state.gram[s][x]);
    merge(to.state.drift[s], from.state.drift[s]);
  }
  merge(to.state.before, from.state.before);
  merge(to.state.relaxation, from.state.relaxation);
  merge(to.state.over, from.state.over);
  merge(to.state.last, from.state.last);
  const auto merge_mask = [&](Mask& into, Mask values) {
    into = select_mask(moved, (Mask)permuted((Lanes)values, source), into);
  };
  merge_mask(to.ahead, from.ahead + (from.sweep - to.sweep));
  from.active = Mask{};
}

// Solves pairs first..last. `fill(block, start)` reads the problems of block.pair, pairs from `start` on; `end(block,
// done)` writes the results of pairs that have ended. Pairs that take longer than most of their block continue in a
// second one, `rest`, so that few lanes are idle.
template <typename Fill, typename End>
static void solve_entropic(Block& fresh, Block& rest, const SolverSettings& solver, int64_t first, int64_t last,
                           Fill fill, End end) {
  const auto run_until = [&](Block& block, int remaining) {
    run_side_by_side(block, solver, remaining);
    const Mask done = occupied(block) & ~block.active;
    if (!any(done)) return;
    end(block, done);
    for (int lane = 0; lane < W; ++lane) block.pair[lane] = done[lane] ? -1 : block.pair[lane];
  };
  const int64_t size = problem_lanes(rest.problem);
  for (int64_t x = 0; x < size; ++x) rest.problem.cosine[x] = Lanes{};
  rest.state = PairState{Lanes{}, {}, {}, all(1.0f), Lanes{}, all(1.0f)};
  rest.error = Lanes{}, rest.active = rest.iterations = rest.ahead = Mask{}, rest.sweep = 0;
  for (int lane = 0; lane < W; ++lane) rest.pair[lane] = -1;
  for (int64_t start = first; start < last; start += W) {
    for (int lane = 0; lane < W; ++lane) fresh.pair[lane] = start + lane < last ? start + lane : -1;
    fill(fresh, start);
    start_pairs(fresh, solver);
    run_until(fresh, W / 2);
    const int left = count(fresh.active);
    if (left && left + count(rest.active) > W) run_until(rest, W - left);
    if (left) move(fresh, rest);
  }
  run_until(rest, 0);
}

}  // namespace diml::DIML_INSTRUCTION_SET
