#include "isa.h"

#include <stdexcept>

namespace skipnets {

#ifdef SKIPNETS_X86
extern const Kernels kernels_avx512, kernels_avx2;
#endif
extern const Kernels kernels_baseline;

std::vector<const Kernels*> usable_kernels() {
    std::vector<const Kernels*> usable;
#ifdef SKIPNETS_X86
    __builtin_cpu_init();
    // These ask the operating system too: it must save the wide registers.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        usable.push_back(&kernels_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) usable.push_back(&kernels_avx2);
#endif
    usable.push_back(&kernels_baseline);
    return usable;
}

const Kernels& choose_kernels(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : usable_kernels()) {
        if (name.empty() || name == kernels->name) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("instruction set \"" + name + "\" is not one that this processor and this build of "
                                "skipnets-engine share: " + names);
}

}  // namespace skipnets
