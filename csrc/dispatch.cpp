#include "dispatch.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "tasks.hpp"

namespace diml {

namespace {

bool supported(const Kernels* kernels) {
  if (!kernels) return false;
  const std::string name = kernels->name;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (name == "avx2") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (name == "avx512") return avx512;
#ifdef DIML_VNNI
  if (name == "avx2_vnni") return avx2 && __builtin_cpu_supports("avxvnni");
  if (name == "avx512_vnni") return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
#endif
  return name == "portable";
}

const Kernels* use(const Kernels* kernels) {
  vnni_in_use = kernels->vnni;
  return kernels;
}

const Kernels*& chosen() {
  static const Kernels* kernels = use(usable_kernels().front());
  return kernels;
}

}  // namespace

bool vnni_in_use = false;

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> found;
  for (const Kernels* kernels :
       {kernels_avx512_vnni(), kernels_avx512(), kernels_avx2_vnni(), kernels_avx2(), kernels_portable()}) {
    if (supported(kernels)) found.push_back(kernels);
  }
  return found;
}

const Kernels& kernels_in_use() { return *chosen(); }

void choose_kernels(const std::string& name) {
  for (const Kernels* kernels : usable_kernels()) {
    if (name == kernels->name) {
      chosen() = use(kernels);
      return;
    }
  }
  throw std::invalid_argument("name: need an instruction set of usable()");
}

}  // namespace diml
