// The table of one instruction set; included by one source file for each (kernel_*.cpp).
#pragma once

#include "backward.hpp"
#include "exact.hpp"
#include "lanes.hpp"
#include "nearest.hpp"
#include "readings.hpp"
#include "score.hpp"
#include "storage.hpp"
#include "tasks.hpp"

namespace diml::DIML_INSTRUCTION_SET {

#define DIML_QUOTED(name) #name
#define DIML_NAME_OF(name) DIML_QUOTED(name)

#ifdef DIML_INT16_PRODUCTS
constexpr auto kEncode = encode;
#else
constexpr auto kEncode = nullptr;
#endif

constexpr Kernels kernels_of(const char* name, bool vnni) {
  return {name, vnni, W, score_bytes, score, read_bytes, read, solve_bytes, solve, solve_exact_bytes, solve_exact,
          accumulate_gradients_bytes, accumulate_gradients, nearest_bytes, nearest, exact_dots, kEncode, powers_of_two};
}
constexpr Kernels kKernels = kernels_of(DIML_NAME_OF(DIML_INSTRUCTION_SET), false);
#ifdef DIML_VNNI
constexpr Kernels kVnniKernels = kernels_of(DIML_NAME_OF(DIML_INSTRUCTION_SET) "_vnni", true);
constexpr const Kernels* kWithVnni = &kVnniKernels;
#else
constexpr const Kernels* kWithVnni = nullptr;
#endif

}  // namespace diml::DIML_INSTRUCTION_SET
