// x86-64 with AVX-512 F, BW, DQ and VL; compiled with the flags of these where the compiler has them. DIML_VNNI: the
// assembler knows VNNI, too.
#include "tasks.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define DIML_LANES 16
#include "kernels.hpp"

const diml::Kernels* diml::kernels_avx512() { return &avx512::kKernels; }
const diml::Kernels* diml::kernels_avx512_vnni() { return avx512::kWithVnni; }
#else
const diml::Kernels* diml::kernels_avx512() { return nullptr; }
const diml::Kernels* diml::kernels_avx512_vnni() { return nullptr; }
#endif
