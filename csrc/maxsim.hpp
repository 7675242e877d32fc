// MaxSim plans of W pairs side by side, or of a single one: the mass of each region goes to its most similar region of
// the other image, as in maxsim.py. There is nothing to iterate; a score needs the largest cosine of every row and column
// only.
#pragma once

#include <cstdint>

#include "lanes.hpp"
#include "single.hpp"
#include "tasks.hpp"
#include "transport.hpp"

namespace diml::DIML_INSTRUCTION_SET {

DIML_INLINE bool is_maxsim(PlanKind plan) { return plan == PlanKind::maxsim || plan == PlanKind::maxsim_query; }

// Writes the largest cosine of each row to u, and of each column to v.
static void find_largest(const Problem& p) {
  for (int64_t j = 0; j < p.cols; ++j) p.v[j] = p.cosine[j];
  for (int64_t i = 0; i < p.rows; ++i) {
    const Lanes* row = p.cosine + i * p.cols;
    Lanes most = row[0];
    for (int64_t j = 0; j < p.cols; ++j) {
      most = largest(most, row[j]);
      p.v[j] = largest(p.v[j], row[j]);
    }
    p.u[i] = most;
  }
}

// The structural similarity, sum of plan * cosine, from the largest cosines, which it leaves in u and v.
static Lanes maxsim_structural(const Problem& p, PlanKind plan) {
  find_largest(p);
  Lanes of_query = Lanes{}, of_gallery = Lanes{};
  for (int64_t i = 0; i < p.rows; ++i) of_query += p.weight_q[i] * p.u[i];
  if (plan == PlanKind::maxsim_query) return of_query;
  for (int64_t j = 0; j < p.cols; ++j) of_gallery += p.weight_g[j] * p.v[j];
  return (of_query + of_gallery) * 0.5f;
}

// Writes the plan to the kernel; regions that are equally similar share the mass equally.
static void make_maxsim_plan(const Problem& p, PlanKind plan) {
  const bool both = plan == PlanKind::maxsim;
  const Lanes none = Lanes{}, one = all(1.0f);
  for (int64_t j = 0; both && j < p.cols; ++j) {  // what one of the most similar regions gets from column j
    Lanes ties = none;
    for (int64_t i = 0; i < p.rows; ++i) ties += select(p.cosine[i * p.cols + j] == p.v[j], one, none);
    p.columns[j] = 0.5f * p.weight_g[j] / ties;
  }
  for (int64_t i = 0; i < p.rows; ++i) {
    const Lanes *row = p.cosine + i * p.cols, most = p.u[i];
    Lanes* to = p.kernel + i * p.cols;
    Lanes ties = none;
    for (int64_t j = 0; j < p.cols; ++j) ties += select(row[j] == most, one, none);
    const Lanes mass = (both ? 0.5f * p.weight_q[i] : p.weight_q[i]) / ties;
    for (int64_t j = 0; j < p.cols; ++j) {
      to[j] = select(row[j] == most, mass, none);
      if (both) to[j] += select(row[j] == p.v[j], p.columns[j], none);
    }
  }
}

// As `maxsim_structural`.
static float maxsim_structural_of_single(const Problem& p, PlanKind plan) {
  const int64_t vectors = vectors_of_row(p);
  float* const v = reinterpret_cast<float*>(p.v);
  for (int64_t x = 0; x < vectors; ++x) p.u[x] = p.cosine[x];
  for (int64_t j = 0; j < p.regions_g; ++j) {
    const Lanes* row = p.cosine + j * vectors;
    Lanes most = row[0];
    for (int64_t x = 0; x < vectors; ++x) {
      most = largest(most, row[x]);
      p.u[x] = largest(p.u[x], row[x]);
    }
    v[j] = largest_of_lanes(most)[0];
  }
  Lanes of_query = Lanes{}, of_gallery = Lanes{};
  for (int64_t x = 0; x < vectors; ++x) of_query += p.weight_q[x] * p.u[x];
  if (plan == PlanKind::maxsim_query) return sum_of_lanes(of_query)[0];
  for (int64_t j = 0; j < p.across; ++j) of_gallery += p.weight_g[j] * p.v[j];
  return (sum_of_lanes(of_query + of_gallery) * 0.5f)[0];
}

// As `make_maxsim_plan`, written to (Rq, Rg).
static void write_maxsim_plan_of_single(const Problem& p, PlanKind plan, float* to) {
  const bool both = plan == PlanKind::maxsim;
  const int64_t vectors = vectors_of_row(p);
  const Lanes none = Lanes{}, one = all(1.0f);
  const float *v = reinterpret_cast<const float*>(p.v), *weight_g = reinterpret_cast<const float*>(p.weight_g);
  float* const columns = reinterpret_cast<float*>(p.columns);  // what one of the most similar regions gets from column j
  for (int64_t j = 0; both && j < p.regions_g; ++j) {
    Lanes ties = none;
    for (int64_t x = 0; x < vectors; ++x) {
      ties += select((p.cosine[j * vectors + x] == v[j]) & lanes_below(p.regions_q - x * W), one, none);
    }
    columns[j] = 0.5f * weight_g[j] / sum_of_lanes(ties)[0];
  }
  for (int64_t x = 0; x < vectors; ++x) {  // what it gets from a row
    Lanes ties = none;
    for (int64_t j = 0; j < p.regions_g; ++j) ties += select(p.cosine[j * vectors + x] == p.u[x], one, none);
    p.kernel[x] = (both ? 0.5f * p.weight_q[x] : p.weight_q[x]) / ties;
  }
  const auto of_vector = [&](int64_t x) {
    return [&, x](int64_t j) {
      const Lanes cosine = p.cosine[j * vectors + x], of_row = select(cosine == p.u[x], p.kernel[x], none);
      return both ? of_row + select(cosine == v[j], all(columns[j]), none) : of_row;
    };
  };
  write_single(p, of_vector, to);
}

}  // namespace diml::DIML_INSTRUCTION_SET
