// MaxSim plans of W pairs side by side: the mass of each region goes to its most similar region of the other image, as
// in maxsim.py. There is nothing to iterate; a score needs the largest cosine of every row and column only.
#pragma once

#include <cstdint>

#include "lanes.hpp"
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

}  // namespace diml::DIML_INSTRUCTION_SET
