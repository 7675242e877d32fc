// Which instruction set is in use.
#pragma once

#include <string>
#include <vector>

#include "tasks.hpp"

namespace diml {

// Instruction sets that were compiled and run on this processor, the fastest first.
std::vector<const Kernels*> usable_kernels();

// The one in use: the fastest, unless `choose_kernels` has set another.
const Kernels& kernels_in_use();

// Use another of `usable_kernels`; throws std::invalid_argument for any other name.
void choose_kernels(const std::string& name);

}  // namespace diml
