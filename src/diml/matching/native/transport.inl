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

struct Outcome {
  Lanes structural, error;
  Mask iterations;
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

template <int ROWS, int COLS>  // fixed sizes, or 0 for any
static Outcome transport(const Problem& p, const Solver& solver) {
  const int64_t rows = ROWS ? ROWS : p.rows, cols = COLS ? COLS : p.cols;
  Lanes high = p.cosine[0], low = high;
  for (int64_t x = 1; x < rows * cols; ++x) high = largest(high, p.cosine[x]), low = smallest(low, p.cosine[x]);
  const Lanes inverse = all(1.0f / solver.epsilon), one = all(1.0f);
  for (int64_t x = 0; x < rows * cols; ++x) p.kernel[x] = exponential((p.cosine[x] - high) * inverse);
  const Mask wide = (high - low) * inverse > kPlainRange;
  for (int64_t i = 0; i < rows; ++i) p.u[i] = one;
  for (int64_t j = 0; j < cols; ++j) p.v[j] = one;
  Outcome found{Lanes{}, Lanes{}, select_mask(wide, Mask{} + kTooWide, Mask{})};
  Mask active = ~wide;
  Pace pace{one, one, all_true()};
  for (int32_t sweep = 0; any(active); ++sweep) {  // at its start, `sweep` iterations have been done
    if (sweep % kSweepsUnasked == kSweepsUnasked - 1 && solver.stop(solver.owner)) break;
    for (int64_t j = 0; j < cols; ++j) p.columns[j] = Lanes{};
    Lanes error = Lanes{};
    int64_t i = 0;
    for (; i + 8 <= rows; i += 8) sweep_rows<8>(p, i, cols, active, pace.relaxation - 1.0f, error);
    for (; i + 4 <= rows; i += 4) sweep_rows<4>(p, i, cols, active, pace.relaxation - 1.0f, error);
    for (; i < rows; ++i) sweep_rows<1>(p, i, cols, active, pace.relaxation - 1.0f, error);
    Mask good = Mask{};
    if (sweep > 0) {
      good = error <= solver.tolerance;
      const Mask done = active & (sweep >= solver.max_iterations ? all_true() : good & pace.exact);
      if (any(done)) {
        for (int64_t x = 0; x < rows; ++x) p.u[x] = select(done, p.u_before[x], p.u[x]);
        found.error = select(done, error, found.error);
        found.iterations = select_mask(done, Mask{} + sweep, found.iterations);
        active &= ~done;
      }
      if (sweep >= kFirstEstimate - 1) adapt(pace, error, sweep);
    }
    const Mask plain = good | (Mask{} + (sweep + 1 == solver.max_iterations ? -1 : 0));
    const Lanes over = select(plain, Lanes{}, pace.relaxation - 1.0f);
    for (int64_t j = 0; j < cols; ++j) {
      p.v[j] = select(active, updated(p.v[j], p.v[j] * p.columns[j], p.weight_g[j], over), p.v[j]);
    }
    pace.exact = over == 0.0f;
  }
  for (int64_t i = 0; i < rows; ++i) {
    Lanes row = Lanes{};
    for (int64_t j = 0; j < cols; ++j) row += p.kernel[i * cols + j] * p.v[j] * p.cosine[i * cols + j];
    found.structural += p.u[i] * row;
  }
  return found;
}

static Outcome transport_of(const Problem& p, const Solver& solver) {
  if (p.rows == p.cols) {
    if (p.rows == 16) return transport<16, 16>(p, solver);
    if (p.rows == 4) return transport<4, 4>(p, solver);
    if (p.rows == 9) return transport<9, 9>(p, solver);
    if (p.rows == 49) return transport<49, 49>(p, solver);
    if (p.rows == 64) return transport<64, 64>(p, solver);
  }
  return transport<0, 0>(p, solver);
}
