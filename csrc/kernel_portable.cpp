// Any processor: four floats side by side are what SSE2 and NEON have.
#define DIML_LANES 4
#include "kernels.hpp"

const diml::Kernels* diml::kernels_portable() { return &portable::kKernels; }
