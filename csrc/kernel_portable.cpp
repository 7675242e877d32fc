// Any processor: four floats side by side are what SSE2 and NEON have.
#define DIML_LANES 4
#define DIML_NAME "portable"
#include "kernel.inl"

const diml::Kernels* diml::kernels_portable() { return &table; }
