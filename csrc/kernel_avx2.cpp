// x86-64 with AVX2, FMA and F16C; compiled with -mavx2 -mfma -mf16c where the compiler has them. DIML_VNNI: the
// assembler knows VNNI, too.
#include "tasks.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define DIML_LANES 8
#include "kernels.hpp"

const diml::Kernels* diml::kernels_avx2() { return &avx2::kKernels; }
const diml::Kernels* diml::kernels_avx2_vnni() { return avx2::kWithVnni; }
#else
const diml::Kernels* diml::kernels_avx2() { return nullptr; }
const diml::Kernels* diml::kernels_avx2_vnni() { return nullptr; }
#endif
