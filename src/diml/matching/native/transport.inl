// The entropic transport problem of W pairs side by side: the algorithm of sinkhorn.py, step for step.
//
// u and v scale the rows and columns of kernel = exp((cosine - largest) / epsilon). One sweep over the kernel computes
// row sums, their error, new u, and the column sums that new v needs. Updates are over-relaxed, each pair by its own
// rate of convergence; the last one of the columns is plain, so that they hold to rounding.

constexpr float kPlainRange = 41.0f;  // PLAIN_RANGE[torch.float32]
constexpr int32_t kSweepsUnasked = 64;  // between two questions whether to stop
constexpr int kFirstEstimate = 4, kEstimateEvery = 4;
constexpr float kStep = 0.5f, kDamping = 0.7f, kSlowest = 0.9999f;

struct Problem {  // memory for W pairs; arrays of W numbers
  Lanes *cosine, *kernel;    // (Rq, Rg)
  Lanes *weight_q, *weight_g, *u, *u_before, *v, *columns;
  int64_t rows, cols;
};

DIML_INLINE int64_t problem_lanes(int64_t rows, int64_t cols) { return 2 * rows * cols + 3 * rows + 3 * cols; }

static Problem lay_out(Lanes* memory, int64_t rows, int64_t cols) {
  Problem p;
  p.rows = rows, p.cols = cols;
  p.cosine = memory, p.kernel = p.cosine + rows * cols;
  p.weight_q = p.kernel + rows * cols, p.u = p.weight_q + rows, p.u_before = p.u + rows;
  p.weight_g = p.u_before + rows, p.v = p.weight_g + cols, p.columns = p.v + cols;
  return p;
}

// Scales mass to sum to 1; without any it becomes uniform. The largest entry is divided out first.
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

// scale * (target / (scale * sum))^relaxation to first order, positive for any ratio; 0 where nothing is reached.
DIML_INLINE Lanes updated(Lanes scale, Lanes reached, Lanes target, Lanes over) {
  const Lanes ratio = target / largest(reached, all(1e-37f));
  const Lanes step = smallest(largest(ratio - 1.0f, all(-kStep)), all(kStep));
  return scale * (ratio + ratio * over * step);
}

// One sweep over ROWS rows from row `i`: their sums, their error, their new u, and what they add to the column sums.
template <int ROWS>
DIML_INLINE void sweep_rows(const Problem& p, int64_t i, int64_t cols, Mask active, Lanes over, Lanes& error) {
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
    const Lanes before = p.u[i + x], reached = before * sum[x], target = p.weight_q[i + x];
    error += magnitude(reached - target);
    p.u_before[i + x] = before;
    sum[x] = p.u[i + x] = select(active, updated(before, reached, target, over), before);
  }
  for (int64_t j = 0; j < cols; ++j) {
    Lanes column = p.columns[j];
#pragma GCC unroll 8
    for (int x = 0; x < ROWS; ++x) column += row[x * cols + j] * sum[x];
    p.columns[j] = column;
  }
}

// What each pair remembers from sweep to sweep to choose its relaxation.
struct Pace {
  Lanes relaxation, last;
  Mask exact;  // the columns hold: v was updated plainly
};

// The relaxation that is best for the rate of convergence seen, by the theory of successive over-relaxation.
static void adapt(Pace& pace, Lanes error, int32_t iterations) {
  const bool first = iterations == kFirstEstimate - 1;
  if (iterations == kFirstEstimate || (!first && iterations > kFirstEstimate && (iterations + 1) % kEstimateEvery == 0)) {
    Lanes rate = largest(error / pace.last, all(1e-6f));
    if (iterations != kFirstEstimate) rate = root(root(rate));
    const Lanes w = pace.relaxation, excess = rate + w - 1.0f;
    const Lanes theta = smallest(excess * excess / (w * w * rate), all(kSlowest));
    const Lanes best = 2.0f / (1.0f + root(1.0f - theta));
    const Lanes grown = select(rate > w - 1.0f, largest(w, best), w);
    pace.relaxation = select(rate >= 1.0f, 1.0f + (w - 1.0f) * kDamping, grown);
  }
  if (first || (iterations + 1) % kEstimateEvery == 0) pace.last = error;
}

// Where the pairs of a problem stand; a lane may hold a pair that began earlier than its neighbours.
struct Block {
  Problem problem;
  Pace pace;
  Lanes error;
  Mask active, iterations;  // those still running; how many a pair took that has ended
  Mask ahead;               // a pair has done `sweep + ahead` iterations, and `ahead` divides by kEstimateEvery
  int32_t sweep;
  int64_t pair[W];          // negative: nobody waits for this lane
};

// The lanes that somebody waits for.
static Mask held(const Block& block) {
  Mask lanes = Mask{};
  for (int lane = 0; lane < W; ++lane) lanes[lane] = block.pair[lane] >= 0 ? -1 : 0;
  return lanes;
}

// Puts the pairs at their start: kernel, and scaling vectors of 1.
static void begin(Block& block, const Solver& solver) {
  const Problem& p = block.problem;
  const int64_t cells = p.rows * p.cols;
  Lanes high = p.cosine[0], low = high;
  for (int64_t x = 1; x < cells; ++x) high = largest(high, p.cosine[x]), low = smallest(low, p.cosine[x]);
  const Lanes inverse = all(1.0f / solver.epsilon), one = all(1.0f);
  for (int64_t x = 0; x < cells; ++x) p.kernel[x] = exponential((p.cosine[x] - high) * inverse);
  const Mask wide = (high - low) * inverse > kPlainRange;
  for (int64_t i = 0; i < p.rows; ++i) p.u[i] = one;
  for (int64_t j = 0; j < p.cols; ++j) p.v[j] = one;
  block.pace = Pace{one, one, all_true()};
  block.error = Lanes{}, block.iterations = select_mask(wide, Mask{} + kTooWide, Mask{});
  block.active = held(block) & ~wide, block.ahead = Mask{}, block.sweep = 0;
}

// Sweeps until at most `leave` pairs are active, at a point where they can be moved to another block.
template <int ROWS, int COLS>  // fixed sizes, or 0 for any
static void run(Block& block, const Solver& solver, int leave) {
  const Problem& p = block.problem;
  const int64_t rows = ROWS ? ROWS : p.rows, cols = COLS ? COLS : p.cols;
  Mask active = block.active;
  Pace pace = block.pace;
  int32_t sweep = block.sweep;  // at the start of a sweep, so many iterations have been done
  for (; any(active); ++sweep) {
    if (sweep >= 2 * kEstimateEvery && sweep % kEstimateEvery == 0 && count(active) <= leave) break;
    if (sweep % kSweepsUnasked == kSweepsUnasked - 1 && solver.stop(solver.owner)) {
      active = Mask{};
      break;
    }
    for (int64_t j = 0; j < cols; ++j) p.columns[j] = Lanes{};
    Lanes error = Lanes{};
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) sweep_rows<8>(p, i, cols, active, pace.relaxation - 1.0f, error);
    for (; i + 4 <= rows; i += 4) sweep_rows<4>(p, i, cols, active, pace.relaxation - 1.0f, error);
    for (; i < rows; ++i) sweep_rows<1>(p, i, cols, active, pace.relaxation - 1.0f, error);
    const Mask iterations = block.ahead + sweep;
    Mask good = Mask{};
    if (sweep > 0) {
      good = error <= solver.tolerance;
      const Mask done = active & ((iterations >= solver.max_iterations) | (good & pace.exact));
      if (any(done)) {
        for (int64_t x = 0; x < rows; ++x) p.u[x] = select(done, p.u_before[x], p.u[x]);
        block.error = select(done, error, block.error);
        block.iterations = select_mask(done, iterations, block.iterations);
        active &= ~done;
      }
      if (sweep >= kFirstEstimate - 1) adapt(pace, error, sweep);
    }
    const Mask plain = good | (iterations + 1 == solver.max_iterations);
    const Lanes over = select(plain, Lanes{}, pace.relaxation - 1.0f);
    for (int64_t j = 0; j < cols; ++j) {
      p.v[j] = select(active, updated(p.v[j], p.v[j] * p.columns[j], p.weight_g[j], over), p.v[j]);
    }
    pace.exact = over == 0.0f;
  }
  block.active = active, block.pace = pace, block.sweep = sweep;
}

static void run(Block& block, const Solver& solver, int leave) {
  const int64_t rows = block.problem.rows;
  if (rows == block.problem.cols) {
    if (rows == 16) return run<16, 16>(block, solver, leave);
    if (rows == 4) return run<4, 4>(block, solver, leave);
    if (rows == 9) return run<9, 9>(block, solver, leave);
    if (rows == 49) return run<49, 49>(block, solver, leave);
    if (rows == 64) return run<64, 64>(block, solver, leave);
  }
  run<0, 0>(block, solver, leave);
}

// sum of plan * cosine.
static Lanes structural(const Problem& p) {
  Lanes sum = Lanes{};
  for (int64_t i = 0; i < p.rows; ++i) {
    Lanes row = Lanes{};
    for (int64_t j = 0; j < p.cols; ++j) row += p.kernel[i * p.cols + j] * p.v[j] * p.cosine[i * p.cols + j];
    sum += p.u[i] * row;
  }
  return sum;
}

// Moves the active pairs of `from` into lanes of `to` that are free, of which there are enough.
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
  const int64_t size = problem_lanes(to.problem.rows, to.problem.cols);
  for (int64_t x = 0; x < size; ++x) merge(to.problem.cosine[x], from.problem.cosine[x]);
  merge(to.pace.relaxation, from.pace.relaxation);
  merge(to.pace.last, from.pace.last);
  const auto merge_mask = [&](Mask& into, Mask values) {
    into = select_mask(moved, (Mask)permuted((Lanes)values, source), into);
  };
  merge_mask(to.pace.exact, from.pace.exact);
  merge_mask(to.ahead, from.ahead + (from.sweep - to.sweep));
  from.active = Mask{};
}

// All pairs first..last. `fill(block)` is asked for the problems of block.pair; `end(block, done)` is told of those
// that have ended. Pairs that outlive most of their block go on in a second one, so that lanes do not stand idle.
template <typename Fill, typename End>
static void transport(Block& fresh, Block& rest, const Solver& solver, int64_t first, int64_t last, Fill fill, End end) {
  const auto run_down = [&](Block& block, int leave) {
    run(block, solver, leave);
    const Mask done = held(block) & ~block.active;
    if (!any(done)) return;
    end(block, done);
    for (int lane = 0; lane < W; ++lane) block.pair[lane] = done[lane] ? -1 : block.pair[lane];
  };
  const int64_t size = problem_lanes(rest.problem.rows, rest.problem.cols);
  for (int64_t x = 0; x < size; ++x) rest.problem.cosine[x] = Lanes{};
  rest.pace = Pace{all(1.0f), all(1.0f), all_true()};
  rest.error = Lanes{}, rest.active = rest.iterations = rest.ahead = Mask{}, rest.sweep = 0;
  for (int lane = 0; lane < W; ++lane) rest.pair[lane] = -1;
  for (int64_t start = first; start < last; start += W) {
    for (int lane = 0; lane < W; ++lane) fresh.pair[lane] = start + lane < last ? start + lane : -1;
    fill(fresh, start);
    begin(fresh, solver);
    run_down(fresh, W / 2);
    const int left = count(fresh.active);
    if (left && left + count(rest.active) > W) run_down(rest, W - left);
    if (left) move(fresh, rest);
  }
  run_down(rest, 0);
}
