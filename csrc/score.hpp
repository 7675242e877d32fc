// Scores of embedded pairs, and plans of pairs whose costs are given.
#pragma once

#include <cstdint>

#include "constants.hpp"
#include "exact.hpp"
#include "gemm.hpp"
#include "lanes.hpp"
#include "maxsim.hpp"
#include "readings.hpp"
#include "single.hpp"
#include "storage.hpp"
#include "tasks.hpp"
#include "transport.hpp"
#include "votes.hpp"

namespace diml::DIML_INSTRUCTION_SET {

// Working memory of one thread that scores.
struct Workspace {
  PackedQuery query;
  bool single;          // whether pairs are solved one at a time, in `fresh`, whose cosines are then the cells
  Block fresh, rest;
  ExactProblem exact;   // for exact plans
  bool codes;           // whether cosines are products of 16-bit codes
  int16_t* pooled_g;    // with `codes`: the image's pooled vector, or any other one, as codes
  float* scale;         // with `codes`: of the rows of `cells`
  int16_t* image_codes;  // with `codes`: regions of the image, where they are decoded to integers
  float* rounded;       // rounded without `codes`: regions and pooled vector of the query, then the image's, rounded
  const float* pooled;  // the query's pooled vector as given
  float* image;         // decoded regions of the image
  float* cells;         // (W or 1, Rg + 1, lanes), of each pair products with the regions, then with the pooled vector
  ScorerMemory scorer;  // for votes
  float* dustbin;       // for votes: (W, round_up(Rq)), of the query of each pair
  float* mass;          // (W or 1, round_up(Rg)), products of the query's pooled vector with the regions
  int64_t bytes;
};

DIML_INLINE bool by_votes(const ScoreTask& task) { return task.solver.plan == PlanKind::votes; }

// Whether vectors of the query are rounded to the steps of 16-bit codes, as the gallery is of integers that can be
// multiplied by them. Mapped ones are not, as they may be longer than such codes can be.
DIML_INLINE bool rounds(const ScoreTask& task) {
  const Storage storage = task.gallery.storage;
  return (storage == Storage::int16 || storage == Storage::product) && !by_votes(task);
}

static Workspace workspace_in(const ScoreTask& task, void* memory) {
  Arena arena{static_cast<char*>(memory), 0};
  Workspace space{};
  const int64_t regions_q = task.query.regions, regions_g = task.gallery.regions, bins = dustbins_of(task.solver);
  const Storage storage = task.gallery.storage;
  space.query.regions = regions_q, space.query.dim = task.dim;
  space.query.vectors = round_up(regions_q) / W;
  const int64_t lanes = space.query.vectors * W;
  space.single = is_single(regions_q, regions_g, task.solver.plan);
  if (space.single) {
    space.fresh.problem = single_problem_of(regions_q, regions_g, task.solver);
    place_single(space.fresh.problem, arena.take<Lanes>(single_lanes(space.fresh.problem)));
  }
  for (Block* block : {&space.fresh, &space.rest}) {
    if (space.single) break;
    block->problem = problem_of(regions_q, regions_g, task.solver);
    place(block->problem, arena.take<Lanes>(problem_lanes(block->problem)));
  }
  if (task.solver.plan == PlanKind::exact) space.exact = exact_in(arena, regions_q + bins, regions_g + bins);
#ifdef DIML_INT16_PRODUCTS
  space.codes = rounds(task) && task.dim % 2 == 0;
#endif
  const int few = space.query.few = by_votes(task) ? 0 : few_of(regions_q);
  space.query.spare = regions_q % W != 0 && (!space.codes || few > 0);
  space.query.panels = arena.take<float>(space.codes ? 0 : packed_lanes(space.query) * task.dim);
  space.query.code_panels = arena.take<Mask>(space.codes ? packed_lanes(space.query) / W * task.dim / 2 : 0);
  space.query.few_codes = arena.take<int16_t>(space.codes ? (few > 0 ? few : 1) * task.dim : 0);
  space.pooled_g = arena.take<int16_t>(space.codes ? task.dim : 0);
  space.scale = arena.take<float>(space.codes ? regions_g + 1 : 0);
  const bool decodes = space.codes && storage == Storage::product;
  space.image_codes = arena.take<int16_t>(decodes ? regions_g * task.dim : 0);
  space.rounded = arena.take<float>(rounds(task) && !space.codes ? (regions_q + 2) * task.dim : 0);
  space.image = arena.take<float>(storage == Storage::float32 || space.codes ? 0 : regions_g * task.dim);
  space.cells = space.single ? reinterpret_cast<float*>(space.fresh.problem.cosine)
                             : arena.take<float>(W * (regions_g + 1) * lanes);
  space.mass = arena.take<float>((space.single ? 1 : W) * round_up(regions_g));
  if (by_votes(task)) space.scorer = scorer_memory_in(arena, task.votes.weights, regions_q, task.dim);
  space.dustbin = arena.take<float>(by_votes(task) ? W * lanes : 0);
  space.bytes = arena.used;
  return space;
}

static int64_t score_bytes(const ScoreTask& task) { return workspace_in(task, nullptr).bytes; }

// Packs a query for comparison.
static void pack_query(const ScoreTask& task, Workspace& space, int64_t query) {
  const float* dense = task.query.dense + query * task.query.stride;
  space.pooled = space.query.pooled = task.query.pooled + query * task.query.pooled_stride;
#ifdef DIML_INT16_PRODUCTS
  if (space.codes) return pack_query_codes(space.query, dense, space.pooled_g);
#endif
  if (rounds(task)) {
    const int64_t count = task.query.regions * task.dim;
    dense = rounded_to_codes(dense, count, space.rounded);
    space.query.pooled = rounded_to_codes(space.pooled, task.dim, space.rounded + count);
  }
  pack(space.query, dense);
  if (by_votes(task)) map_query(task.votes.weights, space.scorer, space.query);
}

#ifdef DIML_INT16_PRODUCTS
// `compare_pair` by 16-bit codes: fills `cells` and, unless it is null, `mass`.
static void compare_codes(const ScoreTask& task, Workspace& space, int64_t image, int64_t rows, float* cells,
                          float* mass, Prefetcher& prefetcher) {
  const StoredRegions& gallery = task.gallery;
  const int64_t regions = gallery.regions;
  const int16_t* codes = read_integers(gallery, task.dim, image, space.image_codes, space.scale);
  const int16_t* last = rows == regions ? codes + (regions - 1) * task.dim : space.pooled_g;
  space.scale[regions] = kCodeStep;
  encode(gallery.pooled + image * gallery.pooled_stride, task.dim, kShortsPerUnit, space.pooled_g);
  products_of_codes(space.query, codes, space.scale, rows, last, cells, regions, mass, prefetcher);
}
#endif

// Computes the cosines of the regions of a pair, and of each region with the pooled vector of the other image, into
// place `lane` of `cells` and `mass`; returns the cosine of the pooled vectors. `next` is the pair that follows.
static float compare_pair(const ScoreTask& task, Workspace& space, int lane, int64_t pair, int64_t next) {
  const StoredRegions& gallery = task.gallery;
  const int64_t lanes = space.query.vectors * W, regions = gallery.regions;
  const int64_t image = task.pairs.gallery_rows[pair], next_image = task.pairs.gallery_rows[next];
  const int64_t rows = task.uniform ? regions : regions + 1;
  const float* pooled = gallery.pooled + image * gallery.pooled_stride;
  float* cells = space.cells + lane * (regions + 1) * lanes;
  float* mass = task.uniform || space.query.spare ? nullptr : space.mass + lane * round_up(regions);
  Prefetcher prefetcher = prefetch_image(gallery, task.dim, next_image);
  const float* next_pooled = gallery.pooled + next_image * gallery.pooled_stride;
  for (int64_t d = 0; d < task.dim; d += kLine / 4) __builtin_prefetch(next_pooled + d);
  if (gallery.scale) __builtin_prefetch(gallery.scale + next_image * regions);
  if (by_votes(task)) __builtin_prefetch(task.votes.over_length + next_image * (regions + 1));
#ifdef DIML_INT16_PRODUCTS
  if (space.codes) {
    compare_codes(task, space, image, rows, cells, mass, prefetcher);
    return dot(space.pooled, pooled, task.dim);
  }
#endif
  const float *dense = read_image(gallery, task.dim, image, space.image), *last = pooled;
  const bool integers = rounds(task);
  if (integers) last = rounded_to_codes(pooled, task.dim, space.rounded + (task.query.regions + 1) * task.dim);
  if (task.uniform) last = dense + (regions - 1) * task.dim;
  products(space.query, dense, rows, last, cells, prefetcher);
  if (mass) dots(space.query.pooled, dense, regions, task.dim, task.dim, mass);
  if (by_votes(task)) {
    divide_by_lengths(task.votes, image, regions, rows, lanes, cells, mass);
    for (int64_t x = 0; x < lanes; x += W) store(space.dustbin + lane * lanes + x, load(space.scorer.dustbin + x));
  }
  const bool known = !task.uniform && space.query.spare && !integers && !by_votes(task);
  return known ? cells[regions * lanes + task.query.regions] : dot(space.pooled, pooled, task.dim);
}

// Transposes the numbers of W pairs into the problem of `fresh`, where the pairs are side by side.
static void interleave(const ScoreTask& task, Workspace& space) {
  const Problem& problem = space.fresh.problem;
  const int64_t lanes = space.query.vectors * W, rows = task.query.regions, cols = task.gallery.regions;
  Lanes block[W];
  for (int64_t first = 0; first < lanes; first += W) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int lane = 0; lane < W; ++lane) block[lane] = load(space.cells + (lane * (cols + 1) + j) * lanes + first);
      transpose(block);
      for (int x = 0; x < W && first + x < rows; ++x) problem.cosine[(first + x) * problem.cols + j] = block[x];
      if (rows >= first && rows < first + W) problem.weight_g[j] = block[rows - first];
    }
    for (int lane = 0; lane < W; ++lane) block[lane] = load(space.cells + (lane * (cols + 1) + cols) * lanes + first);
    transpose(block);
    for (int x = 0; x < W && first + x < rows; ++x) problem.weight_q[first + x] = block[x];
  }
  if (task.uniform) {
    for (int64_t i = 0; i < rows; ++i) problem.weight_q[i] = all(1.0f);
    for (int64_t j = 0; j < cols; ++j) problem.weight_g[j] = all(1.0f);
  } else if (!space.query.spare) {
    for (int64_t first = 0; first < cols; first += W) {
      for (int lane = 0; lane < W; ++lane) block[lane] = load(space.mass + lane * round_up(cols) + first);
      transpose(block);
      for (int x = 0; x < W && first + x < cols; ++x) problem.weight_g[first + x] = block[x];
    }
  }
}

// Reads the weights of a pair that was compared into the single problem of `fresh`.
static void read_weights(const ScoreTask& task, Workspace& space) {
  const Problem& problem = space.fresh.problem;
  const int64_t vectors = space.query.vectors, rows = task.query.regions, cols = task.gallery.regions;
  float* const weight_g = reinterpret_cast<float*>(problem.weight_g);
  for (int64_t x = 0; x < vectors; ++x) {
    problem.weight_q[x] = task.uniform ? all(1.0f) : problem.cosine[cols * vectors + x];
  }
  for (int64_t j = 0; j < cols; ++j) {
    weight_g[j] = task.uniform ? 1.0f : space.query.spare ? space.cells[j * vectors * W + rows] : space.mass[j];
  }
}

// Writes marginal error and iterations of the pairs that are done.
static void write_convergence(const PairResults& results, const Block& block, Mask done) {
  for (int lane = 0; lane < W; ++lane) {
    if (!done[lane]) continue;
    results.error[block.pair[lane]] = block.error[lane] * block.problem.total;
    results.iterations[block.pair[lane]] = block.iterations[lane];
  }
}

static void write_convergence_of_single(const PairResults& results, const Block& block, int64_t pair) {
  results.error[pair] = block.error[0] * block.problem.total, results.iterations[pair] = block.iterations[0];
}

// Reads `count` numbers of each of W pairs and puts the pairs side by side.
static void gather(const float* const (&from)[W], int64_t count, Lanes* to) {
  Lanes block[W];
  int64_t x = 0;
  for (; x + W <= count; x += W) {
    for (int lane = 0; lane < W; ++lane) block[lane] = load(from[lane] + x);
    transpose(block);
    for (int row = 0; row < W; ++row) to[x + row] = block[row];
  }
  for (; x < count; ++x) {
    for (int lane = 0; lane < W; ++lane) to[x][lane] = from[lane][x];
  }
}

// Writes the regions' part of a matrix (rows, cols) of each pair that is done to its place in `to` (B, Rq, Rg). Where
// there are dustbins, the lanes of these pairs are moved together.
static void write_matrices(Lanes* from, const Block& block, Mask done, float* to) {
  const Problem& p = block.problem;
  const int64_t cells = p.regions_q * p.regions_g;
  for (int64_t i = 1; i < p.regions_q && p.cols > p.regions_g; ++i) {
    for (int64_t j = 0; j < p.regions_g; ++j) {
      Lanes& cell = from[i * p.regions_g + j];
      cell = select(done, from[i * p.cols + j], cell);
    }
  }
  float* place[W];
  for (int lane = 0; lane < W; ++lane) place[lane] = done[lane] ? to + block.pair[lane] * cells : nullptr;
  Lanes turned[W];
  int64_t x = 0;
  for (; x + W <= cells; x += W) {
    for (int row = 0; row < W; ++row) turned[row] = from[x + row];
    transpose(turned);
    for (int lane = 0; lane < W; ++lane) {
      if (place[lane]) store(place[lane] + x, turned[lane]);
    }
  }
  for (; x < cells; ++x) {
    for (int lane = 0; lane < W; ++lane) {
      if (place[lane]) place[lane][x] = from[x][lane];
    }
  }
}

// Writes the plans of the pairs that are done; they overwrite the lanes of these pairs in the kernel.
static void write_plans(const Block& block, Mask done, float* to) {
  const Problem& p = block.problem;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.cols; ++j) {
      Lanes& cell = p.kernel[i * p.cols + j];
      cell = select(done, cell * p.u[i] * p.v[j] * p.total, cell);
    }
  }
  write_matrices(p.kernel, block, done, to);
}

// Writes the plans of pairs that need no iterations.
static void write_direct_plans(const Block& block, PlanKind plan, Mask done, float* to) {
  if (plan == PlanKind::votes) {
    make_plan_of_votes(block.problem);
  } else {
    make_maxsim_plan(block.problem, plan);
  }
  write_matrices(block.problem.kernel, block, done, to);
}

// The settings for problems whose masses sum to 1 with their dustbins.
static SolverSettings settings_within(SolverSettings solver) {
  solver.tolerance /= 1.0f + solver.dustbin;
  return solver;
}

DIML_INLINE bool is_direct(PlanKind plan) { return is_maxsim(plan) || plan == PlanKind::votes; }

// Reads the heights of the dustbins of the pairs of a block, from `start` on, to u and v, and completes the weights.
static void prepare_votes(const ScoreTask& task, const Workspace& space, int64_t start, int64_t last) {
  const Problem& problem = space.fresh.problem;
  const float *of_query[W], *of_image[W];
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = start + lane < last ? start + lane : last - 1;
    of_query[lane] = space.dustbin + lane * space.query.vectors * W;
    of_image[lane] = task.votes.dustbin + task.pairs.gallery_rows[pair] * problem.cols;
  }
  gather(of_query, problem.rows, problem.u), gather(of_image, problem.cols, problem.v);
  if (!task.uniform) at_least(problem.weight_q, problem.rows), at_least(problem.weight_g, problem.cols);
}

// Compares pairs first..last by plans that need no iterations; `fill` and `end` as in `solve_entropic`.
template <typename Fill, typename End>
static void compare_directly(Block& block, const SolverSettings& solver, int64_t first, int64_t last, Fill fill,
                             End end) {
  block.error = Lanes{}, block.iterations = Mask{};
  for (int64_t start = first; start < last && !solver.cancelled(solver.owner); start += W) {
    for (int lane = 0; lane < W; ++lane) block.pair[lane] = start + lane < last ? start + lane : -1;
    fill(block, start);
    end(block, occupied(block));
  }
}

// Makes the plan of the single problem of `fresh`, writes it to `plan` unless that is null, and returns the structural
// similarity.
static float plan_single(const ScoreTask& task, Workspace& space, const SolverSettings& solver, float level,
                         float* plan) {
  Block& block = space.fresh;
  const Problem& problem = block.problem;
  if (is_maxsim(solver.plan)) {
    const float found = maxsim_structural_of_single(problem, solver.plan);
    if (plan) write_maxsim_plan_of_single(problem, solver.plan, plan);
    return found;
  }
  if (solver.plan == PlanKind::exact) {
    const float found = solve_single_exactly(block, space.exact, solver, level);
    if (plan) write_exact_plan_of_single(problem, space.exact, plan);
    return found;
  }
  solve_single(block, solver, level);
  if (plan) write_plan_of_single(problem, plan);
  return structural_of_single(problem);
}

// Scores pairs first..last one at a time.
static void score_singles(const ScoreTask& task, Workspace& space, const SolverSettings& solver, int64_t first,
                          int64_t last) {
  const PairResults& results = task.results;
  Block& block = space.fresh;
  const int64_t cells = task.query.regions * task.gallery.regions;
  block.error = Lanes{}, block.iterations = Mask{};
  int64_t packed = -1;
  for (int64_t pair = first; pair < last; ++pair) {
    if ((pair - first) % W == 0 && solver.cancelled(solver.owner)) return;
    const int64_t query = task.pairs.query_rows[pair];
    if (query != packed) pack_query(task, space, packed = query);
    results.pooled[pair] = compare_pair(task, space, 0, pair, pair + 1 < last ? pair + 1 : pair);
    read_weights(task, space);
    const float level = complete_single(block.problem, solver);
    float* const plan = results.plan ? results.plan + pair * cells : nullptr;
    results.structural[pair] = plan_single(task, space, solver, level, plan);
    write_convergence_of_single(results, block, pair);
    if (results.cosine) write_cosine_of_single(block.problem, results.cosine + pair * cells);
  }
}

static void score(const ScoreTask& task, int64_t first, int64_t last, void* memory) {
  Workspace space = workspace_in(task, memory);
  const SolverSettings solver = settings_within(task.solver);
  const PairResults& results = task.results;
  const PlanKind plan = solver.plan;
  if (space.single) return score_singles(task, space, solver, first, last);
  int64_t packed = -1;
  const auto fill = [&](Block& block, int64_t start) {
    for (int lane = 0; lane < W; ++lane) {
      const int64_t pair = start + lane < last ? start + lane : last - 1, query = task.pairs.query_rows[pair];
      if (query != packed) pack_query(task, space, packed = query);
      results.pooled[pair] = compare_pair(task, space, lane, pair, pair + 1 < last ? pair + 1 : pair);
    }
    interleave(task, space);
    if (plan == PlanKind::votes) prepare_votes(task, space, start, last);
    complete(block.problem, solver);
  };
  const auto end = [&](const Block& block, Mask done) {
    write_convergence(results, block, done);
    const Lanes found = plan == PlanKind::votes ? cast_votes(block.problem, solver.epsilon)
                        : is_maxsim(plan)       ? maxsim_structural(block.problem, plan)
                                                : structural(block.problem);
    for (int lane = 0; lane < W; ++lane) {
      if (done[lane]) results.structural[block.pair[lane]] = found[lane];
    }
    if (results.cosine) write_matrices(block.problem.cosine, block, done, results.cosine);
    if (results.plan && is_direct(plan)) write_direct_plans(block, plan, done, results.plan);
    if (results.plan && !is_direct(plan)) write_plans(block, done, results.plan);
  };
  if (is_direct(plan)) return compare_directly(space.fresh, solver, first, last, fill, end);
  if (plan == PlanKind::exact) return solve_exact_pairs(space.fresh, space.exact, solver, first, last, fill, end);
  solve_entropic(space.fresh, space.rest, solver, first, last, fill, end);
}

DIML_INLINE bool is_single(const SolveTask& task) {
  return is_single(task.regions_q, task.regions_g, PlanKind::entropic);
}

static int64_t solve_bytes(const SolveTask& task) {
  const int64_t lanes = is_single(task)
                            ? single_lanes(single_problem_of(task.regions_q, task.regions_g, task.solver))
                            : 2 * problem_lanes(problem_of(task.regions_q, task.regions_g, task.solver));
  return lanes * (int64_t)sizeof(Lanes);
}

// Reads the given problems of a block, the pairs from `start` on, side by side.
static void read_problems(const SolveTask& task, const Problem& problem, int64_t start, int64_t last) {
  const int64_t rows = task.regions_q, cols = task.regions_g;
  const float *cost[W], *mass_q[W], *mass_g[W];
  for (int lane = 0; lane < W; ++lane) {
    const int64_t pair = start + lane < last ? start + lane : last - 1;
    cost[lane] = task.cost + pair * rows * cols;
    mass_q[lane] = task.mass_q + pair * rows, mass_g[lane] = task.mass_g + pair * cols;
  }
  gather(cost, rows * cols, problem.kernel);
  const float same = task.solver.open ? 1.0f : 0.0f;  // the cosine whose cost is 0; it only matters for a threshold
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) problem.cosine[i * problem.cols + j] = same - problem.kernel[i * cols + j];
  }
  gather(mass_q, rows, problem.weight_q), gather(mass_g, cols, problem.weight_g);
  complete(problem, task.solver);
}

// Reads costs (Rq, Rg) as cosines of a single problem; `same` as in `read_problems`.
static void read_costs(const float* cost, float same, const Problem& p) {
  const int64_t vectors = vectors_of_row(p), rows = p.regions_q, cols = p.regions_g;
  float* const cosine = reinterpret_cast<float*>(p.cosine);
  for (int64_t i = 0; i < rows; i += W) {
    for (int64_t j = 0; j < cols; j += W) {
      if (i + W <= rows && j + W <= cols) {
        Lanes block[W];
        for (int x = 0; x < W; ++x) block[x] = same - load(cost + (i + x) * cols + j);
        transpose(block);
        for (int x = 0; x < W; ++x) p.cosine[(j + x) * vectors + i / W] = block[x];
        continue;
      }
      for (int64_t x = i; x < rows && x < i + W; ++x) {
        for (int64_t y = j; y < cols && y < j + W; ++y) cosine[y * vectors * W + x] = same - cost[x * cols + y];
      }
    }
  }
}

// Solves the given problems first..last one at a time.
static void solve_singles(const SolveTask& task, const SolverSettings& solver, int64_t first, int64_t last,
                          void* memory) {
  const int64_t rows = task.regions_q, cols = task.regions_g;
  Block block;
  block.problem = single_problem_of(rows, cols, solver);
  place_single(block.problem, static_cast<Lanes*>(memory));
  const Problem& problem = block.problem;
  for (int64_t pair = first; pair < last; ++pair) {
    read_costs(task.cost + pair * rows * cols, solver.open ? 1.0f : 0.0f, problem);
    __builtin_memcpy(problem.weight_q, task.mass_q + pair * rows, rows * sizeof(float));
    __builtin_memcpy(problem.weight_g, task.mass_g + pair * cols, cols * sizeof(float));
    solve_single(block, solver, complete_single(problem, solver));
    write_convergence_of_single(task.results, block, pair);
    if (task.results.plan) write_plan_of_single(problem, task.results.plan + pair * rows * cols);
  }
}

static void solve(const SolveTask& task, int64_t first, int64_t last, void* memory) {
  const int64_t rows = task.regions_q, cols = task.regions_g;
  const SolverSettings solver = settings_within(task.solver);
  if (is_single(task)) return solve_singles(task, solver, first, last, memory);
  Block fresh, rest;
  fresh.problem = rest.problem = problem_of(rows, cols, solver);
  place(fresh.problem, static_cast<Lanes*>(memory));
  place(rest.problem, static_cast<Lanes*>(memory) + problem_lanes(fresh.problem));
  const auto fill = [&](Block& block, int64_t start) { read_problems(task, block.problem, start, last); };
  const auto end = [&](const Block& block, Mask done) {
    write_convergence(task.results, block, done);
    if (task.results.plan) write_plans(block, done, task.results.plan);
  };
  solve_entropic(fresh, rest, solver, first, last, fill, end);
}

}  // namespace diml::DIML_INSTRUCTION_SET
